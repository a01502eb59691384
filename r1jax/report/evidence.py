"""Intervals of levels and differences of models, from one run or from several seeds.

`findings` asks an `Evidence` and does not know which of the two it is. The intervals of
`SingleRunEvidence` are over problems: they are about the models of that run and say
nothing about another seed. Those of `SeedEvidence` are over runs: they are about the
recipe.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from r1jax import statistics
from r1jax.report import words
from r1jax.report.reader import Estimate, Metric, ModelColumn, PipelineFiles, number
from r1jax.statistics import Interval


class WordedInterval(NamedTuple):
  """An interval, and in words how it was found."""

  interval: Interval
  text: str


class Evidence(Protocol):
  """Differences and levels, at one confidence; None where numbers are missing."""

  @property
  def confidence(self) -> float:
    """Of all intervals."""

  @property
  def students(self) -> Sequence[tuple[str, str]]:
    """Title and stage of each student."""

  def mean(self, measure: Metric, model: ModelColumn) -> float | None:
    """The quantity of a model."""

  def level(self, measure: Metric, model: ModelColumn) -> WordedInterval | None:
    """The quantity with its interval."""

  def difference(
    self, measure: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """`after - before` with its interval."""


class SingleRunEvidence:
  """One run: models compared by problem.

  What was solved is compared problem by problem. Of other quantities only 95 %
  intervals are kept; they are widened to the confidence, and set apart as if
  independent. Where there are too few problems for an interval of that confidence, it
  has no ends, and decides nothing.
  """

  def __init__(self, pipeline: PipelineFiles, confidence: float) -> None:
    self.pipeline, self.confidence = pipeline, confidence
    self.students = [(f.title, f.name) for f in pipeline.students]

  def mean(self, measure: Metric, model: ModelColumn) -> float | None:
    """See `Evidence`."""
    value = measure.of(self.pipeline.evaluation(model))
    return None if value is None else value.mean

  def level(self, measure: Metric, model: ModelColumn) -> WordedInterval | None:
    """See `Evidence`."""
    interval = self._widened(measure.of(self.pipeline.evaluation(model)))
    if interval is None:
      return None
    if few := self._too_few(measure, model):
      endless = Interval(interval.mean, -math.inf, math.inf)
      return WordedInterval(endless, f'{words.percent(interval.mean)}, {few}')
    return WordedInterval(interval, words.with_interval(interval))

  def difference(
    self, measure: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """See `Evidence`."""
    rows = self.pipeline.evaluation(before), self.pipeline.evaluation(after)
    values = [measure.of(row) for row in rows]
    if values[0] is None or values[1] is None:
      return None
    ends = _ends((before, after), (values[0].mean, values[1].mean))
    kind, *keys = measure.path
    if few := self._too_few(measure, before) or self._too_few(measure, after):
      mean = values[1].mean - values[0].mean
      endless = Interval(mean, -math.inf, math.inf)
      return WordedInterval(endless, f'{ends}, {words.signed(mean)} points, {few}')
    if keys == ['pass_at_1']:
      paired = words.compared(rows[0][kind], rows[1][kind], self.confidence)
      if paired is not None:
        return WordedInterval(paired.difference, f'{ends}, {words.points(paired)}')
    found = apart(*map(self._widened, values))
    return None if found is None else WordedInterval(found, f'{ends}, {_points(found)}')

  def _too_few(self, measure: Metric, model: ModelColumn) -> str:
    """In words that a model was asked too few problems; empty if it was not.

    By chance n of them, or n groups that are alike, all differ to one side with
    probability 2^(1 - n). While that is more than an interval may err, no n problems
    can be enough; drawn anew they give an interval that is too narrow all the same, and
    of no width where they do not differ.
    """
    half = self.pipeline.evaluation(model).get(measure.path[0]) or {}
    names = half.get('groups') or range(int(number(half, 'problems') or 0))
    count = len(set(names))
    if 2.0 ** (1 - count) <= 1 - self.confidence:
      return ''
    return f'too few problems to tell ({count})'

  def _widened(self, value: Estimate | None) -> Interval | None:
    if value is None or value.low is None or value.high is None:
      return None
    interval = Interval(value.mean, value.low, value.high)
    return statistics.widened(interval, self.confidence)


class SeedEvidence:
  """Several runs that differ in their seed: models compared seed by seed."""

  def __init__(self, pipelines: Sequence[PipelineFiles], confidence: float) -> None:
    self.runs = [SingleRunEvidence(pipeline, confidence) for pipeline in pipelines]
    self.confidence, self.students = confidence, self.runs[0].students

  def mean(self, measure: Metric, model: ModelColumn) -> float | None:
    """See `Evidence`."""
    values = self._values(measure, model)
    return None if values is None else sum(values) / len(values)

  def level(self, measure: Metric, model: ModelColumn) -> WordedInterval | None:
    """See `Evidence`."""
    values = self._values(measure, model)
    if values is None:
      return None
    interval = statistics.seeds_interval(values, self.confidence, bounds=(0, 1))
    singles = ', '.join(words.percent(value) for value in values)
    return WordedInterval(
      interval, f'{words.with_interval(interval)}; by seed {singles}'
    )

  def difference(
    self, measure: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """See `Evidence`."""
    values = self._values(measure, before), self._values(measure, after)
    if values[0] is None or values[1] is None:
      return None
    paired = statistics.seeds_paired(values[0], values[1], self.confidence)
    means = (sum(values[0]) / len(values[0]), sum(values[1]) / len(values[1]))
    singles = (words.signed(b - a) for a, b in zip(values[0], values[1], strict=True))
    ends = _ends((before, after), means)
    points = _points(paired.difference)
    return WordedInterval(
      paired.difference, f'{ends}, {points}; by seed {", ".join(singles)}'
    )

  def _values(self, measure: Metric, model: ModelColumn) -> list[float] | None:
    means = [run.mean(measure, model) for run in self.runs]
    values = [mean for mean in means if mean is not None]
    return values if len(values) == len(means) else None


def apart(before: Interval | None, after: Interval | None) -> Interval | None:
  """The interval of `after - before` from theirs, as if they were independent.

  The distances from means to limits add up as squares (Zou and Donner 2008, MOVER);
  since the problems are the same, that is wider than need be. None without intervals.
  """
  if before is None or after is None:
    return None
  difference = after.mean - before.mean
  down = math.hypot(after.mean - after.low, before.high - before.mean)
  up = math.hypot(after.high - after.mean, before.mean - before.low)
  return Interval(difference, difference - down, difference + up)


def _ends(models: tuple[ModelColumn, ModelColumn], means: tuple[float, float]) -> str:
  """Where a difference begins and ends."""
  return ' → '.join(
    f'{model.title} {words.percent(mean)}'
    for model, mean in zip(models, means, strict=True)
  )


def _points(interval: Interval) -> str:
  mean, low, high = map(words.signed, interval)
  return f'{mean} points ({low} to {high})'
