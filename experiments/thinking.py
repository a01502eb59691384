"""Budget forcing: accuracy of a trained model with fewer and fewer tokens of thoughts.

  python -m experiments.thinking --parent runs/final_rl

Truncates the thoughts of one model after a given number of tokens, down to none, so
that nothing but their length differs. The paper shows a correlation: during R1-Zero's
training longer thoughts and better answers appear together (Nature version). Uses the
problems of the test split, as the stage table does; the result is about this one model.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.ablations import page
from r1jax.report import chart
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import cli, compilation
from r1jax.runtime.errors import user_errors
from r1jax.runtime.log import jsonable
from r1jax.runtime.workdir import machine_settings, open_workdir, write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import fit_mesh
from r1jax.stages import artifact, budget_forcing, problem_sets
from r1jax.stages.budget_forcing import BudgetForcer
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.rollout import Sampler

QUESTION = 'What are thoughts worth?'


@dataclasses.dataclass(frozen=True)
class Thinking:
  """One model with several budgets of thoughts."""

  parent: str = 'runs/final_rl'  # the work directory of any finished stage
  workdir: str = 'runs/thinking'  # thinking.json and the page
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  budgets: tuple[int, ...] = (0, 16, 32, 64, 128)  # tokens of thoughts
  answer_length: int = 32  # tokens of an answer after truncated thoughts
  max_length: int = 320  # tokens of an output whose thoughts are not truncated
  evals: EvalConfig = EvalConfig(
    draw=SamplingConfig(temperature=0.6, top_p=0.95)  # the paper's protocol
  )

  def __post_init__(self) -> None:
    if not self.budgets or min(self.budgets) < 0:
      raise ValueError(
        f'budgets: expected one or more numbers of 0 or more, got {self.budgets}'
      )
    if len(set(self.budgets)) < len(self.budgets):
      raise ValueError(f'budgets: expected different numbers, got {self.budgets}')
    for field in ('answer_length', 'max_length'):
      if getattr(self, field) < 1:
        raise ValueError(f'{field}: expected 1 or more, got {getattr(self, field)}')
    if self.evals.problems % self.evals.prompts_per_batch:
      raise ValueError(
        'evals.problems: expected a multiple of evals.prompts_per_batch = '
        f'{self.evals.prompts_per_batch}, got {self.evals.problems}'
      )


def name(row: Mapping[str, Any]) -> str:
  """A row's budget in words."""
  return 'free' if row['budget'] is None else f'{row["budget"]} tokens'


def _percent(interval: Mapping[str, float]) -> str:
  mean, low, high = (100 * interval[x] for x in ('mean', 'low', 'high'))
  return f'{mean:.1f} ({low:.1f} to {high:.1f})'


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """A line a budget under a head."""
  tasks = list(rows[0]['tasks'])
  return [
    ['budget', 'tokens thought', 'cut, %', 'pass@1, %', *(f'{x}, %' for x in tasks)],
    *(
      [
        name(row),
        f'{row["thoughts"]["mean"]:.1f}',
        f'{100 * row["cut"]:.1f}',
        _percent(row['pass_at_1']),
        *(_percent(row['tasks'][task]) for task in tasks),
      ]
      for row in rows
    ),
  ]


def statements(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """How each budget differs from thoughts as the model likes, in words.

  Of this one model, problem by problem, at a level of 5 % that the budgets share
  (Bonferroni); the rows' intervals of the differences have that confidence.
  """
  level = page.LEVEL / (len(rows) - 1)
  found = [page.shared(len(rows) - 1, 'of this one model, by problem')]
  for row in rows[:-1]:
    versus = row['versus_free']
    told = versus['p'] < level
    word = page.verdict(versus['mean'], told)
    than = 'from' if word == 'not told apart' else 'than'
    mean, low, high = (100 * versus[x] for x in ('mean', 'low', 'high'))
    found.append(
      f'pass@1 with {name(row)} of thoughts is {word} {than} with as many as the model '
      f'likes, {mean:+.1f} points ({low:+.1f} to {high:+.1f}), p = {versus["p"]:.2g}.'
    )
  return found


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
  """Accuracy over the tokens of thoughts, as HTML."""
  ordered = sorted(rows, key=lambda row: row['thoughts']['mean'])
  steps = [round(row['thoughts']['mean']) for row in ordered]
  overall = [row['pass_at_1'] for row in ordered]
  curves = [
    chart.Curve(
      'all',
      page.ROLES[0],
      [(x, value['mean']) for x, value in zip(steps, overall, strict=True)],
      [(x, v['low'], v['high']) for x, v in zip(steps, overall, strict=True)],
      marked=True,
    )
  ]
  for role, task in zip(page.ROLES[1:], ordered[0]['tasks'], strict=False):
    means = [row['tasks'][task]['mean'] for row in ordered]
    curves.append(
      chart.Curve(task, role, list(zip(steps, means, strict=True)), marked=True)
    )
  title = 'Pass@1 over the tokens of thoughts'
  svg = chart.line_chart(
    curves, label=title, share=True, width=880, height=360, at='{} tokens'
  )
  caption = (
    'A point for each budget, at its mean tokens over all problems, the last one for '
    'thoughts as the model likes; the band is the 95 % interval over problems, of this '
    'one model. Where a line rises, thoughts pay.'
  )
  return page.figure(title, caption, svg)


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
  if forcer.positions > problem_set.max_positions:
    most = problem_set.max_positions - (forcer.positions - forcer.largest)
    raise ValueError(
      f'budgets: expected at most {most} tokens, as the model was trained on rows of '
      f'{problem_set.max_positions}, got {forcer.largest}; lower it, or answer_length'
    )
  problems = problem_set.reasoning('test')[: config.evals.problems]
  problems = problems[: len(problems) // size * size]
  workdir = open_workdir(config.workdir, config, may_change=machine_settings(config))
  accuracy = [Weighted('accuracy', rules.accuracy, 1.0)]
  with RewardPool(accuracy) as pool:
    rows = budget_forcing.measure(
      parent.params(devices),
      jax.random.key(problem_sets.own_seed(config.seed, 'thinking')),
      problems,
      forcer=forcer,
      budgets=sorted(config.budgets),
      pool=pool,
      config=config.evals,
      max_length=config.max_length,
      confidence=1 - page.LEVEL / len(config.budgets),
    )
  write_whole(workdir / 'thinking.json', json.dumps(jsonable(rows), indent=2) + '\n')
  lines, said = table(rows), statements(rows)
  facts = f'{parent.name} · {len(problems)} problems · {rows[0]["k"]} outputs of each'
  parts = [page.table(lines), figure(rows)]
  html = page.page(QUESTION, facts, said, parts, 'thinking.json')
  write_whole(workdir / 'thinking.html', html)
  print('\n'.join([*page.columns(lines), *said, str(workdir / 'thinking.html')]))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Thinking()))
