"""The figures of the report: which curves, in which charts, with which captions.

Accuracy, length and self-checks are the curves of the DeepSeek-R1 paper; the small ones
below them are for finding out why a run went the way it did.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from r1jax.report.chart import Curve, line_chart
from r1jax.report.run import Line, Run, measured, number

SMOOTH_FROM = 50  # values; a curve of fewer is readable as it is


class Figure(NamedTuple):
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


def figures(run: Run) -> str:
  """The section with the curves, as HTML; names those the run has no numbers for."""
  accuracy, outputs, training = _accuracy(run), _outputs(run), _training(run)
  parts = [
    '<h2>How it learned</h2><p>Over the steps of training. Where there are many, a '
    'thin line shows every step and a bold one their running mean.</p>'
  ]
  if accuracy.is_measured:
    wide = chart(accuracy, 860, 340)
    narrow = chart(accuracy, 380, 300)  # the same chart, its type legible on a phone
    picture = (
      f'<div class="wide-chart">{wide}</div><div class="narrow-chart">{narrow}</div>'
    )
    parts.append(f'<div class="wide">{framed(accuracy, picture)}</div>')
  for name, group, width, height in (
    ('pair', outputs, 400, 250),
    ('small', training, 300, 190),
  ):
    drawn = [framed(f, chart(f, width, height)) for f in group if f.is_measured]
    parts.append(f'<div class="{name}">{"".join(drawn)}</div>' if drawn else '')
  missing = [f.title for f in (accuracy, *outputs, *training) if not f.is_measured]
  if missing:
    names = ', '.join(missing)
    parts.append(
      f'<p class="missing">Too few values for a curve so far: {escape(names)}.</p>'
    )
  return ''.join(parts)


def framed(figure: Figure, picture: str) -> str:
  """The figure as HTML: title, picture, and the caption if there is one."""
  caption = figure.caption and f'<figcaption>{escape(figure.caption)}</figcaption>'
  return f'<figure><h3>{escape(figure.title)}</h3>{picture}{caption}</figure>'


def chart(figure: Figure, width: int, height: int) -> str:
  """The picture of a figure as SVG."""
  curves = [c for c in figure.curves if any(y is not None for _, y in c.points)]
  label = f'{figure.title}. {figure.caption}'
  return line_chart(
    curves,
    label=label,
    share=figure.share,
    width=width,
    height=height,
    highest=figure.highest,
  )


def _accuracy(run: Run) -> Figure:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  return Figure(
    'Accuracy on validation problems',
    f'Share of problems solved by one output (pass@1) and by the most frequent answer '
    f'of {k} (cons@{k}); bands are 95\u202f% intervals over problems. The '
    'dashed line is pass@1 of the base model, which stays as it is. Look for the '
    'distance to that line, and whether the vote stays ahead of the single output.',
    [
      base_line(run.evaluations, 'pass_at_1'),
      evaluated(run.evaluations, 'consensus', f'cons@{k}', 'two'),
      evaluated(run.evaluations, 'pass_at_1', 'pass@1', 'one'),
    ],
    share=True,
  )


def _outputs(run: Run) -> list[Figure]:
  return [
    Figure(
      'Mean length of an output',
      'Tokens, over the outputs the model is trained on; dashed, the base model on '
      'validation problems. Where no reward asks for length, a rise means that longer '
      'thinking pays.',
      [*steps(run.rl, 'length'), base_line(run.evaluations, 'length')],
    ),
    Figure(
      'Outputs with a self-check',
      'Share of outputs with a reflective word (“wait”, “check”, …); dashed, the base '
      'model. Look for whether it moves together with the length.',
      [*steps(run.rl, 'reflective'), base_line(run.evaluations, 'reflective')],
      share=True,
    ),
  ]


def _training(run: Run) -> list[Figure]:
  return [
    Figure(
      'Reward',
      'Mean over the outputs of a step. It should rise; if it rises while accuracy '
      'does not, the reward is being gamed.',
      steps(run.rl, 'reward'),
    ),
    Figure(
      'KL to the reference',
      'Nats a token, of both models at the temperature of the rollout. It grows slowly '
      'from 0 and drops where the reference is replaced; a jump means that the policy '
      'has come apart.',
      steps(run.rl, 'kl'),
    ),
    Figure(
      'Entropy',
      'Nats a token, of the policy at the temperature of the rollout. A fall to 0 ends '
      'exploration: all outputs of a group become the same.',
      steps(run.rl, 'entropy'),
    ),
    Figure(
      'Clipped tokens',
      'Share whose gradient the clip range stops, above and below. Some percent are '
      'fine; more means steps that are too large.',
      [
        *steps(run.rl, 'clip_up', 'up'),
        *steps(run.rl, 'clip_down', 'down', 'two'),
      ],
      share=True,
    ),
    Figure(
      'Gradient norm',
      'Before clipping. Spikes announce trouble a few steps ahead of the reward.',
      steps(run.rl, 'grad_norm'),
    ),
    Figure(
      'Loss of base training',
      'Nats a token, before reinforcement learning. At its end it should be flat.',
      steps(run.base, 'loss'),
    ),
  ]


def evaluated(lines: Sequence[Line], key: str, name: str, role: str) -> Curve:
  """The quantity `key` of evaluations, with its intervals."""
  found = [(line['step'], measured(line, key)) for line in lines]
  band = [
    (step, value.low, value.high)
    for step, value in found
    if value is not None and value.low is not None and value.high is not None
  ]
  points = [(step, None if value is None else value.mean) for step, value in found]
  return Curve(name, role, points, band, marked=True)


def base_line(lines: Sequence[Line], key: str) -> Curve:
  """The first evaluation, drawn as a level up to the last one."""
  value = measured(lines[0], key) if lines else None
  mean = None if value is None else value.mean
  return Curve('base', 'base', [(line['step'], mean) for line in lines])


def steps(
  lines: Sequence[Line], key: str, name: str = '', role: str = 'one'
) -> list[Curve]:
  """Value by step: as it is if there are few, else with its running mean on top."""
  points = [(line['step'], number(line, key)) for line in lines]
  if len(points) < SMOOTH_FROM:
    return [Curve(name, role, points)]
  smooth = running_mean([value for _, value in points], _window(len(points)))
  mean = [(step, value) for (step, _), value in zip(points, smooth, strict=True)]
  return [Curve('', f'raw {role}', points), Curve(name, role, mean)]


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
  """Mean of the up to `window` (odd) values around each one; None where it is None."""
  means: list[float | None] = []
  for i, value in enumerate(values):
    start = max(i - window // 2, 0)
    near = [x for x in values[start : i + window // 2 + 1] if x is not None]
    means.append(None if value is None else sum(near) / len(near))
  return means


def _window(count: int) -> int:
  return count // 30 * 2 + 1
