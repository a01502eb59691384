"""The whole of R1 in miniature: from random numbers to distilled students, one command.

  python -m experiments.r1

DeepSeek-R1 (Nature version): R1-Zero, the four stages of R1, distillation. Each stage
is a module that takes the work directory of the one before. A stage's folder name
contains a digest of everything its result depends on, so a finished stage is not run
again, and a changed setting reruns the stages that depend on it. Every stage is
measured on test problems once, at its end; its curves are on validation problems. Cost
and results: docs/results.md.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from experiments import distill
from experiments.cold_start import COLD_START, ColdStart
from experiments.distill import DISTILL, Distill
from experiments.final_rl import FINAL_RL, FinalRL
from experiments.paper.results import PAPER
from experiments.r1_zero import R1_ZERO, R1Zero
from experiments.reasoning_rl import REASONING_RL, ReasoningRL
from experiments.rejection_sft import REJECTION_SFT, RejectionSFT
from r1jax import tasks
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.report import pipeline
from r1jax.runtime import cli, hosts
from r1jax.runtime.errors import user_errors
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
from r1jax.stages.experiment import Experiment, StageConfig, algorithm_presets
from r1jax.stages.fit import fit_stage_mesh, parts

# Fields of a stage's config that `plan` sets.
PLANNED = ('workdir', 'parent', 'seed', 'data_dir', 'mesh')


@dataclasses.dataclass(frozen=True)
class R1(StageConfig):
  """The whole of R1 in miniature."""

  workdir: str = 'runs/r1'  # a folder for each stage, and the report
  r1_zero: R1Zero = R1Zero()
  cold_start: ColdStart = ColdStart()
  reasoning_rl: ReasoningRL = ReasoningRL()
  rejection_sft: RejectionSFT = RejectionSFT()
  final_rl: FinalRL = FinalRL()
  distill_small: Distill = Distill(student=distill.STUDENTS['small'])
  distill_tiny: Distill = Distill(student=distill.STUDENTS['tiny'])

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in STAGES:
      stage = getattr(self, name)
      for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        if field.name in PLANNED and value != field.default:
          raise ValueError(
            f'{name}.{field.name}: expected to be left to the pipeline, got {value}; '
            f'set --workdir, --seed, --data-dir and --mesh, which apply to all stages'
          )


class PlannedStage(NamedTuple):
  """A stage of the pipeline, with its config and folder."""

  name: str
  experiment: Experiment
  config: Any


STAGES: dict[str, Experiment] = {
  'r1_zero': R1_ZERO,
  'cold_start': COLD_START,
  'reasoning_rl': REASONING_RL,
  'rejection_sft': REJECTION_SFT,
  'final_rl': FINAL_RL,
  'distill_small': DISTILL,
  'distill_tiny': DISTILL,
}


def plan(config: R1) -> list[PlannedStage]:
  """Returns the stages in order, each with its folder and its parent's.

  A folder's name ends with a digest of the stage's settings and its parent's folder.
  """
  stages: list[PlannedStage] = []
  for name, experiment in STAGES.items():
    stage = getattr(config, name)
    shared = {one: getattr(config, one) for one in ('seed', 'data_dir', 'mesh')}
    last = [s for s in stages if not s.name.startswith('distill')][-1:]
    parent = {'parent': last[0].config.workdir} if last else {}
    stage = dataclasses.replace(stage, **shared, **parent)
    depends = {
      field: value
      for field, value in leaves(plain_config(stage)).items()
      if field not in {*machine_settings(stage), 'parent'}
    }
    versions = tasks.versions(problem_sets.TASKS)
    depends |= {f'data.{task}': version for task, version in versions.items()}
    depends['parent'] = Path(parent.get('parent', '')).name
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    folder = Path(config.workdir) / f'{name}-{digest[:8]}'
    placed = dataclasses.replace(stage, workdir=str(folder))
    stages.append(PlannedStage(name, experiment, placed))
  return stages


def main(config: R1) -> None:
  """Runs the unfinished stages in order.

  Raises MeshError, before the first stage, if one does not divide over the devices.
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


def _list(config: R1, stages: list[PlannedStage]) -> None:
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


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(R1(), presets=algorithm_presets(R1())))
