"""Several runs that differ in their seed alone: means and intervals over the seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1jax import statistics
from r1jax.report.reader import RunFiles, estimate, read_run
from r1jax.runtime.workdir import MAY_CHANGE, leaves

_ROWS = {'pass@1': 'pass_at_1', 'consensus': 'consensus', 'length': 'length'}


def over_seeds(workdirs: Sequence[Path | str]) -> list[str]:
  """A line a quantity: base and trained, mean over seeds with its 95 % t-interval.

  The evaluations are those of the curves, on the validation split.

  Raises:
    FileNotFoundError: a directory holds no run.
    ValueError: a run is not finished, two runs have the same seed, or they differ in
      more than seed and place.
  """
  runs = [read_run(Path(workdir)) for workdir in workdirs]
  check_alike([run.config for run in runs], workdirs)
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


def check_alike(
  configs: Sequence[Mapping[str, Any]], workdirs: Sequence[Path | str]
) -> None:
  """Raises ValueError unless seeds differ, and beside them only places do."""
  free = ('seed', 'command', 'parent', *MAY_CHANGE)
  settings = [
    {k: v for k, v in leaves(config).items() if k not in free} for config in configs
  ]
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
        f'{workdir} is not finished: expected an evaluation of step {steps}, the last '
        f'one is of {reached}; start its command again'
      )
