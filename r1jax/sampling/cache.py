"""Blocks of the KV cache: keys and values by layer, one column per position."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from r1jax.sharding.constrain import platform
from r1jax.trees import KV, KVByLayer, T

# Positions of the first block of the decoding cache. Each later block is as long as all
# before it, so there are few. A full block is only read: the decode loop writes to one
# block and attends to those that exist.
CACHE_BLOCK = 64


def by_layer(kv: KV) -> KVByLayer:
  """Returns a stacked `KV` as a list over layers: a scan would copy it at each step."""
  return [jax.tree.map(lambda x, n=n: x[n], kv) for n in range(len(kv.k))]


def map_columns(function: Callable[..., jax.Array], *kvs: KV) -> KV:
  """Returns the `KV` of function(position axis, *keys), likewise of the values."""
  k, v = zip(*kvs, strict=True)
  return KV(function(-1, *k), None if v[0] is None else function(-2, *v))


def empty_block(kv: KV, rows: int, width: int) -> KV:
  """Returns a zero block to write keys and values like these; see `attention.write`."""

  def zeros(axis: int, x: jax.Array) -> jax.Array:
    shape = [rows, *x.shape[1:]]
    shape[axis] = width
    return jnp.zeros([n for i, n in enumerate(shape) if i != 1 or n > 1], x.dtype)

  return for_writing(map_columns(zeros, kv))


def for_writing(kv: T) -> T:
  """Returns a tree of `KV` in the type in which positions are written to it.

  On a CPU that is float32 at least, twice the bytes of bfloat16: to write a position of
  a bfloat16 array, XLA's CPU compiler converts the whole array.
  """
  if platform() != 'cpu':
    return kv
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), kv)


def join_blocks(*kvs: KV) -> KV:
  """Returns the blocks concatenated along positions."""
  return map_columns(lambda axis, *x: jnp.concatenate(x, axis), *kvs)


def slice_columns(kv: KV, start: int, stop: int | None) -> KV:
  """Returns the positions from `start` up to `stop`."""
  return map_columns(
    lambda axis, x: jax.lax.slice_in_dim(x, start, stop, axis=axis % x.ndim), kv
  )
