"""Parameters from a Hugging Face checkpoint, and back.

Tensors are read by rows, straight into the shards of the parameters: in addition to the
shards that it keeps, the host never holds more than one leaf of the tree. Reading and
writing use the same table, `tensor_names`, so that a model that is read and written
again has the same bytes.
"""

import concurrent.futures
import functools
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from r1jax.hub import safetensors_writer, storage
from r1jax.hub.hf_checkpoint import (
  HEAD,
  HFCheckpoint,
  Leaf,
  extra_tensors,
  hub_shape,
  leaves,
)
from r1jax.hub.tensor_names import TensorRow
from r1jax.model import decoder
from r1jax.trees import Shardings

STRIP = 256  # rows of a tensor that are read at a time, and converted while in cache


def read(
  checkpoint: HFCheckpoint, shardings: Shardings, dtype: str | None = None
) -> optax.Params:
  """Returns the parameters, each shard read straight to its device.

  Args:
    checkpoint: see `open_checkpoint`.
    shardings: the parameters' tree of shardings, or one sharding for all leaves.
    dtype: 'float32' or 'bfloat16', of all leaves but `decoder.FLOAT32`; None keeps the
      types of the files, which may differ.

  Raises:
    WeightsError: a tensor has numbers that are NaN or infinite.
  """
  tree: dict[str, Any] = {}
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    # The largest first: while a leaf is placed, there may be two copies of it.
    for leaf in sorted(leaves(checkpoint), key=_size, reverse=True):
      array_dtype = _dtype(checkpoint, leaf, dtype)
      read_index = functools.partial(_read, checkpoint, leaf, array_dtype, threads)
      place: Any = shardings
      for key in leaf.path if isinstance(shardings, Mapping) else ():
        place = place[key]
      array = jax.make_array_from_callback(
        (*leaf.leading, *leaf.shape), place, read_index
      )
      inner = tree
      for key in leaf.path[:-1]:
        inner = inner.setdefault(key, {})
      # Waits, or the next leaf would be read while there are still two copies.
      inner[leaf.path[-1]] = array.block_until_ready()
  return tree


def _size(leaf: Leaf) -> int:
  return math.prod(leaf.shape) * len(leaf.names)


def _dtype(checkpoint: HFCheckpoint, leaf: Leaf, dtype: str | None) -> np.dtype:
  """Returns the type of a leaf in memory."""
  if leaf.path[-1] in decoder.FLOAT32:
    return np.dtype(np.float32)
  if dtype is None:
    kinds = {checkpoint.kind(name) for name in leaf.names}
    dtype = kinds.pop() if len(kinds) == 1 else 'F32'  # the layers' types differ
    return storage.DTYPES['F32' if dtype == 'F64' else dtype]
  return storage.DTYPES[storage.KINDS[dtype]]


