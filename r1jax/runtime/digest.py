"""Digests of trees of arrays; they do not depend on how the arrays are sharded."""

import concurrent.futures
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.runtime import hosts


def digest_of(tree: object) -> str:
  """Returns the digest of a tree's arrays, as stored in a checkpoint's manifest.

  It is the SHA-256 of each array's name, type, shape and `number_sum`. All hosts must
  call it.
  """
  return digest_arrays(by_path(tree))


def digest_arrays(arrays: dict[str, jax.Array]) -> str:
  """Returns `digest_of` for arrays by path. All hosts must call it."""
  with concurrent.futures.ThreadPoolExecutor() as threads:
    own = dict(zip(arrays, threads.map(_local_sum, arrays.values()), strict=True))
  parts = hosts.all_gather('digest', own)
  total = hashlib.sha256()
  for name in sorted(arrays):
    x, number = arrays[name], sum(part[name] for part in parts) % 2**64
    total.update(f'{name} {x.dtype} {x.shape} {number:016x} '.encode())
  return total.hexdigest()


def number_sum(x: np.ndarray, first: Sequence[int] = ()) -> int:
  """Returns the weighted sum, modulo 2^64, of an array's entries read as integers.

  An entry's weight is a product of odd pseudo-random numbers, one per index. So any
  change of one entry changes the sum, and the sums of an array's shards add up to the
  sum of the array.

  Args:
    x: the array, or a shard of it.
    first: index of the shard's first entry in the array; empty for the whole array.
  """
  total = np.ascontiguousarray(x).view(f'u{x.dtype.itemsize}').reshape(x.shape)
  for axis in reversed(range(x.ndim)):
    start = first[axis] if first else 0
    places = np.arange(start, start + x.shape[axis], dtype=np.uint64)
    total = _weighted(total, _random(places + np.uint64(axis << 48)) | np.uint64(1))
  return int(total)


def _weighted(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns x @ weights in 64 bits, in blocks of rows that fit the cache."""
  flat = x.reshape(-1, x.shape[-1])
  rows = max(1, 2**15 // max(1, flat.shape[1]))
  total = np.zeros(len(flat), np.uint64)
  for start in range(0, len(flat), rows):
    some = slice(start, start + rows)
    total[some] = flat[some].astype(np.uint64) @ weights
  return total.reshape(x.shape[:-1])


def _random(x: np.ndarray) -> np.ndarray:
  """Returns splitmix64 (Steele et al. 2014) of each number."""
  x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _local_sum(x: jax.Array) -> int:
  """Returns `number_sum` over this host's shards, counting each replica once."""
  total = 0
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      first = [cut.start or 0 for cut in shard.index]
      total += number_sum(np.asarray(shard.data), first)
  return total


def by_path(tree: object) -> dict[str, jax.Array]:
  """Returns a tree's arrays by path, as named in checkpoints and error messages."""
  flat, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in flat}
