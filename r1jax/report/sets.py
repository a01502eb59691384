"""The sets that a pipeline learned from as HTML tables: outputs kept, pairs judged."""

from html import escape

from r1jax.report.folders import Folder, Pipeline
from r1jax.report.paper import Paper
from r1jax.report.run import number


def example_sets(pipeline: Pipeline, paper: Paper | None) -> str:
  """What was sampled, kept and dropped for SFT, and the pairs of the judge."""
  head = '<h2>What was kept to learn from</h2>'
  sets = [folder for folder in pipeline.folders.values() if folder.rejection]
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


def _set_rows(folder: Folder) -> str:
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


def _pairs(pipeline: Pipeline) -> str:
  pairs = next((f.pairs for f in pipeline.folders.values() if f.pairs), {})
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
