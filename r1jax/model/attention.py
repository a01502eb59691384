"""Attention over segments: one softmax across several lists of keys.

A row of queries attends to its own positions, causally, and to any number of context
segments that were computed before: a prompt, blocks of a decoding cache. A context
segment may serve a run of rows, so a prompt's keys are shared by the samples of its
group without a copy. Prefill, decoding, scoring and training differ only in segments.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model.kernels import flash_tpu
from r1jax.sharding.constrain import AxisNames, num_shards, shard_mapped

# Finite, so that a segment masked from end to end gives weight exp(-1e30) = 0, not NaN.
MASKED = -1e30
# Queries attended at a time: skips most of the upper triangle, and the scores of 16
# rows stay in a CPU's cache. 64 took a third of the time of 256 at once, forward and
# backward (16 rows of 256 tokens, 4 heads of 32).
QUERY_BLOCK = 64
# At most so many are written out, and a program's size does not grow with the row: in a
# longer one blocks become longer, up to the largest, of which then each section has
# several, in a loop. A section scores keys up to its end, an eighth of them in vain.
SECTIONS = 8
LARGEST_BLOCK = 256


class KV(NamedTuple):
  """Keys after RoPE [B, K, C, S] and values [B, K, S, C], as the products read them.

  With a leading L axis when stacked over layers; a block that `write` changes has no
  axis K where K is 1. Without values of their own, keys are the values too, as in the
  cache of latent attention.
  """

  k: jax.Array
  v: jax.Array | None


def write(block: KV, new: KV, column: jax.Array) -> KV:
  """Returns the block with one position's keys and values at `column`.

  Also of a block that has no axis K, for the one kv head: with an axis of size 1 XLA
  would copy the block for each write instead of changing it in place.
  """

  def put(into: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    x = x.reshape(x.shape[:1] + x.shape[-2:]) if into.ndim == 3 else x
    return jax.lax.dynamic_update_slice_in_dim(into, x, column, axis)

  k = put(block.k, new.k, -1)
  if block.v is None or new.v is None:
    return KV(k, None)
  return KV(k, put(block.v, new.v, -2))


def attend(
  q_BTHC: jax.Array,
  own: KV,
  document_BT: jax.Array,
  context: Sequence[tuple[KV, jax.Array]],
  scale: float | None = None,
) -> jax.Array:
  """Returns softmax(scale q k^T) v over everything a query sees, [B, T, H, C].

  Args:
    q_BTHC: queries after RoPE.
    own: keys and values of the same T positions, seen causally within a document.
    document_BT: an id a position; different documents don't see each other. Positions
      of one lie side by side.
    context: pairs of a `KV` over S positions and a boolean mask [B' or 1, S] of those
      that every query may see. B' divides B: each row of the `KV` serves B / B'
      consecutive rows of queries.
    scale: None is 1 / sqrt(C).
  """
  if flash_tpu.serves(q_BTHC, own, context):
    return flash_tpu.attend(q_BTHC, own, document_BT, context, scale)
  if num_shards('length') > 1:
    return _attend_cut(q_BTHC, own, document_BT, context, scale)
  length = q_BTHC.shape[1]
  longer = -(-length // (SECTIONS * QUERY_BLOCK))
  size = min(longer * QUERY_BLOCK, LARGEST_BLOCK)
  blocks = -(-length // (SECTIONS * size))  # of a section
  sections = []
  for start in range(0, length, blocks * size):
    stop = min(start + blocks * size, length)
    past = KV(own.k[..., :stop], None if own.v is None else own.v[..., :stop, :])

    def block(q, query_document, first, past=past, stop=stop):
      documents = query_document, document_BT[:, :stop]
      return _attend_some(q, first, past, documents, context, scale)

    queries = q_BTHC[:, start:stop], document_BT[:, start:stop]
    sections.append(
      block(*queries, start) if blocks == 1 else _loop(block, queries, start, size)
    )
  return jnp.concatenate(sections, axis=1) if len(sections) > 1 else sections[0]


def _attend_some(
  q_BTHC: jax.Array,
  first: jax.Array | int,
  own: KV,
  documents: tuple[jax.Array, jax.Array],
  context: Sequence[tuple[KV, jax.Array]],
  scale: float | None,
) -> jax.Array:
  """`attend` of queries at the positions from `first` on."""
  of_queries, of_keys = documents
  place = first + jnp.arange(q_BTHC.shape[1])
  causal = place[:, None] >= jnp.arange(of_keys.shape[1])[None]
  same = of_queries[..., None] == of_keys[:, None]
  parts = [_attend_one(q_BTHC, own, causal[None] & same, scale)]
  parts += [_attend_one(q_BTHC, kv, mask[:, None], scale) for kv, mask in context]
  return _merge(parts)


def _attend_cut(
  q_BTHC: jax.Array,
  own: KV,
  document_BT: jax.Array,
  context: Sequence[tuple[KV, jax.Array]],
  scale: float | None,
) -> jax.Array:
  """`attend` where devices have parts of a row: their queries, and all keys.

  Keys and values are gathered, which with a few kv heads is little beside the queries.
  The last device has the most to attend to, and all take as long as it does.
  """
  length = q_BTHC.shape[1]
  short = -length % num_shards('length')

  def whole(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2))

  heads = AxisNames('prompt', 'length', 'heads', None)
  keys = jax.tree.map(lambda _: AxisNames('prompt', 'kv_heads', None, None), own)
  rows, all_rows = AxisNames('prompt', 'length'), AxisNames('prompt', None)
  earlier = [(keys, all_rows) for _ in context]

  def local(q, query_document, key_document, own, context):
    size = min(LARGEST_BLOCK, q.shape[1])

    def block(q, query_document, first):
      documents = query_document, key_document
      return _attend_some(q, first, own, documents, context, scale)

    first = jax.lax.axis_index('context') * q.shape[1]
    return _loop(block, (q, query_document), first, size)

  inputs = (heads, rows, all_rows, keys, earlier)
  # Without collectives in it nothing needs to be followed: what the keys' gradients get
  # from each device is summed once, after the loop.
  attend_mapped = shard_mapped(local, inputs, heads, checked=False)
  documents = whole(document_BT), document_BT
  return attend_mapped(whole(q_BTHC), *documents, own, list(context))[:, :length]


def _loop(
  block: Any, queries: tuple[jax.Array, ...], start: jax.Array | int, size: int
) -> jax.Array:
  """Applies `block` to `size` queries at a time and keeps only their outputs."""
  rows, length = queries[0].shape[:2]
  count = -(-length // size)

  def cut(x: jax.Array) -> jax.Array:
    short = count * size - length
    padded = jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(rows, count, -1, *x.shape[2:]), 1, 0)

  firsts = start + size * jnp.arange(count)
  one = jax.checkpoint(lambda parts: block(*parts))
  out = jax.lax.map(one, (*map(cut, queries), firsts))
  return jnp.moveaxis(out, 0, 1).reshape(rows, -1, *out.shape[3:])[:, :length]


def attend_all(
  q_BTHC: jax.Array,
  segments: Sequence[tuple[KV, jax.Array]],
  scale: float | None = None,
) -> jax.Array:
  """Returns softmax(scale q k^T) v over the segments alone, [B, T, H, C].

  As `attend`, for queries whose own keys and values are among the segments.
  """
  return _merge(
    [_attend_one(q_BTHC, kv, mask[:, None], scale) for kv, mask in segments]
  )


def _merge(parts) -> jax.Array:
  """One softmax from several, by their log-sum-exp, as in flash attention."""
  if len(parts) == 1:
    ((out, _, total),) = parts
    return out / total[..., None]
  top = parts[0][1]
  for _, m, _ in parts[1:]:
    top = jnp.maximum(top, m)
  scales = [jnp.exp(m - top) for _, m, _ in parts]
  out = sum(
    scale[..., None] * o for scale, (o, _, _) in zip(scales, parts, strict=True)
  )
  total = sum(scale * s for scale, (_, _, s) in zip(scales, parts, strict=True))
  return out / total[..., None]


def _attend_one(q_BTHC: jax.Array, kv: KV, mask: jax.Array, scale: float | None):
  """Unnormalised output [B, T, H, C], largest score and sum of weights [B, T, H].

  float32 or more, whatever the type of queries, keys and values.

  `mask` broadcasts to [B', T, S]; only B' = 1 or B may differ along T.
  """
  rows, length, heads, channels = q_BTHC.shape
  if kv.k.ndim == 3:  # see `write`
    kv = KV(kv.k[:, None], None if kv.v is None else kv.v[:, None])
  values = jnp.swapaxes(kv.k, -1, -2) if kv.v is None else kv.v
  kv_rows, kv_heads = kv.k.shape[:2]
  # Rows that share a segment become more queries of one larger product.
  queries = rows // kv_rows * length
  q = q_BTHC.reshape(kv_rows, queries, kv_heads, heads // kv_heads, channels)
  q = jnp.moveaxis(q, 1, 3) * (channels**-0.5 if scale is None else scale)
  scores = _product(q, kv.k)
  scores = jnp.where(mask[:, None, None], scores, MASKED)
  top = jax.lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - top[..., None])
  out = _product(weights.astype(values.dtype), values)

  def back(x_BKRQ: jax.Array) -> jax.Array:
    return jnp.moveaxis(x_BKRQ, 3, 1).reshape(rows, length, heads, *x_BKRQ.shape[4:])

  return back(out), back(top), back(weights.sum(-1))


def _product(x_BKRQM: jax.Array, y_BKMN: jax.Array) -> jax.Array:
  """x @ y for every row and kv head, [B, K, R, Q, N], float32 or more."""
  rows, kv_heads, repeats, queries, inner = x_BKRQM.shape
  flat = x_BKRQM.reshape(rows, kv_heads, repeats * queries, inner)
  kind = jnp.promote_types(y_BKMN.dtype, jnp.float32)
  product = jnp.matmul(flat, y_BKMN, preferred_element_type=kind)
  return product.reshape(rows, kv_heads, repeats, queries, -1)
