"""The figures of the report: which curves, in which charts, with which captions.

Accuracy, length and self-checks are the curves of the DeepSeek-R1 paper; the small ones
below them are for finding out why a run went the way it did.
"""

from collections.abc import Sequence
from html import escape

from r1jax.report.chart import Curve, CurveFigure, line_chart, running_mean
from r1jax.report.reader import JsonObject, RunFiles, estimate, number

SMOOTH_FROM = 50  # values; a curve of fewer is readable as it is


def figures(run: RunFiles) -> str:
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


def framed(figure: CurveFigure, picture: str) -> str:
  """The figure as HTML: title, picture, and the caption if there is one."""
  caption = figure.caption and f'<figcaption>{escape(figure.caption)}</figcaption>'
  return f'<figure><h3>{escape(figure.title)}</h3>{picture}{caption}</figure>'


def chart(figure: CurveFigure, width: int, height: int) -> str:
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


def _accuracy(run: RunFiles) -> CurveFigure:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  return CurveFigure(
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


def _outputs(run: RunFiles) -> list[CurveFigure]:
  return [
    CurveFigure(
      'Mean length of an output',
      'Tokens, over the outputs the model is trained on; dashed, the base model on '
      'validation problems. Where no reward asks for length, a rise means that longer '
      'thinking pays.',
      [*steps(run.rl, 'length'), base_line(run.evaluations, 'length')],
    ),
    CurveFigure(
      'Outputs with a self-check',
      'Share of outputs with a reflective word (“wait”, “check”, …); dashed, the base '
      'model. Look for whether it moves together with the length.',
      [*steps(run.rl, 'reflective'), base_line(run.evaluations, 'reflective')],
      share=True,
    ),
  ]


def _training(run: RunFiles) -> list[CurveFigure]:
  return [
    CurveFigure(
      'Reward',
      'Mean over the outputs of a step. It should rise; if it rises while accuracy '
      'does not, the reward is being gamed.',
      steps(run.rl, 'reward'),
    ),
    CurveFigure(
      'KL to the reference',
      'Nats a token, of both models at the temperature of the rollout. It grows slowly '
      'from 0 and drops where the reference is replaced; a jump means that the policy '
      'has come apart.',
      steps(run.rl, 'kl'),
    ),
    CurveFigure(
      'Entropy',
      'Nats a token, of the policy at the temperature of the rollout. A fall to 0 ends '
      'exploration: all outputs of a group become the same.',
      steps(run.rl, 'entropy'),
    ),
    CurveFigure(
      'Clipped tokens',
      'Share whose gradient the clip range stops, above and below. Some percent are '
      'fine; more means steps that are too large.',
      [
        *steps(run.rl, 'clip_up', 'up'),
        *steps(run.rl, 'clip_down', 'down', 'two'),
      ],
      share=True,
    ),
    CurveFigure(
      'Gradient norm',
      'Before clipping. Spikes announce trouble a few steps ahead of the reward.',
      steps(run.rl, 'grad_norm'),
    ),
    CurveFigure(
      'Loss of base training',
      'Nats a token, before reinforcement learning. At its end it should be flat.',
      steps(run.base, 'loss'),
    ),
  ]


def evaluated(lines: Sequence[JsonObject], key: str, name: str, role: str) -> Curve:
  """The quantity `key` of evaluations, with its intervals."""
  found = [(line['step'], estimate(line, key)) for line in lines]
  band = [
    (step, value.low, value.high)
    for step, value in found
    if value is not None and value.low is not None and value.high is not None
  ]
  points = [(step, None if value is None else value.mean) for step, value in found]
  return Curve(name, role, points, band, marked=True)


def base_line(lines: Sequence[JsonObject], key: str) -> Curve:
  """The first evaluation, drawn as a level up to the last one."""
  value = estimate(lines[0], key) if lines else None
  mean = None if value is None else value.mean
  return Curve('base', 'base', [(line['step'], mean) for line in lines])


def steps(
  lines: Sequence[JsonObject], key: str, name: str = '', role: str = 'one'
) -> list[Curve]:
  """Value by step: as it is if there are few, else with its running mean on top."""
  points = [(line['step'], number(line, key)) for line in lines]
  if len(points) < SMOOTH_FROM:
    return [Curve(name, role, points)]
  smooth = running_mean([value for _, value in points], _window(len(points)))
  mean = [(step, value) for (step, _), value in zip(points, smooth, strict=True)]
  return [Curve('', f'raw {role}', points), Curve(name, role, mean)]


def _window(count: int) -> int:
  return count // 30 * 2 + 1
