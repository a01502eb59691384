"""One interpreter: started ahead, given one job, waited for, ended with all it made."""

import contextlib
import marshal
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from r1jax.plain import JsonObject
from r1jax.sandbox import Limits, SandboxError, Status, isolation

OUT_OF_CPU = (signal.SIGXCPU, signal.SIGKILL)  # at the soft limit, and the hard one
POLL = 0.5  # seconds between looks at a program that runs for long
STARVED = 20  # times the limit on the clock, after which a program is given up


class Process:
  """An interpreter of `inside.py` that waits for its job.

  Args:
    limits: of the program.
    packages: Python packages that it may import.
    socket: a descriptor that it inherits, or none.
  """

  def __init__(
    self,
    limits: Limits,
    packages: Sequence[str] = (),
    socket: int | None = None,
  ) -> None:
    self._limits, self._socket = limits, socket
    kept = [] if socket is None else [socket]
    with _file(isolation.seccomp_filter()) as rules:
      words = isolation.command(limits, packages, rules)
      self._stdout, self._stderr = os.memfd_create('out'), os.memfd_create('err')
      self._process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=self._stdout,
        stderr=self._stderr,
        env={},
        pass_fds=[rules, *kept],
        start_new_session=True,  # Ctrl-C is for the run
      )

  def waits(self) -> bool:
    """Returns whether the interpreter has not ended before it had a job."""
    return self._process.poll() is None

  def give(self, job: JsonObject) -> None:
    """Gives the interpreter its job."""
    limits = self._limits
    bounds = {'cpu': limits.cpu, 'memory': limits.memory, 'files': limits.files}
    rest = {'socket': self._socket, 'path': [isolation.PACKAGES]}
    content = marshal.dumps({**job, **bounds, **rest})
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(content)
      self._process.stdin.close()
    except BrokenPipeError:
      self.end()
      raise SandboxError(
        f'the sandbox did not start: {self.output()[1].strip()[-500:]}'
      ) from None

  def wait(self, *others: 'Process') -> Status:
    """Waits until the program ends, or has used up its time; then ends it.

    Its clock stands still while it, or one of the others, waits for a core.
    """
    began = time.monotonic()
    while True:
      try:
        self._process.wait(POLL)
        break
      except subprocess.TimeoutExpired:
        passed = time.monotonic() - began
        starved = sum(process.starved() for process in (self, *others))
        if passed - starved > self._limits.clock:
          self.end()
          return 'clock'
        if passed > STARVED * self._limits.clock:
          self.end()
          return 'starved'
    return self._status()

  def finish(self) -> Status:
    """Waits a moment for a program with nothing left to do; then ends it."""
    try:
      self._process.wait(POLL)
    except subprocess.TimeoutExpired:
      self.end()
      return 'ok'
    return self._status()

  def _status(self) -> Status:
    """Returns what the exit status of an ended program says."""
    if self.exit_code in [128 + number for number in OUT_OF_CPU]:
      return 'cpu'
    return 'error' if self.exit_code else 'ok'

  @property
  def exit_code(self) -> int:
    """Exit status of an ended program; 128 + n if signal n ended it."""
    code = self._process.returncode
    return 128 - code if code < 0 else code

  def starved(self) -> float:
    """Returns the seconds in which threads of the program waited for a core."""
    total = 0
    for process in self._tree():
      for file in Path(f'/proc/{process}/task').glob('*/schedstat'):
        with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
          total += int(file.read_text().split()[1])
    return total / 1e9

  def _tree(self) -> Iterator[int]:
    """Yields the numbers of the program's processes."""
    waiting = [self._process.pid]
    while waiting:
      process = waiting.pop()
      yield process
      for file in Path(f'/proc/{process}/task').glob('*/children'):
        with contextlib.suppress(OSError):
          waiting += map(int, file.read_text().split())

  def output(self) -> tuple[str, str]:
    """Returns what was written to stdout and stderr."""
    return _read(self._stdout), _read(self._stderr)

  def end(self) -> None:
    """Ends the program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()

  def close(self) -> None:
    """Ends the program and frees what it held."""
    self.end()
    if self._process.stdin is not None:
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
    os.close(self._stdout)
    os.close(self._stderr)


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[int]:
  descriptor = os.memfd_create('filter')
  try:
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    yield descriptor
  finally:
    os.close(descriptor)


def _read(descriptor: int) -> str:
  size = os.fstat(descriptor).st_size
  return os.pread(descriptor, size, 0).decode('utf-8', 'replace')
