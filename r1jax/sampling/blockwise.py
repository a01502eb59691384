"""Log-probs with a large vocabulary: a block of its logits at a time, on one device.

The forward pass keeps a largest logit and sums of exponentials for each position, as
flash attention does for its keys (Dao et al. 2022). The backward pass computes each
block's logits again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import gradient_sums
from r1jax.trees import T

BLOCK = 2048  # tokens of the vocabulary at a time
POSITIONS = 1024  # positions at a time

Arrays = tuple[jax.Array, ...]
Logits = Callable[[jax.Array, jax.Array], jax.Array]  # of `Head`


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_logp(
  logits: Logits,
  matrix: jax.Array,
  total: Any,
  hidden_ND: jax.Array,
  tokens_N: jax.Array,
  temperature: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probs of the tokens, and entropies of their distributions, [N].

  In nats. In the backward pass each block's gradient of the matrix is added to `total`.

  Args:
    logits: see `Head`.
    matrix: [V, D].
    total: the sum to which the matrix's gradient is added, a reference; None: it is
      returned as other gradients are.
    hidden_ND: hidden states.
    tokens_N: int32.
    temperature: divides the logits; it gets no gradient.
  """
  found, _ = _forward(logits, matrix, total, hidden_ND, tokens_N, temperature)
  return found


def _forward(
  logits: Logits,
  matrix: jax.Array,
  total: Any,
  hidden_ND: jax.Array,
  tokens_N: jax.Array,
  temperature: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
  dtype = jax.eval_shape(logits, matrix, hidden_ND).dtype
  lowest = jnp.finfo(dtype).min

  def chunk(first: Any, size: int, found: Arrays) -> Arrays:
    hidden, tokens = _rows(hidden_ND, first, size), _rows(tokens_N, first, size)

    def block(start: Any, rows: int, sums: Arrays) -> Arrays:
      """Adds a block to the largest logit, and sums of exp(logit - largest)."""
      largest, norm, weighted, chosen = sums
      scores = logits(_rows(matrix, start, rows), hidden) / temperature
      new = jnp.maximum(largest, scores.max(-1))
      shrunk, share = jnp.exp(largest - new), jnp.exp(scores - new[:, None])
      finite = jnp.where(share > 0, scores, 0.0)  # 0 * -inf would be NaN
      here = is_token(scores, tokens, start)
      return (
        new,
        norm * shrunk + share.sum(-1),
        weighted * shrunk + jnp.sum(share * finite, axis=-1),
        chosen + jnp.sum(jnp.where(here, scores, 0.0), axis=-1),
      )

    zero = jnp.zeros(size, dtype)
    start: Arrays = (zero + lowest, zero, zero, zero)
    largest, norm, weighted, chosen = _each(len(matrix), BLOCK, block, start)
    log_norm = largest + jnp.log(norm)
    new = chosen - log_norm, log_norm - weighted / norm, log_norm
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(x, y, first, 0)
      for x, y in zip(found, new, strict=True)
    )

  zeros: Arrays = (jnp.zeros(len(tokens_N), dtype),) * 3
  logp, entropy, log_norm = _each(len(tokens_N), POSITIONS, chunk, zeros)
  kept = matrix, total, hidden_ND, tokens_N, temperature, entropy, log_norm
  return (logp, entropy), kept


def _backward(
  logits: Logits, kept: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, jax.Array, None, None]:
  matrix, total, hidden_ND, tokens_N, temperature, entropy_N, log_norm_N = kept

  def chunk(first: Any, size: int, grads: Any) -> Any:
    hidden, tokens, entropy, log_norm, slope, entropy_slope = (
      _rows(x, first, size)
      for x in (hidden_ND, tokens_N, entropy_N, log_norm_N, *cotangents)
    )

    def block(start: Any, rows: int, grads: Any) -> Any:
      to_hidden, to_matrix = grads
      found, pull = jax.vjp(logits, _rows(matrix, start, rows), hidden)
      logp = found / temperature - log_norm[:, None]
      share = jnp.exp(logp)
      finite = jnp.where(share > 0, logp, 0.0)
      # d logp(token) = one-hot - p, and d entropy = -p (log p + entropy)
      both = slope[:, None] + entropy_slope[:, None] * (finite + entropy[:, None])
      here = is_token(found, tokens, start)
      grad = jnp.where(here, slope[:, None], 0.0) - share * both
      by_rows, by_hidden = pull((grad / temperature).astype(found.dtype))
      if total is None:
        by_rows += _rows(to_matrix, start, rows)
        to_matrix = jax.lax.dynamic_update_slice_in_dim(to_matrix, by_rows, start, 0)
      else:
        gradient_sums.add_rows(total, start, by_rows)
      return to_hidden + by_hidden, to_matrix

    to_hidden, to_matrix = grads
    start = jnp.zeros_like(hidden), to_matrix
    new, to_matrix = _each(len(matrix), BLOCK, block, start)
    return jax.lax.dynamic_update_slice_in_dim(to_hidden, new, first, 0), to_matrix

  # Where the sum gets the matrix's gradient, nobody reads the zeros that are returned
  # for it, so the compiler drops them.
  zeros = jnp.zeros_like(hidden_ND), jnp.zeros_like(matrix)
  to_hidden, to_matrix = _each(len(tokens_N), POSITIONS, chunk, zeros)
  return to_matrix, None, to_hidden, None, None


token_logp.defvjp(_forward, _backward)


def _each(length: int, size: int, body: Callable[[Any, int, T], T], state: T) -> T:
  """Returns the state after body(first, size, state) for each part of an axis."""
  count, rest = divmod(length, size)
  if count:
    state = jax.lax.fori_loop(0, count, lambda n, x: body(n * size, size, x), state)
  return body(count * size, rest, state) if rest else state


def _rows(x: jax.Array, first: Any, size: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, first, size)


def is_token(logits: jax.Array, tokens: jax.Array, first: Any) -> jax.Array:
  """Returns where the logit of each row's own token is, if the first column is that."""
  # A masked sum instead of a gather, whose gradient is a scatter.
  ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  return ids + first == tokens[..., None]
