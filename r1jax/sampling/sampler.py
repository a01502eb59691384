"""From logits to tokens: temperature, top-k, top-p, one random number per row."""

import dataclasses
import math

import jax
import jax.numpy as jnp

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
    ordered = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    smallest = jnp.min(
      jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True
    )
    logits = jnp.where(logits < smallest, -jnp.inf, logits)
  return logits


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
