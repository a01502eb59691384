"""Tables of a pipeline's report: stages, sets, students, how it was made."""

from collections.abc import Mapping, Sequence
from html import escape

from r1jax.report.findings import CAME, FAILED, LEVEL, Finding
from r1jax.report.paper import Paper, number_text
from r1jax.report.reader import (
  METHODS,
  METRICS,
  MODELS,
  R1,
  Estimate,
  JsonObject,
  Metric,
  PipelineFiles,
  StageFiles,
  number,
)
from r1jax.report.sections import cell


def example_sets(pipeline: PipelineFiles, paper: Paper | None) -> str:
  """What was sampled, kept and dropped for SFT, and the pairs of the judge."""
  head = '<h2>What was kept to learn from</h2>'
  sets = [folder for folder in pipeline.stages.values() if folder.rejection]
  if not sets:
    body = '<p class="soft">No outputs have been sampled for a set yet.</p>'
  else:
    columns = ''.join(
      f'<th class="number">{name}</th>'
      for name in ('problems', 'sampled', 'kept', 'share kept', 'mean tokens')
    )
    body = (
      '<div class="scroll"><table class="sets"><thead><tr><th></th>'
      f'{columns}<th class="why">why others were dropped</th></tr></thead>'
      f'{"".join(map(_set_rows, sets))}</table></div>'
      '<p class="caption">An output with several faults counts under the first. A '
      'duplicate or a surplus output is good, but one of too many for its problem.</p>'
    )
  theirs = '' if paper is None else _paper_data(paper)
  return f'{head}{body}{theirs}{_pairs(pipeline)}'


def _set_rows(folder: StageFiles) -> str:
  by_task = {task: x for task, x in folder.rejection.items() if isinstance(x, dict)}
  found = list(by_task.values())
  kept = sum(number(x, 'kept') or 0 for x in found)
  total = sum((number(x, 'kept') or 0) * (number(x, 'tokens') or 0) for x in found)
  mean = f' of {total / kept:.0f} tokens on average' if kept else ''
  rows = [
    f'<tr class="group"><th colspan="7">{escape(folder.title)}: {kept:,.0f} examples'
    f'{mean}</th></tr>'
  ]
  for task, line in by_task.items():
    names = ('problems', 'outputs', 'kept', 'tokens')
    problems, outputs, some, tokens = (number(line, name) for name in names)
    share = '–' if not outputs or some is None else f'{some / outputs:.0%}'
    texts = [*(_count(x) for x in (problems, outputs, some)), share]
    texts.append('–' if tokens is None else f'{tokens:.0f}')
    cells = ''.join(f'<td class="number">{text}</td>' for text in texts)
    dropped = ' · '.join(
      f'{_count(count)}\u202f{reason}'
      for reason, count in (line.get('dropped') or {}).items()
    )
    rows.append(
      f'<tr class="part"><th>{escape(task)}</th>{cells}'
      f'<td class="why">{escape(dropped)}</td></tr>'
    )
  return f'<tbody>{"".join(rows)}</tbody>'


def _count(value: float | None) -> str:
  return '–' if value is None else f'{value:,.0f}'


def _pairs(pipeline: PipelineFiles) -> str:
  pairs = next((f.pairs for f in pipeline.stages.values() if f.pairs), {})
  if not pairs:
    return '<p class="after">No preference pairs have been judged yet.</p>'
  judged, kept, margin, length, balance = (
    _count(number(pairs, name))
    for name in (
      'judged',
      'kept',
      'dropped_margin',
      'dropped_length',
      'dropped_balance',
    )
  )
  return (
    f'<p class="after">For the preference model the judge compared {judged} pairs of '
    f'outputs, of which {kept} were kept: {margin} were too close, {length} too '
    f'different in length, and {balance} left out so that the longer one wins as often '
    'as it loses.</p>'
  )


