"""From logits to tokens: temperature, top-k, top-p, and a random number a row."""

import dataclasses
import math

import jax
import jax.numpy as jnp

CDF_BLOCK = 128  # tokens; a row is searched by block, then within one


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How tokens are drawn."""

  temperature: float = 1.0  # divides the logits; 0 takes the most likely token
  top_k: int = 0  # only the k most likely tokens; 0 is all
  top_p: float = 1.0  # only the smallest set of tokens of this total probability

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
  """Logits [..., V] of the distribution to draw from; excluded tokens are -inf.

  Temperature first, then top-k, then top-p (nucleus, Holtzman et al. 2020) on what is
  left. Ties at the cut are kept.
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
  """Returns a token a row and its log-prob, each [...], from numbers in [0, 1) [...].

  With temperature 0 the most likely token, of log-prob 0: it is certain.
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
  """Returns where `uniform` [...] in [0, 1) falls among weights [..., V], int32 [...].

  One random number a row, where the Gumbel trick needs V of them: on a CPU those cost
  as much as the model. First the block of `CDF_BLOCK` weights, then the place in it. An
  entry of weight 0 is never chosen.
  """
  short = -weights.shape[-1] % CDF_BLOCK
  weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, short)])
  blocks = weights.reshape(*weights.shape[:-1], -1, CDF_BLOCK)

  def fall(target: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place whose running sum is above `target`, and the sum before it."""
    total = jnp.cumsum(weights, axis=-1)
    # Rounding must not lead beyond the last weight that is not 0.
    target = jnp.minimum(target, total[..., -1] * (1 - 2**-23))
    below = total <= target[..., None]
    return below.sum(-1, dtype=jnp.int32), jnp.max(total * below, axis=-1)

  target = uniform * blocks.sum((-1, -2))
  block, before = fall(target, blocks.sum(-1))
  inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
  place, _ = fall(target - before, inside)
  return block * CDF_BLOCK + place
