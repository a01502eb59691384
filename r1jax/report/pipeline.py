"""The report of the whole recipe: R1-Zero, the stages of R1, distillation on one page.

Made from the folders that the stages leave behind, so it can be written at any time;
what is not there yet is said in words. `folders` reads them, `evidence` sets models
apart, `findings` derives the verdicts, `stage_table`, `sets`, `students` and
`stage_sections` make the page's parts.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from r1jax import statistics
from r1jax.report import curves, findings, sections, tables, words
from r1jax.report.page import PAGE
from r1jax.report.paper import Paper
from r1jax.report.reader import (
  BASE,
  FOLLOWED,
  LANGUAGE,
  METHODS,
  METRICS,
  MODELS,
  PREFERRED,
  R1,
  READABLE,
  SOLVED,
  ZERO,
  JsonObject,
  Metric,
  PipelineFiles,
  read_pipeline,
)
from r1jax.report.seeds import check_alike
from r1jax.runtime.workdir import write_whole


def write(root: Path | str, paper: Paper | None = None) -> Path:
  """The path of report.html, which now shows the pipeline in `root` as it stands.

  Raises:
    FileNotFoundError: `root` holds no pipeline.
    ValueError: its list of stages is damaged.
  """
  root = Path(root)
  pipeline = read_pipeline(root)
  found = findings.findings(pipeline, paper)
  body = [
    sections.summary(
      _lead(pipeline, found), [*pipeline.unreadable, *_unfinished(pipeline)]
    ),
    tables.stage_table(pipeline, paper),
    tables.finding_list(found, findings.confidence(pipeline)),
    curves.curves(pipeline),
    tables.example_sets(pipeline, paper),
    tables.distillation(pipeline, paper),
    sections.side_by_side(pipeline),
    tables.made(pipeline),
  ]
  page = PAGE.substitute(
    title=escape(f'R1 · {root.resolve().name}'),
    facts=escape(_facts(pipeline)),
    body='\n'.join(body),
    source='the folders of the stages: their settings, metrics, evaluations and counts',
  )
  write_whole(root / 'report.html', page)
  return root / 'report.html'


def result(root: Path | str) -> list[str]:
  """Where the page is, and the stage table in plain text, means only."""
  pipeline = read_pipeline(Path(root))
  rows = [['', *(model.title for model in MODELS)]]
  for measure in METRICS:
    values = [measure.of(pipeline.evaluation(model)) for model in MODELS]
    means = ['–' if value is None else f'{value.mean:.1%}' for value in values]
    rows.append([measure.name, *means])
  return [f'Report: {Path(root) / "report.html"}', *_aligned(rows)]


def over_seeds(roots: Sequence[Path | str]) -> list[str]:
  """Tables in Markdown: stages, then each student; then the findings by seed.

  A cell is the mean over seeds with its 95 % t-interval, cut at 0 and 100 %, where a
  rate ends. With few seeds, and rates near an end, that is no more than a rough
  interval.

  Raises:
    FileNotFoundError: a directory holds no pipeline.
    ValueError: one is not finished, two have the same seed, or they differ in more than
      seed and place.
  """
  pipelines = [read_pipeline(Path(root)) for root in roots]
  names = _check_comparable(pipelines)
  lines = _seeds_table(
    {model.title: [p.evaluation(model) for p in pipelines] for model in MODELS}
  )
  for name in (name for name in names if name.startswith('distill')):
    rows = [pipeline.stages[name].evaluations for pipeline in pipelines]
    title = pipelines[0].stages[name].title
    methods = {
      METHODS[method]: [found[method] for found in rows]
      for method in METHODS
      if all(method in found for found in rows)
    }
    lines += ['', f'{title}:', '', *_seeds_table(methods)]
  return [*lines, '', *_seeds_findings(pipelines)]


def _seeds_findings(pipelines: Sequence[PipelineFiles]) -> list[str]:
  """The findings with their checks, a line each, with the run as the unit."""
  confidence = findings.confidence(pipelines[0])
  lines = [
    f'Findings over {len(pipelines)} seeds, by t-intervals of '
    f'{100 * confidence:.1f} %, so that all share a level of 5 % (Bonferroni):'
  ]
  for finding in findings.over_seeds(pipelines):
    lines.append(f'- {finding.verdict}: {finding.claim}')
    lines += [f'  - {check.text}' for check in finding.checks if check is not None]
  return lines


def _check_comparable(pipelines: Sequence[PipelineFiles]) -> list[str]:
  """The names of the stages, if all pipelines have them and differ in seed alone."""
  roots = [pipeline.root for pipeline in pipelines]
  names = list(pipelines[0].stages)
  for pipeline in pipelines:
    done = [name for name, folder in pipeline.stages.items() if folder.manifest]
    if done != names:
      raise ValueError(
        f'{pipeline.root} is not finished: expected the stages {", ".join(names)}, got '
        f'{", ".join(done) or "none"}; start its command again'
      )
  for name in names:
    runs = [pipeline.stages[name].run for pipeline in pipelines]
    check_alike([{} if run is None else run.config for run in runs], roots)
  return names


def _seeds_table(columns: Mapping[str, Sequence[JsonObject]]) -> list[str]:
  """Measures by column, each column the evaluations of one model over the seeds."""
  table = [['', *columns]]
  for measure in METRICS:
    texts = []
    for rows in columns.values():
      values = [measure.of(row) for row in rows]
      means = [100 * value.mean for value in values if value is not None]
      texts.append('–')
      if len(means) == len(rows):
        mean, low, high = statistics.seeds_interval(means, bounds=(0, 100))
        texts[-1] = f'{mean:.1f} % ({low:.1f}–{high:.1f})'
    table.append([measure.name, *texts])
  head, *body = _aligned(table, ' | ')
  rule = '|'.join('-' * len(part) for part in f' {head} '.split('|'))
  return [f'| {head} |', f'|{rule}|', *(f'| {line} |' for line in body)]


def _aligned(rows: Sequence[Sequence[str]], between: str = '  ') -> list[str]:
  """Lines with the first column to the left and the others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    between.join(
      text.rjust(width) if index else text.ljust(width)
      for index, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]


