"""Weights in the Hugging Face layout: read to where they belong, and written back.

A checkpoint is a folder with config.json and one or more safetensors files. Reading
goes some rows of a tensor at a time, and beside what it keeps the host never holds more
than one leaf of the tree. The same table (`families`) names the tensors both ways, so
that a model that is read and written is the same bytes.
"""

import concurrent.futures
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax.hub import safetensors_writer, storage
from r1jax.hub.hf_checkpoint import (
  HEAD,
  HFCheckpoint,
  Leaf,
  extra_tensors,
  hub_shape,
  kind_of,
  leading_shape,
  leaves,
)
from r1jax.hub.tensor_names import TensorRow
from r1jax.model import decoder

STRIP = 256  # rows of a tensor that are read at a time, and turned while in the cache


def read(
  checkpoint: HFCheckpoint,
  places: Any,
  dtype: str | None = None,
) -> Any:
  """Returns the parameters, each leaf read straight to where it lies.

  Args:
    checkpoint: see `open_checkpoint`.
    places: the parameters' tree of shardings, or one for all of them.
    dtype: 'float32' or 'bfloat16', of all but `decoder.FLOAT32`; None keeps the types
      of the files, which may be several.

  Raises:
    storage.WeightsError: a tensor has numbers that are NaN or infinite.
  """
  tree: dict[str, Any] = {}
  parts = list(leaves(checkpoint))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    # The largest first: while one is placed it may be there twice.
    for part in sorted(parts, key=lambda part: -math.prod(part[2]) * len(part[3])):
      path, _, shape, names = part
      whole = (*leading_shape(checkpoint.config, path, names), *shape)
      kind = _kept_as(checkpoint, path, names, dtype)
      slices = functools.partial(_slices, checkpoint, part, whole, kind, threads)
      place = places
      for key in path if isinstance(places, Mapping) else ():
        place = place[key]
      array = jax.make_array_from_callback(whole, place, slices)
      inner = tree
      for key in path[:-1]:
        inner = inner.setdefault(key, {})
      # Else the next leaf would be read while this one is still there twice.
      inner[path[-1]] = array.block_until_ready()
  return tree


def _kept_as(
  checkpoint: HFCheckpoint, path: tuple[str, ...], names: list[str], dtype: str | None
) -> np.dtype:
  """A leaf's type in memory."""
  if path[-1] in decoder.FLOAT32:
    return np.dtype(np.float32)
  if dtype is None:
    kinds = {kind_of(checkpoint, name) for name in names}
    dtype = kinds.pop() if len(kinds) == 1 else 'F32'  # of layers of several types
    return storage.DTYPES['F32' if dtype == 'F64' else dtype]
  return storage.DTYPES[storage.KINDS[dtype]]


def _slices(
  checkpoint: HFCheckpoint,
  part: Leaf,
  whole: tuple[int, ...],
  kind: np.dtype,
  threads: concurrent.futures.Executor,
  index: tuple[slice, ...],
) -> np.ndarray:
  """A leaf's numbers at these indices, of what is `whole` in all."""
  _, row, shape, names = part
  leading = len(whole) - len(shape)
  ranges = [range(n)[cut] for n, cut in zip(whole, index, strict=True)]
  out = _aligned([len(r) for r in ranges], kind)
  flat = _bits(out).reshape(-1, *out.shape[leading:])
  chosen = np.arange(len(names)).reshape(whole[:leading])[index[:leading]]
  # Their rows are our axes from this one on, so many to each step along it.
  axis = row.inputs
  per_step = hub_shape(row, shape)[0] // shape[axis]
  wanted, within = ranges[leading + axis], slice(None)
  together = max(1, STRIP // per_step)
  if row.pairs and axis == len(shape) - 1:  # the rows of a pair belong together
    wanted, together, within = range(shape[axis]), shape[axis], index[leading + axis]
  before, after = index[leading:][:axis], index[leading:][axis + 1 :]

  def fill(n: int, name: str, first: int) -> None:
    steps = wanted[first : first + together]
    rows = range(steps[0] * per_step, (steps[-1] + 1) * per_step)
    theirs = _bits(storage.read_as(checkpoint.tensors, name, kind, rows))
    ours = row.turn(theirs, (*shape[:axis], len(steps), *shape[axis + 1 :]))
    into: Any = (n, *[slice(None)] * axis, slice(first, first + together))
    flat[into] = ours[(*before, within, *after)]

  tasks = [
    (n, names[which], first)
    for n, which in enumerate(np.ravel(chosen))
    for first in range(0, len(wanted), together)
  ]
  for _ in threads.map(fill, *zip(*tasks, strict=True)):
    pass  # raises what a task raised
  return out


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Memory that a CPU's device takes over as it is; any other it would copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNED, np.uint8)
  start = -memory.ctypes.data % _ALIGNED
  return memory[start : start + size].view(dtype).reshape(shape)


_ALIGNED = 64  # bytes


def _bits(x: np.ndarray) -> np.ndarray:
  """The same memory as unsigned numbers: bfloat16 would be copied one by one."""
  return x.view(f'u{x.dtype.itemsize}')


def tensors(
  params: Any, like: HFCheckpoint, dtype: str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters as the tensors of such a checkpoint, one after the other, by name.

  Each has the type that it has there. Tensors that it has beside the model's, such as
  those of a module for multi-token prediction, come from its files.

  Args:
    params: the model's.
    like: the checkpoint.
    dtype: of all but routers and the biases that balance them, which keep theirs.
  """
  for row, name, array in arrays(params, like):
    kind = storage.KINDS[dtype] if dtype else kind_of(like, name)
    if row.ours[-1] in decoder.FLOAT32:
      kind = kind_of(like, name) if name in like.tensors and kind != 'F32' else 'F32'
    yield name, safetensors_writer.cast(name, array, kind)
  for name in extra_tensors(like):
    if name == HEAD and like.config.tied:  # stored twice there
      kind = storage.KINDS[dtype] if dtype else kind_of(like, name)
      yield name, safetensors_writer.cast(name, np.asarray(params['embedding']), kind)
    elif name + storage.SCALES in like.tensors:  # of blocks, which are not written
      written = storage.DTYPES[storage.KINDS[dtype or like.dtype]]
      yield name, storage.read_as(like.tensors, name, written)
    elif not name.endswith(storage.SCALES):
      yield name, like.tensors[name].copy()


def arrays(
  params: Any, like: HFCheckpoint
) -> Iterator[tuple[TensorRow, str, np.ndarray]]:
  """The parameters as such a checkpoint's own tensors: row, name, numbers as held."""
  for path, row, shape, names in leaves(like):
    leaf = params
    for key in path:
      leaf = leaf[key]
    lead = leading_shape(like.config, path, names)
    theirs = hub_shape(row, shape)
    for n, name in enumerate(names):
      one = np.asarray(leaf[np.unravel_index(n, lead)] if lead else leaf)
      yield row, name, np.ascontiguousarray(row.turn_back(one, theirs))
