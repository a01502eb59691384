"""How fast a GRPO iteration is, beside what the machine could do at the most.

`python -m scripts.bench [--shapes mini small r1_zero] [--iterations 7]` prints a line
of JSON a shape, then one table. `mini` and `small` are work on which other systems have
been measured: P prompts of 32 tokens, G completions of exactly 128, temperature 1, KL
to a reference, clipped surrogate, one AdamW update; `r1_zero` has the sizes of that
experiment, `qwen2.5-0.5b` and `qwen2.5-1.5b` those of these models, for a GPU or TPU.
`--model FOLDER` is the same work with a checkpoint, opened as `experiments.grpo` opens
it, and `--lora RANK` trains adapters. Each shape is a process of its own, so that its
first step is a cold one and its peak memory its own, and then a second one, that finds
the first one's compiled programs. The ceilings, a large product and a large copy, are
measured in the same process, right after. `scripts.sweeps` measures what length, group
and uneven lengths cost.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.shapes import HERE, SHAPES, Shape, flops, of_model, rollout_bytes

LAUNCHED = time.monotonic()  # before jax is imported: a user waits for that too


def ceilings(dtype: str = 'float32') -> dict[str, float]:
  """The machine's product rate in FLOP/s and its copy bandwidth in bytes/s."""
  import jax
  import jax.numpy as jnp

  n = 2048
  x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
  product = jax.jit(lambda x: x @ x)
  big = jnp.zeros(64 * 2**20)  # 256 MiB
  copy = jax.jit(lambda x: x + 1.0)
  return {
    'product': 2 * n**3 / _median(lambda: product(x), 9),
    'copy': 2 * big.nbytes / _median(lambda: copy(big), 9),
  }


def _median(call: Callable[[], Any], times: int) -> float:
  import jax

  jax.block_until_ready(call())
  seconds = []
  for _ in range(times):
    began = time.monotonic()
    jax.block_until_ready(call())
    seconds.append(time.monotonic() - began)
  return statistics.median(seconds)


def measure(shape: Shape, start: Callable[[], Any], iterations: int) -> dict[str, Any]:
  """One shape: seconds by phase, the first iteration's, memory and ceilings.

  `start` returns the machinery and what it starts from; see `scripts.iteration`.
  """
  import jax

  from r1jax.runtime import compilation

  compilation.keep_on_disk()
  s = shape
  with compilation.Compilations():  # as in a run
    first, rows = _iterations(s, start, iterations)
    memory = _peak_memory()  # before the ceilings, which take more
  ceiling = ceilings(s.dtype)
  by_phase = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
  work = flops(s)
  total = [sum(row.values()) for row in rows]
  tokens = s.prompts * s.group_size * s.length
  return {
    **s._asdict(),
    'device': jax.devices()[0].device_kind,
    'rollout_tokens_per_second': tokens / by_phase['rollout'],
    'seconds': {**by_phase, 'iteration': statistics.median(total)},
    'first_seconds': first,
    'peak_memory_mb': memory / 1e6,
    'rollout_share_of_copy': rollout_bytes(s) / by_phase['rollout'] / ceiling['copy'],
    'gflop': {name: value / 1e9 for name, value in work.items()},
    'ceiling_gflops': ceiling['product'] / 1e9,
    'ceiling_copy_gb_s': ceiling['copy'] / 1e9,
    'share_of_ceiling': {
      name: work[name] / by_phase[name] / ceiling['product'] for name in work
    },
  }


def _iterations(
  shape: Shape, start: Callable[[], Any], iterations: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
  """The first iteration's seconds and those before it, and the others' by phase."""
  from scripts.iteration import iterate

  stage, saved = start()
  once = functools.partial(iterate, shape, stage, saved['reference'])
  began = time.monotonic()
  state, _ = once(saved['policy'], 0)
  first = {'iteration': time.monotonic() - began, 'launch': began - LAUNCHED}
  rows = []
  for n in range(1, iterations + 1):
    state, seconds = once(state, n)
    rows.append(seconds)
  return first, rows


def _peak_memory() -> float:
  import jax

  stats = jax.local_devices()[0].memory_stats()
  if stats and 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use']
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _phase(phase: str, row: dict[str, Any]) -> str:
  return f'{row["seconds"][phase]:.2f} ({row["share_of_ceiling"][phase]:.0%})'


def _table(rows: dict[str, dict[str, Any]]) -> str:
  """The rows side by side, for people."""
  lines = [('', *rows)]

  def add(name: str, text: Callable[[dict[str, Any]], str]) -> None:
    lines.append((name, *(text(row) for row in rows.values())))

  add('rollout tokens/s', lambda row: f'{row["rollout_tokens_per_second"]:,.0f}')
  for phase in ('rollout', 'reference', 'update'):
    add(f'{phase} s (share of ceiling)', functools.partial(_phase, phase))
  add('iteration s', lambda row: f'{row["seconds"]["iteration"]:.2f}')
  add('first iteration s', lambda row: f'{row["first_seconds"]["iteration"]:.1f}')
  add('  programs cached', lambda row: f'{row["cached_seconds"]["iteration"]:.1f}')
  add('before it s', lambda row: f'{row["first_seconds"]["launch"]:.1f}')
  add('  programs cached', lambda row: f'{row["cached_seconds"]["launch"]:.1f}')
  add('peak memory MB', lambda row: f'{row["peak_memory_mb"]:,.0f}')
  add('model GFLOP', lambda row: f'{sum(row["gflop"].values()):,.0f}')
  add('ceiling GFLOP/s', lambda row: f'{row["ceiling_gflops"]:,.0f}')
  add('copy GB/s', lambda row: f'{row["ceiling_copy_gb_s"]:,.0f}')
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      [line[0].ljust(widths[0])]
      + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
    )
    for line in lines
  )


