"""What the files of a run hold, and the numbers in them.

Reads what is there: a file that is missing, empty or cut off in the middle of a line
gives a shorter run and a sentence about it, not an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.runtime.log import parse_line

Line = Mapping[str, Any]


class Run(NamedTuple):
  """A run as far as it has been written down.

  Fields:
    config: config.json; empty if that is missing or damaged.
    metrics: the lines of metrics.jsonl, as they were written.
    base, rl, evaluations: those of a phase.
    samples: the lines of samples.jsonl that belong to evaluations.
    damages: a sentence for each file that could not be read as a whole.
  """

  config: Line
  metrics: list[Line]
  base: list[Line]
  rl: list[Line]
  evaluations: list[Line]
  samples: list[Line]
  damages: list[str]

  @property
  def experiment(self) -> str:
    """The name of the experiment's config class."""
    return str(self.config.get('experiment', 'Run'))


class Measured(NamedTuple):
  """A mean; `low` and `high` bound its interval, or are None where there is none."""

  mean: float
  low: float | None
  high: float | None


def read(workdir: Path) -> Run:
  """The run in `workdir`.

  Raises FileNotFoundError if `workdir` does not exist or holds no run.
  """
  if not workdir.is_dir():
    raise FileNotFoundError(
      f'{workdir} is not a directory; give the --workdir of a run'
    )
  if not any((workdir / name).exists() for name in ('config.json', 'metrics.jsonl')):
    raise FileNotFoundError(
      f'{workdir} holds neither config.json nor metrics.jsonl, so it is not the '
      '--workdir of a run'
    )
  damages: list[str] = []
  config = _read_config(workdir / 'config.json', damages)
  metrics = _read_lines(workdir / 'metrics.jsonl', damages)
  samples = _read_lines(workdir / 'samples.jsonl', damages)

  def of_phase(lines: list[Line], phase: str) -> list[Line]:
    return [line for line in lines if line['phase'] == phase]

  return Run(
    config=config,
    metrics=metrics,
    base=of_phase(metrics, 'base'),
    rl=of_phase(metrics, 'rl'),
    evaluations=of_phase(metrics, 'eval'),
    samples=of_phase(samples, 'eval'),
    damages=damages,
  )


def number(line: Line, name: str) -> float | None:
  """The number `name` of a line; None if it was not measured."""
  value = line.get(name)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number else None


def measured(line: Line, name: str) -> Measured | None:
  """The quantity `name` of a line, an interval or a number; None if it is neither."""
  value = line.get(name)
  if not isinstance(value, Mapping):
    mean = number(line, name)
    return None if mean is None else Measured(mean, None, None)
  mean = number(value, 'mean')
  if mean is None:
    return None
  return Measured(mean, number(value, 'low'), number(value, 'high'))


def _read_config(path: Path, damages: list[str]) -> Line:
  try:
    config = json.loads(path.read_bytes())
  except (FileNotFoundError, ValueError):
    config = None
  if isinstance(config, dict):
    return config
  damages.append('config.json is missing or damaged, so the settings are not shown.')
  return {}


def _read_lines(path: Path, damages: list[str]) -> list[Line]:
  if not path.exists():
    return []
  parsed = [parse_line(raw) for raw in path.read_bytes().split(b'\n') if raw]
  lines: list[Line] = [line for line in parsed if line is not None]
  if len(lines) < len(parsed):
    lost = f'{len(parsed) - len(lines)} of the {len(parsed)} lines'
    damages.append(f'{lost} of {path.name} cannot be read and are left out.')
  return lines
