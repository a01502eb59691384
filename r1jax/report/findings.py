"""The paper's findings, each with a verdict that follows from the numbers alone.

A finding is one or more checks; it came back where all hold, and did not where one
fails. A check asks on which side of a bar an interval lies, and is not clear where the
interval contains it. All checks of a page share a level of 5 % (Bonferroni): with 16 of
them intervals are of 99.7 %, and with 5 % chance any of them is wrong. What the numbers
are of, one run or several seeds, `evidence` knows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from r1jax.report.evidence import Evidence, SeedEvidence, SingleRunEvidence
from r1jax.report.paper import Paper, stages_sentence, students_sentence, zero_sentence
from r1jax.report.reader import (
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
  Metric,
  ModelColumn,
  PipelineFiles,
)
from r1jax.report.words import LEVEL
from r1jax.statistics import Interval

FAR = 0.10  # points of pass@1 that we call far; the paper's RL gained 62
# Points of pass@1 that the last stage may lose and still reason as well as the best: a
# half of what we call far, and what two seeds of one recipe commonly differ by.
MARGIN = 0.05
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
  def is_complete(self) -> bool:
    """Whether all its numbers were measured."""
    return bool(self.checks) and None not in self.checks

  @property
  def verdict(self) -> str:
    """One of `CAME`, `FAILED`, `UNCLEAR`, `MISSING`."""
    if not self.is_complete:
      return MISSING
    checks = [check for check in self.checks if check is not None]
    if any(check.holds is False for check in checks):
      return FAILED
    return CAME if all(check.holds for check in checks) else UNCLEAR

  @property
  def mark(self) -> str:
    """How the page shows the verdict: 'right', 'wrong' or 'open'."""
    return {CAME: 'right', FAILED: 'wrong'}.get(self.verdict, 'open')


def findings(pipeline: PipelineFiles, paper: Paper | None) -> list[Finding]:
  """The findings of one run: they say what its models do, not what other seeds do."""
  return _claims(SingleRunEvidence(pipeline, confidence(pipeline)), paper)


def over_seeds(pipelines: Sequence[PipelineFiles]) -> list[Finding]:
  """The findings over runs that differ in their seed alone; the run is the unit."""
  return _claims(SeedEvidence(pipelines, confidence(pipelines[0])), None)


def confidence(pipeline: PipelineFiles) -> float:
  """That of each interval, so that all checks of a page share its level."""
  checks = 12 + 2 * len(pipeline.students)  # as `_claims` makes them
  return 1 - LEVEL / checks


def _claims(evidence: Evidence, paper: Paper | None) -> list[Finding]:
  """The findings in the order of the recipe, beside the paper's numbers."""

  def moved(
    measure: Metric, before: ModelColumn, after: ModelColumn, holds: Side
  ) -> Check | None:
    return _compare(evidence, measure, before, after, holds)

  def said(benchmark: str, before: ModelColumn, after: ModelColumn) -> str:
    return stages_sentence(paper, benchmark, before, after)

  return [
    Finding(
      'RL alone lifts reasoning far above the base model',
      [moved(SOLVED, BASE, ZERO, _far)],
      zero_sentence(paper),
    ),
    Finding(
      'R1-Zero mixes languages and is hard to read',
      [
        _level(evidence, LANGUAGE, ZERO, PURE, above=False),
        _level(evidence, READABLE, ZERO, HALF, above=False),
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
        _level(evidence, LANGUAGE, DEV2, PURE, above=True),
      ],
      said('AIME 2024', DEV1, DEV2),
    ),
    Finding(
      'SFT on the rejection-sampled set improves instruction following',
      [moved(FOLLOWED, DEV2, DEV3, _rises)],
      said('IF-Eval', DEV2, DEV3),
    ),
    Finding(
      'The last stage is preferred most, and reasons at most '
      f'{100 * MARGIN:.0f} points worse than the best',
      [
        moved(PREFERRED, _best(evidence, PREFERRED), R1, _rises),
        moved(SOLVED, _best(evidence, SOLVED), R1, _keeps),
      ],
      said('ArenaHard', DEV3, R1),
    ),
    Finding(
      'Distilling beats RL straight on the same student',
      _students(evidence, 'rl'),
      students_sentence(paper),
    ),
    Finding(
      'Distilling thoughts beats distilling answers alone',
      _students(evidence, 'answers'),
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
  return f'of {len(found)} findings {", ".join(parts)}.'


def _compare(
  evidence: Evidence,
  measure: Metric,
  before: ModelColumn,
  after: ModelColumn,
  holds: Side,
) -> Check | None:
  """The check of a difference between two models; None if one lacks numbers."""
  found = evidence.difference(measure, before, after)
  if found is None:
    return None
  return Check(f'{measure.name}: {found.text}', holds(found.interval))


def _level(
  evidence: Evidence, measure: Metric, model: ModelColumn, bar: float, *, above: bool
) -> Check | None:
  """The check that a quantity lies above a bar, or below it."""
  found = evidence.level(measure, model)
  if found is None:
    return None
  holds = _side(found.interval, bar)
  if not above and holds is not None:
    holds = not holds
  side = 'above' if above else 'below'
  said = f'{measure.name}: {model.title} {found.text}'
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


def _keeps(found: Interval) -> bool | None:
  """No worse than by the margin; a wide interval decides nothing (non-inferiority)."""
  return _side(found, -MARGIN)


def _best(evidence: Evidence, measure: Metric) -> ModelColumn:
  """The model that did best of those between the base and R1.

  It is chosen by the numbers it is then compared by, which flatters it: R1 has it
  harder.
  """
  means = {}
  for model in (ZERO, DEV1, DEV2, DEV3):
    value = evidence.mean(measure, model)
    means[model] = -1.0 if value is None else value
  return max(means, key=means.__getitem__)


def _students(evidence: Evidence, other: str) -> list[Check | None]:
  """SFT on R1's outputs against another method, for each student that has both."""
  checks: list[Check | None] = []
  for title, stage in evidence.students:
    before, after = (
      ModelColumn(METHODS[name], '', stage, name) for name in (other, 'sft')
    )
    check = _compare(evidence, SOLVED, before, after, _rises)
    if check is not None:
      checks.append(check._replace(text=f'{title}, {check.text}'))
  return checks
