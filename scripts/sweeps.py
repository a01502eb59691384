"""Three sweeps on the model of r1_zero: output length, group size, uneven lengths.

  python -m scripts.sweeps [length group uneven]

prints a table for each. `length`: the same number of tokens in longer outputs, so that
the share of attention grows. `group`: the same number of outputs from fewer prompts
that are as long as an output, so that the prompts' share of the work falls as 1 / G.
`uneven`: outputs with log-normal lengths, whose 99th percentile is ten times their
median, in batches and in slots (`--mesh.sampler-slots`), against outputs that all have
the mean length, also of the model `small`. The others are medians of five iterations.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.tasks import Problem
from scripts.iteration import RandomPrompts, iterate, of_shape
from scripts.shapes import SHAPES, Shape, flops

ITERATIONS = 5
TOKENS = 2**15  # of all outputs
PROMPT = 24
MEDIAN, TAIL = 64, 2.326  # tokens; 99th percentile of the standard normal
SLOTS, WAITING = 32, 4  # outputs decoded at a time, groups that wait per slot
STOP = 0  # the token that ends an output of uneven length


def iterations(shape: Shape) -> tuple[dict[str, float], float]:
  """Returns median seconds by phase, and attention's share of the update's FLOPs."""
  stage, saved = of_shape(shape)
  once = functools.partial(iterate, shape, stage, saved['reference'])
  state, _ = once(saved['policy'], 0)  # compiles
  rows = []
  for n in range(1, ITERATIONS + 1):
    state, seconds = once(state, n)
    rows.append(seconds)
  whole = flops(shape)['update']
  without = flops(shape, attention=False)['update']
  medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
  return medians, 1 - without / whole


def _shape(prompts: int, group: int, prompt_length: int, length: int) -> Shape:
  return SHAPES['r1_zero']._replace(
    prompts=prompts,
    group_size=group,
    prompt_length=prompt_length,
    length=length,
    # The same number of tokens per micro-batch for every length.
    micro_batch_rows=max(2, 4096 // length // 2 * 2),
  )


def _row(name: str, shape: Shape, note: str) -> str:
  seconds, attention = iterations(shape)
  tokens = shape.prompts * shape.group_size * shape.length
  per = '  '.join(f'{1e6 * value / tokens:10.1f}' for value in seconds.values())
  return f'{name:>14}  {per}  {attention:10.0%}  {note}'


HEADER = (
  f'{"µs per token":>14}  {"rollout":>10}  {"reference":>10}  {"update":>10}  '
  f'{"attention":>10}'
)


def length() -> None:
  """Prints the sweep over outputs of 128 to 2,048 tokens, 32,768 tokens in total."""
  print(HEADER)
  for n in (128, 256, 512, 1024, 2048):
    print(_row(f'T = {n}', _shape(TOKENS // n // 4, 4, PROMPT, n), ''), flush=True)


def group() -> None:
  """Prints the sweep over groups of 4 to 32, 128 outputs in total."""
  print(HEADER + '  prompts’ share of the tokens')
  for g in (4, 8, 16, 32):
    share = 1 / (1 + g)
    shape = _shape(128 // g, g, 128, 128)
    print(_row(f'G = {g}', shape, f'{share:.1%}'), flush=True)


def hazard(length: ArrayLike) -> jax.Array:
  """Returns the probability that an output of at least this length ends with it.

  Lengths are log-normal, with the median `MEDIAN` and a 99th percentile ten times as
  large.
  """
  length = jnp.asarray(length)
  deviation = math.log(10) / TAIL
  z = jnp.log(length / MEDIAN) / deviation
  density = norm.pdf(z) / (length * deviation)
  return jnp.clip(density / jnp.maximum(norm.cdf(-z), 1e-6), 1e-6, 0.5)


def uneven() -> None:
  """Prints the time of log-normal lengths against equal ones, of two models."""
  for name in ('r1_zero', 'small'):
    shape = SHAPES[name]._replace(length=10 * MEDIAN)
    stage, saved = of_shape(shape)
    plain = stage.sampler.policy.functions
    sample = functools.partial(_sample, stage.sampler, saved['policy'].params, shape)
    batches, lengths = sample(_ending(plain, shape), STOP, shape.length)
    slots, _ = sample(_ending(plain, shape), STOP, shape.length, SLOTS)
    mean = round(np.mean(lengths))
    equal, _ = sample(plain, shape.vocabulary, mean)
    print(
      f'{name}, lengths of mean {mean}, longest {np.max(lengths)}: in batches '
      f'{batches:.1f} µs per token, in {SLOTS} slots {slots:.1f}; all {mean}: '
      f'{equal:.1f}; ratios {batches / equal:.2f} and {slots / equal:.2f}',
      flush=True,
    )


def _ending(plain: DecoderFns, shape: Shape) -> DecoderFns:
  """Returns functions that end outputs with `STOP` at random; see `hazard`."""

  def make_decode(params: Any) -> Callable[..., Any]:
    decode = plain.make_decode(params)

    def also_where(token_B, position_B, context, column):
      hidden, written = decode(token_B, position_B, context, column)
      return (hidden, position_B), written

    return also_where

  def logits(params: Any, hidden: Any) -> jax.Array:
    """Returns the model's logits, with the probability of EOS set to the hazard."""
    if not isinstance(hidden, tuple):
      return plain.logits(params, hidden).at[..., STOP].set(-jnp.inf)
    hidden, position = hidden
    ends = hazard(position - shape.prompt_length + 2.0)
    others = plain.logits(params, hidden).at[..., STOP].set(-jnp.inf)
    odds = jnp.log(ends) - jnp.log1p(-ends)
    return others.at[..., STOP].set(jax.nn.logsumexp(others, axis=-1) + odds)

  return plain._replace(logits=logits, make_decode=make_decode)


