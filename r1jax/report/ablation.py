"""The result of an ablation's finished runs: table, sentences, charts over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r1jax import statistics
from r1jax.plain import JsonObject
from r1jax.report.chart import ROLES, Curve, CurveFigure
from r1jax.report.comparison import (
  Comparison,
  compare,
  difference_sentence,
  level_sentence,
)
from r1jax.report.reader import (
  nested_estimate,
  read_evaluation,
  read_run,
)
from r1jax.report.words import LEVEL

RunPaths = Mapping[str, Sequence[Path]]  # by variant, its runs, one for each seed
Evaluations = Mapping[str, Sequence[JsonObject]]  # by variant, those of its runs
Points = Callable[[Path], list[tuple[int, float]]]  # step and value of a run


class Quantity(NamedTuple):
  """A column of the table: a number of an evaluation, under nested keys."""

  path: tuple[str, ...]
  unit: str  # of differences
  factor: float  # from the file to that unit
  upper: float = 100.0  # bound, in that unit


QUANTITIES = {
  'reasoning': Quantity(('reasoning', 'pass_at_1'), 'points', 100),
  'language': Quantity(('reasoning', 'rewards', 'language'), 'points', 100),
  'length': Quantity(('reasoning', 'length'), 'tokens', 1, math.inf),
  'general': Quantity(('general', 'pass_at_1'), 'points', 100),
  'preference': Quantity(('general', 'rewards', 'preference'), 'points', 100),
}


class VariantFigure(NamedTuple):
  """A chart with a curve for each variant: the mean over its seeds."""

  title: str
  caption: str
  points: Points
  share: bool = False  # written in per cent


def over_evaluations(name: str) -> Points:
  """Returns what reads a quantity over the evaluations of a run.

  A dot in `name` leads into an object: 'rewards.language'.
  """
  return lambda path: _points(read_run(path).evaluations, name)


def over_rl_steps(name: str) -> Points:
  """Returns what reads a quantity over the RL steps of a run."""
  return lambda path: _points(read_run(path).rl, name)


def _points(lines: Sequence[JsonObject], name: str) -> list[tuple[int, float]]:
  found = ((x['step'], nested_estimate(x, tuple(name.split('.')))) for x in lines)
  return [(step, value.mean) for step, value in found if value is not None]


PASS_AT_1 = VariantFigure(
  'Pass@1 over RL steps',
  'On validation problems, the mean over seeds, without an interval.',
  over_evaluations('pass_at_1'),
  share=True,
)


def summarise(
  question: str, paths: RunPaths, figures: Sequence[VariantFigure]
) -> Comparison:
  """Returns the comparison of finished runs, under `question` as its title."""
  rows = {
    variant: [read_evaluation(path, 'final') for path in runs]
    for variant, runs in paths.items()
  }
  seeds = len(next(iter(paths.values())))
  return compare(
    question,
    f'{len(paths)} variants · {seeds} {"seed" if seeds == 1 else "seeds"} of each',
    table(rows),
    statements(rows),
    curve_figures(figures, paths),
    'evaluation-final.json and metrics.jsonl of the runs',
  )


def table(rows: Evaluations) -> list[list[str]]:
  """Returns a head and a row for each variant, with a column for each quantity."""
  head = [
    f'{name}, {"%" if quantity.unit == "points" else quantity.unit}'
    for name, quantity in QUANTITIES.items()
  ]
  body = [
    [
      variant,
      *(cell([_number(row, q) for row in runs], q.upper) for q in QUANTITIES.values()),
    ]
    for variant, runs in rows.items()
  ]
  return [['variant', *head], *body]


def cell(values: Sequence[float], upper: float = 100.0) -> str:
  """Returns the mean over seeds, with its 95 % t-interval if there are several.

  The interval is cut at 0 and at `upper`, the bounds of the quantity.
  """
  if len(values) < 2:
    return f'{values[0]:.1f}'
  mean, low, high = statistics.seeds_interval(values, bounds=(0.0, upper))
  return f'{mean:.1f} ({low:.1f} to {high:.1f})'


def _number(row: JsonObject, quantity: Quantity) -> float:
  value: Any = row
  for name in quantity.path:
    value = value[name]
  return value['mean'] * quantity.factor


def statements(rows: Evaluations) -> list[str]:
  """Returns sentences on how each variant differs from the first.

  The unit is a run: runs of one variant differ by several points, so variants are
  compared seed by seed, in every quantity. All runs start from one parent and answer
  the same problems, which the sentences take as given. With one seed, variants cannot
  be compared; then two models are compared problem by problem, in reasoning. All
  comparisons of the page share a level of 5 % (Bonferroni).
  """
  (first, base), *others = rows.items()
  if not others:
    return []
  if len(base) < 2:
    return _of_two_models(first, base[0], {name: runs[0] for name, runs in others})
  count = len(others) * len(QUANTITIES)
  level = LEVEL / count
  given = f'by seed ({len(base)} of each variant), given this parent and these problems'
  found = [level_sentence(count, given)]
  for variant, runs in others:
    for name, quantity in QUANTITIES.items():
      before, after = ([_number(row, quantity) for row in x] for x in (base, runs))
      test = statistics.seeds_paired(before, after, 1 - level)
      sentence = difference_sentence(
        f'{name}: {variant}', first, test.difference, quantity.unit, test.p, level
      )
      found.append(sentence)
  return found


def _of_two_models(
  first: str, base: JsonObject, others: Mapping[str, JsonObject]
) -> list[str]:
  """Returns how models of one seed differ in reasoning, problem by problem."""
  level = LEVEL / len(others)
  kind = 'of single models, by problem, which say nothing about other seeds'
  found = [level_sentence(len(others), kind)]
  for variant, row in others.items():
    before, after = (
      np.array(x['reasoning']['right']) / x['reasoning']['k'] for x in (base, row)
    )
    groups = base['reasoning']['groups']
    test = statistics.paired(before, after, 0, 1 - level, groups)
    points = statistics.Interval(*(100 * x for x in test.difference))
    after_is, before_is = (f'the model of {name}' for name in (variant, first))
    sentence = difference_sentence(
      f'reasoning: {after_is}', before_is, points, 'points', test.p, level
    )
    found.append(sentence)
  return found


def curve_figures(
  figures: Sequence[VariantFigure], paths: RunPaths
) -> list[CurveFigure]:
  """Returns the charts; leaves out those without any points."""
  found = []
  for figure in figures:
    curves = [
      Curve(name, role, points, marked=True)
      for role, (name, runs) in zip(ROLES, paths.items(), strict=False)
      if (points := _over_seeds(figure.points, runs))
    ]
    if curves:
      found.append(CurveFigure(figure.title, figure.caption, curves, figure.share))
  return found


def _over_seeds(points: Points, runs: Sequence[Path]) -> list[tuple[int, float]]:
  """Returns the mean at each step that all runs have."""
  by_seed = [dict(points(run)) for run in runs]
  steps = [step for step in by_seed[0] if all(step in values for values in by_seed)]
  return [
    (step, float(np.mean([values[step] for values in by_seed]))) for step in steps
  ]
