"""Budget forcing: accuracy of a trained model with fewer and fewer tokens of thoughts.

  python -m experiments.thinking --parent runs/final_rl

Truncates the thoughts of one model after a given number of tokens, down to none, so
that nothing but their length differs. The paper shows a correlation: during R1-Zero's
training longer thoughts and better answers appear together (Nature version). Uses the
problems of the test split, as the stage table does; the result is about this one model.
"""

import dataclasses

import jax

from r1jax.evaluation import budget_forcing
from r1jax.evaluation.budget_forcing import BudgetForcer
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.report import budget
from r1jax.report.words import LEVEL
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import cli, compilation
from r1jax.runtime.errors import user_errors
from r1jax.runtime.workdir import machine_settings, open_workdir
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import fit_mesh
from r1jax.stages import artifact, problem_sets
from r1jax.stages.rl_config import MACHINE

QUESTION = 'What are thoughts worth?'


@dataclasses.dataclass(frozen=True)
class Thinking:
  """One model with several budgets of thoughts."""

  parent: str = 'runs/final_rl'  # the work directory of any finished stage
  workdir: str = 'runs/thinking'  # thinking.json and the page
  seed: int = 0  # everything random follows from it
  # Of tensorflow-datasets; None is its own default.
  data_dir: str | None = dataclasses.field(default=None, metadata=MACHINE)
  budgets: tuple[int, ...] = (0, 16, 32, 64, 128)  # tokens of thoughts
  answer_length: int = 32  # tokens of an answer after truncated thoughts
  max_length: int = 320  # tokens of an output whose thoughts are not truncated
  evals: EvalConfig = EvalConfig(
    draw=SamplingConfig(temperature=0.6, top_p=0.95)  # the paper's protocol
  )

  def __post_init__(self) -> None:
    budget_forcing.check_budgets(self.budgets)
    for field in ('answer_length', 'max_length'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field}: expected 1 or more, got {getattr(self, field)}')
    if self.evals.problems % self.evals.prompts_per_batch:
      raise ValueError(
        'evals.problems: expected a multiple of evals.prompts_per_batch = '
        f'{self.evals.prompts_per_batch}, got {self.evals.problems}'
      )


def main(config: Thinking) -> None:
  """Measures every budget; writes thinking.json and thinking.html."""
  compilation.keep_on_disk()
  parent = artifact.load(config.parent)
  problem_set = problem_sets.problems_of(parent, config.data_dir)
  problem_set.check_length('max_length', config.max_length)
  size = config.evals.prompts_per_batch
  devices = fit_mesh({'evals.prompts_per_batch': size})
  forcer = BudgetForcer(
    Sampler(parent.policy, problem_set.max_prompt_length, devices),
    max(config.budgets),
    config.answer_length,
  )
  forcer.check(problem_set.max_positions)
  problems = problem_set.reasoning('test')[: config.evals.problems]
  problems = problems[: len(problems) // size * size]
  workdir = open_workdir(config.workdir, config, may_change=machine_settings(config))
  with RewardPool([Weighted('accuracy', rules.accuracy, 1.0)]) as pool:
    rows = budget_forcing.measure(
      parent.params(devices),
      jax.random.key(problem_sets.own_seed(config.seed, 'thinking')),
      problems,
      forcer=forcer,
      budgets=sorted(config.budgets),
      pool=pool,
      config=config.evals,
      max_length=config.max_length,
      confidence=1 - LEVEL / len(config.budgets),
    )
  facts = f'{parent.name} · {len(problems)} problems · {rows[0]["k"]} outputs of each'
  print('\n'.join(budget.write(workdir, QUESTION, facts, rows)))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Thinking()))
