"""A chain of stages in one command; finished stages are not run again.

Each stage takes the work directory of the one before. A folder's name ends with a
digest of everything its result depends on, so a changed setting reruns the stages that
depend on it, and no others.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from r1jax import tasks
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.report import pipeline as report
from r1jax.report.paper import Paper
from r1jax.runtime import hosts
from r1jax.runtime.workdir import (
  PIPELINE,
  RECORD,
  leaves,
  machine_settings,
  plain_config,
  write_whole,
)
from r1jax.sharding.rules import MeshError
from r1jax.stages import problem_sets
from r1jax.stages.distillation import Student
from r1jax.stages.experiment import Experiment, StageConfig
from r1jax.stages.fit import fit_stage_mesh, parts

# Fields of a stage's config that `plan` sets.
PLANNED = ('workdir', 'parent', 'seed', 'data_dir', 'mesh')


class PlannedStage(NamedTuple):
  """A stage of the pipeline, with its config and folder."""

  name: str
  experiment: Experiment
  config: Any


def check_planned(config: StageConfig, names: Collection[str]) -> None:
  """Raises ValueError if a stage's config sets what `plan` does."""
  for name in names:
    stage = getattr(config, name)
    for field in dataclasses.fields(stage):
      value = getattr(stage, field.name)
      if field.name in PLANNED and value != field.default:
        raise ValueError(
          f'{name}.{field.name}: expected to be left to the pipeline, got {value}; '
          f'set --workdir, --seed, --data-dir and --mesh, which apply to all stages'
        )


def plan(
  config: StageConfig, experiments: Mapping[str, Experiment], childless: Collection[str]
) -> list[PlannedStage]:
  """Returns the stages in order, each with its folder and its parent's.

  Args:
    config: of the pipeline, with a config for each stage.
    experiments: the stages by name.
    childless: names of those that no other stage starts from.
  """
  stages: list[PlannedStage] = []
  parent: dict[str, str] = {}
  versions = tasks.versions(problem_sets.TASKS)
  shared = {one: getattr(config, one) for one in ('seed', 'data_dir', 'mesh')}
  for name, experiment in experiments.items():
    stage = dataclasses.replace(getattr(config, name), **shared, **parent)
    depends = {
      field: value
      for field, value in leaves(plain_config(stage)).items()
      if field not in {*machine_settings(stage), 'parent'}
    }
    depends |= {f'data.{task}': version for task, version in versions.items()}
    depends['parent'] = Path(parent.get('parent', '')).name
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    folder = str(Path(config.workdir) / f'{name}-{digest[:8]}')
    placed = dataclasses.replace(stage, workdir=folder)
    stages.append(PlannedStage(name, experiment, placed))
    if name not in childless:
      parent = {'parent': folder}
  return stages


def run(
  config: StageConfig, stages: list[PlannedStage], paper: Paper | None = None
) -> None:
  """Runs the unfinished stages in order, and writes the report after each.

  Args:
    config: of the pipeline.
    stages: see `plan`.
    paper: its results, for the report.

  Raises:
    MeshError: a stage does not divide over the devices; none has been run.
  """
  with hosts.connect(config):
    for stage in stages:
      _check(stage)
    if hosts.is_primary():
      _list(config, stages)
    for number, stage in enumerate(stages, start=1):
      _run(number, len(stages), stage)
      if hosts.is_primary():
        report.write(config.workdir, paper)
  if hosts.is_primary():
    print('\n'.join(report.result(config.workdir)))


def _check(stage: PlannedStage) -> None:
  """Raises MeshError, with the stage's name, if it does not divide over the devices."""
  config = stage.config
  # Any divisible number, as the vocabulary is not known before the tokenizer.
  tokens = config.mesh.tensor * max(1, config.mesh.sampler_tensor)
  values = [value for _, value in parts(config)]
  models = [value for value in values if isinstance(value, ModelConfig)]
  models += [value.model for value in values if isinstance(value, Student)]
  names = [decoder.names(model, tokens) for model in models]
  try:
    fit_stage_mesh(config, config.mesh, *names)
  except MeshError as error:
    raise MeshError(f'{stage.name}: {error}') from error


def _list(config: StageConfig, stages: list[PlannedStage]) -> None:
  """Writes the folder of each stage to pipeline.json."""
  root = Path(config.workdir)
  root.mkdir(parents=True, exist_ok=True)
  folders = {stage.name: Path(stage.config.workdir).name for stage in stages}
  write_whole(root / PIPELINE, json.dumps(folders, indent=2) + '\n')


def _run(number: int, count: int, stage: PlannedStage) -> None:
  """Runs a stage unless it is finished."""
  done = (Path(stage.config.workdir) / RECORD).is_file()
  state = 'is finished' if done else 'begins'
  if hosts.is_primary():
    print(f'Stage {number} of {count}, {stage.name}, {state}: {stage.config.workdir}')
  if not done:
    stage.experiment.launch(stage.config)
