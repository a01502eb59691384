"""What the folders of a pipeline hold: models, what was measured of them, how made.

Reads what is there, as `run` does for a single run: a stage that has not begun gives an
empty folder, not an error. `MODELS` and `MEASURES` are the axes of the stage table.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.report.run import Line, Measured, Run, measured, read
from r1jax.runtime.workdir import PIPELINE, RECORD
from r1jax.tasks import REASONING


class Model(NamedTuple):
  """A model of the stage table, and the evaluation of it: its stage's, under a name."""

  title: str
  meaning: str
  stage: str
  name: str = 'final'


BASE = Model('base', 'no RL yet', 'r1_zero', 'base')
ZERO = Model('Zero', 'RL alone', 'r1_zero')
DEV1 = Model('Dev1', 'cold start', 'cold_start')
DEV2 = Model('Dev2', 'reasoning RL', 'reasoning_rl')
DEV3 = Model('Dev3', 'rejection SFT', 'rejection_sft')
R1 = Model('R1', 'final RL', 'final_rl')
MODELS = (BASE, ZERO, DEV1, DEV2, DEV3, R1)


class Measure(NamedTuple):
  """A quantity of an evaluation, by the keys that lead to it."""

  name: str
  meaning: str
  path: tuple[str, ...]

  def of(self, row: Line) -> Measured | None:
    """The quantity in an evaluation; None where it was not measured."""
    *outer, last = self.path
    for key in outer:
      row = row.get(key) or {}
    return measured(row, last)


SOLVED = Measure('Reasoning', 'solved by one output', ('reasoning', 'pass_at_1'))
LANGUAGE = Measure(
  'Language', 'words in the language asked for', ('reasoning', 'rewards', 'language')
)
READABLE = Measure(
  'Readable',
  'one language, no repetition, right form',
  ('reasoning', 'rewards', 'readable'),
)
FOLLOWED = Measure('Instructions', 'followed by one output', ('general', 'pass_at_1'))
PREFERRED = Measure(
  'Preference',
  'wins against fixed answers',
  ('general', 'rewards', 'preference'),
)
BY_TASK = tuple(Measure(task, '', ('reasoning', 'tasks', task)) for task in REASONING)
MEASURES = (SOLVED, *BY_TASK, READABLE, LANGUAGE, FOLLOWED, PREFERRED)


TITLES = {
  'r1_zero': 'R1-Zero',
  'cold_start': 'Cold start',
  'reasoning_rl': 'Reasoning RL',
  'rejection_sft': 'Rejection SFT',
  'final_rl': 'Final RL',
}
METHODS = {  # of distillation, in the order of the table; see `experiments.distill`
  'base': 'base model',
  'rl': 'RL straight on it',
  'answers': 'SFT on answers alone',
  'sft': 'SFT on R1’s outputs',
  'forward_kl': 'forward KL to R1',
  'reverse_kl': 'reverse KL to R1',
  'on_policy': 'reverse KL, own outputs',
}


class Folder(NamedTuple):
  """What a stage has left behind so far.

  Fields:
    run: its settings and metrics; None before it has begun.
    record: stage.json; empty before it has come to its end. `digest` is its sha256.
    rows: its evaluations, by the name of the model.
    rejection, pairs: counts of what it learned from; empty where there are none.
    compute: what its methods have computed; see `stages.compute`.
  """

  name: str
  path: Path
  run: Run | None
  record: Line
  digest: str
  rows: Mapping[str, Line]
  rejection: Line
  pairs: Line
  compute: Line

  @property
  def title(self) -> str:
    """The stage's name in words; of a student, which one."""
    return TITLES.get(self.name, self.name.replace('distill_', 'Student '))


class Pipeline(NamedTuple):
  """The stages in order, and a sentence for each file that could not be read."""

  root: Path
  folders: Mapping[str, Folder]
  damages: list[str]

  def row(self, model: Model) -> Line:
    """The evaluation of a model; empty where it is missing."""
    folder = self.folders.get(model.stage)
    return {} if folder is None else folder.rows.get(model.name, {})

  @property
  def students(self) -> list[Folder]:
    """The stages of distillation."""
    return [f for name, f in self.folders.items() if name.startswith('distill')]


def read_pipeline(root: Path) -> Pipeline:
  """The pipeline in `root`.

  Raises:
    FileNotFoundError: `root` holds none.
    ValueError: its list of stages is damaged.
  """
  listed = root / PIPELINE
  if not listed.is_file():
    raise FileNotFoundError(
      f'{root} has no {PIPELINE}, so it is not the --workdir of a pipeline'
    )
  damages: list[str] = []
  names = _read(listed, damages)
  if damages:
    raise ValueError(f'{listed} is damaged; start the pipeline again to write it anew')
  folders = {name: _folder(name, root / str(names[name]), damages) for name in names}
  return Pipeline(root, folders, damages)


def _folder(name: str, path: Path, damages: list[str]) -> Folder:
  run = None
  if any((path / file).exists() for file in ('config.json', 'metrics.jsonl')):
    run = read(path)
    damages += [f'{name}: {sentence}' for sentence in run.damages]
  files = sorted(path.glob('evaluation-*.json'))
  record = path / RECORD
  return Folder(
    name=name,
    path=path,
    run=run,
    record=_read(record, damages),
    digest=hashlib.sha256(record.read_bytes()).hexdigest() if record.exists() else '',
    rows={
      file.stem.removeprefix('evaluation-'): _read(file, damages) for file in files
    },
    rejection=_read(path / 'rejection.json', damages),
    pairs=_read(path / 'pairs.json', damages),
    compute=_read(path / 'compute.json', damages),
  )


def _read(path: Path, damages: list[str]) -> dict[str, Any]:
  """The object in a file; empty, with a sentence to `damages` if it can't be read."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_bytes(), parse_constant=lambda _: None)
  except ValueError:
    found = None
  if isinstance(found, dict):
    return found
  damages.append(f'{path.parent.name}/{path.name} is damaged and left out.')
  return {}
