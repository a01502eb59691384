"""Profiles an RL step: a trace for Perfetto and XProf, and a table of times.

  python -m scripts.profile experiments.r1_zero [its flags]

runs the experiment in a new work directory below `runs/profile`, by default with 300
steps of pretraining and five steps of RL, and traces the last step. The trace is in the
subfolder `profile`: open `perfetto_trace.json.gz` in https://ui.perfetto.dev, or the
folder in XProf. The table has the time of the device's threads by program and by the
named scopes of the code.

A run of any length traces one of its steps with `--rl.profile-step N`, without the
table.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROGRAMS = {'jit_sample': 'rollout', 'jit_score': 'reference', 'jit_step': 'update'}
# Named scopes; the innermost one in an operation's name counts.
SCOPES = (
  'project', 'attend', 'write', 'mlp', 'attention_norm', 'mlp_norm', 'norm', 'draw',
  'head', 'logp', 'objective', 'optimizer',
)  # fmt: skip
LOOPS = ('while', 'conditional', 'call')  # contain operations that are counted


def operations(hlo: Iterable[str]) -> dict[str, str]:
  """Returns operation -> its name in the code, from the lines of an HLO module."""
  found = {}
  for line in hlo:
    name = re.match(r'\s*(?:ROOT )?%([\w.\-]+) = ', line)
    given = re.search(r'op_name="([^"]*)"', line)
    if name:
      found[name.group(1)] = given.group(1) if given else ''
  return found


def scope(name: str) -> str:
  """Returns the part of the model or the step that an operation belongs to."""
  parts = re.split(r'[/()]', name)
  inner = [part for part in parts if part in SCOPES]
  if not inner:
    return 'the rest'
  return f'{inner[-1]}, gradient' if 'transpose' in parts else inner[-1]


def thread_seconds(
  events: Iterable[dict[str, Any]], programs: dict[str, dict[str, str]]
) -> dict[tuple[str, str], float]:
  """Returns (phase, scope) -> seconds, summed over the device's threads.

  Args:
    events: of a trace in Chrome's format, with durations in microseconds.
    programs: module -> its `operations`.
  """
  total: dict[tuple[str, str], float] = collections.defaultdict(float)
  for event in events:
    given = event.get('args') or {}
    module, operation = given.get('hlo_module'), given.get('hlo_op', '')
    if event.get('ph') != 'X' or module is None or operation.startswith(LOOPS):
      continue
    name = programs.get(module, {}).get(operation, '')
    total[PROGRAMS.get(module, 'other programs'), scope(name)] += event['dur'] / 1e6
  return dict(total)


def table(seconds: dict[tuple[str, str], float]) -> str:
  """Returns the seconds by phase and scope as a table, the longest first."""
  everything = sum(seconds.values())
  phases: dict[str, float] = collections.defaultdict(float)
  for (phase, _), value in seconds.items():
    phases[phase] += value
  lines = [f'{"":28}{"thread s":>10}{"share":>8}']
  for phase, whole in sorted(phases.items(), key=lambda item: -item[1]):
    lines.append(f'{phase:28}{whole:10.3f}{whole / everything:8.1%}')
    inner = [(value, s) for (p, s), value in seconds.items() if p == phase]
    for value, name in sorted(inner, reverse=True):
      if value >= 0.005 * everything:
        lines.append(f'  {name:26}{value:10.3f}{value / everything:8.1%}')
  return '\n'.join(lines)


def _experiment(name: str) -> tuple[Any, Any]:
  """Returns the experiment, and its config with the short run's numbers."""
  try:
    module = importlib.import_module(name)
  except (ImportError, TypeError, ValueError) as error:
    sys.exit(f'error: expected an experiment such as experiments.r1_zero ({error})')
  from r1jax.stages.experiment import Experiment

  found: list[Any] = [
    value
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and getattr(value, '__module__', '') == name
  ]
  if len(found) != 1 or not {'workdir', 'base', 'rl', 'evals'} <= {
    field.name for field in dataclasses.fields(found[0])
  }:
    sys.exit(
      f'error: {name}: expected one dataclass with the fields workdir, base, rl '
      'and evals, '
      f'got {[value.__name__ for value in found]}'
    )
  config: Any = found[0]()
  experiment = next(
    value for value in vars(module).values() if isinstance(value, Experiment)
  )
  return experiment, dataclasses.replace(
    config,
    workdir=time.strftime('runs/profile/%Y%m%d-%H%M%S'),
    base=dataclasses.replace(config.base, steps=min(300, config.base.steps)),
    rl=dataclasses.replace(config.rl, steps=5, evaluate_every=5),
    evals=dataclasses.replace(config.evals, problems=16),
  )


def main() -> None:
  """Runs the experiment named on the command line and prints the table."""
  if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    print(__doc__.strip())
    sys.exit(0 if sys.argv[1:] in (['-h'], ['--help']) else 2)
  name = sys.argv.pop(1)
  with tempfile.TemporaryDirectory() as folder:
    # XLA dumps a program when it compiles it, so none may come from the cache.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/cache'
    flags = f'--xla_dump_to={folder}/programs --xla_dump_hlo_as_text'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
    experiment, default = _experiment(name)
    from r1jax.runtime import cli
    from r1jax.runtime.errors import user_errors
    from r1jax.stages.experiment import algorithm_presets

    with user_errors():
      config = cli.parse(default, presets=algorithm_presets(default))
      config = dataclasses.replace(
        config, rl=dataclasses.replace(config.rl, profile_step=config.rl.steps)
      )
      experiment.launch(config)
    programs: dict[str, dict[str, str]] = {}
    for path in sorted(Path(folder, 'programs').glob('*after_optimizations.txt')):
      module_name = path.name.split('.')[1]
      with path.open() as lines:
        programs.setdefault(module_name, {}).update(operations(lines))
  traces = list(Path(config.workdir, 'profile').rglob('perfetto_trace.json.gz'))
  if not traces:
    sys.exit(
      f'error: the run in {config.workdir} was finished before, so no step was traced; '
      'choose another --workdir'
    )
  newest = max(traces, key=lambda path: path.stat().st_mtime)
  with gzip.open(newest) as file:
    events = json.load(file)['traceEvents']
  print(table(thread_seconds(events, programs)))
  print(f'Trace: {newest}')


if __name__ == '__main__':
  main()
