"""Programs as answers: run against their tests in a sandbox; see `r1jax.sandbox`.

`passes` is the verifier `python`, whose truth are tests. `completes` is that of
HumanEval, where a program goes on with what the question begins.
"""

import ast
import atexit
import functools
import json
from collections.abc import Sequence

from r1jax.sandbox import Limits, SandboxError
from r1jax.sandbox.pool import Sandbox
from r1jax.text import parsing

LIMITS = Limits(cpu=8, clock=30)  # of all tests of a program
PACKAGES = ('numpy',)  # that programs and tests may import
TIMEOUT = 900.0  # seconds, above what the sandbox itself allows on a busy machine


@functools.cache
def sandbox() -> Sandbox:
  """Returns the sandbox of this process, which runs one program at a time.

  Raises:
    SandboxError: no sandbox can be made on this machine.
  """
  made = Sandbox(LIMITS, PACKAGES, workers=1)
  atexit.register(made.close)
  return made


def check() -> None:
  """Raises SandboxError if no sandbox can be made on this machine."""
  Sandbox(LIMITS, PACKAGES, workers=1).close()


def passes(answer: str, truth: str, *, setup: Sequence[str] = ()) -> bool:
  """Returns whether a program passes all tests.

  Args:
    answer: the program, maybe in a block of code.
    truth: tests, each passed if it raises nothing: Python, or a list of it in JSON.
    setup: lines of Python before each test.

  Raises:
    SandboxError: it could not be run, by no fault of the program.
  """
  return _all_pass(answer, ['\n'.join([*setup, test]) for test in tests_of(truth)])


def completes(answer: str, truth: str, *, prompt: str, entry_point: str) -> bool:
  """Returns whether a program has the function that a prompt begins (HumanEval).

  Args:
    answer: the program, maybe in a block of code; it need not repeat what the prompt
      has before the function.
    truth: Python that defines `check`, which takes the function.
    prompt: Python that ends in the function's docstring.
    entry_point: name of the function.

  Raises:
    SandboxError: it could not be run, by no fault of the program.
  """
  begun = f'{prompt}\n    pass\n'
  return _all_pass(
    answer,
    [f'check({entry_point})'],
    before=begun,
    setup=f'{begun}\n{truth}',
    names=[entry_point],
  )


def _all_pass(
  answer: str,
  tests: Sequence[str],
  *,
  before: str = '',
  setup: str = '',
  names: Sequence[str] | None = None,
) -> bool:
  block = parsing.last_block(answer)
  code = before + (answer if block is None else block)
  verdict = sandbox().judge(code, tests, setup, names)
  if verdict.status == 'starved':
    raise SandboxError('the machine was too busy to run a program; use fewer workers')
  return all(verdict.passed)


def tests_of(truth: str) -> list[str]:
  """Returns the tests of a truth.

  Raises:
    SyntaxError: one is no Python.
    ValueError: there is none.
  """
  try:
    found = json.loads(truth)
  except ValueError:
    found = truth
  tests = found if isinstance(found, list) else [truth]
  if not tests or not all(isinstance(test, str) and test.strip() for test in tests):
    raise ValueError('expected tests in Python, or a list of them')
  for test in tests:
    ast.parse(test)
  return tests
