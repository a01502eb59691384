"""Tables of a pipeline's report as data for its template."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from r1jax.plain import JsonObject
from r1jax.report.paper import Paper, number_text
from r1jax.report.reader import (
  METHODS,
  METRICS,
  MODELS,
  R1,
  Estimate,
  PipelineFiles,
  StageFiles,
  number,
)

Values = Sequence[Estimate | None]  # None was not measured
DASH = '–'  # not measured


class StageRow(NamedTuple):
  """A row of the stage table; the chart at its end shows `values`, if there are any."""

  name: str
  meaning: str
  values: Values
  texts: Sequence[str] = ()  # of the paper's numbers

  @property
  def trend(self) -> list[tuple[int, Estimate]]:
    """The measured values with their columns."""
    return [(i, value) for i, value in enumerate(self.values) if value is not None]


class StudentRow(NamedTuple):
  """A row of the distillation table; `compute` is relative to SFT on R1's outputs."""

  name: str
  values: Values
  compute: float | None = None
  chosen: bool = False


class TextRow(NamedTuple):
  """A row of texts; `note` is its last cell, or the small print under its name."""

  name: str
  texts: Sequence[str]
  note: str = ''


class Group(NamedTuple):
  """Rows under a title."""

  title: str
  rows: Sequence[StudentRow | TextRow]


def stage_rows(pipeline: PipelineFiles) -> list[StageRow]:
  """Returns the stage table, a row for each metric, a column for each model."""
  evaluations = [pipeline.evaluation(model) for model in MODELS]
  return [
    StageRow(metric.name, metric.meaning, [metric.of(x) for x in evaluations])
    for metric in METRICS
  ]


def paper_tables(paper: Paper) -> dict[str, object]:
  """Returns the paper's tables, to be shown next to ours."""
  return {
    'stages': _paper_stages(paper),
    'examples': _paper_examples(paper),
    'benchmarks': paper.benchmarks,
    'students': _paper_students(paper),
  }


def _paper_stages(paper: Paper) -> list[StageRow]:
  rows = []
  for benchmark, results in paper.stages.items():
    base = paper.zero[0] if benchmark == 'AIME 2024' else None
    numbers = [base, *results]
    values = [None if x is None else Estimate(x / 100, None, None) for x in numbers]
    if max(results) > 100:  # a rating
      values = []
    rows.append(StageRow(benchmark, '', values, [number_text(x) for x in numbers]))
  return rows


def protocol(pipeline: PipelineFiles) -> dict[str, str] | None:
  """Returns how the stage table was measured; None before any evaluation."""
  rows = [row for model in MODELS if (row := pipeline.evaluation(model))]
  if not rows:
    return None
  reasoning, general = (rows[-1].get(kind) or {} for kind in ('reasoning', 'general'))
  numbers = {
    'problems': number(reasoning, 'problems'),
    'instructions': number(general, 'problems'),
    **{name: number(reasoning, name) for name in ('k', 'temperature', 'top_p')},
  }
  return {name: '?' if x is None else f'{x:g}' for name, x in numbers.items()}


def example_groups(pipeline: PipelineFiles) -> list[Group]:
  """Returns the counts of rejection sampling by task, a group for each stage."""
  stages = [stage for stage in pipeline.stages.values() if stage.rejection]
  return [_example_group(stage) for stage in stages]


def _example_group(stage: StageFiles) -> Group:
  by_task = {task: x for task, x in stage.rejection.items() if isinstance(x, dict)}
  found = list(by_task.values())
  kept = sum(number(x, 'kept') or 0 for x in found)
  total = sum((number(x, 'kept') or 0) * (number(x, 'tokens') or 0) for x in found)
  mean = f' of {total / kept:.0f} tokens on average' if kept else ''
  title = f'{stage.title}: {kept:,.0f} examples{mean}'
  return Group(title, [_example_row(task, line) for task, line in by_task.items()])


def _example_row(task: str, line: JsonObject) -> TextRow:
  names = ('problems', 'outputs', 'kept', 'tokens')
  problems, outputs, kept, tokens = (number(line, name) for name in names)
  share = DASH if not outputs or kept is None else f'{kept / outputs:.0%}'
  mean = DASH if tokens is None else f'{tokens:.0f}'
  dropped = (line.get('dropped') or {}).items()
  return TextRow(
    task,
    [_count(problems), _count(outputs), _count(kept), share, mean],
    note=' · '.join(f'{_count(count)}\u202f{reason}' for reason, count in dropped),
  )


