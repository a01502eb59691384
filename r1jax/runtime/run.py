"""What every stage of a run shares: its folder, its log, its screen, its end.

`start` turns Ctrl-C into a checkpoint: the first one asks the stage to stop after the
step at hand. `user_errors` turns a mistake that a user can mend into one sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import io
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax

from r1jax.rewards.pool import RewardError
from r1jax.runtime import hosts
from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
from r1jax.runtime.compilation import Compilations
from r1jax.runtime.hosts import CleanStop
from r1jax.runtime.log import Log
from r1jax.runtime.progress import Progress
from r1jax.runtime.workdir import WorkdirError, machine_settings, open_workdir

OLDEST = 600  # seconds since the last checkpoint after which one is written anyhow


class TrainingError(CleanStop):
  """A run that can't go on; the message says why and what to change."""


class Interruption(CleanStop):
  """The run was asked to stop, and the state is saved."""


def check_finite(
  phase: str, step: int, values: Mapping[str, float], optimizer: str
) -> None:
  """Raises TrainingError where a step's loss or gradient is no longer a number.

  `optimizer` is the field of the config whose learning rate is to be lowered.
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

  Of a host other than the first, `log` and `progress` write and say nothing.
  """

  workdir: Path
  log: Log | NullLog
  progress: Progress | NullLog
  checkpoints: dict[str, Checkpoints]  # by phase
  digests: dict[str, str]  # of files that checkpoints depend on
  compilations: Compilations
  interrupted: bool = False  # this host was asked to stop, by Ctrl-C or SIGTERM
  ends: bool = False  # one of them was; stages save and raise `Interruption`
  saved: float = dataclasses.field(default_factory=time.monotonic)  # or begun

  def stops(self) -> bool:
    """Whether any host was asked to stop; all ask at the same step."""
    self.saves(due=False)
    return self.ends

  def saves(self, due: bool) -> bool:
    """Whether a checkpoint is to be written now; all hosts ask at the same step.

    One that is `due`, or because the run `ends`, or the last one is old: a machine that
    is taken away in the middle of a long step takes no more than that with it.
    """
    old = time.monotonic() - self.saved > OLDEST
    asked, late = zip(*hosts.all_gather('stop', (self.interrupted, old)), strict=True)
    self.ends = any(asked)
    return due or self.ends or any(late)

  def save(self, phase: str, step: int, tree: Any) -> None:
    """Begins to write a checkpoint of what has been logged; ends a run that `stops`.

    Raises:
      CheckpointError: it, or the one before, could not be written.
      Interruption: the run was asked to stop.
    """
    manifest = {'phase': phase, 'metrics_lines': self.log.lines, **self.digests}
    for name, saved in self.checkpoints.items():
      if name != phase:  # this checkpoint is worth nothing without those before it
        saved.wait()
    self.checkpoints[phase].save(step, tree, manifest)
    self.saved = time.monotonic()
    if self.ends:
      self.checkpoints[phase].wait()
      raise Interruption(
        f'Stopped at step {step} of {phase}; the checkpoint is written. '
        'The same command goes on from it.'
      )


@contextlib.contextmanager
def start(
  config: Any,
  phases: tuple[str, ...],
  digests: Mapping[str, str] | None = None,
  versions: Mapping[str, str] | None = None,
) -> Iterator[Run]:
  """Opens the run of `config`, new or to be continued, with its phases in order.

  Args:
    config: the experiment's.
    phases: parts with checkpoints of their own.
    digests: of files that a checkpoint is worth nothing without, by name.
    versions: of the problems, by task.

  Raises:
    WorkdirError: the work directory holds something else, or can't be used, or one of
      its files is not what it was when the checkpoint was written.
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
        f'{workdir / name} is not the one that the checkpoint of step '
        f'{manifest["step"]} of {newest} belongs to; restore it, or choose another '
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
      progress.say(f'Going on from step {step} of {phase} in {workdir}.')
    with _signals_set_flag(run):
      try:
        yield run
      except BaseException:
        # The process may end now, and must not while a checkpoint is being written.
        for saved in checkpoints.values():
          try:
            saved.wait()
          except CheckpointError as error:
            progress.say(str(error))
        raise
      for saved in checkpoints.values():
        saved.wait()


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Ends the process with one sentence on stderr instead of a traceback.

  Status 1 for what a user can mend, 130 after Ctrl-C. Other exceptions, and a
  ValueError that a library raised, are bugs and keep their traceback.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(
        errors='replace'
      )  # a locale without Polish is no reason to end
  try:
    yield
  except Interruption as stop:
    print(stop, file=sys.stderr)
    sys.exit(130)
  except KeyboardInterrupt:
    print('Stopped; the last checkpoint is intact.', file=sys.stderr)
    sys.exit(130)
  except (
    CheckpointError,
    hosts.HostError,
    RewardError,
    TrainingError,
    WorkdirError,
    OSError,
    ValueError,  # how configs and readers of files refuse, with a full sentence
  ) as error:
    if isinstance(error, ValueError) and not _is_ours(error):
      raise
    print(f'error: {_sentence(error)}', file=sys.stderr)
    sys.exit(1)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print(
      f'error: there is not enough memory ({str(error).splitlines()[0]:.200}); lower '
      'the sizes of the model, rl.max_length, or rl.micro_batch_rows',
      file=sys.stderr,
    )
    sys.exit(1)


def _sentence(error: BaseException) -> str:
  """What the error says; what the system says of a file, with what to do."""
  if isinstance(error, OSError) and error.filename and str(error).startswith('[Errno'):
    return (
      f'{error.filename} cannot be used ({error.strerror}); mend that, or choose '
      'another --workdir'
    )
  return str(error)


def _is_ours(error: BaseException) -> bool:
  """Whether r1jax or an experiment refused, and not a library that a bug misused."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  if trace is None:
    return False
  code = trace.tb_frame.f_code.co_code
  raised_here = dis.opname[code[trace.tb_lasti]] == 'RAISE_VARARGS'
  package = trace.tb_frame.f_globals['__name__'].split('.')[0]
  return raised_here and package in ('r1jax', 'experiments', '__main__')


def _open(config: Any, versions: Mapping[str, str]) -> Path:
  """The run's directory, which the first host opens, and all others see."""
  if hosts.is_primary():
    workdir = open_workdir(
      config.workdir, config, may_change=machine_settings(config), data=versions
    )
  hosts.all_gather('workdir', None)
  if not hosts.is_primary():
    workdir = Path(config.workdir)
    if not workdir.is_dir():
      raise WorkdirError(
        f'workdir: expected a folder that all hosts share, got {workdir}, which is not '
        f'there on host {hosts.index()}'
      )
  return workdir


class NullLog:
  """Log and progress of a host other than the first, which writes and says them."""

  lines = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    pass

  def write(self, phase: str, step: int, **values: Any) -> None:
    """Nothing."""

  def samples(self, samples: Any) -> None:
    """Nothing."""

  def say(self, sentence: str) -> None:
    """Nothing."""

  def update(self, phase: str, step: int, total: int, values: Any) -> None:
    """Nothing."""


@contextlib.contextmanager
def _signals_set_flag(run: Run) -> Iterator[None]:
  """Lets Ctrl-C, and SIGTERM by which machines are taken away, end the run in order."""

  def note(number: int, frame: Any) -> None:
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