def _read(
  checkpoint: HFCheckpoint,
  leaf: Leaf,
  dtype: np.dtype,
  threads: concurrent.futures.Executor,
  index: tuple[slice, ...],
) -> np.ndarray:
  """Returns the part of a leaf at these indices."""
  row, shape = leaf.row, leaf.shape
  whole, leading = (*leaf.leading, *shape), len(leaf.leading)
  ranges = [range(n)[part] for n, part in zip(whole, index, strict=True)]
  out = _aligned([len(r) for r in ranges], dtype)
  flat = _bits(out).reshape(-1, *out.shape[leading:])
  chosen = np.arange(len(leaf.names)).reshape(leaf.leading)[index[:leading]]
  # A step along this axis of ours is `per_step` rows of the tensor in the file.
  axis = row.inputs
  per_step = hub_shape(row, shape)[0] // shape[axis]
  offset = row.part.first if row.part else 0
  wanted, within = ranges[leading + axis], slice(None)
  together = max(1, STRIP // per_step)
  if row.interleaved and axis == len(shape) - 1:  # keep the rows of a pair together
    wanted, together, within = range(shape[axis]), shape[axis], index[leading + axis]
  before, after = index[leading:][:axis], index[leading:][axis + 1 :]

  def fill(n: int, name: str, first: int) -> None:
    steps = wanted[first : first + together]
    rows = range(offset + steps[0] * per_step, offset + (steps[-1] + 1) * per_step)
    stored = _bits(storage.read_as(checkpoint.tensors, name, dtype, rows))
    ours = row.from_hub(stored, (*shape[:axis], len(steps), *shape[axis + 1 :]))
    into: Any = (n, *[slice(None)] * axis, slice(first, first + together))
    flat[into] = ours[(*before, within, *after)]

  tasks = [
    (n, leaf.names[which], first)
    for n, which in enumerate(np.ravel(chosen))
    for first in range(0, len(wanted), together)
  ]
  for _ in threads.map(fill, *zip(*tasks, strict=True)):
    pass  # raises what a task raised
  return out


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Returns memory that JAX's CPU device adopts; it would copy unaligned memory."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNED, np.uint8)
  start = -memory.ctypes.data % _ALIGNED
  return memory[start : start + size].view(dtype).reshape(shape)


_ALIGNED = 64  # bytes


def _bits(x: np.ndarray) -> np.ndarray:
  """Returns the same memory as unsigned integers: numpy copies bfloat16 one by one."""
  return x.view(f'u{x.dtype.itemsize}')


def tensors(
  params: optax.Params, like: HFCheckpoint, dtype: str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of a checkpoint with these parameters, by name.

  Each tensor has the type that it has in `like`. Tensors of `like` that the model does
  not use, such as those for multi-token prediction, are copied from its files.

  Args:
    params: of the model.
    like: the checkpoint to imitate.
    dtype: of all tensors but routers and the biases that balance them, which keep
      theirs.

  Raises:
    WeightsError: a number is too large for float16.
  """
  for row, name, array in arrays(params, like):
    kind = storage.KINDS[dtype] if dtype else like.kind(name)
    if row.path[-1] in decoder.FLOAT32:
      kind = like.kind(name) if name in like.tensors and kind != 'F32' else 'F32'
    yield name, safetensors_writer.cast(name, array, kind)
  for name in extra_tensors(like):
    if name == HEAD and like.config.tied:  # the files have the tied matrix twice
      kind = storage.KINDS[dtype] if dtype else like.kind(name)
      yield name, safetensors_writer.cast(name, np.asarray(params['embedding']), kind)
    elif name + storage.SCALES in like.tensors:  # FP8, which is not written
      written = storage.DTYPES[storage.KINDS[dtype or like.dtype]]
      yield name, storage.read_as(like.tensors, name, written)
    elif not name.endswith(storage.SCALES):
      yield name, like.tensors[name].copy()


def arrays(
  params: optax.Params, like: HFCheckpoint
) -> Iterator[tuple[TensorRow, str, np.ndarray]]:
  """Yields row, name and array of each tensor, in the type of the parameters.

  A tensor with several parameters comes with the row of the first.
  """
  for _, sharing in itertools.groupby(leaves(like), key=lambda leaf: leaf.names):
    parts = list(sharing)
    for n, name in enumerate(parts[0].names):
      found = [_one(params, leaf, n) for leaf in parts]
      yield parts[0].row, name, found[0] if len(found) == 1 else np.concatenate(found)


def _one(params: optax.Params, leaf: Leaf, n: int) -> np.ndarray:
  """Returns a leaf's n-th tensor, or its part of the tensor."""
  stacked = params
  for key in leaf.path:
    stacked = stacked[key]
  index = np.unravel_index(n, leaf.leading) if leaf.leading else ()
  one = np.asarray(stacked[index] if index else stacked)
  shape = hub_shape(leaf.row, leaf.shape)
  return np.ascontiguousarray(leaf.row.to_hub(one, shape))
