"""Which tokens learn: (seen, numbers) -> true on chosen tokens, for a whole mini-batch.

Shares are of all tokens of the mini-batch, so they need a pass over it before its
gradient: a scoring pass, a third of an update's time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.terms.inputs import Numbers

CLIP_COV = (1.0, 5.0)  # bounds of covariances that clip_cov may choose


class Seen(NamedTuple):
  """All tokens of a mini-batch under the current policy, arrays of one shape."""

  logp: jax.Array  # nats
  entropy: jax.Array  # of the token's distribution, nats
  advantage: jax.Array  # of the token's output
  mask: jax.Array  # true on tokens of outputs


Selection = Callable[[Seen, Numbers], jax.Array]


def every(seen: Seen, numbers: Numbers) -> jax.Array:
  """All tokens; costs nothing."""
  del numbers
  return seen.mask


def top_entropy(seen: Seen, numbers: Numbers) -> jax.Array:
  """The share of tokens of the highest entropy alone (80/20 rule, 2506.01939: 0.2)."""
  count = jnp.floor((seen.mask.sum() - 1) * numbers.token_share).astype(int) + 1
  return _largest(seen.entropy, seen.mask, count)


def top_covariance(seen: Seen, numbers: Numbers) -> jax.Array:
  """The share of tokens of the largest covariance, for surrogate 'kl_cov' (2505.22617).

  Covariance: (logp - its mean) (A - its mean over tokens).
  """
  count = jnp.maximum(jnp.floor(seen.mask.sum() * numbers.token_share).astype(int), 1)
  return _largest(_covariance(seen), seen.mask, count)


def without_clip_cov(seen: Seen, numbers: Numbers) -> jax.Array:
  """All but a share of tokens, at random of those of large covariance (2505.22617).

  Their covariance is within `CLIP_COV`. The paper draws them among tokens that the clip
  leaves; here they may be any. The order is random over places and fixed over steps.
  """
  low, high = CLIP_COV
  covariance = _covariance(seen)
  large = seen.mask & (covariance > low) & (covariance < high)
  count = jnp.maximum(jnp.floor(seen.mask.sum() * numbers.token_share).astype(int), 1)
  order = jax.random.uniform(jax.random.key(0), seen.mask.shape)
  return seen.mask & ~_largest(order, large, count)


def _covariance(seen: Seen) -> jax.Array:
  def centred(x: jax.Array) -> jax.Array:
    mean = jnp.sum(x * seen.mask) / jnp.maximum(seen.mask.sum(), 1)
    return x - mean

  return centred(seen.logp) * centred(seen.advantage)


def _largest(x: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
  """Returns where the `count` largest of the masked numbers are, and equal ones."""
  inside = jnp.where(mask, x, -jnp.inf)
  least = jnp.sort(inside.reshape(-1), descending=True)[count - 1]
  return mask & (inside >= least)


SELECTIONS: dict[str, Selection] = {
  'all': every,
  'top_entropy': top_entropy,
  'top_covariance': top_covariance,
  'clip_cov': without_clip_cov,
}