def preference_pairs(pipeline: PipelineFiles) -> dict[str, str]:
  """Returns the counts of preference pairs as texts; empty if none were judged."""
  pairs = next((s.pairs for s in pipeline.stages.values() if s.pairs), {})
  dropped = ('dropped_margin', 'dropped_length', 'dropped_balance')
  names = ('judged', 'kept', *dropped) if pairs else ()
  return {name: _count(number(pairs, name)) for name in names}


def _paper_examples(paper: Paper) -> Group:
  total = sum(paper.data.values())
  title = (
    f'The paper, third stage: {total:,} examples of {paper.data_tokens:,.0f} tokens on '
    'average'
  )
  rows = [
    TextRow(domain, [f'{count:,}', f'{count / total:.1%}'])
    for domain, count in paper.data.items()
  ]
  return Group(title, rows)


def teacher_row(pipeline: PipelineFiles) -> StudentRow:
  """Returns the teacher's row of the distillation table."""
  return StudentRow('R1, the teacher', _metrics(pipeline.evaluation(R1)))


def student_groups(pipeline: PipelineFiles) -> list[Group]:
  """Returns the distillation table, a group for each student, a row for each method."""
  students = [stage for stage in pipeline.students if stage.evaluations]
  return [
    Group(_student_title(pipeline, stage), _student_rows(stage)) for stage in students
  ]


def _student_title(pipeline: PipelineFiles, stage: StageFiles) -> str:
  own = number(stage.manifest, 'parameters')
  if own is None:
    return f'{stage.title}: not finished'
  teacher = pipeline.stages.get(R1.stage)
  whole = None if teacher is None else number(teacher.manifest, 'parameters')
  part = f', {own / whole:.0%} of the teacher’s' if whole else ''
  return f'{stage.title}: {own:,.0f} parameters{part}'


def _student_rows(stage: StageFiles) -> list[StudentRow]:
  others = [name for name in stage.evaluations if name not in METHODS]
  return [
    StudentRow(
      METHODS.get(name, name),
      _metrics(stage.evaluations[name]),
      number(stage.compute.get(name) or {}, 'times_sft'),
      chosen=name == 'sft',
    )
    for name in (*METHODS, *others)
    if name in stage.evaluations and name != 'final'
  ]


def _metrics(evaluation: JsonObject) -> Values:
  return [metric.of(evaluation) for metric in METRICS]


def _paper_students(paper: Paper) -> list[TextRow]:
  results: Mapping[str, Sequence[float | None]] = {
    'Qwen-32B, RL only': paper.rl_32b,
    **paper.students,
  }
  return [
    TextRow(name, [number_text(value) for value in values])
    for name, values in results.items()
  ]


def provenance_rows(pipeline: PipelineFiles) -> list[TextRow]:
  """Returns size, steps, minutes, digest and parents of every stage."""
  return [_provenance_row(stage) for stage in pipeline.stages.values()]


def _provenance_row(stage: StageFiles) -> TextRow:
  lines = [] if stage.run is None else stage.run.metrics
  last = {line['phase']: line['step'] for line in lines if line['phase'] != 'eval'}
  steps = ' · '.join(f'{phase} {step:,}' for phase, step in last.items())
  seconds = [number(line.get('time') or {}, 'seconds') or 0.0 for line in lines]
  parents = ', '.join(
    f'{parent.get("stage")} {str(parent.get("digest"))[:8]}'
    for parent in stage.manifest.get('parents') or []
  )
  texts = [
    _count(number(stage.manifest, 'parameters')),
    steps or DASH,
    f'{sum(seconds) / 60:.1f}' if any(seconds) else DASH,
    stage.digest[:8] or ('not finished' if stage.run else 'not started'),
    parents or DASH,
  ]
  return TextRow(stage.name, texts, note=stage.path.name)


def _count(value: float | None) -> str:
  return DASH if value is None else f'{value:,.0f}'
