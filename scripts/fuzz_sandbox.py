"""Runs random programs in the sandbox, and checks that none gets the better of it.

  python -m scripts.fuzz_sandbox --programs 100000

A third are random bytes and words, a third are lines of `PIECES` in random order, a
third are these with letters changed. It stops with the seed of a program that runs
beyond its limits, or that ends the sandbox. At the end it compares processes,
descriptors and memory with those after the first hundred programs.
"""

import argparse
import builtins
import collections
import keyword
import os
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from r1jax.sandbox import Limits, Result
from r1jax.sandbox.pool import Sandbox

LIMITS = Limits(cpu=1, clock=2, memory=2**28, files=2**20)
PATIENCE = 60.0  # seconds beyond which a program has got the better of its limits
FIRST = 100  # programs before the first count
PIECES = """\
import os, sys, threading, signal, gc, socket, ctypes, subprocess, asyncio
x = 1
y = [x] * 10**6
z = 'x' * 10**7
print(x)
print(z)
print('x', file=sys.stderr)
os.fork()
os._exit(0)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(-1, signal.SIGKILL)
os.close(0)
os.close(1)
os.dup2(1, 2)
os.execv(sys.executable, ['python'])
sys.exit(3)
sys.setrecursionlimit(10**9)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.alarm(1)
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
threading.Thread(target=threading.Event().wait, args=(1,)).start()
open('/tmp/x', 'w').write('x' * 10**6)
os.mkdir(f'/tmp/{x}')
os.chmod('/tmp', 0)
os.unlink('/tmp/x')
socket.socketpair()
subprocess.run(['true'])
ctypes.string_at(x)
def f(): return f()
f()
class A: __del__ = lambda self: print('gone')
A()
gc.disable()
del sys.modules['os']
builtins = None
sys.stdout = None
sys.stdin.read()
sys.settrace(lambda *a: None)
try: raise MemoryError
except BaseException: pass
for _ in range(10**5): x += 1
while x < 10**9: x *= 2
exec('x = 2')
asyncio.run(asyncio.sleep(0.1))
import time; time.sleep(0.1)
"""


def program(seed: int) -> str:
  """Returns the program of a seed."""
  rng = random.Random(seed)
  kind = seed % 3
  if kind == 0:
    words = [*keyword.kwlist, *dir(builtins), *'()[]{}:=,.+-*\n\n  "\'#\\', '0', '9']
    chosen = [rng.choice(words) for _ in range(rng.randrange(60))]
    letters = rng.randbytes(rng.randrange(40)).decode('latin-1')
    return rng.choice((' '.join(chosen), letters, ' '.join([*chosen, letters])))
  code = '\n'.join(rng.choices(PIECES.splitlines(), k=rng.randrange(1, 12)))
  if kind == 1:
    return f'import os, sys, threading, signal, gc, socket, ctypes\n{code}'
  changed = list(code)
  for _ in range(rng.randrange(1, 6)):
    place = rng.randrange(len(changed))
    changed[place] = rng.choice((changed[place] * 2, '', chr(rng.randrange(1, 0x3000))))
  return ''.join(changed)


def held() -> tuple[int, int]:
  """Returns how many children and descriptors this process has."""
  tasks = f'/proc/{os.getpid()}/task'
  children = 0
  for task in os.listdir(tasks):
    with open(f'{tasks}/{task}/children') as file:
      children += len(file.read().split())
  return children, len(os.listdir('/proc/self/fd'))


def main() -> None:
  """Runs the programs, and prints what became of them."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.fuzz_sandbox',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--programs', type=int, default=1000, help='above 100')
  parser.add_argument('--seed', type=int, default=0, help='of the first one')
  given = parser.parse_args()
  if given.programs <= FIRST:
    parser.error(f'--programs: expected above {FIRST}, got {given.programs}')
  found: collections.Counter[str] = collections.Counter()
  slowest = 0.0
  workers = os.cpu_count() or 1

  def run(seed: int) -> tuple[Result, float]:
    began = time.monotonic()
    result = sandbox.run(program(seed))
    return result, time.monotonic() - began

  began = time.monotonic()
  with Sandbox(LIMITS, workers=workers) as sandbox, ThreadPoolExecutor(workers) as pool:
    for first, last in ((0, FIRST), (FIRST, given.programs)):
      seeds = range(given.seed + first, given.seed + last)
      for seed, (result, seconds) in zip(seeds, pool.map(run, seeds), strict=True):
        found[result.status] += 1
        slowest = max(slowest, seconds)
        most = max(len(result.stdout), len(result.stderr))
        if seconds > PATIENCE or most > LIMITS.files:
          sys.exit(f'seed {seed}: {seconds:.1f} s, {most} bytes: {program(seed)!r}')
      if last == FIRST:
        before, memory = held(), _memory()
    after = held()
    if sandbox.run('print(1)').stdout != '1\n':
      sys.exit('the sandbox does not work any more')
  minutes = (time.monotonic() - began) / 60
  print(f'{given.programs} programs in {minutes:.1f} min: {dict(found)}')
  print(f'the slowest took {slowest:.1f} s')
  print(
    f'children and descriptors {before} and {after}; peak memory {memory} MB and '
    f'{_memory()} MB'
  )
  if after[0] > before[0] or after[1] > before[1] + workers:
    sys.exit('something is left behind')


def _memory() -> int:
  """Returns the peak memory of this process, MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == '__main__':
  main()