def _paper_data(paper: Paper) -> str:
  total = sum(paper.data.values())
  rows = ''.join(
    f'<tr class="part"><th>{escape(domain)}</th><td class="number">{count:,}</td>'
    f'<td class="number">{count / total:.1%}</td></tr>'
    for domain, count in paper.data.items()
  )
  return (
    '<div class="scroll"><table class="sets single"><thead><tr><th></th>'
    '<th class="number">kept</th><th class="number">share of the set</th></tr></thead>'
    '<tbody><tr class="group"><th colspan="3">The paper, third stage: '
    f'{total:,} examples of {paper.data_tokens:,.0f} tokens on average</th></tr>{rows}'
    '</tbody></table></div>'
  )


DASH = '<span class="soft">–</span>'  # not measured


def stage_table(pipeline: PipelineFiles, paper: Paper | None) -> str:
  """Measures by model, the paper's own table under them on the same columns."""
  head = ''.join(
    f'<th class="number">{model.title}<small>{model.meaning}</small></th>'
    for model in MODELS
  )
  body = ''.join(_measure_row(pipeline, measure) for measure in METRICS)
  theirs = '' if paper is None else _paper_stages(paper)
  return (
    '<h2>Stage by stage</h2><div class="scroll"><table class="result stages"><thead>'
    f'<tr><th></th>{head}<th class="trend">0 to 100\u202f%</th></tr></thead>'
    f'<tbody>{body}</tbody>{theirs}</table></div>{_protocol(pipeline)}'
  )


def _measure_row(pipeline: PipelineFiles, measure: Metric) -> str:
  values = [measure.of(pipeline.evaluation(model)) for model in MODELS]
  cells = ''.join(
    f'<td class="number{" trained" if model is R1 else ""}">'
    f'{DASH if value is None else cell(value)}</td>'
    for model, value in zip(MODELS, values, strict=True)
  )
  small = f'<small>{escape(measure.meaning)}</small>' if measure.meaning else ''
  kind = '' if measure.meaning else ' class="part"'
  return (
    f'<tr{kind}><th>{escape(measure.name)}{small}</th>{cells}'
    f'<td class="trend">{_trend(values)}</td></tr>'
  )


def _paper_stages(paper: Paper) -> str:
  rows = []
  for benchmark, results in paper.stages.items():
    base = paper.zero[0] if benchmark == 'AIME 2024' else None
    values = [base, *results]
    cells = ''.join(f'<td class="number">{number_text(value)}</td>' for value in values)
    rating = max(results) > 100
    trend = '' if rating else _trend([_share(value) for value in values])
    rows.append(
      f'<tr class="part"><th>{escape(benchmark)}</th>{cells}'
      f'<td class="trend">{trend}</td></tr>'
    )
  return (
    f'<tbody><tr class="group"><th colspan="{len(MODELS) + 2}">The paper, with '
    f'DeepSeek-V3 as the base</th></tr>{"".join(rows)}</tbody>'
  )


def _share(value: float | None) -> Estimate | None:
  return None if value is None else Estimate(value / 100, None, None)


def _trend(values: Sequence[Estimate | None]) -> str:
  """The values of a row as dots from left to right, intervals as bars, on 0 to 1."""
  width, height, gap = 150, 40, 28
  parts = [f'<line class="rule" x1="0" x2="{width}" y1="38" y2="38"/>']
  points = []
  for index, value in enumerate(values):
    if value is None:
      continue
    x, y = 5 + gap * index, height - 2 - value.mean * (height - 5)
    role = 'one' if index else 'base'
    points.append(f'{x} {y:.1f}')
    if value.low is not None and value.high is not None:
      tall = max((value.high - value.low) * (height - 5), 1)
      top = height - 2 - value.high * (height - 5)
      parts.append(
        f'<rect class="band {role}" x="{x - 3}" y="{top:.1f}" width="6" '
        f'height="{tall:.1f}" rx="2"/>'
      )
    parts.append(f'<circle class="dot {role}" cx="{x}" cy="{y:.1f}" r="2.6"/>')
  if not points:
    return ''
  line = f'<path class="thread" d="M{"L".join(points)}"/>'
  return (
    f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{line}{"".join(parts)}'
    '</svg>'
  )


