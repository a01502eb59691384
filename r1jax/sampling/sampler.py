"""From logits to tokens: temperature, top-k, top-p, one random number per row."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from r1jax.sharding.constrain import platform

MANY = 4096  # tokens; with as many top-p does not sort on a CPU
CDF_BLOCK = 128  # tokens; the search finds a block first, then the token in it


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Temperature, top-k and top-p."""

  temperature: float = 1.0  # divides the logits; 0: the most likely token (greedy)
  top_k: int = 0  # keep the k most likely tokens; 0: all
  top_p: float = 1.0  # keep the smallest set of tokens with this total probability

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < math.inf:
      raise ValueError(
        f'temperature: expected a finite number of 0 or more, got {self.temperature}'
      )
    if self.top_k < 0:
      raise ValueError(f'top_k: expected 0 (all tokens) or more, got {self.top_k}')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p: expected more than 0, at most 1, got {self.top_p}')


def draw_logits(
  logits: jax.Array, temperature: jax.Array, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
  """Returns the logits to draw from, [..., V]; excluded tokens are -inf.

  Temperature first, then top-k, then top-p (nucleus sampling, Holtzman et al. 2020) on
  the rest. Ties at the threshold are kept.
  """
  logits = logits / temperature
  if top_k:
    smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < smallest, -jnp.inf, logits)
  if top_p < 1:
    logits = jnp.where(logits < _smallest(logits, top_p), -jnp.inf, logits)
  return logits


def _smallest(logits: jax.Array, top_p: float) -> jax.Array:
  """Returns the smallest logit that top-p keeps, [..., 1].

  A CPU takes 27 ms to sort 151,936 logits, as long as a model of half a billion
  parameters. With many it searches instead, by halving the numbers that it may be: the
  smallest x such that logits above x have less than `top_p` of the probability.
  """
  if platform() != 'cpu' or logits.shape[-1] < MANY:
    ordered = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = jnp.where(before < top_p, ordered, jnp.inf)
    return jnp.min(kept, axis=-1, keepdims=True)
  probability = jax.nn.softmax(logits, axis=-1)

  def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = ends
    middle = (low & high) + ((low ^ high) >> 1)  # rounded down, without overflow
    above = jnp.where(order > middle, probability, 0).sum(axis=-1, keepdims=True)
    right = above < top_p
    return jnp.where(right, low, middle + 1), jnp.where(right, middle, high)

  order = _as_integer(logits)
  ends = order.min(axis=-1, keepdims=True), order.max(axis=-1, keepdims=True)
  _, found = jax.lax.fori_loop(0, 32, halve, ends)
  smallest = jnp.where(order >= found, logits, jnp.inf)
  return jnp.min(smallest, axis=-1, keepdims=True)


def _as_integer(x: jax.Array) -> jax.Array:
  """Returns integers in the order of these float32 numbers."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
  return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


@jax.named_scope('draw')
def sample_token(
  uniform: jax.Array, logits: jax.Array, config: SamplingConfig, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns a token per row and its log-prob, each [...].

  With temperature 0 this is the most likely token, with log-prob 0.

  Args:
    uniform: random numbers in [0, 1), [...].
    logits: [..., V].
    config: top-k and top-p.
    temperature: [], used instead of the config's.
  """

  def greedy() -> tuple[jax.Array, jax.Array]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.zeros_like(uniform)

  def random() -> tuple[jax.Array, jax.Array]:
    tempered = draw_logits(logits, temperature, config.top_k, config.top_p)
    weights = jnp.exp(tempered - tempered.max(axis=-1, keepdims=True))
    token = inverse_cdf(uniform, weights)
    chosen = jnp.take_along_axis(weights, token[..., None], axis=-1)[..., 0]
    return token, jnp.log(chosen / weights.sum(axis=-1))

  return jax.lax.cond(temperature == 0, greedy, random)


def inverse_cdf(uniform: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns indices drawn from weights [..., V] by inverse transform, int32 [...].

  This needs one random number `uniform` [...] in [0, 1) per row. The Gumbel trick needs
  V, which on a CPU cost as much as the model. It searches the block of `CDF_BLOCK`
  weights first, then the entry in it. An entry with weight 0 is never chosen.
  """
  padding = -weights.shape[-1] % CDF_BLOCK
  weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, padding)])
  blocks = weights.reshape(*weights.shape[:-1], -1, CDF_BLOCK)

  def search(target: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first index whose running sum exceeds `target`, and the sum before it."""
    total = jnp.cumsum(weights, axis=-1)
    # So that rounding can't select an index after the last nonzero weight.
    target = jnp.minimum(target, total[..., -1] * (1 - 2**-23))
    below = total <= target[..., None]
    return below.sum(-1, dtype=jnp.int32), jnp.max(total * below, axis=-1)

  target = uniform * blocks.sum((-1, -2))
  block, before = search(target, blocks.sum(-1))
  inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
  index, _ = search(target - before, inside)
  return block * CDF_BLOCK + index
