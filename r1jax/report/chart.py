"""Line charts as SVG text, for the report.

Drawn by hand rather than by a plotting library, so that the page's style sheet decides
the colours (light and dark) and the type is the page's own. A chart is as wide as its
place on the page lets it be; `width` and `height` set its proportions.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

_LEFT, _TOP, _BOTTOM = 46, 12, 34  # margins for the tick labels
_CHARACTER = 6.6  # width of a character of a label at 12 px, on average
_LABEL_HEIGHT = 15


class Curve(NamedTuple):
  """A line of a chart.

  Fields:
    name: written where the line ends.
    role: class of the style sheet: 'one' and 'two' for data, 'base' for what the data
      is compared with; 'raw' in front marks the noisy values behind a smoothed line.
    points: step and value; None, for a value not measured, leaves a gap.
    band: step, low and high of the interval around the line.
    marked: whether each point gets a dot and its value as a tooltip.
  """

  name: str
  role: str
  points: Sequence[tuple[int, float | None]]
  band: Sequence[tuple[int, float, float]] = ()
  marked: bool = False


def line_chart(
  curves: Sequence[Curve],
  *,
  label: str,
  share: bool,
  width: int,
  height: int,
  highest: float = 0.0,
  at: str = 'step {}',
) -> str:
  """An <svg> of `curves` over steps, or over what `at` names; the other axis holds 0.

  `label` is read out in place of the picture. A `share` is written in per cent. The
  axis reaches at least `highest`, so that charts side by side can have one scale.
  """
  measured = [(x, y) for curve in curves for x, y in curve.points if y is not None]
  bounds = [y for curve in curves for _, *ends in curve.band for y in ends]
  heights = [y for _, y in measured] + bounds
  low, high = min([0.0, *heights]), max([highest, *heights])
  ticks_y = ticks(low, high if low < high else 1.0, height // 60)
  first, last = min(x for x, _ in measured), max(x for x, _ in measured)
  longest = max(len(curve.name) for curve in curves)
  frame = _Frame(
    first=first,
    last=last,
    low=ticks_y[0],
    high=ticks_y[-1],
    height=height,
    right=width - (14 + longest * _CHARACTER if longest else 20),
  )
  whole = [step for step in ticks(first, last, width // 80) if step == int(step)]
  ticks_x = [step for step in whole if first <= step <= last]
  write = _percent if share else _number
  parts = [_axes(frame, ticks_x, ticks_y, share, at)]
  parts += [_band(frame, curve) for curve in curves if curve.band]
  parts += [_line(frame, curve) for curve in curves]
  parts += [_dots(frame, curve, write, at) for curve in curves if curve.marked]
  parts.append(_names(frame, curves))
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    + ''.join(parts)
    + '</svg>'
  )


def ticks(low: float, high: float, count: int) -> list[float]:
  """About `count` round numbers (1, 2 or 5 times a power of ten) that enclose a range.

  A range of one number gives that number.
  """
  if low == high:
    return [low]
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  # The tiny margin: 0.2 / 2 is not above 0.1, whatever rounding says.
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  digits = max(0, -math.floor(math.log10(step)))
  return [round(step * i, digits) for i in range(first, last + 1)]


class _Frame(NamedTuple):
  """The place of the data inside a chart."""

  first: float
  last: float
  low: float
  high: float
  height: float
  right: float

  def x(self, step: float) -> float:
    span = max(self.last - self.first, 1)
    return round(_LEFT + (step - self.first) / span * (self.right - _LEFT), 1)

  def y(self, value: float) -> float:
    bottom = self.height - _BOTTOM
    share = (value - self.low) / (self.high - self.low)
    return round(bottom - share * (bottom - _TOP), 1)


def _percent(value: float) -> str:
  return f'{value * 100:.1f} %'


def _number(value: float) -> str:
  return f'{value:.4g}'


def _axes(
  frame: _Frame, ticks_x: list[float], ticks_y: list[float], share: bool, at: str
) -> str:
  parts = []
  for value in ticks_y:
    y = frame.y(value)
    text = f'{value * 100:.4g} %' if share else f'{value:,g}'
    rule = 'zero' if value == 0 else 'rule'
    parts.append(
      f'<line class="{rule}" x1="{_LEFT}" x2="{frame.right}" y1="{y}" y2="{y}"/>'
      f'<text class="tick" x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{text}</text>'
    )
  bottom = frame.height - _BOTTOM + 18
  for step in ticks_x:
    text = f'{step:,.0f}'
    if step == ticks_x[-1]:
      text = at.format(text)
    parts.append(
      f'<text class="tick" x="{frame.x(step)}" y="{bottom}" text-anchor="middle">'
      f'{text}</text>'
    )
  return ''.join(parts)


def _band(frame: _Frame, curve: Curve) -> str:
  there = [f'{frame.x(step)},{frame.y(high)}' for step, _, high in curve.band]
  back = [f'{frame.x(step)},{frame.y(low)}' for step, low, _ in reversed(curve.band)]
  return f'<polygon class="band {curve.role}" points="{" ".join(there + back)}"/>'


def _line(frame: _Frame, curve: Curve) -> str:
  path, pen = [], 'M'
  for step, value in curve.points:
    if value is not None:
      path.append(f'{pen}{frame.x(step)} {frame.y(value)}')
    pen = 'M' if value is None else 'L'
  return f'<path class="line {curve.role}" d="{"".join(path)}"/>'


def _dots(frame: _Frame, curve: Curve, write: Callable[[float], str], at: str) -> str:
  name = escape(curve.name)
  return ''.join(
    f'<circle class="dot {curve.role}" cx="{frame.x(step)}" cy="{frame.y(value)}" '
    f'r="3"><title>{name} at {at.format(f"{step:,.0f}")}: {write(value)}</title>'
    '</circle>'
    for step, value in curve.points
    if value is not None
  )


def _names(frame: _Frame, curves: Sequence[Curve]) -> str:
  """Names where the lines end, moved apart where they would cover each other."""
  ends = []
  for curve in curves:
    values = [value for _, value in curve.points if value is not None]
    if curve.name and values:
      ends.append((frame.y(values[-1]), curve))
  ends.sort(key=lambda end: end[0])
  rows = [y for y, _ in ends]
  for i in range(1, len(rows)):
    rows[i] = max(rows[i], rows[i - 1] + _LABEL_HEIGHT)
  lowest = frame.height - _BOTTOM
  for i in reversed(range(len(rows))):
    rows[i] = min(rows[i], lowest)
    lowest = rows[i] - _LABEL_HEIGHT
  return ''.join(
    f'<text class="name {curve.role}" x="{frame.right + 8}" y="{row + 4:.1f}">'
    f'{escape(curve.name)}</text>'
    for row, (_, curve) in zip(rows, ends, strict=True)
  )


class CurveFigure(NamedTuple):
  """A chart to be drawn; `highest` is what its vertical axis reaches at least."""

  title: str
  caption: str
  curves: Sequence[Curve]
  share: bool = False
  highest: float = 0.0

  @property
  def is_measured(self) -> bool:
    """Whether there is a line to draw: two values of something but the base model."""
    lines = [curve.points for curve in self.curves if curve.role != 'base']
    return any(sum(y is not None for _, y in points) > 1 for points in lines)


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
  """Mean of the up to `window` (odd) values around each one; None where it is None."""
  means: list[float | None] = []
  for i, value in enumerate(values):
    start = max(i - window // 2, 0)
    near = [x for x in values[start : i + window // 2 + 1] if x is not None]
    means.append(None if value is None else sum(near) / len(near))
  return means