def _protocol(pipeline: PipelineFiles) -> str:
  """How the numbers of the table were measured."""
  rows = [row for model in MODELS if (row := pipeline.evaluation(model))]
  if not rows:
    return '<p class="soft">No model has been measured yet.</p>'
  reasoning, general = (rows[-1].get(kind) or {} for kind in ('reasoning', 'general'))
  counts = [number(line, 'problems') for line in (reasoning, general)]
  drawn = [number(reasoning, name) for name in ('k', 'temperature', 'top_p')]
  problems, instructions, k, temperature, top_p = (
    '?' if x is None else f'{x:g}' for x in (*counts, *drawn)
  )
  return (
    f'<p class="caption">Every model answers the same {problems} reasoning problems '
    f'and {instructions} instructions of the test split, {k} times each, at '
    f'temperature {temperature} and top-p {top_p}. Under a number is its 95\u202f% '
    'interval over problems: it is about this run’s models, and those of another seed '
    'may differ by more. Language and readability are those of the reasoning '
    'outputs. A dash was not measured.</p>'
  )


def finding_list(found: Sequence[Finding], confidence: float) -> str:
  """The findings of a run with their verdicts and the numbers behind them."""
  parts = []
  for finding in found:
    kind = {CAME: 'right', FAILED: 'wrong'}.get(finding.verdict, 'open')
    checks = ''.join(
      f'<p>{_mark(check.holds)} {escape(check.text)}</p>'
      for check in finding.checks
      if check is not None
    )
    if any(check is None for check in finding.checks) or not finding.checks:
      checks += '<p class="soft">Some of the numbers it needs are not there yet.</p>'
    paper = f'<p class="soft">{escape(finding.paper)}</p>' if finding.paper else ''
    parts.append(
      f'<article class="finding"><b class="verdict-{kind}">{finding.verdict}</b>'
      f'<div><h3>{escape(finding.claim)}</h3>{checks}{paper}</div></article>'
    )
  return (
    '<h2>What came back in this run</h2><p>The findings of the paper, and one more. '
    f'Each verdict follows from intervals of {100 * confidence:.1f}\u202f%, so that '
    f'with a chance of {100 * LEVEL:.0f}\u202f% at most any of them is wrong '
    '(Bonferroni): '
    'solved problems are compared one by one, other quantities by their intervals. All '
    'are over problems, so the verdicts are about the models of this run; what another '
    'seed would give is a question to several runs.</p>'
    f'{"".join(parts)}'
  )


def _mark(holds: bool | None) -> str:
  if holds is None:
    return '<span class="soft">?</span>'
  kind, sign = ('right', '✓') if holds else ('wrong', '✗')
  return f'<span class="verdict-{kind}">{sign}</span>'


def distillation(pipeline: PipelineFiles, paper: Paper | None) -> str:
  """Each student under each method, its teacher above, the paper's students below."""
  head = '<h2>Smaller models</h2>'
  students = [folder for folder in pipeline.students if folder.evaluations]
  if not students:
    body = '<p class="soft">No student has been measured yet.</p>'
  else:
    names = (*(measure.name for measure in METRICS), 'Compute')
    columns = ''.join(f'<th class="number">{name}</th>' for name in names)
    teacher = _model_row('R1, the teacher', pipeline.evaluation(R1))
    body = (
      f'<div class="scroll"><table class="result stages"><thead><tr><th></th>{columns}'
      f'</tr></thead><tbody>{teacher}</tbody>'
      f'{"".join(_student_rows(pipeline, folder) for folder in students)}'
      '</table></div><p class="caption">The problems and the protocol of the table of '
      'stages. All methods start from the same base of the student, learn from outputs '
      'drawn at one temperature, and are measured at one; SFT on answers alone sees as '
      'many tokens as SFT on outputs. Compute: operations of the student, and of R1 '
      'where it judges tokens, over those of SFT on R1’s outputs (6 a parameter and '
      'token that is learned, 2 a token that is sampled, scored or judged); sampling '
      'R1’s outputs, which serve several methods, is not counted.</p>'
    )
  return f'{head}{body}{"" if paper is None else _paper_students(paper)}'


