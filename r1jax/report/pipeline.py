"""The report of a pipeline: R1-Zero, the stages of R1 and distillation on one page."""

from collections.abc import Sequence
from pathlib import Path

from r1jax.plain import JsonObject
from r1jax.report import figures, findings, page, sections, tables, words
from r1jax.report.paper import Paper
from r1jax.report.reader import (
  BASE,
  FOLLOWED,
  LANGUAGE,
  METRICS,
  MODELS,
  PREFERRED,
  R1,
  READABLE,
  SOLVED,
  ZERO,
  PipelineFiles,
  number,
  read_pipeline,
)
from r1jax.runtime.workdir import write_whole


def write(root: Path | str, paper: Paper | None = None) -> Path:
  """Writes report.html for the pipeline in `root`; returns its path.

  The page has the numbers of `paper` next to ours, if it is given.

  Raises:
    FileNotFoundError: `root` holds no pipeline.
    ValueError: its list of stages is damaged.
  """
  root = Path(root)
  pipeline = read_pipeline(root)
  found = findings.of_run(pipeline, paper)
  html = page.render(
    'pipeline.html',
    title=f'R1 · {root.resolve().name}',
    facts=_facts(pipeline),
    source='the folders of the stages: their settings, metrics, evaluations and counts',
    sentences=_lead(pipeline, found),
    notes=[*pipeline.unreadable, *_unfinished(pipeline)],
    models=MODELS,
    metrics=METRICS,
    stages=tables.stage_rows(pipeline),
    protocol=tables.protocol(pipeline),
    findings=found,
    confidence=findings.confidence(pipeline),
    level=words.LEVEL,
    figures=figures.pipeline_figures(pipeline),
    missing_stages=figures.missing_stages(pipeline),
    instructions_from=_instructions_from(pipeline),
    examples=tables.example_groups(pipeline),
    pairs=tables.preference_pairs(pipeline),
    teacher=tables.teacher_row(pipeline),
    students=tables.student_groups(pipeline),
    samples=sections.side_by_side(pipeline),
    provenance=tables.provenance_rows(pipeline),
    commands=_commands(pipeline),
    paper=None if paper is None else tables.paper_tables(paper),
  )
  write_whole(root / 'report.html', html)
  return root / 'report.html'


def result(root: Path | str) -> list[str]:
  """Returns lines for a terminal: the page's path, and the means of the stage table."""
  pipeline = read_pipeline(Path(root))
  rows = [['', *(model.title for model in MODELS)]]
  for metric in METRICS:
    values = [metric.of(pipeline.evaluation(model)) for model in MODELS]
    means = ['–' if value is None else f'{value.mean:.1%}' for value in values]
    rows.append([metric.name, *means])
  return [f'Report: {Path(root) / "report.html"}', *words.aligned(rows)]


def _facts(pipeline: PipelineFiles) -> str:
  done = sum(bool(stage.manifest) for stage in pipeline.stages.values())
  facts = [f'{done} of {len(pipeline.stages)} stages finished']
  seeds = {f.run.config.get('seed') for f in pipeline.stages.values() if f.run}
  if len(seeds) == 1 and None not in seeds:
    facts.append(f'seed {seeds.pop()}')
  return ' · '.join(facts)


def _unfinished(pipeline: PipelineFiles) -> list[str]:
  """Returns sentences that name the stages that are not finished or not started."""
  stages = [stage for stage in pipeline.stages.values() if not stage.manifest]
  begun = ', '.join(stage.title for stage in stages if stage.run)
  waiting = ', '.join(stage.title for stage in stages if not stage.run)
  sentences = [f'Not finished yet: {begun}.'] if begun else []
  return sentences + ([f'Not started yet: {waiting}.'] if waiting else [])


def _instructions_from(pipeline: PipelineFiles) -> str:
  """Returns the step at which the last stage adds instructions; empty for the first."""
  stage = pipeline.stages.get('final_rl')
  after = number(stage.run.config, 'general_after') if stage and stage.run else None
  return f'{after + 1:g}' if after else ''


def _commands(pipeline: PipelineFiles) -> list[str]:
  """Returns the different commands that started the stages."""
  runs = [stage.run for stage in pipeline.stages.values() if stage.run]
  found = [str(run.config['command']) for run in runs if run.config.get('command')]
  return list(dict.fromkeys(found))


def _lead(pipeline: PipelineFiles, found: Sequence[findings.Finding]) -> list[str]:
  """Returns the sentences at the top of the page."""
  base, zero, last = map(pipeline.evaluation, (BASE, ZERO, R1))
  sentences = []
  if (value := SOLVED.of(base)) is not None:
    sentences.append(
      f'The base model solves {words.with_interval(value)} of the reasoning problems '
      'of the test split with one output.'
    )
  for name, row, before, whom in (
    ('RL alone, R1-Zero,', zero, base, 'the base model'),
    ('R1, after all stages,', last, zero, 'R1-Zero'),
  ):
    if (value := SOLVED.of(row)) is None:
      continue
    paired = SOLVED.of(before) and words.compared(before['reasoning'], row['reasoning'])
    by = f': {words.points(paired)} against {whom}' if paired else ''
    sentences.append(f'{name} solves {words.with_interval(value)}{by}.')
  sentences += _writing(zero, last)
  return [
    *(sentences or ['No model has been measured yet.']),
    f'Of {len(found)} findings in this run: {findings.count(found)}.',
  ]


def _writing(zero: JsonObject, last: JsonObject) -> list[str]:
  """Returns a sentence on how R1 writes, with the numbers of R1-Zero in brackets."""
  parts = []
  for metric, phrase in (
    (READABLE, 'of its reasoning is readable'),
    (LANGUAGE, 'of its words are in the requested language'),
    (FOLLOWED, 'of the instructions are followed'),
    (PREFERRED, 'of its answers win against fixed ones'),
  ):
    before, after = metric.of(zero), metric.of(last)
    if before is not None and after is not None:
      share, was = words.percent(after.mean), words.percent(before.mean)
      parts.append(f'{share} {phrase} ({was})')
  if not parts:
    return []
  return [f'What R1 writes, with R1-Zero in brackets: {", ".join(parts)}.']
