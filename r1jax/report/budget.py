"""Budget forcing in the report: accuracy with less and less time to think."""

from __future__ import annotations  # fields have the names of their modules

from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.report import comparison
from r1jax.report.chart import Curve, line_chart
from r1jax.report.comparison import LEVEL


def budget_name(row: Mapping[str, Any]) -> str:
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
        budget_name(row),
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
  level = LEVEL / (len(rows) - 1)
  found = [comparison.shared(len(rows) - 1, 'of this one model, by problem')]
  for row in rows[:-1]:
    versus = row['versus_free']
    told = versus['p'] < level
    word = comparison.verdict(versus['mean'], told)
    than = 'from' if word == 'not told apart' else 'than'
    mean, low, high = (100 * versus[x] for x in ('mean', 'low', 'high'))
    found.append(
      f'pass@1 with {budget_name(row)} of thoughts is {word} {than} with as many as '
      f'the model likes, {mean:+.1f} points ({low:+.1f} to {high:+.1f}), '
      f'p = {versus["p"]:.2g}.'
    )
  return found


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
  """Accuracy over the tokens of thoughts, as HTML."""
  ordered = sorted(rows, key=lambda row: row['thoughts']['mean'])
  steps = [round(row['thoughts']['mean']) for row in ordered]
  overall = [row['pass_at_1'] for row in ordered]
  curves = [
    Curve(
      'all',
      comparison.ROLES[0],
      [(x, value['mean']) for x, value in zip(steps, overall, strict=True)],
      [(x, v['low'], v['high']) for x, v in zip(steps, overall, strict=True)],
      marked=True,
    )
  ]
  for role, task in zip(comparison.ROLES[1:], ordered[0]['tasks'], strict=False):
    means = [row['tasks'][task]['mean'] for row in ordered]
    curves.append(Curve(task, role, list(zip(steps, means, strict=True)), marked=True))
  title = 'Pass@1 over the tokens of thoughts'
  svg = line_chart(
    curves, label=title, share=True, width=880, height=360, at='{} tokens'
  )
  caption = (
    'A point for each budget, at its mean tokens over all problems, the last one for '
    'thoughts as the model likes; the band is the 95 % interval over problems, of this '
    'one model. Where a line rises, thoughts pay.'
  )
  return comparison.figure(title, caption, svg)
