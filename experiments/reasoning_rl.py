"""R1 stage 2: RL on reasoning, with a reward for one language.

  python -m experiments.reasoning_rl --parent runs/cold_start

DeepSeek-R1 (Nature version), first RL stage: like R1-Zero, but from the cold start,
with clip ε = 10 and a reward for the share of words in the target language, added to
the accuracy. Cost on two CPU cores and results over seeds: docs/results.md.
"""

import dataclasses

from r1jax import algorithms
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.stages import problem_sets
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, check_rewards, reward_pool
from r1jax.tasks import REASONING

# R1's ε = 10 on both sides, see `paper.choices`. With two updates per rollout few
# ratios come near a bound.
GRPO = dataclasses.replace(
  algorithms.PRESETS['grpo'], mean='tokens', clip_low=1.0, clip_high=10.0
)


@dataclasses.dataclass(frozen=True)
class ReasoningRL(StageConfig):
  """R1's second stage: RL on reasoning problems with the language reward."""

  parent: str = 'runs/cold_start'  # the work directory of cold_start
  workdir: str = 'runs/reasoning_rl'  # all files of the stage
  accuracy_weight: float = 1.0  # weight of the accuracy reward
  language_weight: float = 1.0  # weight of the language-consistency reward (R1: 1)
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  rl: RLConfig = RLConfig(
    steps=60,
    # Half of R1-Zero's: with 8e-4, pass@1 fell by 13 points in 10 steps.
    optim=OptimConfig(learning_rate=4e-4, schedule='cosine', eps=1e-6),
    grpo=GRPO,
  )
  evals: EvalConfig = EvalConfig()
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, REASONING)
    check_rewards(self.rewards())

  def rewards(self) -> list[Weighted]:
    """Returns the rewards of an output."""
    return [
      Weighted('accuracy', rules.accuracy, self.accuracy_weight),
      Weighted('language', rules.language_consistency, self.language_weight),
      Weighted('readable', rules.readable, 0.0),
    ]


def run(stage: Stage, config: ReasoningRL) -> Trained:
  """Trains the cold start's model by RL."""
  problem_at = stage.problem_stream(config.shares)
  with reward_pool(config.rl, config.rewards()) as rewarder:
    params = stage.rl(stage.params, rewarder, problem_at, config.rl, config.evals)
  return Trained({'final': params})


REASONING_RL = Experiment(
  'reasoning_rl', child_of('cold_start'), run, phases=('rl',), report=True
)

if __name__ == '__main__':
  REASONING_RL.main(ReasoningRL())
