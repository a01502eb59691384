"""What the finished runs of an ablation say: table, statements, figures."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r1jax import statistics
from r1jax.report import comparison
from r1jax.report.chart import Curve, line_chart
from r1jax.report.comparison import LEVEL, Comparison
from r1jax.report.reader import JsonObject, estimate, read_run

Paths = Mapping[str, Sequence[Path]]  # variant -> its runs, a seed each
Points = Callable[[Path], list[tuple[int, float]]]  # of a run: step and value


class Quantity(NamedTuple):
  """A number of a run's row of the stage table: where it stands, how it is written."""

  place: tuple[str, ...]
  unit: str  # of differences
  factor: float  # from the file to that unit
  most: float = 100.0  # that it can be, in that unit


QUANTITIES = {
  'reasoning': Quantity(('reasoning', 'pass_at_1'), 'points', 100),
  'language': Quantity(('reasoning', 'rewards', 'language'), 'points', 100),
  'length': Quantity(('reasoning', 'length'), 'tokens', 1, math.inf),
  'general': Quantity(('general', 'pass_at_1'), 'points', 100),
  'preference': Quantity(('general', 'rewards', 'preference'), 'points', 100),
}


class VariantFigure(NamedTuple):
  """A chart with a line for each variant, the mean over its seeds."""

  title: str
  caption: str
  points: Points
  share: bool = False  # written in per cent


def _of(line: JsonObject, place: str) -> float | None:
  *outer, name = place.split('.')
  for part in outer:
    line = line.get(part) or {}
  value = estimate(line, name)
  return None if value is None else value.mean


def _points(lines: Sequence[JsonObject], place: str) -> list[tuple[int, float]]:
  found = ((line['step'], _of(line, place)) for line in lines)
  return [(step, value) for step, value in found if value is not None]


def over_evaluations(place: str) -> Points:
  """A quantity over the evaluations of a run; a dot leads into a group."""
  return lambda path: _points(read_run(path).evaluations, place)


def over_rl_steps(place: str) -> Points:
  """A quantity over the steps of RL of a run."""
  return lambda path: _points(read_run(path).rl, place)


PASS_AT_1 = VariantFigure(
  'Pass@1 over RL steps',
  'On validation problems, the mean over seeds, without an interval.',
  over_evaluations('pass_at_1'),
  share=True,
)


def row(path: Path) -> dict[str, Any]:
  """A finished run's row of the stage table."""
  return json.loads((path / 'evaluation-final.json').read_bytes())


def _number(row: Mapping[str, Any], quantity: Quantity) -> float:
  value: Any = row
  for name in quantity.place:
    value = value[name]
  return value['mean'] * quantity.factor


def cell(values: Sequence[float], most: float = 100.0) -> str:
  """The mean over seeds, with its 95 % t-interval where there are several.

  The interval is cut at 0 and at `most`, where the quantity ends.
  """
  if len(values) < 2:
    return f'{values[0]:.1f}'
  mean, low, high = statistics.seeds_interval(values, bounds=(0.0, most))
  return f'{mean:.1f} ({low:.1f} to {high:.1f})'


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
  """A line a variant, a column a quantity, under a head."""
  head = [
    f'{name}, {"%" if quantity.unit == "points" else quantity.unit}'
    for name, quantity in QUANTITIES.items()
  ]
  return [
    ['variant', *head],
    *(
      [
        variant,
        *(
          cell([_number(row, q) for row in found], q.most) for q in QUANTITIES.values()
        ),
      ]
      for variant, found in rows.items()
    ),
  ]


def statements(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
  """How each variant differs from the first, in words.

  Seed by seed, in every quantity: a run is the unit, as runs of one variant differ by
  several points. All runs start from one parent and answer the same problems, which the
  statements take as given. With one seed no variant can be told from another; then the
  two models are compared problem by problem, in reasoning. A level of 5 % is shared by
  all comparisons of the page (Bonferroni).
  """
  (first, base), *others = rows.items()
  if not others:
    return []
  if len(base) < 2:
    return _of_two_models(first, base[0], {name: mine[0] for name, mine in others})
  count = len(others) * len(QUANTITIES)
  level = LEVEL / count
  given = f'by seed ({len(base)} of each variant), given this parent and these problems'
  found = [comparison.shared(count, given)]
  for variant, mine in others:
    for name, quantity in QUANTITIES.items():
      before, after = ([_number(row, quantity) for row in x] for x in (base, mine))
      test = statistics.seeds_paired(before, after, 1 - level)
      sentence = _sentence(name, variant, first, test, test.p < level, quantity.unit)
      found.append(sentence)
  return found


def _of_two_models(
  first: str, base: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """How models of one seed differ in reasoning, problem by problem."""
  level = LEVEL / len(others)
  kind = 'of single models, by problem, which say nothing of other seeds'
  found = [comparison.shared(len(others), kind)]
  for variant, mine in others.items():
    before, after = (
      np.array(row['reasoning']['right']) / row['reasoning']['k']
      for row in (base, mine)
    )
    groups = base['reasoning']['groups']
    test = statistics.paired(before, after, 0, 1 - level, groups)
    points = statistics.Interval(*(100 * x for x in test.difference))
    test = test._replace(difference=points)
    mine_is, base_is = (f'the model of {name}' for name in (variant, first))
    told = test.p < level
    found.append(_sentence('reasoning', mine_is, base_is, test, told, 'points'))
  return found


def _sentence(
  name: str,
  variant: str,
  first: str,
  test: statistics.Paired,
  told_apart: bool,
  unit: str,
) -> str:
  mean, low, high = test.difference
  word = comparison.verdict(mean, told_apart)
  than = 'from' if word == 'not told apart' else 'than'
  return (
    f'{name}: {variant} is {word} {than} {first}, {mean:+z.1f} {unit} '
    f'({low:+z.1f} to {high:+z.1f}), p = {test.p:.2g}.'
  )


def charts(figures: Sequence[VariantFigure], paths: Paths) -> list[str]:
  """Each figure as HTML; one without any points is left out."""
  found = []
  for figure in figures:
    curves = [
      Curve(name, role, points, marked=True)
      for role, (name, runs) in zip(comparison.ROLES, paths.items(), strict=False)
      if (points := _over_seeds(figure.points, runs))
    ]
    if curves:
      svg = line_chart(
        curves, label=figure.title, share=figure.share, width=880, height=320
      )
      found.append(comparison.figure(figure.title, figure.caption, svg))
  return found


def _over_seeds(points: Points, runs: Sequence[Path]) -> list[tuple[int, float]]:
  """The mean at each step that all runs have."""
  by_seed = [dict(points(run)) for run in runs]
  steps = [step for step in by_seed[0] if all(step in values for values in by_seed)]
  return [
    (step, float(np.mean([values[step] for values in by_seed]))) for step in steps
  ]


def summarise(
  question: str, paths: Paths, figures: Sequence[VariantFigure]
) -> Comparison:
  """The result of finished runs."""
  rows = {variant: [row(path) for path in runs] for variant, runs in paths.items()}
  lines, said = table(rows), statements(rows)
  seeds = len(next(iter(paths.values())))
  facts = f'{len(paths)} variants · {seeds} {"seed" if seeds == 1 else "seeds"} of each'
  parts = [comparison.table(lines), *charts(figures, paths)]
  source = 'evaluation-final.json and metrics.jsonl of the runs'
  html = comparison.page(question, facts, said, parts, source)
  return Comparison([question, *comparison.columns(lines), *said], html)
