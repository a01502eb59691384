"""The stage table and the list of findings as HTML, the paper's numbers beside ours."""

from collections.abc import Sequence
from html import escape

from r1jax.report.findings import CAME, FAILED, LEVEL, Finding
from r1jax.report.folders import MEASURES, MODELS, R1, Measure, Pipeline
from r1jax.report.paper import Paper, figure
from r1jax.report.run import Measured, number
from r1jax.report.sections import cell

DASH = '<span class="soft">–</span>'  # not measured


def stage_table(pipeline: Pipeline, paper: Paper | None) -> str:
  """Measures by model, the paper's own table under them on the same columns."""
  head = ''.join(
    f'<th class="number">{model.title}<small>{model.meaning}</small></th>'
    for model in MODELS
  )
  body = ''.join(_measure_row(pipeline, measure) for measure in MEASURES)
  theirs = '' if paper is None else _paper_stages(paper)
  return (
    '<h2>Stage by stage</h2><div class="scroll"><table class="result stages"><thead>'
    f'<tr><th></th>{head}<th class="trend">0 to 100\u202f%</th></tr></thead>'
    f'<tbody>{body}</tbody>{theirs}</table></div>{_protocol(pipeline)}'
  )


def _measure_row(pipeline: Pipeline, measure: Measure) -> str:
  values = [measure.of(pipeline.row(model)) for model in MODELS]
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
    cells = ''.join(f'<td class="number">{figure(value)}</td>' for value in values)
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


def _share(value: float | None) -> Measured | None:
  return None if value is None else Measured(value / 100, None, None)


def _trend(values: Sequence[Measured | None]) -> str:
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


def _protocol(pipeline: Pipeline) -> str:
  """How the numbers of the table were measured."""
  rows = [row for model in MODELS if (row := pipeline.row(model))]
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
