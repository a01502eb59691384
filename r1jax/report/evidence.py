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
  """An interval, and a text that says how it was computed."""

  interval: Interval
  text: str


class Evidence(Protocol):
  """Metrics of models with intervals of one confidence; None if not measured."""

  @property
  def students(self) -> Sequence[tuple[str, str]]:
    """Title and stage of each student of distillation."""

  def mean(self, metric: Metric, model: ModelColumn) -> float | None:
    """Returns a metric of a model."""

  def level(self, metric: Metric, model: ModelColumn) -> WordedInterval | None:
    """Returns a metric of a model with its interval."""

  def difference(
    self, metric: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """Returns the metric of `after` minus that of `before`, with its interval."""


class SingleRunEvidence:
  """Evidence of one run; the intervals are over problems.

  pass@1 is compared problem by problem. Of other metrics the files have only 95 %
  intervals; these are widened to `confidence` and compared as if they were independent.
  With too few problems for an interval of that confidence, the interval is infinite.
  """

  def __init__(self, pipeline: PipelineFiles, confidence: float) -> None:
    self.pipeline, self.confidence = pipeline, confidence
    self.students = [(f.title, f.name) for f in pipeline.students]

  def mean(self, metric: Metric, model: ModelColumn) -> float | None:
    """See `Evidence`."""
    value = metric.of(self.pipeline.evaluation(model))
    return None if value is None else value.mean

  def level(self, metric: Metric, model: ModelColumn) -> WordedInterval | None:
    """See `Evidence`."""
    interval = self._widened(metric.of(self.pipeline.evaluation(model)))
    if interval is None:
      return None
    if few := self._too_few(metric, model):
      infinite = Interval(interval.mean, -math.inf, math.inf)
      return WordedInterval(infinite, f'{words.percent(interval.mean)}, {few}')
    return WordedInterval(interval, words.with_interval(interval))

  def difference(
    self, metric: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """See `Evidence`."""
    rows = self.pipeline.evaluation(before), self.pipeline.evaluation(after)
    values = [metric.of(row) for row in rows]
    if values[0] is None or values[1] is None:
      return None
    ends = _ends((before, after), (values[0].mean, values[1].mean))
    kind, *keys = metric.path
    if few := self._too_few(metric, before) or self._too_few(metric, after):
      mean = values[1].mean - values[0].mean
      infinite = Interval(mean, -math.inf, math.inf)
      return WordedInterval(infinite, f'{ends}, {words.signed(mean)} points, {few}')
    if keys == ['pass_at_1']:
      paired = words.compared(rows[0][kind], rows[1][kind], self.confidence)
      if paired is not None:
        return WordedInterval(paired.difference, f'{ends}, {words.points(paired)}')
    found = independent_difference(*map(self._widened, values))
    return None if found is None else WordedInterval(found, f'{ends}, {_points(found)}')

  def _too_few(self, metric: Metric, model: ModelColumn) -> str:
    """Returns a text if a model was tested on too few problems, else an empty one.

    If two models are equally good, all of n problems (or of n groups of similar ones)
    favour the same model with probability 2^(1 - n). If that is more than
    `1 - confidence`, n problems cannot be enough, but resampling them would still give
    a narrow interval, or one of no width if the differences are equal.
    """
    half = self.pipeline.evaluation(model).get(metric.path[0]) or {}
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
  """Evidence of several runs that differ in their seed; the intervals are over runs."""

  def __init__(self, pipelines: Sequence[PipelineFiles], confidence: float) -> None:
    self.runs = [SingleRunEvidence(pipeline, confidence) for pipeline in pipelines]
    self.confidence, self.students = confidence, self.runs[0].students

  def mean(self, metric: Metric, model: ModelColumn) -> float | None:
    """See `Evidence`."""
    values = self._values(metric, model)
    return None if values is None else sum(values) / len(values)

  def level(self, metric: Metric, model: ModelColumn) -> WordedInterval | None:
    """See `Evidence`."""
    values = self._values(metric, model)
    if values is None:
      return None
    interval = statistics.seeds_interval(values, self.confidence, bounds=(0, 1))
    singles = ', '.join(words.percent(value) for value in values)
    return WordedInterval(
      interval, f'{words.with_interval(interval)}; by seed {singles}'
    )

  def difference(
    self, metric: Metric, before: ModelColumn, after: ModelColumn
  ) -> WordedInterval | None:
    """See `Evidence`."""
    values = self._values(metric, before), self._values(metric, after)
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

  def _values(self, metric: Metric, model: ModelColumn) -> list[float] | None:
    means = [run.mean(metric, model) for run in self.runs]
    values = [mean for mean in means if mean is not None]
    return values if len(values) == len(means) else None


def independent_difference(
  before: Interval | None, after: Interval | None
) -> Interval | None:
  """Returns the interval of `after - before`, as if the two were independent.

  The squared distances from mean to bound are added (MOVER, Zou and Donner 2008). Both
  models answer the same problems, so the interval is wider than necessary. None if one
  of the intervals is missing.
  """
  if before is None or after is None:
    return None
  difference = after.mean - before.mean
  down = math.hypot(after.mean - after.low, before.high - before.mean)
  up = math.hypot(after.high - after.mean, before.mean - before.low)
  return Interval(difference, difference - down, difference + up)


def _ends(models: tuple[ModelColumn, ModelColumn], means: tuple[float, float]) -> str:
  """Returns the two levels of a difference as text."""
  return ' → '.join(
    f'{model.title} {words.percent(mean)}'
    for model, mean in zip(models, means, strict=True)
  )


def _points(interval: Interval) -> str:
  mean, low, high = map(words.signed, interval)
  return f'{mean} points ({low} to {high})'
