"""Errors that end a run, and how they are shown: one sentence, no traceback."""

import contextlib
import dis
import io
import sys
from collections.abc import Iterator

import jax

from r1jax.rewards.pool import RewardError
from r1jax.runtime.checkpoint import CheckpointError
from r1jax.runtime.hosts import CleanStop, HostError
from r1jax.runtime.workdir import WorkdirError
from r1jax.sandbox import SandboxError


class TrainingError(CleanStop):
  """A run that can't continue; the message gives the reason and what to change."""


class Interruption(CleanStop):
  """The run was asked to stop, and its state is saved."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Ends the process with one sentence on stderr instead of a traceback.

  The exit status is 1 for what a user can fix, 130 after Ctrl-C. Other exceptions, and
  a ValueError raised by a library, are bugs and keep their traceback.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # A locale that can't encode Polish must not end a run.
      stream.reconfigure(errors='replace')
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
    HostError,
    RewardError,
    SandboxError,
    TrainingError,
    WorkdirError,
    OSError,
    ValueError,  # raised by configs and file readers, with a full sentence
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
  """Returns the error's message; for an OSError about a file, with what to do."""
  if isinstance(error, OSError) and error.filename and str(error).startswith('[Errno'):
    return (
      f'{error.filename} cannot be accessed ({error.strerror}); fix that, or choose '
      'another --workdir'
    )
  return str(error)


def _is_ours(error: BaseException) -> bool:
  """Returns whether r1jax or an experiment raised it, and not a library."""
  trace = error.__traceback__
  while trace is not None and trace.tb_next is not None:
    trace = trace.tb_next
  if trace is None:
    return False
  code = trace.tb_frame.f_code.co_code
  raised_here = dis.opname[code[trace.tb_lasti]] == 'RAISE_VARARGS'
  package = trace.tb_frame.f_globals['__name__'].split('.')[0]
  return raised_here and package in ('r1jax', 'experiments', '__main__')
