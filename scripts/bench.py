"""How fast a GRPO iteration is, beside what the machine could do at the most.

`python -m scripts.bench [--shapes mini small r1_zero] [--iterations 7]` prints a line
of JSON a shape, then one table. `mini` and `small` are work on which other systems have
been measured: P prompts of 32 tokens, G completions of exactly 128, temperature 1, KL
to a reference, clipped surrogate, one AdamW update; `r1_zero` has the sizes of that
experiment, `qwen2.5-0.5b` and `qwen2.5-1.5b` those of these models, for a GPU or TPU.
Each shape is a process of its own, so that its first step is a cold one and its peak
memory its own, and then a second one, that finds the first one's compiled programs. The
ceilings, a large product and a large copy, are measured in the same process, right
after. `scripts.sweeps` measures what length, group and uneven lengths cost.
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
from collections.abc import Callable
from typing import Any, NamedTuple

from scripts.shapes import HERE, SHAPES, Shape, flops, rollout_bytes

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


class _Tokenizer:
  """Every text is a random prompt; no token ends a completion."""

  pad_id = 0

  def __init__(self, shape: Shape) -> None:
    self.shape, self.stop_ids = shape, (shape.vocabulary,)

  def prompt(self, template: str, question: str) -> str:
    del template
    return question

  def prompt_ids(self, template: str, question: str) -> list[int]:
    import numpy as np

    rng = np.random.default_rng(len(self.prompt(template, question)))
    return rng.integers(2, self.shape.vocabulary, self.shape.prompt_length).tolist()

  def decode_batch(self, rows: Any) -> list[str]:
    return [''] * len(rows)


class Machinery(NamedTuple):
  """The stage's own machinery for a shape."""

  sampler: Any
  learner: Any


def machinery(shape: Shape) -> tuple[Machinery, dict[str, Any]]:
  """Returns what a stage of RL works with, and what it starts from."""
  import jax

  from r1jax.grpo import GRPOConfig
  from r1jax.model import decoder
  from r1jax.model.config import ModelConfig
  from r1jax.rollout.policy import Policy
  from r1jax.rollout.sampler import Sampler
  from r1jax.sharding.mesh import fit_mesh
  from r1jax.sharding.place import put_boxed
  from r1jax.stages import rl_state
  from r1jax.stages.learner import Learner
  from r1jax.stages.rl_config import RLConfig

  s = shape
  config = ModelConfig(
    s.d_model,
    s.layers,
    s.heads,
    s.kv_heads,
    s.head_dim,
    s.d_ff,
    remat='dots',
    dtype=s.dtype,
  )
  mesh = fit_mesh({'prompts': s.prompts, 'rows': s.micro_batch_rows})
  tokenizer: Any = _Tokenizer(s)
  policy = Policy(config, tokenizer, 'plain', s.vocabulary)
  stage = RLConfig(
    prompts_per_step=s.prompts,
    group_size=s.group_size,
    minibatches=1,
    micro_batch_rows=s.micro_batch_rows,
    grpo=GRPOConfig(kl_coef=0.04),
  )
  learner = Learner(policy.functions, mesh, stage)
  init = jax.jit(functools.partial(decoder.init, config, s.vocabulary))
  start = rl_state.start(learner, put_boxed(mesh, init(jax.random.key(0))))
  return Machinery(Sampler(policy, s.prompt_length, mesh), learner), start


def iterate(
  shape: Shape, stage: Machinery, reference: Any, state: Any, n: int
) -> tuple[Any, dict[str, float]]:
  """One iteration: the new state, and the seconds of rollout, reference and update."""
  import jax
  import numpy as np

  from r1jax.sampling.sampler import SamplingConfig
  from r1jax.tasks import Problem

  problems = [Problem(str(n), '', '.' * n, {}) for n in range(shape.prompts)]
  key = jax.random.key(n)
  began = time.monotonic()
  rollout = stage.sampler.sample(
    stage.learner.for_sampling(state.params),
    key,
    problems,
    group_size=shape.group_size,
    max_length=shape.length,
    draw=SamplingConfig(),
  )
  assert (rollout.lengths == shape.length).all()
  sampled = time.monotonic()
  scores = stage.learner.score(state.params, reference, rollout, 1.0)
  referred = time.monotonic()
  advantage = stage.learner.advantage(np.mean(rollout.tokens % 2 == 0, axis=-1))
  state = stage.learner.update(state, rollout, advantage, scores, key, 1.0).state
  jax.block_until_ready(state)
  return state, {
    'rollout': sampled - began,
    'reference': referred - sampled,
    'update': time.monotonic() - referred,
  }


def measure(shape: Shape, iterations: int) -> dict[str, Any]:
  """One shape: seconds by phase, the first iteration's, memory and ceilings."""
  import jax

  from r1jax.runtime import compilation

  compilation.keep_on_disk()
  s = shape
  with compilation.Compilations():  # as in a run
    first, rows = _iterations(s, iterations)
    memory = _peak_memory()  # before the ceilings, which take more
  ceiling = ceilings(s.dtype)
  by_phase = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
  work = flops(s)
  total = [sum(row.values()) for row in rows]
  return {
    'device': jax.devices()[0].device_kind,
    'rollout_tokens_per_second': s.prompts
    * s.group_size
    * s.length
    / by_phase['rollout'],
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
  shape: Shape, iterations: int
) -> tuple[dict[str, float], list[dict[str, float]]]:
  """The first iteration's seconds and those before it, and the others' by phase."""
  stage, saved = machinery(shape)
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


def _alone(name: str, dtype: str, iterations: int, cache: str) -> dict[str, Any]:
  """What a process of its own measures, with its compiled programs in `cache`."""
  command = [sys.executable, '-m', 'scripts.bench', '--alone', '--shapes', name]
  command += ['--iterations', str(iterations), '--dtype', dtype]
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache}
  printed = subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True, env=environment
  )
  row: dict[str, Any] = json.loads(printed.stdout.strip().splitlines()[-1])
  return row


def main() -> None:
  """Measures each shape in a process of its own and prints what it says."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.bench',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=HERE)
  parser.add_argument(
    '--iterations', type=int, default=7, help='warm ones; their median is taken'
  )
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32', help='of products'
  )
  parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.iterations < 1:
    parser.error(f'--iterations: expected 1 or more, got {given.iterations}')
  if given.alone:
    (name,) = given.shapes
    shape = SHAPES[name]._replace(dtype=given.dtype)
    print(json.dumps({'shape': name, **measure(shape, given.iterations)}))
    return
  rows = {}
  for name in given.shapes:
    with tempfile.TemporaryDirectory() as cache:
      row = _alone(name, given.dtype, given.iterations, cache)
      row['cached_seconds'] = _alone(name, given.dtype, 1, cache)['first_seconds']
    rows[name] = row
    print(json.dumps(row), flush=True)
  print(_table(rows))


if __name__ == '__main__':
  main()
