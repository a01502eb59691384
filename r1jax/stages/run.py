"""What every stage of a run shares: its folder, its log, its screen, its end.

`start` turns Ctrl-C into a checkpoint: the first one asks the stage to stop after the
step at hand. `plain_errors` turns a mistake that a user can mend into one sentence.
"""

import contextlib
import dataclasses
import dis
import io
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from r1jax.rewards.pool import RewardError
from r1jax.stages.checkpoint import CheckpointError, Checkpoints
from r1jax.stages.compilation import Compilations
from r1jax.stages.metrics import Log
from r1jax.stages.progress import Progress
from r1jax.stages.workdir import MAY_CHANGE, WorkdirError, open_workdir


class TrainingError(Exception):
  """A run that can't go on; the message says why and what to change."""


class Interruption(Exception):
  """Ctrl-C was pressed and the state is saved."""


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
  """An open work directory."""

  workdir: Path
  log: Log
  progress: Progress
  checkpoints: dict[str, Checkpoints]  # by phase
  facts: dict[str, str]  # what checkpoints depend on beside the config
  compilations: Compilations
  interrupted: bool = False  # set by Ctrl-C; stages save and raise `Interruption`

  def save(self, phase: str, step: int, tree: Any) -> None:
    """Begins to write a checkpoint of what has been logged; ends the run after Ctrl-C.

    Raises:
      CheckpointError: it, or the one before, could not be written.
      Interruption: Ctrl-C was pressed.
    """
    manifest = {'phase': phase, 'metrics_lines': self.log.lines, **self.facts}
    for name, saved in self.checkpoints.items():
      if name != phase:  # this checkpoint is worth nothing without those before it
        saved.wait()
    self.checkpoints[phase].save(step, tree, manifest)
    if self.interrupted:
      self.checkpoints[phase].wait()
      raise Interruption(
        f'Stopped at step {step} of {phase}; the checkpoint is written. '
        'The same command goes on from it.'
      )


@contextlib.contextmanager
def start(
  config: Any, phases: tuple[str, ...], facts: Mapping[str, str] | None = None
) -> Iterator[Run]:
  """Opens the run of `config`, new or to be continued, with its phases in order.

  `facts` names files that a checkpoint is worth nothing without, and their digests.

  Raises:
    WorkdirError: the work directory holds something else, or can't be used, or one of
      its files is not what it was when the checkpoint was written.
    CheckpointError: see `Checkpoints`.
  """
  workdir = open_workdir(config.workdir, config, may_change=MAY_CHANGE)
  facts = dict(facts or {})
  folder = workdir / 'checkpoints'
  checkpoints = {phase: Checkpoints(folder / phase) for phase in phases}
  found = {phase: saved.step for phase, saved in checkpoints.items()}
  resume = {phase: step for phase, step in found.items() if step is not None}
  newest = max(resume, key=phases.index, default=None)
  manifest = checkpoints[newest].manifest() if newest else {}
  for name, digest in facts.items():
    if manifest.get(name, digest) != digest:
      raise WorkdirError(
        f'{workdir / name} is not the one that the checkpoint of step '
        f'{manifest["step"]} of {newest} belongs to; restore it, or choose another '
        '--workdir'
      )
  lines = manifest.get('metrics_lines', 0)
  with (
    Log(workdir, resume, lines) as log,
    Progress() as progress,
    Compilations() as compilations,
  ):
    run = Run(workdir, log, progress, checkpoints, facts, compilations)
    for saved in checkpoints.values():
      for warning in saved.warnings:
        progress.say(warning)
    for phase, step in resume.items():
      progress.say(f'Going on from step {step} of {phase} in {workdir}.')
    with _ctrl_c_sets_flag(run):
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
def plain_errors() -> Iterator[None]:
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


@contextlib.contextmanager
def _ctrl_c_sets_flag(run: Run) -> Iterator[None]:
  def note(number: int, frame: Any) -> None:
    del number, frame
    if run.interrupted:
      raise KeyboardInterrupt
    run.interrupted = True
    run.progress.say(
      'Ctrl-C: saving after this step, which may still compile. Press it again to stop '
      'without saving.'
    )

  before = signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
