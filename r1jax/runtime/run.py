"""An open run: its folder, log, screen, checkpoints, and how it ends.

The first Ctrl-C, or SIGTERM, asks the stage to save a checkpoint after the current step
and stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from r1jax.plain import Config
from r1jax.runtime import hosts
from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
from r1jax.runtime.compilation import Compilations
from r1jax.runtime.errors import Interruption, TrainingError
from r1jax.runtime.log import Log
from r1jax.runtime.progress import Progress
from r1jax.runtime.workdir import WorkdirError, machine_settings, open_workdir

MAX_CHECKPOINT_AGE = 600  # seconds after which a checkpoint is written though not due


class RunConfig(Config, Protocol):
  """A config that names the run's folder."""

  @property
  def workdir(self) -> str:
    """The folder."""


def check_finite(
  phase: str, step: int, values: Mapping[str, float], optimizer: str
) -> None:
  """Raises TrainingError if a step's loss or gradient norm is not finite.

  Args:
    phase: of the step.
    step: its number.
    values: its metrics; `loss` and `grad_norm` are checked.
    optimizer: the config's field with the optimizer's settings, for the message.
  """
  if not (math.isfinite(values['loss']) and math.isfinite(values['grad_norm'])):
    raise TrainingError(
      f'the loss of {phase} is {values["loss"]} and the gradient norm '
      f'{values["grad_norm"]} at step {step}; lower {optimizer}.learning_rate and '
      'choose another --workdir (earlier checkpoints are intact)'
    )


@dataclasses.dataclass
class Run:
  """An open work directory.

  On hosts other than the first, `log` and `progress` do nothing.
  """

  workdir: Path
  log: Log | NullLog
  progress: Progress | NullLog
  checkpoints: dict[str, Checkpoints]  # by phase
  digests: dict[str, str]  # of files that checkpoints depend on, by name
  compilations: Compilations
  interrupted: bool = False  # this host was asked to stop, by Ctrl-C or SIGTERM
  ending: bool = False  # some host was; stages save and raise `Interruption`
  # Time of the last checkpoint, or of the start.
  last_save: float = dataclasses.field(default_factory=time.monotonic)

  def must_stop(self) -> bool:
    """Returns whether a host was asked to stop; all hosts call it at the same step."""
    self.must_save(due=False)
    return self.ending

  def must_save(self, due: bool) -> bool:
    """Returns whether to write a checkpoint now; all hosts call it at the same step.

    True if one is `due`, if the run is `ending`, or if the last one is older than
    `MAX_CHECKPOINT_AGE`, so that a machine that is taken away loses no more than that.
    """
    old = time.monotonic() - self.last_save > MAX_CHECKPOINT_AGE
    asked, late = zip(*hosts.all_gather('stop', (self.interrupted, old)), strict=True)
    self.ending = any(asked)
    return due or self.ending or any(late)

  def save(self, phase: str, step: int, tree: object) -> None:
    """Starts to write a checkpoint of the logged steps; stops if the run is `ending`.

    Raises:
      CheckpointError: this checkpoint, or the one before, could not be written.
      Interruption: the run was asked to stop.
    """
    manifest = {'phase': phase, 'metrics_lines': self.log.lines, **self.digests}
    for name, saved in self.checkpoints.items():
      if name != phase:  # this checkpoint is useless without those of earlier phases
        saved.wait()
    self.checkpoints[phase].save(step, tree, manifest)
    self.last_save = time.monotonic()
    if self.ending:
      self.checkpoints[phase].wait()
      raise Interruption(
        f'Stopped at step {step} of {phase}; the checkpoint is written. '
        'The same command resumes from it.'
      )


@contextlib.contextmanager
def start(
  config: RunConfig,
  phases: tuple[str, ...],
  digests: Mapping[str, str] | None = None,
  versions: Mapping[str, str] | None = None,
) -> Iterator[Run]:
  """Opens the run of `config`, new or resumed; a context manager.

  Args:
    config: of the experiment.
    phases: parts of the run that have checkpoints, in order.
    digests: of files that checkpoints depend on, by name.
    versions: of the problems, by task.

  Raises:
    WorkdirError: the work directory holds something else, can't be used, or one of its
      files has changed since the checkpoint was written.
    CheckpointError: see `Checkpoints`.
  """
  workdir = _open(config, versions or {})
  digests = dict(digests or {})
  folder = workdir / 'checkpoints'
  checkpoints = {phase: Checkpoints(folder / phase) for phase in phases}
  found = {phase: saved.step for phase, saved in checkpoints.items()}
  resume = {phase: step for phase, step in found.items() if step is not None}
  newest = max(resume, key=phases.index, default=None)
  manifest = checkpoints[newest].manifest() if newest else {}
  for name, digest in digests.items():
    if manifest.get(name, digest) != digest:
      raise WorkdirError(
        f'{workdir / name} has changed since the checkpoint of step '
        f'{manifest["step"]} of {newest} was written; restore it, or choose another '
        '--workdir'
      )
  lines = manifest.get('metrics_lines', 0)
  first = hosts.is_primary()
  with (
    Log(workdir, resume, lines) if first else NullLog() as log,
    Progress() if first else NullLog() as progress,
    Compilations() as compilations,
  ):
    run = Run(workdir, log, progress, checkpoints, digests, compilations)
    for saved in checkpoints.values():
      for warning in saved.warnings:
        progress.say(warning)
    for phase, step in resume.items():
      progress.say(f'Resuming from step {step} of {phase} in {workdir}.')
    with _signals_set_flag(run):
      try:
        yield run
      except BaseException:
        # The process may end after this, but not while a checkpoint is being written.
        for saved in checkpoints.values():
          try:
            saved.wait()
          except CheckpointError as error:
            progress.say(str(error))
        raise
      for saved in checkpoints.values():
        saved.wait()


def _open(config: RunConfig, versions: Mapping[str, str]) -> Path:
  """Returns the run's directory, opened by the first host and shared by all."""
  if hosts.is_primary():
    workdir = open_workdir(
      config.workdir, config, may_change=machine_settings(config), data=versions
    )
  hosts.all_gather('workdir', None)
  if not hosts.is_primary():
    workdir = Path(config.workdir)
    if not workdir.is_dir():
      raise WorkdirError(
        f'workdir: expected a folder that all hosts share, got {workdir}, which does '
        f'not exist on host {hosts.index()}'
      )
  return workdir


class NullLog:
  """Stands in for log and progress on hosts other than the first; does nothing."""

  lines = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    pass

  def resume(self, phase: str, step: int) -> None:
    """Does nothing."""

  def write(self, phase: str, step: int, **values: object) -> None:
    """Does nothing."""

  def samples(self, samples: object) -> None:
    """Does nothing."""

  def say(self, sentence: str) -> None:
    """Does nothing."""

  def update(self, phase: str, step: int, total: int, values: object) -> None:
    """Does nothing."""


@contextlib.contextmanager
def _signals_set_flag(run: Run) -> Iterator[None]:
  """Lets Ctrl-C and SIGTERM (preemption) end the run after the current step."""

  def note(number: int, frame: FrameType | None) -> None:
    del frame
    if run.interrupted and number == signal.SIGINT:
      raise KeyboardInterrupt
    run.interrupted = True
    name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
    again = ' Press it again to stop without saving.' if name == 'Ctrl-C' else ''
    run.progress.say(f'{name}: saving after this step, which may still compile.{again}')

  both = signal.SIGINT, signal.SIGTERM
  before = [signal.signal(number, note) for number in both]
  try:
    yield
  finally:
    for number, handler in zip(both, before, strict=True):
      signal.signal(number, handler)
