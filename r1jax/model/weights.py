"""Weights in the Hugging Face layout: read to where they belong, and written back.

A checkpoint is a folder with config.json and one or more safetensors files. Reading
goes some rows of a tensor at a time, and beside what it keeps the host never holds more
than one leaf of the tree. The same table (`families`) names the tensors both ways, so
that a model that is read and written is the same bytes.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r1jax.model import decoder, families, storage
from r1jax.model.config import ModelConfig
from r1jax.model.families import Row

_LOOKED_AT = 4096  # bytes of each tensor
HEAD = 'lm_head.weight'
STRIP = 256  # rows of a tensor that are read at a time, and turned while in the cache


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint in a folder; its tensors are looked up and not read yet."""

  folder: Path
  raw: Mapping[str, Any]  # config.json
  config: ModelConfig
  tensors: Mapping[str, storage.Stored]  # by name, in all files

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding, which may be more than the tokenizer has tokens."""
    return families.vocab_size(self.raw)

  @property
  def digest(self) -> str:
    """Of its config, its tensors' names, types, shapes, and the first of their bytes.

    All of them would take minutes with a large model.
    """
    found = hashlib.sha256(json.dumps(self.raw).encode())
    for name, tensor in sorted(self.tensors.items()):
      found.update(f'{name} {tensor.kind} {tensor.shape}'.encode())
      size = math.prod(tensor.shape) * storage.DTYPES[tensor.kind].itemsize
      size = min(_LOOKED_AT, size)
      found.update(np.fromfile(tensor.file, np.uint8, size, offset=tensor.start).data)
    return found.hexdigest()

  @property
  def dtype(self) -> str:
    """The type that its config names, or float32."""
    return self.raw.get('dtype') or self.raw.get('torch_dtype') or 'float32'


# --- Reading --------------------------------------------------------------------------


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
  """Looks a checkpoint up: its config, and where each tensor that the model has lies.

  Raises:
    storage.WeightsError: a file or a tensor is missing, damaged, or of another shape or
      type.
    families.FamilyError: the config asks for what isn't computed here.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    raise storage.WeightsError(
      f'model.path: expected a folder with config.json and safetensors, got {folder}, '
      f'which is {"a file" if folder.exists() else "not there"}'
    )
  raw = storage.read_json(folder / 'config.json')
  try:
    config = families.read_config(raw)
  except families.FamilyError as error:
    raise families.FamilyError(f'{folder / "config.json"}: {error}') from error
  tensors = dict(storage.find(folder))
  found = Checkpoint(folder, raw, config, tensors)
  if not isinstance(found.dtype, str) or found.dtype not in storage.KINDS:
    raise storage.WeightsError(
      f'{folder / "config.json"}: dtype: expected one of '
      f'{", ".join(storage.KINDS)}, got {found.dtype!r}'
    )
  for name, tensor in tensors.items():
    if tensor.kind not in storage.DTYPES:
      raise storage.WeightsError(
        f'{tensor.file}: {name}: expected one of {", ".join(storage.DTYPES)}, found '
        f'{tensor.kind}'
      )
  for _, row, shape, names in _parts(config, found.vocab_size, raw):
    for name in names:
      storage.check(folder, tensors, name, _their_shape(row, shape))
  for name in _beside(found):
    if (layer := _LAYER.match(name)) and int(layer[1]) < config.layers:
      raise storage.WeightsError(
        f'{tensors[name].file}: {name}: expected no such tensor by config.json; the '
        'model would compute without it'
      )
  return found


_LAYER = re.compile(r'model\.layers\.(\d+)\.(?!.*rotary_emb)')


def _beside(like: Checkpoint) -> list[str]:
  """The tensors that are not the model's, without the scales of others."""
  parts = _parts(like.config, like.vocab_size, like.raw)
  used = {name for _, _, _, names in parts for name in names}
  used |= {name + storage.SCALES for name in used}
  return [name for name in like.tensors if name not in used]


Part = tuple[tuple[str, ...], Row, tuple[int, ...], list[str]]


