"""Log-probabilities and entropies of tokens, without all logits in memory at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from r1jax import gradient_sums
from r1jax.sampling import blockwise
from r1jax.sharding.constrain import constrain, current_mesh, num_shards
from r1jax.trees import Head, T

# Logits in memory at a time: 8 MiB in float32, about a CPU's cache. With a large
# vocabulary at least CHUNK_TOKENS tokens: with fewer the head is read too often.
CHUNK_LOGITS = 2**21
CHUNK_TOKENS = 128


def hidden_logp(
  hidden_BTD: jax.Array,
  tokens_BT: jax.Array,
  params: optax.Params,
  *,
  head: Head,
  temperature: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probs and entropies of the tokens, [B, T], in nats.

  Logits are computed for chunks of positions. On one device those of a large vocabulary
  are computed for a block of tokens at a time, which needs less memory and reads the
  head once; on a mesh the vocabulary may be sharded.

  Args:
    hidden_BTD: hidden states.
    tokens_BT: int32, the tokens to predict from them.
    params: of the model.
    head: of the model.
    temperature: divides the logits, above 0.
  """
  boxed = head.matrix(params)
  matrix = gradient_sums.values(boxed)
  if len(matrix) > 2 * blockwise.BLOCK and current_mesh() is None:
    found = blockwise.token_logp(
      head.logits,
      matrix,
      gradient_sums.sum_of(boxed),
      hidden_BTD.reshape(-1, hidden_BTD.shape[-1]),
      tokens_BT.reshape(-1),
      jnp.asarray(temperature),
    )
    logp_BT, entropy_BT = (x.reshape(tokens_BT.shape) for x in found)
    return logp_BT, entropy_BT
  opened = gradient_sums.opened(boxed)

  def score(hidden_BTD: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return token_logp(head.logits(opened, hidden_BTD) / temperature, tokens_BT)

  return in_chunks(score, hidden_BTD, tokens_BT, size=len(matrix))


def in_chunks(function: Callable[..., T], *arrays: jax.Array, size: int) -> T:
  """Returns function(*arrays), computed for a chunk of positions at a time.

  The full logits [B, T, V] are never in memory, neither in the forward nor in the
  backward pass, which recomputes each chunk. Memory depends on the chunk, not on T.

  Args:
    function: arrays [B, T', ...] -> a tree of [B, T'], independent per position.
    arrays: each [B, T, ...].
    size: logits per position that the function makes.
  """
  whole_rows, length = arrays[0].shape[:2]
  # With T sharded, each device computes chunks of its own part of a row.
  rows = whole_rows * num_shards('length')
  each = -(-length // num_shards('length'))
  tokens = max(CHUNK_LOGITS // size, CHUNK_TOKENS) * num_shards('piece')
  width = max(1, tokens // rows)
  if width >= each:
    return function(*arrays)

  def padded(x_BTX: jax.Array, length: int) -> jax.Array:
    rest = [(0, 0)] * (x_BTX.ndim - 2)
    return jnp.pad(x_BTX, [(0, 0), (0, length - x_BTX.shape[1]), *rest])

  def split(x_BTX: jax.Array) -> jax.Array:
    rest = x_BTX.shape[2:]
    x_BTX = padded(x_BTX, rows // whole_rows * each).reshape(rows, each, *rest)
    x_BTX = constrain(x_BTX, 'piece', *[None] * (x_BTX.ndim - 1))
    chunks = padded(x_BTX, -(-each // width) * width)
    return jnp.moveaxis(chunks.reshape(rows, -1, width, *rest), 1, 0)

  def join(x_NBT: jax.Array) -> jax.Array:
    x_BT = jnp.moveaxis(x_NBT, 0, 1).reshape(rows, -1)[:, :each]
    return x_BT.reshape(whole_rows, -1)[:, :length]

  chunk = jax.checkpoint(function)
  chunks = jax.lax.map(lambda x: chunk(*x), tuple(split(x) for x in arrays))
  return jax.tree.map(join, chunks)


@jax.named_scope('logp')
def token_logp(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log p(token) and the entropy of the distribution, both [...], in nats.

  Args:
    logits: [..., V].
    tokens: int32 [...].
  """
  total = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.sum(
    jnp.where(blockwise.is_token(logits, tokens, 0), logits, 0.0), axis=-1
  )
  probability = jnp.exp(logits - total[..., None])
  # 0 * -inf would be NaN.
  finite = jnp.where(probability > 0, logits, 0.0)
  entropy = total - jnp.sum(probability * finite, axis=-1)
  return chosen - total, entropy