def _alone(words: Sequence[str], cache: str) -> dict[str, Any]:
  """What a process of its own measures, with its compiled programs in `cache`."""
  command = [sys.executable, '-m', 'scripts.bench', *words, '--alone']
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache}
  printed = subprocess.run(
    command, check=False, stdout=subprocess.PIPE, text=True, env=environment
  )
  if printed.returncode == 2:  # it has said what is wrong with the input
    sys.exit(2)
  printed.check_returncode()
  row: dict[str, Any] = json.loads(printed.stdout.strip().splitlines()[-1])
  return row


# What flags may be at the least; advantages compare 2 outputs.
LEAST = {'iterations': 1, 'prompts': 1, 'group_size': 2, 'length': 1, 'lora': 1}


def refuse(sentence: str) -> NoReturn:
  """Says what is wrong with the input and ends the process with status 2."""
  print(f'error: {sentence}', file=sys.stderr)
  sys.exit(2)


class Parser(argparse.ArgumentParser):
  """A parser that answers with one sentence, without its usage."""

  def error(self, message: str) -> NoReturn:
    refuse(message)


def _parsed() -> argparse.Namespace:
  """What the command line says; ends the process if that is impossible."""
  parser = Parser(
    prog='python -m scripts.bench',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  what = parser.add_mutually_exclusive_group()
  what.add_argument('--shapes', nargs='+', choices=SHAPES, default=HERE)
  what.add_argument(
    '--model', metavar='FOLDER', help='of a checkpoint, or hf://owner/name'
  )
  parser.add_argument('--lora', type=int, metavar='RANK', help='of adapters to train')
  parser.add_argument('--prompts', type=int, help='of an iteration; 4 for --model')
  parser.add_argument('--group-size', type=int, help='outputs of each; 8 for --model')
  parser.add_argument('--length', type=int, help='of outputs; 128 for --model')
  parser.add_argument(
    '--iterations', type=int, default=7, help='warm ones; their median is taken'
  )
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32', help='of products'
  )
  parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
  given = parser.parse_args()
  for name, least in LEAST.items():
    value = getattr(given, name)
    if value is not None and value < least:
      flag = name.replace('_', '-')
      refuse(f'--{flag}: expected {least} or more, got {value}')
  return given


def _chosen(given: argparse.Namespace) -> tuple[str, Shape, Callable[[], Any]]:
  """The one shape's name, the shape, and what starts it.

  Raises:
    ValueError: the checkpoint can't be used, or its FLOPs are not counted.
  """
  from scripts import iteration

  sizes = {name: getattr(given, name) for name in ('prompts', 'group_size', 'length')}
  sizes = {name: size for name, size in sizes.items() if size is not None}
  rank = given.lora or 0
  if given.model is None:
    (name,) = given.shapes
    shape = SHAPES[name]._replace(dtype=given.dtype, lora_rank=rank, **sizes)
    return name, shape, functools.partial(iteration.of_shape, shape)
  found = iteration.look_up(given.model, given.dtype, rank)
  shape = of_model(found.policy.config, found.policy.vocab_size, rank)._replace(**sizes)
  start = functools.partial(iteration.of_checkpoint, found, shape)
  return Path(given.model).name, shape, start


def main() -> None:
  """Measures each shape in a process of its own and prints what it says."""
  given = _parsed()
  if given.alone:
    try:
      name, shape, start = _chosen(given)
    except (OSError, ValueError) as error:
      refuse(str(error))
    print(json.dumps({'shape': name, **measure(shape, start, given.iterations)}))
    return
  rows: dict[str, dict[str, Any]] = {}
  each = [['--shapes', name] for name in given.shapes] if given.model is None else [[]]
  for one in each:
    words = [*sys.argv[1:], *one]  # the last of two equal flags holds
    with tempfile.TemporaryDirectory() as cache:
      row = _alone(words, cache)
      again = _alone([*words, '--iterations', '1'], cache)
    row['cached_seconds'] = again['first_seconds']
    rows[row['shape']] = row
    print(json.dumps(row), flush=True)
  print(_table(rows))


if __name__ == '__main__':
  main()
