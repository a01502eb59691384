"""The paper's findings, and whether they are reproduced.

A verdict follows from the numbers alone. A finding has one or more checks: it is
reproduced if all hold, and not if one fails. A check asks on which side of a threshold
an interval lies; it is undecided if the interval contains the threshold. All checks of
a page share a level of 5 % (Bonferroni): with 16 checks the intervals are of 99.7 %,
and the chance that any check is wrong is at most 5 %. `evidence` computes the
intervals, from one run or from several seeds.
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

FAR = 0.10  # a gain in pass@1 above this is "far"; the paper's RL gained 0.62
# The loss in pass@1 up to which the last stage still reasons as well as the best stage:
# half of `FAR`, and a typical difference between two seeds of one recipe.
MARGIN = 0.05
PURE = 0.95  # below this share of words in the language asked for, languages are mixed
HALF = 0.50  # below this share of readable outputs, readability is low

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = (
  'reproduced',
  'not reproduced',
  'inconclusive',
)
NOT_MEASURED = 'not measured'

Side = Callable[[Interval], bool | None]  # whether a difference is as the claim says


class Check(NamedTuple):
  """A comparison as text; `holds` is None if the numbers do not decide."""

  text: str
  holds: bool | None


class Finding(NamedTuple):
  """A finding of the paper; a check is None if its numbers are missing."""

  claim: str
  checks: Sequence[Check | None]
  paper: str = ''

  @property
  def is_complete(self) -> bool:
    """Whether all its numbers were measured."""
    return bool(self.checks) and None not in self.checks

  @property
  def verdict(self) -> str:
    """One of `REPRODUCED`, `NOT_REPRODUCED`, `INCONCLUSIVE`, `NOT_MEASURED`."""
    if not self.is_complete:
      return NOT_MEASURED
    checks = [check for check in self.checks if check is not None]
    if any(check.holds is False for check in checks):
      return NOT_REPRODUCED
    return REPRODUCED if all(check.holds for check in checks) else INCONCLUSIVE

  @property
  def mark(self) -> str:
    """How the page shows the verdict: 'right', 'wrong' or 'open'."""
    return {REPRODUCED: 'right', NOT_REPRODUCED: 'wrong'}.get(self.verdict, 'open')


def of_run(pipeline: PipelineFiles, paper: Paper | None) -> list[Finding]:
  """Returns the findings of one run; they are about its models, not other seeds."""
  return _findings(SingleRunEvidence(pipeline, confidence(pipeline)), paper)


def of_seeds(pipelines: Sequence[PipelineFiles]) -> list[Finding]:
  """Returns the findings of runs that differ only in their seed."""
  return _findings(SeedEvidence(pipelines, confidence(pipelines[0])), None)


def confidence(pipeline: PipelineFiles) -> float:
  """Returns the confidence of each interval at which the checks share the level."""
  checks = 12 + 2 * len(pipeline.students)  # the number that `_findings` makes
  return 1 - LEVEL / checks


def _findings(evidence: Evidence, paper: Paper | None) -> list[Finding]:
  """Returns the findings in the order of the recipe."""
  return [
    *_stage_findings(evidence, paper),
    Finding(
      'Distilling beats RL on the same student',
      _students(evidence, 'rl'),
      students_sentence(paper),
    ),
    Finding(
      'Distilling thoughts beats distilling answers alone',
      _students(evidence, 'answers'),
    ),
  ]


def _stage_findings(evidence: Evidence, paper: Paper | None) -> list[Finding]:
  """Returns the findings on the stages of R1."""

  def change(
    metric: Metric, before: ModelColumn, after: ModelColumn, holds: Side
  ) -> Check | None:
    return _compare(evidence, metric, before, after, holds)

  def reported(benchmark: str, before: ModelColumn, after: ModelColumn) -> str:
    return stages_sentence(paper, benchmark, before, after)

  return [
    Finding(
      'RL alone lifts reasoning far above the base model',
      [change(SOLVED, BASE, ZERO, _far)],
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
      [change(SOLVED, ZERO, DEV1, _falls)],
      reported('AIME 2024', ZERO, DEV1),
    ),
    Finding(
      'The cold start buys readability, one language and instruction following',
      [change(gain, ZERO, DEV1, _rises) for gain in (READABLE, LANGUAGE, FOLLOWED)],
      reported('IF-Eval', ZERO, DEV1),
    ),
    Finding(
      'Reasoning RL recovers reasoning and keeps to one language',
      [
        change(SOLVED, DEV1, DEV2, _rises),
        _level(evidence, LANGUAGE, DEV2, PURE, above=True),
      ],
      reported('AIME 2024', DEV1, DEV2),
    ),
    Finding(
      'SFT on the rejection-sampled set improves instruction following',
      [change(FOLLOWED, DEV2, DEV3, _rises)],
      reported('IF-Eval', DEV2, DEV3),
    ),
    Finding(
      'The last stage is preferred most, and reasons at most '
      f'{100 * MARGIN:.0f} points worse than the best',
      [
        change(PREFERRED, _best(evidence, PREFERRED), R1, _rises),
        change(SOLVED, _best(evidence, SOLVED), R1, _keeps),
      ],
      reported('ArenaHard', DEV3, R1),
    ),
  ]


def count(found: Sequence[Finding]) -> str:
  """Returns a text on how many findings have which verdict."""
  verdicts = [finding.verdict for finding in found]
  parts = [
    f'{verdicts.count(verdict)} {verdict}'
    for verdict in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED)
    if verdict in verdicts
  ]
  return f'{", ".join(parts)}'


def _compare(
  evidence: Evidence,
  metric: Metric,
  before: ModelColumn,
  after: ModelColumn,
  holds: Side,
) -> Check | None:
  """Returns the check of a difference between two models; None without numbers."""
  found = evidence.difference(metric, before, after)
  if found is None:
    return None
  return Check(f'{metric.name}: {found.text}', holds(found.interval))


def _level(
  evidence: Evidence,
  metric: Metric,
  model: ModelColumn,
  threshold: float,
  *,
  above: bool,
) -> Check | None:
  """Returns the check that a metric lies above a threshold, or below it."""
  found = evidence.level(metric, model)
  if found is None:
    return None
  holds = _side(found.interval, threshold)
  if not above and holds is not None:
    holds = not holds
  side = 'above' if above else 'below'
  text = f'{metric.name}: {model.title} {found.text}'
  return Check(f'{text}, expected {side} {100 * threshold:.0f}\u202f%', holds)


def _side(found: Interval, threshold: float) -> bool | None:
  """Whether an interval lies above the threshold; None if it contains it."""
  if found.low > threshold:
    return True
  return False if found.high < threshold else None


def _rises(found: Interval) -> bool | None:
  return _side(found, 0.0)


def _far(found: Interval) -> bool | None:
  return _side(found, FAR)


def _falls(found: Interval) -> bool | None:
  return _side(Interval(-found.mean, -found.high, -found.low), 0.0)


def _keeps(found: Interval) -> bool | None:
  """Whether a model is at most `MARGIN` worse; None if undecided (non-inferiority)."""
  return _side(found, -MARGIN)


def _best(evidence: Evidence, metric: Metric) -> ModelColumn:
  """Returns the best model between the base and R1.

  It is chosen by the same numbers that it is then compared by. That favours it, so the
  comparison is conservative for R1.
  """
  means = {}
  for model in (ZERO, DEV1, DEV2, DEV3):
    value = evidence.mean(metric, model)
    means[model] = -1.0 if value is None else value
  return max(means, key=means.__getitem__)


def _students(evidence: Evidence, other: str) -> list[Check | None]:
  """Returns checks of SFT on R1's outputs against another method, by student."""
  checks: list[Check | None] = []
  for title, stage in evidence.students:
    before, after = (
      ModelColumn(METHODS[name], '', stage, name) for name in (other, 'sft')
    )
    check = _compare(evidence, SOLVED, before, after, _rises)
    if check is not None:
      checks.append(check._replace(text=f'{title}, {check.text}'))
  return checks
