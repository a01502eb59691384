"""The bootstrap of every experiment: command line, hosts, lock, resume, record, report.

An experiment is a config and a function (stage, config) -> `Trained`. This module does
everything else that a run needs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import jax
import optax

from r1jax import algorithms, plain, report, tasks
from r1jax.evaluation.suite import SuiteConfig
from r1jax.rollout.policy import Policy
from r1jax.runtime import cli, compilation, hosts
from r1jax.runtime.errors import user_errors
from r1jax.runtime.run import start
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets
from r1jax.stages.artifact import Artifact
from r1jax.stages.fit import fit_stage_mesh, parts, stage_devices
from r1jax.stages.methods import Methods
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rl_config import MACHINE, RLConfig
from r1jax.stages.stage import Stage


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """Fields of every stage's config."""

  workdir: str = ''  # all files of the run; an unfinished run in it resumes
  seed: int = 0  # of everything random
  # Folder of tensorflow-datasets; None is its default.
  data_dir: str | None = dataclasses.field(default=None, metadata=MACHINE)
  mesh: MeshConfig = MeshConfig()  # how the devices are arranged

  def __post_init__(self) -> None:
    problem_sets.check_seed(self.seed)
    problem_sets.check_folders(self.workdir, self.data_dir)

  def task_names(self) -> Sequence[str]:
    """Returns the tasks whose problems the stage uses."""
    return problem_sets.TASKS

  def check(self, problems: Problems) -> None:
    """Raises ValueError for settings that do not fit these problems."""
    problems.check(self)


C = TypeVar('C', bound=StageConfig)


class ChildConfig(Protocol):
  """The config of a stage that starts from another one."""

  @property
  def parent(self) -> str:
    """The work directory of that one."""

  @property
  def data_dir(self) -> str | None:
    """See `StageConfig`."""


@dataclasses.dataclass(frozen=True)
class Origin:
  """The starting point of a stage.

  Fields:
    policy: the model, its tokenizer and template.
    problems: training and held-out problems.
    digests: of files that its checkpoints depend on, by name.
    parents: finished stages that it starts from.
    keep: writes files that the run needs, such as its tokenizer, into its folder.
    params: (mesh) -> parameters, for a model that does not come from a stage.
    remarks: sentences to say at the start.
  """

  policy: Policy
  problems: Problems
  digests: Mapping[str, str]
  parents: tuple[Artifact, ...] = ()
  keep: Callable[[Path], None] | None = None
  params: Callable[[jax.sharding.Mesh], optax.Params] | None = None
  remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Trained:
  """The result of a stage.

  Fields:
    params: by name; the next stage starts from 'final'. The same parameters under two
      names are evaluated once.
    policy: the model of the parameters; None is the one that the stage started from.
    parents: finished stages that it used besides its parent.
  """

  params: Mapping[str, optax.Params]
  policy: Policy | None = None
  parents: tuple[Artifact, ...] = ()


def child_of(*names: str) -> Callable[[ChildConfig], Origin]:
  """Returns config -> the origin of a stage whose parent has one of these names."""

  def origin(config: ChildConfig) -> Origin:
    parent = artifact.load(config.parent, *names)
    return Origin(
      parent.policy,
      problem_sets.problems_of(parent, config.data_dir),
      parent.digests,
      (parent,),
    )

  return origin


Presets = dict[str, Mapping[str, plain.Config]]  # see `cli.Presets`


def algorithm_presets(config: StageConfig, prefix: str = '') -> Presets:
  """Returns the methods and algorithms by the path of each RL stage in a config."""
  found: Presets = {}
  for name, part in parts(config):
    if isinstance(part, RLConfig):
      found[f'{prefix}{name}'] = Methods(part)
      found[f'{prefix}{name}.grpo'] = algorithms.PRESETS
    elif isinstance(part, StageConfig):
      found |= algorithm_presets(part, f'{prefix}{name}.')
  return found


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[C]):
  """A stage that can be launched.

  Fields:
    name: of the stage, in its record.
    origin: config -> its starting point.
    run: (stage, config) -> its result.
    phases: parts that have checkpoints, in order; or config -> these.
    report: whether to write report.html, which needs an RL phase.
  """

  name: str
  origin: Callable[[C], Origin]
  run: Callable[[Stage, C], Trained]
  phases: tuple[str, ...] | Callable[[C], tuple[str, ...]]
  report: bool = False

  def main(self, default: C, presets: cli.Presets | None = None) -> None:
    """Runs the stage with `default`, changed by the command line.

    Besides `presets`, every `RLConfig` has those of papers: `--rl dapo` for a method,
    `--rl.grpo dapo` for its objective alone.
    """
    known = {**algorithm_presets(default), **(presets or {})}
    with user_errors():
      self.launch(cli.parse(default, presets=known))

  def launch(self, config: C) -> None:
    """Runs the stage to its end, resuming from its last checkpoint.

    Raises:
      MeshError: a batch or the model does not divide over the devices.
      ValueError: settings are inconsistent; raised before anything expensive.
      WorkdirError: see `run.start`.
    """
    compilation.keep_on_disk()
    with hosts.connect(config):
      origin = self.origin(config)
      config.check(origin.problems)
      fit_stage_mesh(config, config.mesh, origin.policy.names)
      phases = self.phases if isinstance(self.phases, tuple) else self.phases(config)
      versions = tasks.versions(config.task_names())
      with start(config, phases, origin.digests, versions) as run:
        if not artifact.finished(run):
          tokenizer, problems = origin.policy.tokenizer, origin.problems
          for remark in (*tokenizer.remarks, *problems.remarks, *origin.remarks):
            run.progress.say(remark)
          if origin.keep and hosts.is_primary():
            origin.keep(run.workdir)
          stage = Stage(
            run,
            origin.policy,
            origin.problems,
            stage_devices(run, config, config.mesh),
            self.seed(config, origin),
            config.mesh,
            origin.parents,
            origin.params,
          )
          self._finish(stage, config, self.run(stage, config), versions)
    if self.report and hosts.is_primary():
      print('\n'.join(report.result(config.workdir)))

  def seed(self, config: C, origin: Origin) -> int:
    """Returns the stage's seed: the config's, or its own if it has a parent."""
    if not origin.parents:
      return config.seed
    return problem_sets.own_seed(config.seed, self.name)

  def _finish(
    self, stage: Stage, config: C, trained: Trained, versions: Mapping[str, str]
  ) -> None:
    """Evaluates the trained models, and writes the report and the record."""
    policy = trained.policy or stage.policy
    for _, part in parts(config):
      if isinstance(part, SuiteConfig):
        done: list[optax.Params] = []
        once = {}
        for label, params in trained.params.items():
          if not any(params is other for other in done):
            once[label] = params
          done.append(params)
        # The same stage has its sampler compiled already.
        measured = stage
        if trained.policy is not None:
          measured = dataclasses.replace(stage, policy=trained.policy)
        measured.measure(once, part)
    if self.report and hosts.is_primary():
      report.write(stage.run.workdir)
    artifact.finish(
      stage.run,
      self.name,
      config,
      policy,
      trained.params,
      (*stage.parents, *trained.parents),
      versions,
    )
