"""The whole of R1 in miniature: from random numbers to distilled students, one command.

Paper: DeepSeek-R1 (Nature version). R1-Zero, the four stages of R1, distillation; each
stage is a module of its own that takes the work directory of the one before. Here they
stand in a row. A stage's folder is named by all that its result depends on, so a
finished stage is not run again, and a changed setting runs again what depends on it.
Every stage asks test problems once, at its end; its curves are on validation problems.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import (
  cold_start,
  distill,
  final_rl,
  r1_zero,
  reasoning_rl,
  rejection_sft,
)
from experiments.paper.beside import PAPER
from r1jax import tasks
from r1jax.model import decoder
from r1jax.report import pipeline
from r1jax.runtime import cli, hosts, workdir
from r1jax.runtime.run import user_errors
from r1jax.runtime.workdir import (
  MAY_CHANGE,
  PIPELINE,
  leaves,
  plain_config,
  write_whole,
)
from r1jax.sharding.mesh import MeshConfig
from r1jax.sharding.rules import MeshError
from r1jax.stages import problem_sets
from r1jax.stages.fit import fit_stage_mesh

FROM_ABOVE = ('workdir', 'parent', 'seed', 'data_dir', 'mesh')  # of a stage, by `plan`


@dataclasses.dataclass(frozen=True)
class R1:
  """The whole of R1 in miniature."""

  workdir: str = 'runs/r1'  # a folder for each stage, and the report
  seed: int = 0  # everything random in every stage follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  mesh: MeshConfig = MeshConfig()
  r1_zero: r1_zero.R1Zero = r1_zero.R1Zero()
  cold_start: cold_start.ColdStart = cold_start.ColdStart()
  reasoning_rl: reasoning_rl.ReasoningRL = reasoning_rl.ReasoningRL()
  rejection_sft: rejection_sft.RejectionSFT = rejection_sft.RejectionSFT()
  final_rl: final_rl.FinalRL = final_rl.FinalRL()
  distill_small: distill.Distill = distill.Distill(student=distill.STUDENTS['small'])
  distill_tiny: distill.Distill = distill.Distill(student=distill.STUDENTS['tiny'])

  def __post_init__(self) -> None:
    problem_sets.check_seed(self.seed)
    problem_sets.check_folders(self.workdir, self.data_dir)
    for name in STAGES:
      stage = getattr(self, name)
      for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        if field.name in FROM_ABOVE and value != field.default:
          raise ValueError(
            f'{name}.{field.name}: expected to be left to the pipeline, got {value}; '
            f'set --workdir, --seed, --data-dir and --mesh, which serve all stages'
          )


class _Stage(NamedTuple):
  name: str
  main: Callable[[Any], None]
  config: Any


STAGES: dict[str, Callable[[Any], None]] = {
  'r1_zero': r1_zero.main,
  'cold_start': cold_start.main,
  'reasoning_rl': reasoning_rl.main,
  'rejection_sft': rejection_sft.main,
  'final_rl': final_rl.main,
  'distill_small': distill.main,
  'distill_tiny': distill.main,
}


def plan(config: R1) -> list[_Stage]:
  """The stages in order, each with its folder and its parent's.

  A folder's name ends with a digest of the stage's settings and its parent's folder.
  """
  stages: list[_Stage] = []
  for name, main in STAGES.items():
    stage = getattr(config, name)
    shared = {one: getattr(config, one) for one in ('seed', 'data_dir', 'mesh')}
    last = [s for s in stages if not s.name.startswith('distill')][-1:]
    parent = {'parent': last[0].config.workdir} if last else {}
    stage = dataclasses.replace(stage, **shared, **parent)
    depends = {
      field: value
      for field, value in leaves(plain_config(stage)).items()
      if field not in (*MAY_CHANGE, 'parent')
    }
    versions = tasks.versions(problem_sets.TASKS)
    depends |= {f'data.{task}': version for task, version in versions.items()}
    depends['parent'] = Path(parent.get('parent', '')).name
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    folder = Path(config.workdir) / f'{name}-{digest[:8]}'
    stages.append(_Stage(name, main, dataclasses.replace(stage, workdir=str(folder))))
  return stages


def main(config: R1) -> None:
  """Runs what is not finished, in order.

  Raises MeshError, before the first, for one that can't be cut over the devices.
  """
  with hosts.connect(config):
    stages = plan(config)
    for stage in stages:
      _check(stage)
    if hosts.is_primary():
      _list(config, stages)
    for number, stage in enumerate(stages, start=1):
      _run(number, len(stages), stage)
      if hosts.is_primary():
        pipeline.write(config.workdir, PAPER)
  if hosts.is_primary():
    print('\n'.join(pipeline.result(config.workdir)))


def _check(stage: _Stage) -> None:
  """Raises MeshError, with the stage's name, for what devices can't be given."""
  config = stage.config
  # Any number that can be cut: how many tokens there are, the tokenizer will say.
  tokens = config.mesh.tensor * max(1, config.mesh.sampler_tensor)
  parts: tuple[Any, ...] = config, getattr(config, 'student', None)
  models = [part.model for part in parts if hasattr(part, 'model')]
  try:
    fit_stage_mesh(config, *(decoder.names(model, tokens) for model in models))
  except MeshError as error:
    raise MeshError(f'{stage.name}: {error}') from error


def _list(config: R1, stages: list[_Stage]) -> None:
  """Writes down which folder each stage has."""
  root = Path(config.workdir)
  root.mkdir(parents=True, exist_ok=True)
  folders = {stage.name: Path(stage.config.workdir).name for stage in stages}
  write_whole(root / PIPELINE, json.dumps(folders, indent=2) + '\n')


def _run(number: int, count: int, stage: _Stage) -> None:
  done = (Path(stage.config.workdir) / workdir.RECORD).is_file()
  state = 'is finished' if done else 'begins'
  if hosts.is_primary():
    print(f'Stage {number} of {count}, {stage.name}, {state}: {stage.config.workdir}')
  if not done:
    stage.main(stage.config)


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(R1()))
