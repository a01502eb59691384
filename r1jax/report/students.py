"""The table of distillation as HTML: students by method, beside the paper's."""

from collections.abc import Mapping, Sequence
from html import escape

from r1jax.report.folders import MEASURES, METHODS, R1, Folder, Pipeline
from r1jax.report.paper import Paper, figure
from r1jax.report.run import Line, number
from r1jax.report.sections import cell
from r1jax.report.stage_table import DASH


def distillation(pipeline: Pipeline, paper: Paper | None) -> str:
  """Each student under each method, its teacher above, the paper's students below."""
  head = '<h2>Smaller models</h2>'
  students = [folder for folder in pipeline.students if folder.rows]
  if not students:
    body = '<p class="soft">No student has been measured yet.</p>'
  else:
    names = (*(measure.name for measure in MEASURES), 'Compute')
    columns = ''.join(f'<th class="number">{name}</th>' for name in names)
    teacher = _model_row('R1, the teacher', pipeline.row(R1))
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


def _student_rows(pipeline: Pipeline, folder: Folder) -> str:
  title = escape(folder.title)
  own = number(folder.record, 'parameters')
  teacher = pipeline.folders.get(R1.stage)
  whole = None if teacher is None else number(teacher.record, 'parameters')
  if own is not None:
    title += f': {own:,.0f} parameters'
    title += f', {own / whole:.0%} of the teacher’s' if whole else ''
  else:
    title += ': not finished'
  names = [*METHODS, *(name for name in folder.rows if name not in METHODS)]
  rows = ''.join(
    _model_row(
      METHODS.get(name, name),
      folder.rows[name],
      number(folder.compute.get(name) or {}, 'times_sft'),
      chosen=name == 'sft',
    )
    for name in names
    if name in folder.rows and name != 'final'
  )
  return (
    f'<tbody><tr class="group"><th colspan="{len(MEASURES) + 2}">{title}</th></tr>'
    f'{rows}</tbody>'
  )


def _model_row(
  name: str, row: Line, times: float | None = None, chosen: bool = False
) -> str:
  kind = 'number trained' if chosen else 'number'
  cells = ''.join(
    f'<td class="{kind}">{DASH if value is None else cell(value)}</td>'
    for value in (measure.of(row) for measure in MEASURES)
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
    + ''.join(f'<td class="number">{figure(value)}</td>' for value in values)
    + '</tr>'
    for name, values in results.items()
  )
  return (
    '<div class="scroll"><table class="sets"><thead><tr><th></th>'
    f'{columns}</tr></thead><tbody><tr class="group">'
    f'<th colspan="{len(paper.benchmarks) + 1}">The paper: SFT on R1’s outputs, unless '
    f'it says otherwise</th></tr>{rows}</tbody></table></div>'
  )
