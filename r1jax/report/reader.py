"""Reads the files of runs and pipelines for the report.

Reads what is there: a missing file, or one that ends in the middle of a line, gives
less data and a sentence about it, not an error. A stage that has not started gives an
empty `StageFiles`. `MODELS` and `METRICS` are the columns and rows of the stage table.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from r1jax.plain import JsonObject
from r1jax.runtime.log import parse_line
from r1jax.runtime.workdir import PIPELINE, RECORD
from r1jax.tasks import REASONING

_EVALUATION = 'evaluation-'  # and the model's name: a file of a stage


class Estimate(NamedTuple):
  """A mean; `low` and `high` bound its interval, or are None without one."""

  mean: float
  low: float | None
  high: float | None

  @property
  def has_interval(self) -> bool:
    """Whether both bounds are known."""
    return self.low is not None and self.high is not None


class RunFiles(NamedTuple):
  """The files of a run, as far as they have been written.

  Fields:
    config: config.json; empty if the file is missing or damaged.
    metrics: the lines of metrics.jsonl, in order.
    base, rl, evaluations: the lines of metrics.jsonl of one phase.
    samples: the lines of samples.jsonl that belong to evaluations.
    unreadable: a sentence for each file that could not be read completely.
  """

  config: JsonObject
  metrics: list[JsonObject]
  base: list[JsonObject]
  rl: list[JsonObject]
  evaluations: list[JsonObject]
  samples: list[JsonObject]
  unreadable: list[str]

  @property
  def experiment(self) -> str:
    """The name of the experiment's config class."""
    return str(self.config.get('experiment', 'Run'))


class ModelColumn(NamedTuple):
  """A column of the stage table: the evaluation `name` of a stage's model."""

  title: str
  meaning: str
  stage: str
  name: str = 'final'


BASE = ModelColumn('base', 'no RL yet', 'r1_zero', 'base')
ZERO = ModelColumn('Zero', 'RL alone', 'r1_zero')
DEV1 = ModelColumn('Dev1', 'cold start', 'cold_start')
DEV2 = ModelColumn('Dev2', 'reasoning RL', 'reasoning_rl')
DEV3 = ModelColumn('Dev3', 'rejection SFT', 'rejection_sft')
R1 = ModelColumn('R1', 'final RL', 'final_rl')
MODELS = (BASE, ZERO, DEV1, DEV2, DEV3, R1)


class Metric(NamedTuple):
  """A row of the stage table: a quantity of an evaluation, under nested keys."""

  name: str
  meaning: str
  path: tuple[str, ...]

  def of(self, evaluation: JsonObject) -> Estimate | None:
    """Returns the quantity of an evaluation; None if it was not measured."""
    return nested_estimate(evaluation, self.path)


SOLVED = Metric('Reasoning', 'solved by one output', ('reasoning', 'pass_at_1'))
LANGUAGE = Metric(
  'Language', 'words in the requested language', ('reasoning', 'rewards', 'language')
)
READABLE = Metric(
  'Readable',
  'one language, no repetition, valid form',
  ('reasoning', 'rewards', 'readable'),
)
FOLLOWED = Metric('Instructions', 'followed by one output', ('general', 'pass_at_1'))
PREFERRED = Metric(
  'Preference',
  'wins against fixed answers',
  ('general', 'rewards', 'preference'),
)
BY_TASK = tuple(Metric(task, '', ('reasoning', 'tasks', task)) for task in REASONING)
METRICS = (SOLVED, *BY_TASK, READABLE, LANGUAGE, FOLLOWED, PREFERRED)

TITLES = {
  'r1_zero': 'R1-Zero',
  'cold_start': 'Cold start',
  'reasoning_rl': 'Reasoning RL',
  'rejection_sft': 'Rejection SFT',
  'final_rl': 'Final RL',
}
METHODS = {  # of distillation, in the order of the table; see `experiments.distill`
  'base': 'base model',
  'rl': 'RL on the student',
  'answers': 'SFT on answers alone',
  'sft': 'SFT on R1’s outputs',
  'forward_kl': 'forward KL to R1',
  'reverse_kl': 'reverse KL to R1',
  'on_policy': 'reverse KL, own outputs',
}


class StageFiles(NamedTuple):
  """The files of one stage of a pipeline, as far as they have been written.

  Fields:
    run: its settings and metrics; None before the stage has started.
    manifest: stage.json; empty before the stage is finished. `digest` is its sha256.
    evaluations: its evaluations, by the name of the model.
    rejection, pairs: counts of the examples and preference pairs; empty without any.
    compute: the compute of each distillation method; see `stages.compute`.
  """

  name: str
  path: Path
  run: RunFiles | None
  manifest: JsonObject
  digest: str
  evaluations: Mapping[str, JsonObject]
  rejection: JsonObject
  pairs: JsonObject
  compute: JsonObject

  @property
  def title(self) -> str:
    """The name of the stage as text; for distillation, which student."""
    return TITLES.get(self.name, self.name.replace('distill_', 'Student '))


class PipelineFiles(NamedTuple):
  """The stages by name, in order, and a sentence for each file that is unreadable."""

  root: Path
  stages: Mapping[str, StageFiles]
  unreadable: list[str]

  def evaluation(self, model: ModelColumn) -> JsonObject:
    """Returns the evaluation of a model; empty if it is missing."""
    stage = self.stages.get(model.stage)
    return {} if stage is None else stage.evaluations.get(model.name, {})

  @property
  def students(self) -> list[StageFiles]:
    """The stages of distillation."""
    return [stage for name, stage in self.stages.items() if name.startswith('distill')]


