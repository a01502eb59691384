"""The sections of the report as HTML: words, table, outputs, settings.

A section with nothing to show says so. All text of a run is escaped here.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from r1jax.report.run import Line, Measured, Run, measured
from r1jax.report.words import percent
from r1jax.runtime.workdir import MACHINE
from r1jax.text.parsing import REFLECTIVE
from r1jax.text.templates import TEMPLATES

PROBLEMS_SHOWN = 6


class _Row(NamedTuple):
  """A row of the result table; {k} in its texts is the number of outputs."""

  name: str
  meaning: str
  key: str
  share: bool = True


_ROWS = (
  _Row('pass@1', 'solved by one output', 'pass_at_1'),
  _Row('pass@{k}', 'solved by at least one of {k} outputs', 'pass_at_k'),
  _Row('cons@{k}', 'solved by the vote of {k} outputs', 'consensus'),
  _Row('Length', 'tokens of an output, on average', 'length', share=False),
  _Row('Self-checks', 'outputs with a word such as “wait” or “check”', 'reflective'),
  _Row('Cut off', 'outputs that reach the length limit', 'cut_off'),
  _Row('Unparsable', 'outputs without an answer in the right form', 'unparsable'),
)


def summary(sentences: Sequence[str], notes: Sequence[str]) -> str:
  """The opening paragraph, and what the reader should know before trusting it."""
  lead = f'<p class="lead">{escape(" ".join(sentences))}</p>'
  paragraphs = ''.join(f'<p>{escape(note)}</p>' for note in notes)
  return f'{lead}<div class="notes">{paragraphs}</div>' if notes else lead


def result_table(run: Run) -> str:
  """The first evaluation, beside it the last one and how far they are apart."""
  head = '<h2>Result</h2>'
  if not run.evaluations:
    return head + '<p class="soft">No evaluation has been written yet.</p>'
  base, last = run.evaluations[0], run.evaluations[-1]
  columns = f'<th class="number">{_evaluation_name(base)}</th>'
  drawn, kind = '', 'result single'
  if last is not base:
    kind = 'result'
    columns += (
      f'<th class="number">{_evaluation_name(last)}</th>'
      '<th class="number change">change</th><th class="strip">0 to 100\u202f%</th>'
    )
    drawn = (
      '<span class="wide-chart">; at the right both are drawn on one scale, the '
      'earlier one in grey</span>'
    )
  rows = ''.join(_result_row(row, base, last) for row in _ROWS)
  return (
    f'{head}<div class="scroll"><table class="{kind}"><thead><tr><th></th>{columns}'
    f'</tr></thead><tbody>{rows}</tbody></table></div>'
    '<p class="caption">Problems of the validation split, never trained on; settings '
    'may have been chosen by them, so the stage table is measured on others. Under a '
    f'number is its 95\u202f% interval over problems, of this run’s models{drawn}.</p>'
  )


def _evaluation_name(line: Line) -> str:
  return 'base' if line['step'] == 0 else f'step {line["step"]:,}'


def _result_row(row: _Row, base: Line, last: Line) -> str:
  k = last.get('k', 'k')
  name, meaning = (escape(text.format(k=k)) for text in (row.name, row.meaning))
  before, after = measured(base, row.key), measured(last, row.key)
  cells = f'<td class="number">{cell(before, row.share)}</td>'
  if last is not base:
    change = strip = ''
    if before is not None and after is not None:
      difference = after.mean - before.mean
      change = f'{difference * 100:+.1f} points' if row.share else f'{difference:+.1f}'
      strip = _strip(before, after) if row.share else ''
    cells += (
      f'<td class="number trained">{cell(after, row.share)}</td>'
      f'<td class="number change">{change.replace("-", "−")}</td>'
      f'<td class="strip">{strip}</td>'
    )
  return f'<tr><th>{name}<small>{meaning}</small></th>{cells}</tr>'


def cell(value: Measured | None, share: bool = True) -> str:
  """A mean with its interval under it, as the content of a table's cell."""
  if value is None:
    return '<span class="soft">not measured</span>'
  mean = percent(value.mean) if share else f'{value.mean:.1f}'
  if value.low is None or value.high is None:
    return mean
  scale = 100 if share else 1
  return f'{mean}<small>{value.low * scale:.1f}–{value.high * scale:.1f}</small>'