def _student_rows(pipeline: PipelineFiles, folder: StageFiles) -> str:
  title = escape(folder.title)
  own = number(folder.manifest, 'parameters')
  teacher = pipeline.stages.get(R1.stage)
  whole = None if teacher is None else number(teacher.manifest, 'parameters')
  if own is not None:
    title += f': {own:,.0f} parameters'
    title += f', {own / whole:.0%} of the teacher’s' if whole else ''
  else:
    title += ': not finished'
  names = [*METHODS, *(name for name in folder.evaluations if name not in METHODS)]
  rows = ''.join(
    _model_row(
      METHODS.get(name, name),
      folder.evaluations[name],
      number(folder.compute.get(name) or {}, 'times_sft'),
      chosen=name == 'sft',
    )
    for name in names
    if name in folder.evaluations and name != 'final'
  )
  return (
    f'<tbody><tr class="group"><th colspan="{len(METRICS) + 2}">{title}</th></tr>'
    f'{rows}</tbody>'
  )


def _model_row(
  name: str, row: JsonObject, times: float | None = None, chosen: bool = False
) -> str:
  kind = 'number trained' if chosen else 'number'
  cells = ''.join(
    f'<td class="{kind}">{DASH if value is None else cell(value)}</td>'
    for value in (measure.of(row) for measure in METRICS)
  )
  said = DASH if times is None else f'{times:.1f}\u202f×'
  cells += f'<td class="number">{said}</td>'
  return f'<tr class="part"><th>{escape(name)}</th>{cells}</tr>'


def _paper_students(paper: Paper) -> str:
  columns = ''.join(f'<th class="number">{escape(n)}</th>' for n in paper.benchmarks)
  results: Mapping[str, Sequence[float | None]] = {
    'Qwen-32B, RL straight on it': paper.rl_32b,
    **paper.students,
  }
  rows = ''.join(
    f'<tr class="part"><th>{escape(name)}</th>'
    + ''.join(f'<td class="number">{number_text(value)}</td>' for value in values)
    + '</tr>'
    for name, values in results.items()
  )
  return (
    '<div class="scroll"><table class="sets"><thead><tr><th></th>'
    f'{columns}</tr></thead><tbody><tr class="group">'
    f'<th colspan="{len(paper.benchmarks) + 1}">The paper: SFT on R1’s outputs, unless '
    f'it says otherwise</th></tr>{rows}</tbody></table></div>'
  )


def made(pipeline: PipelineFiles) -> str:
  """Where every stage lies, what it comes from, and the command that repeats it all."""
  columns = ('parameters', 'steps', 'minutes', 'record', 'made from')
  head = ''.join(f'<th class="number">{name}</th>' for name in columns)
  rows = ''.join(_made_row(folder) for folder in pipeline.stages.values())
  commands = dict.fromkeys(
    str(folder.run.config['command'])
    for folder in pipeline.stages.values()
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


def _made_row(folder: StageFiles) -> str:
  lines = [] if folder.run is None else folder.run.metrics
  last = {line['phase']: line['step'] for line in lines if line['phase'] != 'eval'}
  reached = ' · '.join(f'{phase} {step:,}' for phase, step in last.items())
  times = [number(line.get('time') or {}, 'seconds') or 0.0 for line in lines]
  parameters = number(folder.manifest, 'parameters')
  parents = ', '.join(
    f'{parent.get("stage")} {str(parent.get("digest"))[:8]}'
    for parent in folder.manifest.get('parents') or []
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
