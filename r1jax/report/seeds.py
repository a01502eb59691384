"""Runs or pipelines that differ only in their seed: means and intervals over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from r1jax import statistics
from r1jax.plain import JsonObject
from r1jax.report import findings, words
from r1jax.report.reader import (
  METHODS,
  METRICS,
  MODELS,
  PipelineFiles,
  RunFiles,
  estimate,
  read_pipeline,
  read_run,
)
from r1jax.runtime.workdir import MACHINE, leaves

_ROWS = {'pass@1': 'pass_at_1', 'consensus': 'consensus', 'length': 'length'}


def compare_runs(workdirs: Sequence[Path | str]) -> list[str]:
  """Returns a line for each quantity: base -> trained, with 95 % t-intervals.

  The evaluations are those of the curves, on the validation split.

  Raises:
    FileNotFoundError: a directory holds no run.
    ValueError: a run is not finished, two runs have the same seed, or they differ in
      more than seed and place.
  """
  runs = [read_run(Path(workdir)) for workdir in workdirs]
  _check_alike([run.config for run in runs], workdirs)
  _check_finished(runs, workdirs)
  names = ', '.join(str(run.config['seed']) for run in runs)
  lines = [f'{len(runs)} seeds ({names}), on validation problems:']
  for name, key in _ROWS.items():
    texts = []
    for index in (0, -1):
      values = [estimate(run.evaluations[index], key) for run in runs]
      means = [value.mean for value in values if value is not None]
      unit, most = (1, math.inf) if key == 'length' else (100, 1)
      mean, low, high = statistics.seeds_interval(means, bounds=(0, most))
      texts.append(f'{mean * unit:.1f} ({low * unit:.1f} to {high * unit:.1f})')
    sign = 'tokens' if key == 'length' else '%'
    lines.append(f'{name:9} base {texts[0]} {sign} -> trained {texts[1]} {sign}')
  return lines


def _check_alike(configs: Sequence[JsonObject], workdirs: Sequence[Path | str]) -> None:
  """Raises ValueError unless the seeds differ, and otherwise only folders do."""
  settings = []
  for config in configs:
    free = {'seed', 'command', 'parent', MACHINE, *config.get(MACHINE, ())}
    settings.append({k: v for k, v in leaves(config).items() if k not in free})
  seeds = [config.get('seed') for config in configs]
  if len(set(seeds)) < len(seeds):
    raise ValueError(f'expected a different seed for every run, got {seeds}')
  for found, workdir in zip(settings, workdirs, strict=True):
    if found != settings[0]:
      raise ValueError(
        f'{workdir} was run with other settings than {workdirs[0]}; compare runs that '
        'differ in --seed alone'
      )


def _check_finished(runs: Sequence[RunFiles], workdirs: Sequence[Path | str]) -> None:
  for run, workdir in zip(runs, workdirs, strict=True):
    last, steps = run.evaluations[-1:], run.config['rl']['steps']
    if not last or last[0]['step'] != steps:
      reached = last[0]['step'] if last else 'none'
      raise ValueError(
        f'{workdir} is not finished: expected an evaluation at step {steps}, the last '
        f'one is at {reached}; run its command again'
      )


def compare_pipelines(roots: Sequence[Path | str]) -> list[str]:
  """Returns Markdown: the stage table, a table for each student, then the findings.

  A cell is the mean over seeds with its 95 % t-interval, cut at 0 and 100 %. With few
  seeds and a rate near 0 or 100 %, that interval is rough.

  Raises:
    FileNotFoundError: a directory holds no pipeline.
    ValueError: one is not finished, two have the same seed, or they differ in more than
      seed and place.
  """
  pipelines = [read_pipeline(Path(root)) for root in roots]
  names = _check_comparable(pipelines)
  lines = _pipelines_table(
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
    lines += ['', f'{title}:', '', *_pipelines_table(methods)]
  return [*lines, '', *_findings(pipelines)]


def _findings(pipelines: Sequence[PipelineFiles]) -> list[str]:
  """Returns lines with the findings and their checks over seeds."""
  confidence = findings.confidence(pipelines[0])
  lines = [
    f'Findings over {len(pipelines)} seeds, by t-intervals of '
    f'{100 * confidence:.1f} %, so that all share a level of 5 % (Bonferroni):'
  ]
  for finding in findings.of_seeds(pipelines):
    lines.append(f'- {finding.verdict}: {finding.claim}')
    lines += [f'  - {check.text}' for check in finding.checks if check is not None]
  return lines


def _check_comparable(pipelines: Sequence[PipelineFiles]) -> list[str]:
  """Returns the names of the stages, which all pipelines have finished.

  Raises ValueError unless the pipelines differ only in seed and folders.
  """
  roots = [pipeline.root for pipeline in pipelines]
  names = list(pipelines[0].stages)
  for pipeline in pipelines:
    done = [name for name, stage in pipeline.stages.items() if stage.manifest]
    if done != names:
      raise ValueError(
        f'{pipeline.root} is not finished: expected the stages {", ".join(names)}, got '
        f'{", ".join(done) or "none"}; run its command again'
      )
  for name in names:
    runs = [pipeline.stages[name].run for pipeline in pipelines]
    _check_alike([{} if run is None else run.config for run in runs], roots)
  return names


def _pipelines_table(columns: Mapping[str, Sequence[JsonObject]]) -> list[str]:
  """Returns metrics by model; a column holds one model's evaluations, one a seed."""
  table = [['', *columns]]
  for metric in METRICS:
    texts = []
    for rows in columns.values():
      values = [metric.of(row) for row in rows]
      means = [100 * value.mean for value in values if value is not None]
      texts.append('–')
      if len(means) == len(rows):
        mean, low, high = statistics.seeds_interval(means, bounds=(0, 100))
        texts[-1] = f'{mean:.1f} % ({low:.1f}–{high:.1f})'
    table.append([metric.name, *texts])
  head, *body = words.aligned(table, ' | ')
  rule = '|'.join('-' * len(part) for part in f' {head} '.split('|'))
  return [f'| {head} |', f'|{rule}|', *(f'| {line} |' for line in body)]
