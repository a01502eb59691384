"""An ablation: one stage in named variants, each with several seeds.

A variant is a function from the stage's config to another one. Every run has its own
folder, `<workdir>/<variant>-seed<n>`. A finished run is not repeated, so the same
command resumes an ablation that was killed. The result is printed and written to
`ablation.html`: a table on the test split, and curves on the validation split. Choose
settings by the curves; choosing by the table would tune on the test split. All runs
start from one parent, and the result holds for this parent only.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import final_rl, reasoning_rl
from r1jax import tasks
from r1jax.report.ablation import PASS_AT_1, VariantFigure, summarise
from r1jax.report.comparison import Comparison
from r1jax.runtime import cli, workdir
from r1jax.runtime.errors import user_errors
from r1jax.runtime.workdir import (
  leaves,
  machine_settings,
  plain_config,
  write_whole,
)
from r1jax.stages import artifact, problem_sets
from r1jax.stages.artifact import Artifact

PLANNED = ('parent', 'workdir', 'data_dir')  # fields that the ablation sets in each run


@dataclasses.dataclass(frozen=True)
class Ablation:
  """The variants to compare, and how to run and show them."""

  question: str  # title of the page
  variants: Mapping[str, Callable[[Any], Any]]  # the first is compared with the others
  launch: Callable[[Any], None] = reasoning_rl.REASONING_RL.launch  # runs one
  parent: str = 'cold_start'  # stage that all runs start from
  figures: tuple[VariantFigure, ...] = (PASS_AT_1,)


@dataclasses.dataclass(frozen=True)
class Command:
  """Folders, number of seeds, and the config that the variants change."""

  parent: str = 'runs/cold_start'  # the work directory of cold_start
  workdir: str = 'runs/ablation'  # a folder for each run, and the page
  seeds: int = 3  # runs of each variant: base.seed, base.seed + 1, …
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  base: reasoning_rl.ReasoningRL | final_rl.FinalRL = reasoning_rl.ReasoningRL()

  def __post_init__(self) -> None:
    if self.seeds < 1:
      raise ValueError(f'seeds: expected 1 or more, got {self.seeds}')
    problem_sets.check_folders(self.workdir, self.data_dir)
    standard = type(self.base)()
    for name in PLANNED:
      if getattr(self.base, name) != getattr(standard, name):
        raise ValueError(
          f'base.{name}: expected the default, as every run gets its own, got '
          f'{getattr(self.base, name)!r}; set {name} instead'
        )


def with_rl(base: Any, **changes: Any) -> Any:
  """Returns the config with changed RL settings; `grpo` may be a dict of changes.

  `with_rl(base, steps=10, grpo={'kl_coef': 0.0})` changes these two settings only.
  """
  algorithm = changes.get('grpo')
  if isinstance(algorithm, dict):
    changes['grpo'] = dataclasses.replace(base.rl.grpo, **algorithm)
  return dataclasses.replace(base, rl=dataclasses.replace(base.rl, **changes))


def plan(ablation: Ablation, config: Command) -> dict[str, list[Any]]:
  """Returns the config of every run, by variant, in the order of the seeds."""
  places = {'parent': config.parent, 'data_dir': config.data_dir}
  found: dict[str, list[Any]] = {}
  for variant, change in ablation.variants.items():
    changed = change(config.base)
    found[variant] = [
      dataclasses.replace(
        changed,
        **places,
        seed=seed,
        workdir=str(Path(config.workdir) / f'{variant}-seed{seed}'),
      )
      for seed in range(config.base.seed, config.base.seed + config.seeds)
    ]
  return found


def finished(run: Any, parent: Artifact) -> bool:
  """Returns whether a run is finished.

  Raises:
    ValueError: its folder holds a finished run with other settings.
  """
  if not (Path(run.workdir) / workdir.RECORD).is_file():
    return False
  record = artifact.load(run.workdir).record
  free = {*machine_settings(run), 'parent'}
  before, now = leaves(record['config']), leaves(plain_config(run))
  differing = [
    name
    for name in dict.fromkeys([*now, *before])
    if before.get(name) != now.get(name) and name not in free
  ]
  if record.get('data') != tasks.versions(run.task_names()):
    differing.append('version of the problems')
  if parent.digest not in [found['digest'] for found in record['parents']]:
    differing.append('parent')
  if differing:
    raise ValueError(
      f'{run.workdir} holds a finished run with another {", ".join(differing)}; '
      'choose another --workdir, or give the same settings'
    )
  return True


def run(ablation: Ablation, config: Command) -> Comparison:
  """Runs what is not finished, seed by seed, and returns the result."""
  runs = plan(ablation, config)
  parent = artifact.load(config.parent, ablation.parent)
  turns = [stage for turn in zip(*runs.values(), strict=True) for stage in turn]
  done = [finished(stage, parent) for stage in turns]  # checked before the first run
  for number, (stage, skip) in enumerate(zip(turns, done, strict=True), start=1):
    state = 'is finished' if skip else 'begins'
    print(f'Run {number} of {len(turns)} {state}: {stage.workdir}')
    if not skip:
      ablation.launch(stage)
  paths = {
    variant: [Path(stage.workdir) for stage in stages]
    for variant, stages in runs.items()
  }
  result = summarise(ablation.question, paths, ablation.figures)
  write_whole(Path(config.workdir) / 'ablation.html', result.html)
  return result


def main(ablation: Ablation, default: Command) -> None:
  """Runs the command line of an ablation."""
  with user_errors():
    show(ablation, cli.parse(default))


def show(ablation: Ablation, config: Command) -> None:
  """Runs an ablation, and prints its result and where the page is."""
  print('\n'.join([ablation.question, *run(ablation, config).lines]))
  print(Path(config.workdir) / 'ablation.html')
