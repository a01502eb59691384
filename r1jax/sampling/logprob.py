"""Log-probabilities of tokens, fast in both directions, without all logits at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.sharding.constrain import constrain, num_shards

# Logits that exist at a time: 8 MiB in float32, about what a CPU's cache holds. But for
# a large vocabulary at least so many tokens, below which the head is read too often.
CHUNK_LOGITS = 2**21
CHUNK_TOKENS = 128


def hidden_logp(
  hidden_BTD: jax.Array,
  tokens_BT: jax.Array,
  logits: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """Returns `token_logp` of the logits, computed by `in_chunks`.

  Args:
    hidden_BTD: hidden states.
    tokens_BT: int32, the tokens that they predict.
    logits: hidden [B, T', D] -> [B, T', V].
  """

  def score(hidden_BTD: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token_logp(logits(hidden_BTD), tokens_BT)

  vocabulary = jax.eval_shape(logits, hidden_BTD).shape[-1]
  return in_chunks(score, hidden_BTD, tokens_BT, size=vocabulary)


def in_chunks(function: Callable[..., Any], *arrays: jax.Array, size: int) -> Any:
  """Returns function(*arrays), computed a chunk of positions at a time.

  Where there is more than one chunk, logits [B, T, V] never exist: neither in the
  forward pass nor in the gradient, which computes those of a chunk again. Memory grows
  with the chunk, not with T.

  Args:
    function: of arrays [B, T', ...], each position by itself -> a tree of [B, T'].
    arrays: each [B, T, ...].
    size: logits that the function makes of one position.
  """
  whole_rows, length = arrays[0].shape[:2]
  # Where a row is cut over devices each has a chunk of its own piece.
  rows = whole_rows * num_shards('length')
  each = -(-length // num_shards('length'))
  together = max(CHUNK_LOGITS // size, CHUNK_TOKENS) * num_shards('piece')
  width = max(1, together // rows)
  if width >= each:
    return function(*arrays)

  def padded(x_BTX: jax.Array, length: int) -> jax.Array:
    rest = [(0, 0)] * (x_BTX.ndim - 2)
    return jnp.pad(x_BTX, [(0, 0), (0, length - x_BTX.shape[1]), *rest])

  def cut(x_BTX: jax.Array) -> jax.Array:
    rest = x_BTX.shape[2:]
    x_BTX = padded(x_BTX, rows // whole_rows * each).reshape(rows, each, *rest)
    x_BTX = constrain(x_BTX, 'piece', *[None] * (x_BTX.ndim - 1))
    chunks = padded(x_BTX, -(-each // width) * width)
    return jnp.moveaxis(chunks.reshape(rows, -1, width, *rest), 1, 0)

  def join(x_NBT: jax.Array) -> jax.Array:
    x_BT = jnp.moveaxis(x_NBT, 0, 1).reshape(rows, -1)[:, :each]
    return x_BT.reshape(whole_rows, -1)[:, :length]

  chunk = jax.checkpoint(function)
  chunks = jax.lax.map(lambda x: chunk(*x), tuple(cut(x) for x in arrays))
  return jax.tree.map(join, chunks)


@jax.named_scope('logp')
def token_logp(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log p(token) and the entropies of the distributions, both [...], in nats.

  Args:
    logits: [..., V].
    tokens: int32 [...].
  """
  total = jax.nn.logsumexp(logits, axis=-1)
  # A masked sum in place of a gather, whose gradient would be a scatter.
  ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  here = ids == tokens[..., None]
  chosen = jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
  probability = jnp.exp(logits - total[..., None])
  # The product is of exp and a finite number also where a logit is -inf.
  finite = jnp.where(probability > 0, logits, 0.0)
  entropy = total - jnp.sum(probability * finite, axis=-1)
  return chosen - total, entropy