def _facts(pipeline: PipelineFiles) -> str:
  done = sum(bool(folder.manifest) for folder in pipeline.stages.values())
  facts = [f'{done} of {len(pipeline.stages)} stages finished']
  seeds = {f.run.config.get('seed') for f in pipeline.stages.values() if f.run}
  if len(seeds) == 1 and None not in seeds:
    facts.append(f'seed {seeds.pop()}')
  return ' · '.join(facts)


def _unfinished(pipeline: PipelineFiles) -> list[str]:
  """Which stages are not at their end, in a sentence."""
  folders = [folder for folder in pipeline.stages.values() if not folder.manifest]
  begun = ', '.join(folder.title for folder in folders if folder.run)
  waiting = ', '.join(folder.title for folder in folders if not folder.run)
  return [f'Not finished yet: {begun}.'] * bool(begun) + [
    f'Not begun yet: {waiting}.'
  ] * bool(waiting)


def _lead(pipeline: PipelineFiles, found: Sequence[findings.Finding]) -> list[str]:
  """What happened, in sentences that the numbers carry."""
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
    f'In this run: {findings.count(found)}',
  ]


def _writing(zero: JsonObject, last: JsonObject) -> list[str]:
  """How R1 writes, beside R1-Zero."""
  phrases: dict[Metric, Callable[[str], str]] = {
    READABLE: lambda share: f'{share} of its reasoning is readable',
    LANGUAGE: lambda share: f'{share} of its words are in the language asked for',
    FOLLOWED: lambda share: f'{share} of the instructions are followed',
    PREFERRED: lambda share: f'{share} of its answers win against fixed ones',
  }
  parts = []
  for measure, phrase in phrases.items():
    before, after = measure.of(zero), measure.of(last)
    if before is not None and after is not None:
      parts.append(
        phrase(words.percent(after.mean)) + f' ({words.percent(before.mean)})'
      )
  if not parts:
    return []
  return [f'Of what R1 writes (in brackets, R1-Zero), {", ".join(parts)}.']
