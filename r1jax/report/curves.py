"""Sections of a pipeline's report as HTML: curves, outputs side by side, how made."""

from html import escape

from r1jax.report.chart import Curve, CurveFigure
from r1jax.report.figures import base_line, chart, evaluated, framed, steps
from r1jax.report.reader import TITLES, PipelineFiles, RunFiles, number

RL_STAGES = ('r1_zero', 'reasoning_rl', 'final_rl')


def curves(pipeline: PipelineFiles) -> str:
  """Accuracy, length and language of each stage of RL, on the same scales."""
  runs = {
    name: folder.run
    for name in RL_STAGES
    if (folder := pipeline.stages.get(name)) and folder.run and folder.run.rl
  }
  head = '<h2>How it learned</h2>'
  if not runs:
    return f'{head}<p class="soft">No stage of RL has begun yet.</p>'
  lengths = [number(line, 'length') or 0.0 for run in runs.values() for line in run.rl]
  drawn, missing = [], []
  for name, run in runs.items():
    for figure in _figures(TITLES[name], run, max(lengths)):
      if figure.is_measured:
        drawn.append(framed(figure, chart(figure, 300, 190)))
      else:
        missing.append(figure.title)
  missing += [TITLES[name] for name in RL_STAGES if name not in runs]
  few = (
    f'<p class="missing">Too few values for a curve so far: '
    f'{escape(", ".join(missing))}.</p>'
    if missing
    else ''
  )
  return (
    f'{head}<p>The stages of RL, on the same scales. Accuracy is that of '
    'reasoning problems of the validation split, with its interval over them; dashed, '
    'where the stage began. '
    'Tokens and language are those of the outputs it was trained on.'
    f'{_mixed_in(pipeline)}</p><div class="small">{"".join(drawn)}</div>{few}'
  )


def _figures(title: str, run: RunFiles, longest: float) -> list[CurveFigure]:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  accuracy: list[Curve] = [
    base_line(run.evaluations, 'pass_at_1')._replace(name='start'),
    evaluated(run.evaluations, 'consensus', f'cons@{k}', 'two'),
    evaluated(run.evaluations, 'pass_at_1', 'pass@1', 'one'),
  ]
  language = [{**line, **(line.get('rewards') or {})} for line in run.rl]
  return [
    CurveFigure(f'{title}: accuracy', '', accuracy, share=True, highest=1.0),
    CurveFigure(f'{title}: tokens', '', steps(run.rl, 'length'), highest=longest),
    CurveFigure(
      f'{title}: language', '', steps(language, 'language'), share=True, highest=1.0
    ),
  ]


def _mixed_in(pipeline: PipelineFiles) -> str:
  """When instructions join the last stage: they need few tokens."""
  folder = pipeline.stages.get('final_rl')
  after = number(folder.run.config, 'general_after') if folder and folder.run else None
  if not after:
    return ''
  return (
    ' In the last stage instructions, which need few tokens, join at step '
    f'{after + 1:g}.'
  )