def _parts(
  config: ModelConfig, vocab_size: int, raw: Mapping[str, Any]
) -> Iterator[Part]:
  """Each leaf of the tree: its path, row, the shape of a tensor of it as ours, names.

  The tensors lie in the leaf one after the other, along its leading axes.
  """
  shapes = decoder.shapes(config, vocab_size)

  def leaf(path: tuple[str, ...]) -> tuple[int, ...]:
    found = shapes
    for key in path:
      found = found[key]
    return found.shape

  for row in families.outside(config):
    yield row.ours, row, leaf(row.ours), [row.theirs]
  first = 0
  for stack, count, sparse in config.stacks:
    for row in families.layer(config, sparse, families.interleaved(raw)):
      path = (stack, *row.ours)
      each = range(config.experts.count) if '{expert}' in row.theirs else (0,)
      names = [
        row.theirs.format(layer=first + n, expert=e) for n in range(count) for e in each
      ]
      lead = 2 if '{expert}' in row.theirs else 1
      yield path, row, leaf(path)[lead:], names
    first += count


def _their_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape there of a tensor that has this one here."""
  if not row.linear:
    return (math.prod(shape),) if len(shape) > 1 and _is_bias(row) else shape
  return math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs])


def _is_bias(row: Row) -> bool:
  return row.ours[-1].endswith('_bias')


def read(
  checkpoint: Checkpoint,
  places: Any,
  dtype: str | None = None,
) -> Any:
  """Returns the parameters, each leaf read straight to where it lies.

  Args:
    checkpoint: see `open_checkpoint`.
    places: the parameters' tree of shardings, or one for all of them.
    dtype: 'float32' or 'bfloat16'; None keeps what the config names.
  """
  kind = storage.DTYPES[storage.KINDS[dtype or checkpoint.dtype]]
  tree: dict[str, Any] = {}
  parts = list(_parts(checkpoint.config, checkpoint.vocab_size, checkpoint.raw))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    # The largest first: while one is placed it may be there twice.
    for part in sorted(parts, key=lambda part: -math.prod(part[2]) * len(part[3])):
      path, _, shape, names = part
      whole = (*_lead(checkpoint.config, path, names), *shape)
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


def _slices(
  checkpoint: Checkpoint,
  part: Part,
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
  per_step = _their_shape(row, shape)[0] // shape[axis]
  wanted, within = ranges[leading + axis], slice(None)
  together = max(1, STRIP // per_step)
  if row.pairs and axis == len(shape) - 1:  # the rows of a pair belong together
    wanted, together, within = range(shape[axis]), shape[axis], index[leading + axis]
  before, after = index[leading:][:axis], index[leading:][axis + 1 :]

  def fill(n: int, name: str, first: int) -> None:
    steps = wanted[first : first + together]
    rows = range(steps[0] * per_step, (steps[-1] + 1) * per_step)
    theirs = _bits(storage.numbers(checkpoint.tensors, name, kind, rows))
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


def _lead(config: ModelConfig, path: tuple[str, ...], names: list[str]) -> tuple:
  """The leading axes of a leaf: none, layers, or layers and experts."""
  counts = {name: count for name, count, _ in config.stacks}
  if path[0] not in counts:
    return ()
  layers = counts[path[0]]
  return (layers,) if len(names) == layers else (layers, len(names) // layers)


# --- Writing --------------------------------------------------------------------------


def tensors(params: Any, like: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters as the tensors of such a checkpoint, one after the other, by name.

  Tensors that it has beside the model's, such as those of a module for multi-token
  prediction, come from its files.
  """
  for path, row, shape, names in _parts(like.config, like.vocab_size, like.raw):
    leaf = params
    for key in path:
      leaf = leaf[key]
    lead = _lead(like.config, path, names)
    theirs = _their_shape(row, shape)
    for n, name in enumerate(names):
      one = np.asarray(leaf[np.unravel_index(n, lead)] if lead else leaf)
      yield name, np.ascontiguousarray(row.turn_back(one, theirs))
  kind = storage.DTYPES[storage.KINDS[like.dtype]]
  for name in _beside(like):
    if name == HEAD and like.config.tied:  # stored twice there
      yield name, np.asarray(params['embedding'])
    elif not name.endswith(storage.SCALES):
      yield name, storage.numbers(like.tensors, name, kind)
