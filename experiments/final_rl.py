"""R1 stage 4: RL for all scenarios, with a preference model.

  python -m experiments.final_rl --parent runs/rejection_sft

DeepSeek-R1 (Nature version), second RL stage: rules reward reasoning, and all outputs
get the language-consistency reward. Instructions and the preference model are added
only towards the end, since more steps of them lead to reward hacking. Temperature 0.7.
Cost on two CPU cores and results over seeds: docs/results.md.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import optax

from experiments.reasoning_rl import GRPO
from r1jax import optim
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature.judge import JudgeConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.sharding.mesh import local_mesh
from r1jax.stages import preference, problem_sets
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.preference_scoring import PreferenceReward, Scorer
from r1jax.stages.problem_sets import Problems, problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, check_rewards, reward_pool
from r1jax.tasks import REASONING, Problem


@dataclasses.dataclass(frozen=True)
class FinalRL(StageConfig):
  """R1's last stage: RL on reasoning, then also on instructions by preference."""

  parent: str = 'runs/rejection_sft'  # the work directory of rejection_sft
  workdir: str = 'runs/final_rl'  # all files of the stage
  reasoning_weight: float = (
    1.0  # weight of the accuracy reward, reasoning problems only
  )
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
    if not 0 <= self.general_share <= 1:
      raise ValueError(f'general_share: expected 0 to 1, got {self.general_share}')
    if not 0 <= self.general_after <= self.rl.steps:
      raise ValueError(
        f'general_after: expected 0 to rl.steps = {self.rl.steps}, got '
        f'{self.general_after}'
      )
    if self.judged < 1 or self.judged % self.rl.prompts_per_step:
      raise ValueError(
        f'judged: expected a multiple of rl.prompts_per_step = '
        f'{self.rl.prompts_per_step}, got {self.judged}'
      )

  def check(self, problems: Problems) -> None:
    """Raises ValueError for settings that do not fit these problems."""
    super().check(problems)
    available, size = len(problems.train[-1]), self.rl.prompts_per_step
    if self.judged > available:
      most = available // size * size
      raise ValueError(
        f'judged: expected at most the {available} instructions to learn from, got '
        f'{self.judged}; '
        + (f'set it to {most}' if most else 'lower rl.prompts_per_step')
      )

  def rewards(self) -> list[Weighted]:
    """Returns the rules; accuracy on all problems is measured, not rewarded."""
    return [
      Weighted('accuracy', rules.accuracy, 0.0),
      Weighted('reasoning', rules.reasoning, self.reasoning_weight),
      Weighted('language', rules.language_consistency, self.language_weight),
      Weighted('readable', rules.readable, 0.0),
    ]


def problem_order(
  config: FinalRL, problems: Problems, seed: int
) -> Callable[[int], Problem]:
  """Returns index -> problem: reasoning, mixed with instructions from a step on.

  No problem is repeated before all problems of its task were used.
  """
  reasoning = problem_stream(problems.train[: len(REASONING)], config.shares, seed)
  first = config.general_after * config.rl.prompts_per_step
  used = Counter(reasoning(index).task for index in range(first))
  share = config.general_share
  shares = [(1 - share) * x / sum(config.shares) for x in config.shares]
  begin = [used[task] for task in problem_sets.TASKS]
  everything = problem_stream(problems.train, [*shares, share], seed, begin)

  def problem_at(index: int) -> Problem:
    return reasoning(index) if index < first else everything(index - first)

  return problem_at


def preference_model(stage: Stage, config: FinalRL, params: optax.Params) -> Scorer:
  """Returns a preference model of the judge's ranking of the parent's outputs."""
  optim.check_learning_rate(params, config.preference.optim, 'preference.optim')
  pairs = preference.judged_pairs(
    stage.run,
    stage.sampler,
    params,
    stage.problems.train[-1][: config.judged],
    judge=config.judge,
    prompts=config.rl.prompts_per_step,
    group_size=config.rl.group_size,
    max_length=max(n for _, n in config.rl.max_length),
    seed=stage.seed,
  )
  trained = preference.train(
    stage.run,
    'preference',
    params,
    policy=stage.policy,
    pairs=pairs,
    config=config.preference,
    mesh=stage.mesh,
    seed=stage.seed,
  )
  local = local_mesh(stage.mesh)
  return Scorer(trained, stage.policy, config.preference.max_length, local)


def run(stage: Stage, config: FinalRL) -> Trained:
  """Trains the preference model, then the policy by RL."""
  before = stage.params()
  problem_at = problem_order(config, stage.problems, stage.seed)
  with reward_pool(config.rl, config.rewards(), config.preference_weight) as pool:
    scorer = preference_model(stage, config, before)
    rewarder = PreferenceReward(pool, scorer, config.preference_weight)
    params = stage.rl(lambda: before, rewarder, problem_at, config.rl, config.evals)
  return Trained({'final': params})


FINAL_RL = Experiment(
  'final_rl',
  child_of('final_rl', 'rejection_sft'),
  run,
  phases=('preference', 'rl'),
  report=True,
)

if __name__ == '__main__':
  FINAL_RL.main(FinalRL())
