"""The paper's findings, each with a verdict that follows from the numbers alone.

A finding is one or more checks; it came back where all hold, and did not where one
fails. A check asks on which side of a bar a 95 % interval lies, and is not clear where
the interval contains it. What was solved is compared problem by problem; of the other
quantities only intervals are known.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from r1jax.stages.report import words
from r1jax.stages.report.folders import (
  BASE,
  DEV1,
  DEV2,
  DEV3,
  FOLLOWED,
  LANGUAGE,
  METHODS,
  PREFERRED,
  R1,
  READABLE,
  SOLVED,
  ZERO,
  Measure,
  Model,
  Pipeline,
)
from r1jax.stages.report.paper import (
  Paper,
  said_of_stages,
  said_of_students,
  said_of_zero,
)
from r1jax.stages.report.run import Line, Measured
from r1jax.statistics import Interval

FAR = 0.10  # points of pass@1 that we call far; the paper's RL gained 62
PURE = 0.95  # share of words in the language asked for, below which we call it mixed
HALF = 0.50  # share of readable outputs, below which readability is low

CAME, FAILED, UNCLEAR = 'came back', 'did not come back', 'not clear'
MISSING = 'not measured'

Side = Callable[[Interval], bool | None]  # whether a difference is as claimed


class Check(NamedTuple):
  """A comparison in words; `holds` is None where the numbers do not decide."""

  text: str
  holds: bool | None


class Finding(NamedTuple):
  """A finding of the paper; a check is None where its numbers are missing."""

  claim: str
  checks: Sequence[Check | None]
  paper: str = ''

  @property
  def verdict(self) -> str:
    """One of `CAME`, `FAILED`, `UNCLEAR`, `MISSING`."""
    checks = [check for check in self.checks if check is not None]
    if len(checks) < max(len(self.checks), 1):
      return MISSING
    if any(check.holds is False for check in checks):
      return FAILED
    return CAME if all(check.holds for check in checks) else UNCLEAR


def findings(pipeline: Pipeline, paper: Paper | None) -> list[Finding]:
  """The findings in the order of the recipe, beside the paper's numbers."""

  def moved(measure: Measure, before: Model, after: Model, holds: Side) -> Check | None:
    names, rows = (before.title, after.title), map(pipeline.row, (before, after))
    return _compare(measure, names, tuple(rows), holds)

  def said(benchmark: str, before: Model, after: Model) -> str:
    return said_of_stages(paper, benchmark, before, after)

  return [
    Finding(
      'RL alone lifts reasoning far above the base model',
      [moved(SOLVED, BASE, ZERO, _far)],
      said_of_zero(paper),
    ),
    Finding(
      'R1-Zero mixes languages and is hard to read',
      [
        _level(pipeline, LANGUAGE, ZERO, PURE, above=False),
        _level(pipeline, READABLE, ZERO, HALF, above=False),
      ],
    ),
    Finding(
      'The cold start costs reasoning',
      [moved(SOLVED, ZERO, DEV1, _falls)],
      said('AIME 2024', ZERO, DEV1),
    ),
    Finding(
      'The cold start buys readability, one language and instruction following',
      [moved(bought, ZERO, DEV1, _rises) for bought in (READABLE, LANGUAGE, FOLLOWED)],
      said('IF-Eval', ZERO, DEV1),
    ),
    Finding(
      'Reasoning RL wins reasoning back and keeps to one language',
      [
        moved(SOLVED, DEV1, DEV2, _rises),
        _level(pipeline, LANGUAGE, DEV2, PURE, above=True),
      ],
      said('AIME 2024', DEV1, DEV2),
    ),
    Finding(
      'SFT on the rejection-sampled set improves instruction following',
      [moved(FOLLOWED, DEV2, DEV3, _rises)],
      said('IF-Eval', DEV2, DEV3),
    ),
    Finding(
      'The last stage is preferred most, and reasons within noise of the best',
      [
        moved(PREFERRED, _best(pipeline, PREFERRED), R1, _rises),
        moved(SOLVED, _best(pipeline, SOLVED), R1, _keeps),
      ],
      said('ArenaHard', DEV3, R1),
    ),
    Finding(
      'Distilling beats RL straight on the same student',
      _students(pipeline, 'rl'),
      said_of_students(paper),
    ),
    Finding(
      'Distilling thoughts beats distilling answers alone',
      _students(pipeline, 'answers'),
    ),
  ]


