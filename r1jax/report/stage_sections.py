"""Sections of a pipeline's report as HTML: curves, outputs side by side, how made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from r1jax.report.chart import Curve
from r1jax.report.figures import Figure, base_line, chart, evaluated, framed, steps
from r1jax.report.folders import MODELS, TITLES, Folder, Model, Pipeline
from r1jax.report.run import Line, Run, number
from r1jax.report.sections import output, question

RL_STAGES = ('r1_zero', 'reasoning_rl', 'final_rl')
SHOWN = {'reasoning': 3, 'general': 2}  # problems, the first ones: never the best


def curves(pipeline: Pipeline) -> str:
  """Accuracy, length and language of each stage of RL, on the same scales."""
  runs = {
    name: folder.run
    for name in RL_STAGES
    if (folder := pipeline.folders.get(name)) and folder.run and folder.run.rl
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


def _figures(title: str, run: Run, longest: float) -> list[Figure]:
  k = run.evaluations[-1].get('k', 'k') if run.evaluations else 'k'
  accuracy: list[Curve] = [
    base_line(run.evaluations, 'pass_at_1')._replace(name='start'),
    evaluated(run.evaluations, 'consensus', f'cons@{k}', 'two'),
    evaluated(run.evaluations, 'pass_at_1', 'pass@1', 'one'),
  ]
  language = [{**line, **(line.get('rewards') or {})} for line in run.rl]
  return [
    Figure(f'{title}: accuracy', '', accuracy, share=True, highest=1.0),
    Figure(f'{title}: tokens', '', steps(run.rl, 'length'), highest=longest),
    Figure(
      f'{title}: language', '', steps(language, 'language'), share=True, highest=1.0
    ),
  ]


def _mixed_in(pipeline: Pipeline) -> str:
  """When instructions join the last stage: they need few tokens."""
  folder = pipeline.folders.get('final_rl')
  after = number(folder.run.config, 'general_after') if folder and folder.run else None
  if not after:
    return ''
  return (
    ' In the last stage instructions, which need few tokens, join at step '
    f'{after + 1:g}.'
  )


def side_by_side(pipeline: Pipeline) -> str:
  """The same problems answered by every model that was measured."""
  head = '<h2>What it writes</h2>'
  parts = []
  for kind, count in SHOWN.items():
    shown = {
      model: {str(line.get('problem')): line for line in _shown(pipeline, model, kind)}
      for model in MODELS
    }
    for problem in _most_answered(list(shown.values()))[:count]:
      lines = {m: found[problem] for m, found in shown.items() if problem in found}
      asked = question(str(next(iter(lines.values())).get('prompt', problem)))
      outputs = ''.join(
        output(line, f'{model.title}: {model.meaning}') for model, line in lines.items()
      )
      parts.append(
        f'<article class="sample"><h3>{escape(asked)}</h3>'
        f'<div class="outputs three">{outputs}</div></article>'
      )
  if not parts:
    return f'{head}<p class="soft">No outputs have been kept yet.</p>'
  return (
    f'{head}<p>The first test problems of each kind, and the first output of every '
    f'model. Thinking is grey, words of self-checking are underlined.</p>'
    f'{"".join(parts)}'
  )


def _most_answered(shown: Sequence[Mapping[str, Line]]) -> list[str]:
  """Problems in their order, those that more models have answered first."""
  counts = Counter(problem for lines in shown for problem in lines)
  return sorted(counts, key=lambda problem: -counts[problem])


def _shown(pipeline: Pipeline, model: Model, kind: str) -> Sequence[Line]:
  return (pipeline.row(model).get(kind) or {}).get('shown') or []


def made(pipeline: Pipeline) -> str:
  """Where every stage lies, what it comes from, and the command that repeats it all."""
  columns = ('parameters', 'steps', 'minutes', 'record', 'made from')
  head = ''.join(f'<th class="number">{name}</th>' for name in columns)
  rows = ''.join(_made_row(folder) for folder in pipeline.folders.values())
  commands = dict.fromkeys(
    str(folder.run.config['command'])
    for folder in pipeline.folders.values()
    if folder.run and folder.run.config.get('command')
  )
  again = ''.join(f'<pre class="command">{escape(text)}</pre>' for text in commands)
  return (
    '<h2>How it was made</h2><div class="scroll"><table class="sets"><thead><tr>'
    f'<th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    '<p class="caption">Minutes are those of training steps, without sampling of sets '
    'and without evaluations. A record is the digest of a finished stage’s stage.json, '
    'which names the digests of its parameters and of the records it was made from.'
    f'</p>{_again(again)}'
  )


def _again(commands: str) -> str:
  if not commands:
    return ''
  return (
    '<p>Given again, the command goes on with what is not finished; with another '
    f'<code>--workdir</code> it makes everything once more.</p>{commands}'
  )


def _made_row(folder: Folder) -> str:
  lines = [] if folder.run is None else folder.run.metrics
  last = {line['phase']: line['step'] for line in lines if line['phase'] != 'eval'}
  reached = ' · '.join(f'{phase} {step:,}' for phase, step in last.items())
  times = [number(line.get('time') or {}, 'seconds') or 0.0 for line in lines]
  parameters = number(folder.record, 'parameters')
  parents = ', '.join(
    f'{parent.get("stage")} {str(parent.get("digest"))[:8]}'
    for parent in folder.record.get('parents') or []
  )
  texts = [
    '–' if parameters is None else f'{parameters:,.0f}',
    reached or '–',
    f'{sum(times) / 60:.1f}' if any(times) else '–',
    folder.digest[:8] or ('not finished' if folder.run else 'not begun'),
    parents or '–',
  ]
  cells = ''.join(f'<td class="number">{escape(text)}</td>' for text in texts)
  name, place = escape(folder.name), escape(folder.path.name)
  return f'<tr><th>{name}<small>{place}</small></th>{cells}</tr>'
