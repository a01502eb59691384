"""Attention over segments: one softmax across several lists of keys.

A row of queries attends to its own positions, causally, and to any number of context
segments computed before: a prompt, blocks of the decoding cache. A context segment may
serve several consecutive rows, so the samples of a group share their prompt's keys
without a copy. Prefill, decoding, scoring and training differ only in segments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model.kernels import flash_tpu
from r1jax.sharding.constrain import AxisNames, num_shards, platform, shard_mapped
from r1jax.trees import KV

# Finite, so that a fully masked segment gets weight exp(-1e30) = 0, not NaN.
MASKED = -1e30
# Queries computed at a time: skips most of the upper triangle, and the scores of 16
# rows fit in a CPU's cache. 64 took a third of the time of 256 at once, forward and
# backward (16 rows of 256 tokens, 4 heads of 32).
QUERY_BLOCK = 64
# A program unrolls at most this many sections, so its size does not grow with the row.
# Longer rows have longer blocks, up to LARGEST_BLOCK, then several blocks per section,
# in a loop. A section scores all keys up to its end, an eighth of them unnecessarily.
SECTIONS = 8
LARGEST_BLOCK = 256


class Window(NamedTuple):
  """Limits each query to the nearest keys, its own included."""

  size: jax.Array  # int32 [], number of keys
  positions: jax.Array  # int32 [B, T], of the queries in their texts


def write(block: KV, new: KV, column: jax.Array) -> KV:
  """Returns the block with one position's keys and values at `column`.

  The block has no axis K if there is one kv head: with an axis of size 1 XLA would copy
  the block at each write instead of updating it in place. For the same reason a CPU
  writes to one row without its axis.
  """

  def put(into: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    x = x.reshape(x.shape[:1] + x.shape[-2:]) if into.ndim == 3 else x
    x = x.astype(into.dtype)  # see `cache.for_writing`
    if len(into) == 1 and platform() == 'cpu':
      return jax.lax.dynamic_update_slice_in_dim(into[0], x[0], column, axis)[None]
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
  window: Window | None = None,
) -> jax.Array:
  """Returns softmax(scale q k^T) v over all visible keys, [B, T, H, C].

  Args:
    q_BTHC: queries after RoPE.
    own: keys and values of the same T positions, visible causally within a document.
    document_BT: a document id per position; documents don't attend to each other. The
      positions of a document are contiguous.
    context: pairs of a `KV` over S positions and a bool mask [B' or 1, S] of the keys
      visible to every query. B' divides B: each row of the `KV` serves B / B'
      consecutive rows of queries.
    scale: None is 1 / sqrt(C).
    window: of the nearest keys that are visible; None for all. The flash kernels have
      none, so these scores are kept in memory.
  """
  if window is None and flash_tpu.serves(q_BTHC, own, context):
    return flash_tpu.attend(q_BTHC, own, document_BT, context, scale)
  if num_shards('length') > 1:
    return _attend_sharded(q_BTHC, own, document_BT, context, scale, window)
  positions = () if window is None else (window.positions,)
  length = q_BTHC.shape[1]
  size = -(-length // (SECTIONS * QUERY_BLOCK)) * QUERY_BLOCK
  size = min(size, LARGEST_BLOCK)
  blocks = -(-length // (SECTIONS * size))  # per section
  sections = []
  for start in range(0, length, blocks * size):
    stop = min(start + blocks * size, length)
    past = KV(own.k[..., :stop], None if own.v is None else own.v[..., :stop, :])

    def block(q, query_document, *place, past=past, stop=stop):
      documents = query_document, document_BT[:, :stop]
      *moved, first = place
      near = None if window is None else Window(window.size, *moved)
      return _attend_some(q, first, past, documents, context, scale, near)

    queries = tuple(x[:, start:stop] for x in (q_BTHC, document_BT, *positions))
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
  window: Window | None,
) -> jax.Array:
  """`attend` for a block of queries, of which `first` is the first one's index."""
  query_document, key_document = documents
  index = first + jnp.arange(q_BTHC.shape[1])
  seen = index[:, None] >= jnp.arange(key_document.shape[1])[None]
  if window is not None:
    seen &= index[:, None] - jnp.arange(key_document.shape[1])[None] < window.size
  same = query_document[..., None] == key_document[:, None]
  parts = [_attend_one(q_BTHC, own, seen[None] & same, scale)]
  nears = _nears([mask for _, mask in context], window)
  parts += [
    _attend_one(q_BTHC, kv, _seen(mask, near, len(kv.k)), scale)
    for (kv, mask), near in zip(context, nears, strict=True)
  ]
  return _merge(parts)


def _nears(
  masks: Sequence[jax.Array], window: Window | None
) -> list[jax.Array] | list[None]:
  """Returns the keys of consecutive segments that the window reaches, [B, T, S] each.

  None for each without a window. The visible keys of a row, from the first segment to
  the last, are those of positions 0, 1, 2, … in its text.
  """
  if window is None:
    return [None] * len(masks)
  rows, found = len(window.positions), []
  before_B1 = jnp.zeros((rows, 1), jnp.int32)
  for mask in masks:
    mask_BS = jnp.repeat(mask, rows // len(mask), axis=0)
    place_BS = before_B1 + jnp.cumsum(mask_BS, axis=1) - 1
    found.append(window.positions[..., None] - place_BS[:, None] < window.size)
    before_B1 += mask_BS.sum(axis=1, keepdims=True)
  return found


def _seen(mask: jax.Array, near_BTS: jax.Array | None, kv_rows: int) -> jax.Array:
  """Returns the mask of a segment's keys, as `_attend_one` takes it."""
  if near_BTS is None:
    return mask[:, None]
  mask_BS = jnp.repeat(mask, len(near_BTS) // len(mask), axis=0)
  return (mask_BS[:, None] & near_BTS).reshape(kv_rows, -1, mask.shape[1])


def _attend_sharded(
  q_BTHC: jax.Array,
  own: KV,
  document_BT: jax.Array,
  context: Sequence[tuple[KV, jax.Array]],
  scale: float | None,
  window: Window | None,
) -> jax.Array:
  """`attend` with rows sharded in T: each device has its queries, and all keys.

  Keys and values are all-gathered; with few kv heads they are small. The last device
  has the most keys to attend to, and all devices wait for it.
  """
  length = q_BTHC.shape[1]
  padding = -length % num_shards('length')

  def padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

  heads = AxisNames('prompt', 'length', 'heads', None)
  keys = jax.tree.map(lambda _: AxisNames('prompt', 'kv_heads', None, None), own)
  rows, all_rows = AxisNames('prompt', 'length'), AxisNames('prompt', None)
  earlier = [(keys, all_rows) for _ in context]

  def local(q, query_document, key_document, own, context, *window):
    size = min(LARGEST_BLOCK, q.shape[1])

    def block(q, query_document, *place):
      documents = query_document, key_document
      *moved, first = place
      near = Window(window[0], *moved) if window else None
      return _attend_some(q, first, own, documents, context, scale, near)

    first = jax.lax.axis_index('context') * q.shape[1]
    return _loop(block, (q, query_document, *window[1:]), first, size)

  inputs: tuple[Any, ...] = (heads, rows, all_rows, keys, earlier)
  limits: tuple[jax.Array, ...] = ()
  if window is not None:
    inputs, limits = (
      (*inputs, AxisNames(), rows),
      (window.size, padded(window.positions)),
    )
  # There are no collectives inside, so JAX need not track varying axes: the keys'
  # gradients are summed over devices once, after the loop.
  attend_mapped = shard_mapped(local, inputs, heads, checked=False)
  documents = padded(document_BT), document_BT
  out = attend_mapped(padded(q_BTHC), *documents, own, list(context), *limits)
  return out[:, :length]


def _loop(
  block: Callable[..., jax.Array],
  queries: tuple[jax.Array, ...],
  start: jax.Array | int,
  size: int,
) -> jax.Array:
  """Applies `block` to `size` queries at a time, with rematerialization."""
  rows, length = queries[0].shape[:2]
  count = -(-length // size)

  def split(x: jax.Array) -> jax.Array:
    padding = count * size - length
    padded = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(rows, count, -1, *x.shape[2:]), 1, 0)

  firsts = start + size * jnp.arange(count)
  one = jax.checkpoint(lambda parts: block(*parts))
  out = jax.lax.map(one, (*map(split, queries), firsts))
  return jnp.moveaxis(out, 0, 1).reshape(rows, -1, *out.shape[3:])[:, :length]


def attend_all(
  q_BTHC: jax.Array,
  segments: Sequence[tuple[KV, jax.Array]],
  scale: float | None = None,
  window: Window | None = None,
) -> jax.Array:
  """Returns softmax(scale q k^T) v over the segments, [B, T, H, C].

  Like `attend`, but the queries' own keys and values are among the segments. A segment
  with a mask of more rows than its `KV`, B' of them, is of the first B' rows of queries
  alone, one each. With a window, segments are in the order of their text.
  """
  nears = _nears([mask for _, mask in segments], window)
  return _merge(
    [
      _attend_first(q_BTHC, kv, mask, near, scale)
      for (kv, mask), near in zip(segments, nears, strict=True)
    ]
  )


def _attend_first(
  q_BTHC: jax.Array,
  kv: KV,
  mask: jax.Array,
  near_BTS: jax.Array | None,
  scale: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`_attend_one`; without weight in rows that the segment is not of."""
  rows = len(kv.k)
  if len(mask) <= rows:
    return _attend_one(q_BTHC, kv, _seen(mask, near_BTS, rows), scale)
  near_BTS = None if near_BTS is None else near_BTS[:rows]
  found = _attend_one(q_BTHC[:rows], kv, _seen(mask[:rows], near_BTS, rows), scale)

  def pad(x: jax.Array, value: float) -> jax.Array:
    others = [(0, len(q_BTHC) - rows)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, others, constant_values=value)

  out, top, total = map(pad, found, (0.0, MASKED, 0.0))
  return out, top, total


def _merge(parts: Sequence[tuple[Any, jax.Array, Any]]) -> jax.Array:
  """Returns one softmax from partial ones, rescaled as in flash attention."""
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


def _attend_one(
  q_BTHC: jax.Array, kv: KV, mask: jax.Array, scale: float | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns unnormalised output [B, T, H, C], max score and sum of weights [B, T, H].

  All are float32 or more, whatever the type of queries, keys and values. `mask`
  broadcasts to [B', T, S]; it may vary along T only if B' is 1 or B.
  """
  rows, length, heads, channels = q_BTHC.shape
  if kv.k.ndim == 3:  # see `write`
    kv = KV(kv.k[:, None], None if kv.v is None else kv.v[:, None])
  values = jnp.swapaxes(kv.k, -1, -2) if kv.v is None else kv.v
  kv_rows, kv_heads = kv.k.shape[:2]
  # Rows that share a segment are concatenated to one larger product.
  queries = rows // kv_rows * length
  q = q_BTHC.reshape(kv_rows, queries, kv_heads, heads // kv_heads, channels)
  q = jnp.moveaxis(q, 1, 3) * (channels**-0.5 if scale is None else scale)
  scores = _product(q, kv.k)
  scores = jnp.where(mask[:, None, None], scores, MASKED)
  top = jax.lax.stop_gradient(scores.max(-1))
  weights = jnp.exp(scores - top[..., None])
  rounded, kind = weights.astype(values.dtype), jnp.finfo(q_BTHC.dtype)
  if kind.bits < jnp.finfo(values.dtype).bits:
    # A float32 block of a bfloat16 model (`cache.for_writing`) is rounded like others.
    rounded = jax.lax.reduce_precision(rounded, kind.nexp, kind.nmant)
  out = _product(rounded, values)

  def by_row(x_BKRQ: jax.Array) -> jax.Array:
    return jnp.moveaxis(x_BKRQ, 3, 1).reshape(rows, length, heads, *x_BKRQ.shape[4:])

  return by_row(out), by_row(top), by_row(weights.sum(-1))


def _product(x_BKRQM: jax.Array, y_BKMN: jax.Array) -> jax.Array:
  """Returns x @ y for each row and kv head, [B, K, R, Q, N], float32 or more."""
  rows, kv_heads, repeats, queries, inner = x_BKRQM.shape
  flat = x_BKRQM.reshape(rows, kv_heads, repeats * queries, inner)
  kind = jnp.promote_types(y_BKMN.dtype, jnp.float32)
  product = jnp.matmul(flat, y_BKMN, preferred_element_type=kind)
  return product.reshape(rows, kv_heads, repeats, queries, -1)
