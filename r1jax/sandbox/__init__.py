"""A sandbox for programs of a model: no network, no files, nothing left behind.

`Sandbox.run` runs a program, `Sandbox.judge` runs it against tests. Each program has an
interpreter of its own, which is started before the program is there and ends with it.
bubblewrap takes away the file system, the network and other processes, a seccomp filter
takes new processes and rare system calls, limits bound time and memory. A program and
its tests are two interpreters, which exchange arguments and results as plain data, so a
program sees neither tests nor expected values.
"""

import dataclasses
from typing import Literal, NamedTuple

Status = Literal['ok', 'error', 'cpu', 'clock', 'starved']


class SandboxError(RuntimeError):
  """No sandbox can be made on this machine, or it failed by no fault of a program."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use."""

  cpu: int = 10  # seconds of processor time, of all threads
  clock: float = 60.0  # seconds, without those in which it waited for a core
  memory: int = 2**30  # bytes of address space
  files: int = 2**24  # bytes of /tmp, of a file, and of the output

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) <= 0:
        value = getattr(self, field.name)
        raise ValueError(f'sandbox.{field.name}: expected above 0, got {value}')


class Result(NamedTuple):
  """What a program did.

  Fields:
    status: 'ok' if it ended with exit status 0, 'error' with another one, 'cpu' and
      'clock' at a time limit. 'starved' says nothing about the program: the machine was
      too busy to run it.
    exit_code: 128 + n if signal n ended it.
    stdout, stderr: what it wrote, at most `Limits.files` bytes each.
  """

  status: Status
  exit_code: int
  stdout: str
  stderr: str


class Verdict(NamedTuple):
  """What tests say about a program.

  Fields:
    status: of the program; see `Result`.
    passed: for each test, whether it passed.
    reason: why the first one failed, or why the program could not run; else empty.
  """

  status: Status
  passed: tuple[bool, ...]
  reason: str
