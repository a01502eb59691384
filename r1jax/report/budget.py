"""The result of budget forcing: accuracy with less and less time to think.

A row is what `evaluation.budget_forcing.measure` returns for one budget; in the last
row the model thinks as long as it likes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1jax.plain import JsonObject
from r1jax.report.chart import ROLES, Curve, CurveFigure
from r1jax.report.comparison import (
  Comparison,
  compare,
  difference_sentence,
  level_sentence,
)
from r1jax.report.words import LEVEL
from r1jax.runtime.log import jsonable
from r1jax.runtime.workdir import write_whole
from r1jax.statistics import Interval

BudgetRow = JsonObject


def write(
  workdir: Path, title: str, facts: str, rows: Sequence[BudgetRow]
) -> list[str]:
  """Writes thinking.json and thinking.html; returns the result for the terminal."""
  content = json.dumps(jsonable(rows), indent=2) + '\n'
  write_whole(workdir / 'thinking.json', content)
  result, page = summarise(title, facts, rows), workdir / 'thinking.html'
  write_whole(page, result.html)
  return [*result.lines, str(page)]


def summarise(title: str, facts: str, rows: Sequence[BudgetRow]) -> Comparison:
  """Returns the comparison of all budgets."""
  figures = [curve_figure(rows)]
  sentences = statements(rows)
  source = 'thinking.json'
  return compare(title, facts, table(rows), sentences, figures, source, height=360)


def table(rows: Sequence[BudgetRow]) -> list[list[str]]:
  """Returns a head and a row for each budget."""
  tasks = list(rows[0]['tasks'])
  head = [
    'budget',
    'thinking tokens',
    'cut, %',
    'pass@1, %',
    *(f'{x}, %' for x in tasks),
  ]
  body = [
    [
      _name(row),
      f'{row["thoughts"]["mean"]:.1f}',
      f'{100 * row["cut"]:.1f}',
      _percent(row['pass_at_1']),
      *(_percent(row['tasks'][task]) for task in tasks),
    ]
    for row in rows
  ]
  return [head, *body]


def _name(row: BudgetRow) -> str:
  return 'unlimited' if row['budget'] is None else f'{row["budget"]} tokens'


def _percent(interval: Mapping[str, float]) -> str:
  mean, low, high = (100 * interval[x] for x in ('mean', 'low', 'high'))
  return f'{mean:.1f} ({low:.1f} to {high:.1f})'


def statements(rows: Sequence[BudgetRow]) -> list[str]:
  """Returns sentences on how each budget differs from thinking without a budget.

  They are about this one model, compared problem by problem. The budgets share a level
  of 5 % (Bonferroni); the intervals in `rows` have that confidence.
  """
  count = len(rows) - 1
  found = [level_sentence(count, 'of this one model, by problem')]
  for row in rows[:-1]:
    versus = row['versus_free']
    sentence = difference_sentence(
      f'pass@1 with {_name(row)} of thinking',
      'without a budget',
      Interval(*(100 * versus[x] for x in ('mean', 'low', 'high'))),
      'points',
      versus['p'],
      LEVEL / count,
    )
    found.append(sentence)
  return found


def curve_figure(rows: Sequence[BudgetRow]) -> CurveFigure:
  """Returns the chart of accuracy over thinking tokens."""
  ordered = sorted(rows, key=lambda row: row['thoughts']['mean'])
  steps = [round(row['thoughts']['mean']) for row in ordered]
  overall = [row['pass_at_1'] for row in ordered]
  means = [(x, value['mean']) for x, value in zip(steps, overall, strict=True)]
  band = [(x, v['low'], v['high']) for x, v in zip(steps, overall, strict=True)]
  curves = [Curve('all', ROLES[0], means, band, marked=True)]
  for role, task in zip(ROLES[1:], ordered[0]['tasks'], strict=False):
    by_task = [row['tasks'][task]['mean'] for row in ordered]
    points = list(zip(steps, by_task, strict=True))
    curves.append(Curve(task, role, points, marked=True))
  return CurveFigure(
    'Pass@1 over thinking tokens',
    'One point for each budget, at its mean number of thinking tokens; the last one is '
    'without a budget. The band is the 95 % interval over problems, for this one '
    'model. Where a line rises, thinking pays.',
    curves,
    share=True,
    at='{} tokens',
  )