def count(found: Sequence[Finding]) -> str:
  """How many findings have which verdict."""
  verdicts = [finding.verdict for finding in found]
  parts = [
    f'{verdicts.count(verdict)} {verdict}'
    for verdict in (CAME, FAILED, UNCLEAR, MISSING)
    if verdict in verdicts
  ]
  return f'Of {len(found)} findings: {", ".join(parts)}.'


def apart(before: Measured, after: Measured) -> Interval | None:
  """The interval of `after - before` from theirs, as if they were independent.

  The distances from means to limits add up as squares (Zou and Donner 2008, MOVER);
  since the problems are the same, that is wider than need be. None without intervals.
  """
  if before.low is None or before.high is None:
    return None
  if after.low is None or after.high is None:
    return None
  difference = after.mean - before.mean
  down = math.hypot(after.mean - after.low, before.high - before.mean)
  up = math.hypot(after.high - after.mean, before.mean - before.low)
  return Interval(difference, difference - down, difference + up)


def _compare(
  measure: Measure, names: Sequence[str], rows: Sequence[Line], holds: Side
) -> Check | None:
  """The check of a difference between two evaluations; None if one lacks numbers."""
  before, after = (measure.of(row) for row in rows)
  if before is None or after is None:
    return None
  kind, *keys = measure.path
  paired = None
  if keys == ['pass_at_1']:
    paired = words.compared(rows[0][kind], rows[1][kind])
  found = apart(before, after) if paired is None else paired.difference
  if found is None:
    return None
  mean, low, high = (words.signed(x) for x in found)
  by = f'{mean} points ({low} to {high})' if paired is None else words.points(paired)
  ends = ' → '.join(
    f'{name} {words.percent(value.mean)}'
    for name, value in zip(names, (before, after), strict=True)
  )
  return Check(f'{measure.name}: {ends}, {by}', holds(found))


def _level(
  pipeline: Pipeline, measure: Measure, model: Model, bar: float, *, above: bool
) -> Check | None:
  """The check that a quantity lies above a bar, or below it."""
  value = measure.of(pipeline.row(model))
  if value is None or value.low is None or value.high is None:
    return None
  holds = _side(Interval(value.mean, value.low, value.high), bar)
  if not above and holds is not None:
    holds = not holds
  side = 'above' if above else 'below'
  said = f'{measure.name}: {model.title} {words.with_interval(value)}'
  return Check(f'{said}, expected {side} {100 * bar:.0f}\u202f%', holds)


def _side(found: Interval, bar: float) -> bool | None:
  """Whether an interval lies above the bar; None where it contains it."""
  if found.low > bar:
    return True
  return False if found.high < bar else None


def _rises(found: Interval) -> bool | None:
  return _side(found, 0.0)


def _far(found: Interval) -> bool | None:
  return _side(found, FAR)


def _falls(found: Interval) -> bool | None:
  return _side(Interval(-found.mean, -found.high, -found.low), 0.0)


def _keeps(found: Interval) -> bool:
  """At least within noise of zero."""
  return found.high >= 0


def _best(pipeline: Pipeline, measure: Measure) -> Model:
  """The model that did best of those between the base and R1."""
  means = {}
  for model in (ZERO, DEV1, DEV2, DEV3):
    value = measure.of(pipeline.row(model))
    means[model] = -1.0 if value is None else value.mean
  return max(means, key=means.__getitem__)


def _students(pipeline: Pipeline, other: str) -> list[Check | None]:
  """SFT on R1's outputs against another method, for each student that has both."""
  checks: list[Check | None] = []
  for folder in pipeline.students:
    rows = folder.rows.get(other, {}), folder.rows.get('sft', {})
    check = _compare(SOLVED, (METHODS[other], METHODS['sft']), rows, _rises)
    if check is not None:
      checks.append(check._replace(text=f'{folder.title}, {check.text}'))
  return checks