def _sample(
  sampler: Sampler,
  params: Any,
  shape: Shape,
  model: DecoderFns,
  eos_id: int,
  most: int,
  slots: int = 0,
) -> tuple[float, np.ndarray]:
  """Returns µs per token of `WAITING` groups per slot, and their lengths.

  Without `slots` the prompts are sampled `shape.prompts` at a time.
  """

  class Drawn(Policy):
    """A policy with another model's functions."""

    functions = model

  tokenizer: Any = RandomPrompts(shape)
  tokenizer.stop_ids = (eos_id,)
  policy = Drawn(sampler.policy.config, tokenizer, 'plain', shape.vocabulary)
  layout = MeshConfig(sampler_slots=slots)
  drawn = dataclasses.replace(sampler, policy=policy, layout=layout)
  problems = [Problem(str(n), '', '.' * n, {}) for n in range(WAITING * SLOTS)]
  size = len(problems) if slots else shape.prompts

  def batch(seed: int, start: int) -> np.ndarray:
    return drawn.sample(
      params,
      jax.random.fold_in(jax.random.key(seed), start),
      problems[start : start + size],
      group_size=shape.group_size,
      max_length=most,
      draw=SamplingConfig(),
    ).lengths

  batch(0, 0)  # compiles
  began = time.monotonic()
  starts = range(0, len(problems), size)
  lengths = np.concatenate([batch(1, start) for start in starts])
  return 1e6 * (time.monotonic() - began) / lengths.sum(), lengths


SWEEPS = {'length': length, 'group': group, 'uneven': uneven}


def main() -> None:
  """Runs the sweeps named on the command line, or all of them."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.sweeps',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('sweeps', nargs='*', metavar='SWEEP', help=', '.join(SWEEPS))
  given = parser.parse_args()
  unknown = [name for name in given.sweeps if name not in SWEEPS]
  if unknown:
    parser.error(f'expected some of {", ".join(SWEEPS)}, got {unknown[0]}')
  for name in given.sweeps or SWEEPS:
    SWEEPS[name]()


if __name__ == '__main__':
  main()
