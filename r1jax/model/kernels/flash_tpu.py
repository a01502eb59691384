"""Flash attention: `attention.attend` by kernels that keep no scores in memory.

On TPUs this is JAX's splash attention, on GPUs `flash_gpu`. Both get one list of keys
per row: those of the context, then the row's own. A query sees the context keys that
the mask allows, and its own row from the start of its document up to itself. These are
two numbers per query instead of a mask, so a document's positions must be contiguous.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as mask_info,
)

from r1jax.model.kernels import flash_gpu
from r1jax.sharding.constrain import (
  AxisNames,
  current_mesh,
  num_shards,
  platform,
  shard_mapped,
)
from r1jax.trees import KV

LANES = 128  # block sizes are multiples of it; shorter rows don't use the kernel
BLOCK = 512  # queries or keys of a block, at most; its scores are 1 MiB
POSITION_BITS = 16  # two positions are packed into one int32


@dataclasses.dataclass(frozen=True)
class _Visible:
  """The kernel's mask function: whether queries see keys, from their positions."""

  context: int  # number of context keys

  def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
    begin = jax.lax.shift_right_logical(query, POSITION_BITS)
    own = key - self.context
    seen = (own >= begin) & (own <= query & (2**POSITION_BITS - 1))
    return seen | (own < 0)


def serves(q_BTHC: jax.Array, own: KV, context: Sequence[tuple[KV, jax.Array]]) -> bool:
  """Whether there is a kernel for these arguments of `attend` on the current mesh."""
  length, kernel = q_BTHC.shape[1], KERNELS.get(platform())
  kvs = [own, *(kv for kv, _ in context)]
  if kernel is None or own.v is None or any(kv.v is None for kv in kvs):
    return False
  if kernel is flash_gpu.attend and not flash_gpu.fits(q_BTHC, own.v.shape[-1]):
    return False
  shards = num_shards('prompt')
  return LANES <= length <= 2**POSITION_BITS and all(
    kv.k.shape[0] % shards == 0 for kv in kvs
  )


def attend(
  q_BTHC: jax.Array,
  own: KV,
  document_BT: jax.Array,
  context: Sequence[tuple[KV, jax.Array]],
  scale: float | None,
) -> jax.Array:
  """Returns the result of `attention.attend`, in the type of the queries."""
  length, channels = q_BTHC.shape[1], q_BTHC.shape[3]
  q_BTHC = q_BTHC * (channels**-0.5 if scale is None else scale)
  place_BT = jnp.broadcast_to(jnp.arange(length), document_BT.shape)
  begins = document_BT != jnp.roll(document_BT, 1, axis=1)
  begin_BT = jax.lax.cummax(jnp.where(begins, place_BT, 0), axis=1)
  kvs = [kv for kv, _ in context]
  masks = [
    jnp.broadcast_to(mask, (kv.k.shape[0], mask.shape[1])) for kv, mask in context
  ]
  if current_mesh() is None:
    return _attend(q_BTHC, begin_BT, place_BT, own, kvs, masks)

  padding = -length % num_shards('length')
  queries = AxisNames('prompt', 'length', 'heads', None)
  places = AxisNames('prompt', 'length')
  heads, rows = AxisNames('prompt', 'kv_heads', None, None), AxisNames('prompt', None)
  names = (
    *(queries, places, places),
    *jax.tree.map(lambda _: heads, (own, kvs)),
    [rows for _ in masks],
  )
  attend_mapped = shard_mapped(_attend, names, queries, checked=False)
  padded = (_padded(x, padding) for x in (q_BTHC, begin_BT, place_BT))
  return attend_mapped(*padded, own, kvs, masks)[:, :length]


