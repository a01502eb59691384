"""A pool of started interpreters, each for one program."""

import ast
import builtins
import contextlib
import functools
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, Protocol, Self, TypeVar

from r1jax.sandbox import Limits, Result, SandboxError, Status, Verdict
from r1jax.sandbox.process import Process

LIMITS = Limits()


class Started(Protocol):
  """An interpreter, or several."""

  def waits(self) -> bool:
    """Returns whether it waits for its job."""

  def close(self) -> None:
    """Ends it."""


T = TypeVar('T', bound=Started)


class Stock(Generic[T]):
  """Interpreters, or pairs of them, that are started and wait for a job.

  None is started before the first one is taken.

  Args:
    start: returns a started one.
    size: how many wait.
    starter: a thread of its own; an interpreter ends with the thread that started it.
  """

  def __init__(self, start: Callable[[], T], size: int, starter: Executor) -> None:
    self._start, self._size, self._starter = start, size, starter
    self._ready: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()

  @contextlib.contextmanager
  def taken(self) -> Iterator[T]:
    """Yields one and ends it afterwards; another one is started meanwhile."""
    taken = self._next()
    for _ in range(self._size):
      if taken.waits():
        break
      taken.close()  # someone ended it; those that start now may live
      taken = self._next()
    with contextlib.closing(taken):
      yield taken

  def _next(self) -> T:
    for _ in range(self._size + 1 - self._ready.qsize()):
      self._ready.put(self._starter.submit(self._start))
    return self._ready.get().result()

  def close(self) -> None:
    """Ends all that wait."""
    while not self._ready.empty():
      with contextlib.suppress(SandboxError):  # of one that did not start
        self._ready.get().result().close()


class Pair:
  """Two interpreters with a socket between them: of a program, and of its tests."""

  def __init__(self, start: Callable[[int], Process]) -> None:
    here, there = socket.socketpair()
    with here, there:  # each interpreter holds its own end alone
      self.program, self.tests = start(here.fileno()), start(there.fileno())

  def waits(self) -> bool:
    """Returns whether both wait for their jobs."""
    return self.program.waits() and self.tests.waits()

  def close(self) -> None:
    """Ends both."""
    self.program.close()
    self.tests.close()


class Sandbox:
  """Runs programs; a context manager that ends all of them. Threads may share it.

  Args:
    limits: of each program, and of its tests.
    packages: Python packages of this machine that programs and tests may import.
    workers: programs that run at a time, and interpreters that wait; None is the number
      of cores.

  Raises:
    SandboxError: no sandbox can be made on this machine.
  """

  def __init__(
    self,
    limits: Limits = LIMITS,
    packages: Sequence[str] = (),
    workers: int | None = None,
  ) -> None:
    workers = workers or os.cpu_count() or 1
    self._room = threading.Semaphore(workers)
    self._starter = ThreadPoolExecutor(1)
    start = functools.partial(Process, limits, packages)
    self._single = Stock(start, workers, self._starter)
    self._pairs = Stock(lambda: Pair(start), workers, self._starter)
    try:
      result = self.run('print(1)')
      if result.stdout != '1\n':
        raise SandboxError(
          f'no sandbox can be made on this machine: {result.stderr.strip()[-500:]}'
        )
    except SandboxError:
      self.close()
      raise

  def run(self, code: str, stdin: str = '') -> Result:
    """Returns what a program did."""
    with self._room, self._single.taken() as process:
      process.give({'kind': 'run', 'code': code, 'stdin': stdin})
      status = process.wait()
      return Result(status, process.exit_code, *process.output())

  def judge(
    self,
    code: str,
    tests: Sequence[str],
    setup: str = '',
    names: Sequence[str] | None = None,
  ) -> Verdict:
    """Returns which tests a program passes.

    Args:
      code: the program.
      tests: Python, each passed if it raises nothing; they run in order and share their
        names. What the program defines is there under its name. Plain data is given and
        returned by value: what a test changes, or what a program changes in an
        argument, the other does not see.
      setup: Python that runs before them, without the program.
      names: that the tests take from the program; None is what they ask for, see
        `names_of`.

    Raises:
      SandboxError: the tests could not begin, by no fault of the program.
      SyntaxError: a test is no Python, and there are no names.
    """
    names = names_of(tests) if names is None else names
    with self._room, self._pairs.taken() as pair:
      pair.program.give({'kind': 'serve', 'code': code})
      pair.tests.give({'kind': 'test', 'setup': setup, 'tests': tests, 'names': names})
      ended = pair.tests.wait(pair.program)
      statuses = ended, pair.program.finish()
      return _verdict(statuses, *pair.tests.output(), len(tests))

  def close(self) -> None:
    """Ends all interpreters that wait."""
    self._single.close()
    self._pairs.close()
    self._starter.shutdown()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def names_of(tests: Sequence[str]) -> list[str]:
  """Returns the names that tests ask of a program.

  Not those of modules, as in `math.pi`, and of built-in functions only if the tests use
  no others: a test with `all(f(x))` must not get the program's own `all`.
  """
  nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
  names = {node.id for node in nodes if isinstance(node, ast.Name)}
  of_attributes = {
    node.value.id
    for node in nodes
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  }
  names -= of_attributes & sys.stdlib_module_names
  return sorted({name for name in names if not hasattr(builtins, name)} or names)


def _verdict(
  statuses: tuple[Status, Status], out: str, errors: str, count: int
) -> Verdict:
  """Returns the verdict of tests.

  Args:
    statuses: of the tests, and of the program.
    out: what `inside.test` printed; a line that was cut off does not count.
    errors: what the tests wrote to stderr.
    count: of the tests.

  Raises:
    SandboxError: the tests could not begin, by no fault of the program.
  """
  lines = out[: out.rfind('\n') + 1].splitlines()
  limits: tuple[Status, ...] = ('starved', 'clock', 'cpu')
  status: Status = next((x for x in limits if x in statuses), 'ok')
  if not lines and status == 'ok':
    raise SandboxError(f'the tests could not begin: {errors.strip()[-500:]}')
  start, *reasons = [json.loads(line) for line in lines] or [None]
  if start:
    return Verdict('error', (False,) * count, start)
  early = 'the tests ended early' + (f': {status}' if status != 'ok' else '')
  reasons += [early] * (count - len(reasons))
  reason = next(filter(None, reasons), '')
  return Verdict(status, tuple(reason is None for reason in reasons), reason)
