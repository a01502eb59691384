"""Line charts as SVG.

The page's style sheet sets the colours (light and dark) and the type, which no plotting
library would leave to it. A chart is as wide as its place on the page; `width` and
`height` set its proportions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from r1jax.report.page import render

ROLES = ('one', 'two', 'three', 'four', 'five')  # classes for curves of data, in order
_LEFT, _TOP, _BOTTOM = 46, 12, 34  # margins for the tick labels
_CHARACTER = 6.6  # mean width of a character of a label at 12 px
_LABEL_HEIGHT = 15


class Curve(NamedTuple):
  """A line of a chart.

  Fields:
    name: written at the end of the line.
    role: class of the style sheet: one of `ROLES` for data, 'base' for a baseline;
      'raw' in front marks the noisy values behind a smoothed line.
    points: step and value; None, for a value that was not measured, leaves a gap.
    band: step, low and high of the interval around the line.
    marked: whether each point gets a dot with its value as a tooltip.
  """

  name: str
  role: str
  points: Sequence[tuple[int, float | None]]
  band: Sequence[tuple[int, float, float]] = ()
  marked: bool = False


class CurveFigure(NamedTuple):
  """A chart with title and caption; see `line_chart` for the last three fields."""

  title: str
  caption: str
  curves: Sequence[Curve]
  share: bool = False
  highest: float = 0.0
  at: str = 'step {}'

  @property
  def is_measured(self) -> bool:
    """Whether a curve other than the baseline has two values or more."""
    lines = [curve.points for curve in self.curves if curve.role != 'base']
    return any(sum(y is not None for _, y in points) > 1 for points in lines)

  def svg(self, width: int, height: int, label: str | None = None) -> Markup:
    """Returns the chart; `label` is title and caption unless it is given."""
    return line_chart(
      [c for c in self.curves if any(y is not None for _, y in c.points)],
      label=f'{self.title}. {self.caption}' if label is None else label,
      share=self.share,
      width=width,
      height=height,
      highest=self.highest,
      at=self.at,
    )


def line_chart(
  curves: Sequence[Curve],
  *,
  label: str,
  share: bool,
  width: int,
  height: int,
  highest: float = 0.0,
  at: str = 'step {}',
) -> Markup:
  """Returns an <svg> of `curves` over steps, or over what `at` names.

  The vertical axis contains 0 and reaches at least `highest`, so that charts next to
  each other can have one scale; a `share` is written in per cent. Screen readers read
  `label` instead of the picture.
  """
  measured = [(x, y) for curve in curves for x, y in curve.points if y is not None]
  bounds = [y for curve in curves for _, *ends in curve.band for y in ends]
  heights = [y for _, y in measured] + bounds
  low, high = min([0.0, *heights]), max([highest, *heights])
  ticks_y = ticks(low, high if low < high else 1.0, height // 60)
  first, last = min(x for x, _ in measured), max(x for x, _ in measured)
  whole = [step for step in ticks(first, last, width // 80) if step == int(step)]
  ticks_x = [step for step in whole if first <= step <= last]
  longest = max(len(curve.name) for curve in curves)
  frame = _Frame(
    first=first,
    last=last,
    low=ticks_y[0],
    high=ticks_y[-1],
    bottom=height - _BOTTOM,
    right=width - (14 + longest * _CHARACTER if longest else 20),
  )
  steps = [f'{step:,.0f}' for step in ticks_x]
  steps[-1:] = [at.format(step) for step in steps[-1:]]
  return render(
    'chart.svg',
    width=width,
    height=height,
    label=label,
    left=_LEFT,
    right=frame.right,
    bottom=frame.bottom,
    rows=[(frame.y(y), _tick(y, share), 'rule' if y else 'zero') for y in ticks_y],
    columns=[(frame.x(x), text) for x, text in zip(ticks_x, steps, strict=True)],
    bands=[(curve.role, frame.outline(curve.band)) for curve in curves if curve.band],
    lines=[(curve.role, frame.path(curve.points)) for curve in curves],
    dots=[
      dot for curve in curves if curve.marked for dot in frame.dots(curve, share, at)
    ],
    names=frame.names(curves),
  )


def ticks(low: float, high: float, count: int) -> list[float]:
  """Returns about `count` numbers, 1, 2 or 5 times a power of ten apart.

  They enclose the range from `low` to `high`; a range of one number gives that number.
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


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
  """Returns means of up to `window` (odd) values around each; None where it is None."""
  means: list[float | None] = []
  for i, value in enumerate(values):
    start = max(i - window // 2, 0)
    near = [x for x in values[start : i + window // 2 + 1] if x is not None]
    means.append(None if value is None else sum(near) / len(near))
  return means


class _Frame(NamedTuple):
  """The rectangle of a chart that holds the data, and the ranges of its axes."""

  first: float
  last: float
  low: float
  high: float
  bottom: float
  right: float

  def x(self, step: float) -> float:
    span = max(self.last - self.first, 1)
    return round(_LEFT + (step - self.first) / span * (self.right - _LEFT), 1)

  def y(self, value: float) -> float:
    share = (value - self.low) / (self.high - self.low)
    return round(self.bottom - share * (self.bottom - _TOP), 1)

  def outline(self, band: Sequence[tuple[int, float, float]]) -> str:
    """The corners of a band."""
    upper = [f'{self.x(step)},{self.y(high)}' for step, _, high in band]
    lower = [f'{self.x(step)},{self.y(low)}' for step, low, _ in reversed(band)]
    return ' '.join(upper + lower)

  def path(self, points: Sequence[tuple[int, float | None]]) -> str:
    """The path of a line, with a gap at every value that was not measured."""
    path, pen = [], 'M'
    for step, value in points:
      if value is not None:
        path.append(f'{pen}{self.x(step)} {self.y(value)}')
      pen = 'M' if value is None else 'L'
    return ''.join(path)

  def dots(
    self, curve: Curve, share: bool, at: str
  ) -> list[tuple[str, float, float, str]]:
    """Role, place and tooltip of each point."""
    dots = []
    for step, value in curve.points:
      if value is not None:
        text = f'{value * 100:.1f} %' if share else f'{value:.4g}'
        title = f'{curve.name} at {at.format(f"{step:,.0f}")}: {text}'
        dots.append((curve.role, self.x(step), self.y(value), title))
    return dots

  def names(self, curves: Sequence[Curve]) -> list[tuple[str, float, str]]:
    """Role, height and text of each name, moved apart where names would overlap."""
    ends = []
    for curve in curves:
      values = [value for _, value in curve.points if value is not None]
      if curve.name and values:
        ends.append((self.y(values[-1]), curve))
    ends.sort(key=lambda end: end[0])
    rows = [y for y, _ in ends]
    for i in range(1, len(rows)):
      rows[i] = max(rows[i], rows[i - 1] + _LABEL_HEIGHT)
    lowest = self.bottom
    for i in reversed(range(len(rows))):
      rows[i] = min(rows[i], lowest)
      lowest = rows[i] - _LABEL_HEIGHT
    return [(c.role, row, c.name) for row, (_, c) in zip(rows, ends, strict=True)]


def _tick(value: float, share: bool) -> str:
  return f'{value * 100:.4g} %' if share else f'{value:,g}'
