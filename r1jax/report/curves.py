"""Curves over steps from the lines of metrics.jsonl."""

from collections.abc import Sequence

from r1jax.plain import JsonObject
from r1jax.report.chart import Curve, running_mean
from r1jax.report.reader import estimate, number

SMOOTH_FROM = 50  # values; with fewer a curve is readable without smoothing


def evaluated(lines: Sequence[JsonObject], key: str, name: str, role: str) -> Curve:
  """Returns the quantity `key` of evaluations, with its intervals."""
  found = [(line['step'], estimate(line, key)) for line in lines]
  band = [
    (step, value.low, value.high)
    for step, value in found
    if value is not None and value.low is not None and value.high is not None
  ]
  points = [(step, None if value is None else value.mean) for step, value in found]
  return Curve(name, role, points, band, marked=True)


def base_line(lines: Sequence[JsonObject], key: str) -> Curve:
  """Returns the first evaluation as a constant up to the last one."""
  value = estimate(lines[0], key) if lines else None
  mean = None if value is None else value.mean
  return Curve('base', 'base', [(line['step'], mean) for line in lines])


def steps(
  lines: Sequence[JsonObject], key: str, name: str = '', role: str = 'one'
) -> list[Curve]:
  """Returns the quantity `key` by step; from 50 steps on also its running mean."""
  points = [(line['step'], number(line, key)) for line in lines]
  if len(points) < SMOOTH_FROM:
    return [Curve(name, role, points)]
  smooth = running_mean([value for _, value in points], _window(len(points)))
  mean = [(step, value) for (step, _), value in zip(points, smooth, strict=True)]
  return [Curve('', f'raw {role}', points), Curve(name, role, mean)]


def _window(count: int) -> int:
  return count // 30 * 2 + 1