def _strip(before: Measured, after: Measured) -> str:
  """Both values on a line from 0 to 100 %, their intervals as bars."""
  parts = ['<line class="rule" x1="4" x2="204" y1="9" y2="9"/>']
  for role, value in ('base', before), ('one', after):
    if value.low is not None and value.high is not None:
      width = max(200 * (value.high - value.low), 1)
      parts.append(
        f'<rect class="band {role}" x="{4 + 200 * value.low:.1f}" y="4" height="10" '
        f'width="{width:.1f}" rx="2"/>'
      )
    cx = 4 + 200 * value.mean
    parts.append(f'<circle class="dot {role}" cx="{cx:.1f}" cy="9" r="3.5"/>')
  return f'<svg viewBox="0 0 208 18" aria-hidden="true">{"".join(parts)}</svg>'


def sample_outputs(run: Run) -> str:
  """Outputs to the same problems at the first and at the last evaluation."""
  head = '<h2>What it writes</h2>'
  if not run.samples:
    return head + '<p class="soft">No sample outputs have been written yet.</p>'
  steps = [sample['step'] for sample in run.samples]
  shown = dict.fromkeys([min(steps), max(steps)])
  problems = dict.fromkeys(str(sample.get('problem')) for sample in run.samples)
  parts = [
    head,
    '<p>The same validation problems, at the first and at the last evaluation. '
    'Thinking is grey, words of self-checking are underlined.</p>',
  ]
  for problem in list(problems)[:PROBLEMS_SHOWN]:
    of_problem = [s for s in run.samples if str(s.get('problem')) == problem]
    # The first output where an evaluation wrote several: never the best one.
    found = [next((s for s in of_problem if s['step'] == step), None) for step in shown]
    asked = question(str(of_problem[0].get('prompt', problem)))
    outputs = ''.join(
      output(sample, _evaluation_name(sample)) for sample in found if sample is not None
    )
    parts.append(
      f'<article class="sample"><h3>{escape(asked)}</h3>'
      f'<div class="outputs">{outputs}</div></article>'
    )
  return ''.join(parts)


def question(prompt: str) -> str:
  """The prompt without the template around the question."""
  for template in TEMPLATES.values():
    start, end = template.split('{question}')
    if prompt.startswith(start) and prompt.endswith(end):
      return prompt[len(start) : len(prompt) - len(end)]
  return prompt


def output(sample: Line, name: str) -> str:
  """An output under `name`, with a verdict, its thinking in grey."""
  if sample.get('correct'):
    verdict = '<b class="verdict-right">✓ right</b>'
  elif sample.get('cut_off'):
    verdict = '<b class="verdict-wrong">✗ cut off</b>'
  else:
    verdict = '<b class="verdict-wrong">✗ wrong</b>'
  # What comes before the end of thinking is thinking, whether or not it ever ends.
  think, end, answer = str(sample.get('output', '')).partition('</think>')
  return (
    f'<section class="output"><header><span>{escape(name)}</span>{verdict}'
    f'</header><pre tabindex="0"><span class="think">{_marked(think + end)}</span>'
    f'{escape(answer)}</pre></section>'
  )


def _marked(text: str) -> str:
  """`text` escaped, its reflective words marked."""

  def mark(word: re.Match[str]) -> str:
    found = word.group()
    return f'<mark>{found}</mark>' if found.lower() in REFLECTIVE else found

  return re.sub(r'[^\W\d_]+', mark, escape(text))


def settings(run: Run) -> str:
  """The command that goes on with the run or repeats it, and all its settings."""
  other = ('experiment', 'command', 'data', 'version', MACHINE)
  fields = {name: x for name, x in run.config.items() if name not in other}
  rows = ''.join(
    f'<tr><th>--{escape(name)}</th><td>{escape(value)}</td></tr>'
    for name, value in _flags(fields)
  )
  if not rows:
    return ''
  command = run.config.get('command')
  again = (
    '<p>This command started the run. Given again it goes on from the last checkpoint; '
    'with another <code>--workdir</code> it makes the run once more.</p>'
    f'<pre class="command">{escape(command)}</pre>'
    if isinstance(command, str)
    else ''
  )
  return (
    f'<h2>Once more</h2>{again}<details><summary>All settings of this run</summary>'
    f'<div class="scroll"><table class="config">{rows}</table></div></details>'
  )


def _flags(fields: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
  """Each setting under its name on the command line, with its value as text."""
  flags = []
  for name, value in fields.items():
    dashed = prefix + name.replace('_', '-')
    if isinstance(value, dict):
      flags += _flags(value, dashed + '.')
    else:
      flags.append((dashed, ' '.join(_words(value))))
  return flags


def _words(value: Any) -> list[str]:
  """A value as the command line wants it: pairs of a schedule one after the other."""
  if isinstance(value, list):
    return [word for item in value for word in _words(item)]
  return [str(value)]
