"""Four sweeps on the model of r1_zero: lengths, group sizes, and two of what is uneven.

  python -m scripts.sweeps [length group uneven equal]

prints a table for each. `length`: the same number of tokens in longer outputs, so that
the share of attention grows. `group`: the same number of outputs from fewer prompts
that are as long as an output, so that the prompts' share of the work falls as 1 / G.
`uneven`: outputs with log-normal lengths, whose 99th percentile is ten times their
median, in batches and in slots (`--mesh.sampler-slots`), against outputs that all have
the mean length, also of the model `small`. `equal`: steps of which `EQUAL` of the
groups have equal rewards, kept, or replaced by others (`--rl.equal-groups replace`).
The others are medians of five iterations.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from r1jax import grpo
from r1jax.rollout import replacing
from r1jax.rollout.policy import Policy
from r1jax.rollout.rewarding import Rewards
from r1jax.rollout.sampler import Rollout, Sampler
from r1jax.runtime.compilation import Compilations
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
EQUAL, STEPS = 0.3, 12  # share of groups with equal rewards, and steps with them


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


def equal() -> None:
  """Prints seconds of a step per group and per useful one, kept and replaced."""
  shape = SHAPES['r1_zero']
  stage, saved = of_shape(shape)
  problems = [Problem(str(n), '', '.' * n, {}) for n in range(4 * shape.prompts)]
  state, reference = saved['policy'], saved['reference']

  def sample(n: int, some: Sequence[Problem], first: int) -> Rollout:
    return stage.sampler.sample(
      stage.learner.for_sampling(state.params),
      jax.random.key(n),
      some,
      group_size=shape.group_size,
      max_length=shape.length,
      draw=SamplingConfig(),
      first=first,
    )

  def step(n: int, share: float | None) -> tuple[float, int, int, float]:
    """Returns seconds, groups that are asked and useful, and the share of these."""
    nonlocal state
    began = time.monotonic()
    reward = functools.partial(_rewards, np.random.default_rng(n))
    if share is None:
      rollout = sample(n, problems[: shape.prompts], 0)
      rewards = asked = reward(problems[: shape.prompts], rollout)[0]
    else:
      found = replacing.collect(
        problems,
        shape.prompts,
        stage.learner.shards,
        share,
        functools.partial(sample, n),
        reward,
      )
      rollout, rewards, asked = found.rollout, found.rewards, found.asked
    scores = stage.learner.score(state.params, reference, rollout, 1.0)
    advantage = stage.learner.advantage(grpo.outcomes(jnp.asarray(rewards.total)))
    key = jax.random.key(n)
    state = stage.learner.update(state, rollout, advantage, scores, key, 1.0).state
    jax.block_until_ready(state)
    useful = replacing.is_useful(asked)
    taken = int(replacing.is_useful(rewards).sum())
    return time.monotonic() - began, len(useful), taken, float(useful.mean())

  share = step(0, 1.0)[3]
  step(0, None)  # both have compiled
  rows: dict[str, list[tuple[float, int, int, float]]] = {'kept': [], 'replaced': []}
  with Compilations() as compilations:
    for n in range(1, STEPS + 1):  # by turns, as the machine's speed varies
      rows['kept'].append(step(n, None))
      rows['replaced'].append(step(n, share))
      share = rows['replaced'][-1][3]
    compiled, _ = compilations.since()
  median = {name: statistics.median(row[0] for row in x) for name, x in rows.items()}
  each = {}  # seconds of a useful group
  for name, found in rows.items():
    _, asked, taken, _ = map(sum, zip(*found, strict=True))
    each[name] = median[name] * STEPS / taken
    print(
      f'{name}: {asked} groups asked, {taken} of {STEPS * shape.prompts} learned from '
      f'useful; a step takes {median[name]:.2f} s, the median of {STEPS}, so a useful '
      f'group {each[name]:.3f} s'
    )
  ordinary = median['kept'] / shape.prompts
  print(
    f'a useful group of replaced ones takes {each["replaced"] / ordinary:.2f} times a '
    f'group, and {each["replaced"] / each["kept"]:.2f} times a useful group of kept '
    f'ones; {compiled} programs compiled after the first steps'
  )


def _rewards(
  rng: np.random.Generator, problems: Sequence[Problem], rollout: Rollout
) -> tuple[Rewards, float]:
  """Returns rewards of which the groups are equal with the chance `EQUAL`."""
  total = np.mean(rollout.tokens % 2 == 0, axis=-1).astype(np.float32)
  same = rng.random(len(problems)) < EQUAL
  total = np.where(same[:, None], 0, total)
  nothing = np.zeros(total.shape, np.bool_)
  rows = np.arange(len(problems))
  values, fault = total[..., None], np.full(total.shape, '')
  return Rewards(rows, values, total, nothing, fault, nothing, 0, 0, [], {}), 0.0


SWEEPS = {'length': length, 'group': group, 'uneven': uneven, 'equal': equal}


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