def _attend(
  q_BTHC: jax.Array,
  begin_BT: jax.Array,
  place_BT: jax.Array,
  own: KV,
  context: Sequence[KV],
  masks: Sequence[jax.Array],
) -> jax.Array:
  """`attend` for a device's own queries, which may be part of a row."""
  rows, length = q_BTHC.shape[:2]
  before = sum(mask.shape[1] for mask in masks)
  count, size = _blocks(length)
  key_count, key_size = _blocks(before + own.k.shape[3])

  def joined(*parts: jax.Array) -> jax.Array:
    each = [jnp.repeat(x, rows // x.shape[0], axis=0) for x in parts]
    x = jnp.concatenate(each, axis=1)
    return _padded(x, key_count * key_size - x.shape[1])

  k_BSKC = joined(*(jnp.moveaxis(kv.k, 3, 1) for kv in (*context, own)))
  values = (kv.v for kv in (*context, own) if kv.v is not None)  # see `serves`
  v_BSKC = joined(*(jnp.moveaxis(v, 2, 1) for v in values))
  mask_BS = joined(*masks, jnp.ones((rows, own.k.shape[3]), bool)).astype(jnp.int32)
  padding = count * size - length
  queries = (_padded(x, padding) for x in (q_BTHC, begin_BT, place_BT))
  q_BTHC, begin_BT, place_BT = queries
  kernel = KERNELS[platform()]
  out = kernel(q_BTHC, k_BSKC, v_BSKC, begin_BT, place_BT, mask_BS, before)
  return out[:, :length]


def _splash(
  q_BTHC: jax.Array,
  k_BSKC: jax.Array,
  v_BSKC: jax.Array,
  begin_BT: jax.Array,
  place_BT: jax.Array,
  mask_BS: jax.Array,
  before: int,
) -> jax.Array:
  """`flash_gpu.attend` on TPUs, by JAX's splash attention."""
  count, size = _blocks(q_BTHC.shape[1])
  key_count, key_size = _blocks(k_BSKC.shape[1])
  # The last key block that is visible to each block of queries.
  ends = before + place_BT[0, 0] + size * jnp.arange(1, count + 1)
  last = jnp.minimum((ends - 1) // key_size, key_count - 1)
  kernel = _kernel(last, key_count, size, key_size)
  range_BT = (begin_BT << POSITION_BITS) | place_BT

  def row(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, mask: jax.Array
  ) -> jax.Array:
    heads_first = (jnp.swapaxes(x, 0, 1) for x in (q, k, v))
    segments = splash.SegmentIds(jnp.ones_like(visible), mask)
    return kernel(_Visible(before), visible)(*heads_first, segments)

  out_BHTC = jax.vmap(row)(q_BTHC, k_BSKC, v_BSKC, range_BT, mask_BS)
  return jnp.swapaxes(out_BHTC, 1, 2)


KERNELS = {'tpu': _splash, 'gpu': flash_gpu.attend}  # by platform


def _kernel(last: jax.Array, key_count: int, size: int, key_size: int) -> Any:
  """Returns a function from mask function and visible ranges to the splash kernel.

  Key blocks after `last` are skipped: their index is that of the nearest used block,
  which costs no copy.
  """
  block, key_block = jnp.arange(len(last))[:, None], jnp.arange(key_count)[None]
  counts = key_block <= last[:, None]
  keys = jnp.minimum(key_block, last[:, None])
  queries = jnp.maximum(block, jnp.argmax(counts, axis=0)[None])
  sizes = (size, key_size, key_size)  # the last: keys that are computed at once

  def kernel(function: _Visible, visible: Any) -> splash.SplashAttentionKernel:
    def info(blocks: jax.Array) -> mask_info.MaskInfo:
      used = counts[None].astype(jnp.int32)
      return mask_info.MaskInfo(blocks[None], None, used, None, visible)

    return splash.SplashAttentionKernel(
      *(info(keys), info(keys), info(queries)),
      mask_function=function,
      block_sizes=splash.BlockSizes(*sizes, *sizes, *sizes[:2]),
      is_mqa=False,
      save_residuals=False,
      mask_value=splash.DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=None,
      residual_checkpoint_name=None,
      interpret=platform() != 'tpu',
    )

  return kernel


def _blocks(length: int) -> tuple[int, int]:
  """Returns the smallest number of equal blocks for a length, and their size."""
  units = -(-length // LANES)
  each = -(-units // -(-length // BLOCK))
  return -(-units // each), each * LANES


def _padded(x: jax.Array, padding: int) -> jax.Array:
  """Returns rows with their last position repeated; no query sees the copies."""
  return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2), mode='edge')