def read_run(workdir: Path) -> RunFiles:
  """Returns the files of the run in `workdir`.

  Raises:
    FileNotFoundError: `workdir` does not exist or holds no run.
  """
  if not workdir.is_dir():
    raise FileNotFoundError(
      f'{workdir} is not a directory; give the --workdir of a run'
    )
  if not _holds_run(workdir):
    raise FileNotFoundError(
      f'{workdir} holds neither config.json nor metrics.jsonl, so it is not the '
      '--workdir of a run'
    )
  unreadable: list[str] = []
  config = _read_config(workdir / 'config.json', unreadable)
  metrics = _read_lines(workdir / 'metrics.jsonl', unreadable)
  samples = _read_lines(workdir / 'samples.jsonl', unreadable)

  def of_phase(lines: list[JsonObject], phase: str) -> list[JsonObject]:
    return [line for line in lines if line['phase'] == phase]

  return RunFiles(
    config=config,
    metrics=metrics,
    base=of_phase(metrics, 'base'),
    rl=of_phase(metrics, 'rl'),
    evaluations=of_phase(metrics, 'eval'),
    samples=of_phase(samples, 'eval'),
    unreadable=unreadable,
  )


def read_pipeline(root: Path) -> PipelineFiles:
  """Returns the files of the pipeline in `root`.

  Raises:
    FileNotFoundError: `root` holds no pipeline.
    ValueError: its list of stages is damaged.
  """
  listed = root / PIPELINE
  if not listed.is_file():
    raise FileNotFoundError(
      f'{root} has no {PIPELINE}, so it is not the --workdir of a pipeline'
    )
  unreadable: list[str] = []
  paths = _read_object(listed, unreadable)
  if unreadable:
    raise ValueError(f'{listed} is damaged; start the pipeline again to rewrite it')
  stages = {
    name: _read_stage(name, root / str(path), unreadable)
    for name, path in paths.items()
  }
  return PipelineFiles(root, stages, unreadable)


def read_evaluation(workdir: Path, name: str) -> JsonObject:
  """Returns the evaluation of a finished stage's model `name`.

  Raises:
    FileNotFoundError: the stage has not evaluated that model.
  """
  return json.loads((workdir / f'{_EVALUATION}{name}.json').read_bytes())


def number(line: JsonObject, name: str) -> float | None:
  """Returns the number `name` of a line; None if it was not measured."""
  value = line.get(name)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return value if is_number else None


def estimate(line: JsonObject, name: str) -> Estimate | None:
  """Returns the number or interval `name` of a line; None if it is neither."""
  value = line.get(name)
  if not isinstance(value, Mapping):
    mean = number(line, name)
    return None if mean is None else Estimate(mean, None, None)
  mean = number(value, 'mean')
  if mean is None:
    return None
  return Estimate(mean, number(value, 'low'), number(value, 'high'))


def nested_estimate(line: JsonObject, path: tuple[str, ...]) -> Estimate | None:
  """Returns the number or interval under nested keys; None if it is neither."""
  *outer, last = path
  for key in outer:
    line = line.get(key) or {}
  return estimate(line, last)


def _holds_run(workdir: Path) -> bool:
  return any((workdir / name).exists() for name in ('config.json', 'metrics.jsonl'))


def _read_config(path: Path, unreadable: list[str]) -> JsonObject:
  try:
    config = json.loads(path.read_bytes())
  except (FileNotFoundError, ValueError):
    config = None
  if isinstance(config, dict):
    return config
  unreadable.append('config.json is missing or damaged, so the settings are not shown.')
  return {}


def _read_lines(path: Path, unreadable: list[str]) -> list[JsonObject]:
  if not path.exists():
    return []
  parsed = [parse_line(raw) for raw in path.read_bytes().split(b'\n') if raw]
  lines: list[JsonObject] = [line for line in parsed if line is not None]
  if len(lines) < len(parsed):
    lost = f'{len(parsed) - len(lines)} of the {len(parsed)} lines'
    unreadable.append(f'{lost} of {path.name} cannot be read and are left out.')
  return lines


def _read_stage(name: str, path: Path, unreadable: list[str]) -> StageFiles:
  run = None
  if _holds_run(path):
    run = read_run(path)
    unreadable += [f'{name}: {sentence}' for sentence in run.unreadable]
  files = sorted(path.glob(f'{_EVALUATION}*.json'))
  manifest = path / RECORD
  digest = (
    hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ''
  )
  return StageFiles(
    name=name,
    path=path,
    run=run,
    manifest=_read_object(manifest, unreadable),
    digest=digest,
    evaluations={
      file.stem.removeprefix(_EVALUATION): _read_object(file, unreadable)
      for file in files
    },
    rejection=_read_object(path / 'rejection.json', unreadable),
    pairs=_read_object(path / 'pairs.json', unreadable),
    compute=_read_object(path / 'compute.json', unreadable),
  )


def _read_object(path: Path, unreadable: list[str]) -> JsonObject:
  """Returns the object in a file; adds a sentence if the file is damaged."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_bytes(), parse_constant=lambda _: None)
  except ValueError:
    found = None
  if isinstance(found, dict):
    return found
  unreadable.append(f'{path.parent.name}/{path.name} is damaged and left out.')
  return {}
