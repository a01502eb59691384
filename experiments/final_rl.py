"""R1 stage 4: RL for all scenarios, with a preference model.

  python -m experiments.final_rl --parent runs/rejection_sft

DeepSeek-R1 (Nature version), second RL stage: rules reward reasoning, and all outputs
get the language-consistency reward. Instructions and the preference model are added
only towards the end, since more steps of them lead to reward hacking. Temperature 0.7.
Cost on two CPU cores and results over seeds: docs/results.md.
"""

import dataclasses

from experiments.reasoning_rl import GRPO
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature.judge import JudgeConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.stages import problem_sets
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.preference import PreferenceConfig, check_judged
from r1jax.stages.preference_scoring import PreferenceReward
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, check_rewards, reward_pool
from r1jax.tasks import REASONING


@dataclasses.dataclass(frozen=True)
class FinalRL(StageConfig):
  """R1's last stage: RL on reasoning, then also on instructions by preference."""

  parent: str = 'runs/rejection_sft'  # the work directory of rejection_sft
  workdir: str = 'runs/final_rl'  # all files of the stage
  # weight of the accuracy reward, reasoning problems only
  reasoning_weight: float = 1.0
  language_weight: float = 1.0  # weight of the language-consistency reward
  preference_weight: float = 1.0  # weight of the preference model's reward
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  general_share: float = 0.5  # share of instructions after general_after
  general_after: int = 16  # steps on reasoning alone (R1: 1,300 of 1,700)
  judged: int = 640  # instructions whose outputs the judge compares
  judge: JudgeConfig = JudgeConfig()
  preference: PreferenceConfig = PreferenceConfig(
    epochs=4,  # R1: 1, of 66k pairs
    optim=OptimConfig(learning_rate=2e-3, schedule='cosine', eps=1e-6),
  )
  rl: RLConfig = RLConfig(
    steps=40,
    temperature=((0, 0.7),),
    optim=OptimConfig(learning_rate=3e-4, schedule='cosine', eps=1e-6),
    grpo=GRPO,
  )
  evals: EvalConfig = EvalConfig()
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, REASONING)
    check_rewards(self.rewards(), self.preference_weight)
    problem_sets.check_general(self.general_share, self.general_after, self.rl.steps)
    check_judged(self.judged, self.rl.prompts_per_step)

  def check(self, problems: problem_sets.Problems) -> None:
    """Raises ValueError for settings that do not fit these problems."""
    super().check(problems)
    check_judged(self.judged, self.rl.prompts_per_step, len(problems.train[-1]))

  def rewards(self) -> list[Weighted]:
    """Returns the rules; accuracy on all problems is measured, not rewarded."""
    return [
      Weighted('accuracy', rules.accuracy, 0.0),
      Weighted('reasoning', rules.reasoning, self.reasoning_weight),
      Weighted('language', rules.language_consistency, self.language_weight),
      Weighted('readable', rules.readable, 0.0),
    ]


def run(stage: Stage, config: FinalRL) -> Trained:
  """Trains the preference model, then the policy by RL."""
  before, train = stage.params(), stage.problems.train
  first = config.rl.problem_numbers(config.general_after + 1).start
  problem_at = problem_sets.stream_with_general(
    train, config.shares, stage.seed, general_share=config.general_share, first=first
  )
  with reward_pool(config.rl, config.rewards(), config.preference_weight) as pool:
    scorer = stage.preference_model(
      before, train[-1][: config.judged], config.judge, config.preference, config.rl
    )
    rewarder = PreferenceReward(pool, scorer, config.preference_weight)
    params = stage.rl(lambda: before, rewarder, problem_at, config.rl, config.evals)
  return Trained({'final': params})


FINAL_RL = Experiment(
  'final_rl', child_of('rejection_sft'), run, phases=('preference', 'rl'), report=True
)

if __name__ == '__main__':
  FINAL_RL.main(FinalRL())
