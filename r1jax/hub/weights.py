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

from r1jax.hub import config_fields, families, storage
from r1jax.hub.families import Row
from r1jax.model import decoder
from r1jax.model.config import ModelConfig

_LOOKED_AT = 4096  # bytes of each tensor
MODEL = 'model.'
EMBEDDING, NORM = f'{MODEL}embed_tokens.weight', f'{MODEL}norm.weight'
HEAD = 'lm_head.weight'
STRIP = 256  # rows of a tensor that are read at a time, and turned while in the cache


# PyTorch's other names of types, and its own without `torch.`.
_ALIASES = {
  **{name: name for name in storage.KINDS},
  'float': 'float32',
  'double': 'float64',
  'half': 'float16',
  'auto': 'float32',  # it names none
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint in a folder; its tensors are looked up and not read yet."""

  folder: Path
  raw: Mapping[str, Any]  # config.json
  config: ModelConfig
  tensors: Mapping[str, storage.Stored]  # by name, in all files

  @property
  def prefix(self) -> str:
    """What stands before the names of layers: nothing if a model has no head there."""
    return '' if 'norm.weight' in self.tensors and NORM not in self.tensors else MODEL

  def named(self, theirs: str) -> str:
    """The name in these files of a tensor that `families` names."""
    if theirs == EMBEDDING and self.config.tied and HEAD in self.tensors:
      # Of two names for one matrix a file may have kept the head's.
      found = self.prefix + EMBEDDING.removeprefix(MODEL)
      return found if found in self.tensors else HEAD
    return theirs.replace(MODEL, self.prefix, 1) if theirs.startswith(MODEL) else theirs

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
      size = min(_LOOKED_AT, tensor.size)
      found.update(np.fromfile(tensor.file, np.uint8, size, offset=tensor.start).data)
    return found.hexdigest()

  @property
  def dtype(self) -> str:
    """The type that its config names, or float32; see `storage.KINDS`."""
    named = self.raw.get('dtype') or self.raw.get('torch_dtype') or 'float32'
    return _ALIASES.get(str(named).removeprefix('torch.'), named)


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
  except config_fields.FamilyError as error:
    raise config_fields.FamilyError(f'{folder / "config.json"}: {error}') from error
  found = _untied(Checkpoint(folder, raw, config, dict(storage.find(folder))))
  if not isinstance(found.dtype, str) or found.dtype not in storage.KINDS:
    raise storage.WeightsError(
      f'{folder / "config.json"}: dtype: expected one of '
      f'{", ".join(storage.KINDS)}, got {found.dtype!r}'
    )
  for _, row, shape, names in _parts(found):
    for name in names:
      if name == HEAD and HEAD not in found.tensors:
        raise _headless(found, shape)
      storage.check(folder, found.tensors, name, _their_shape(row, shape))
  for name in _beside(found):
    layer, tensor = _LAYER.match(name), found.tensors[name]
    if layer and int(layer[1]) < config.layers and math.prod(tensor.shape):
      raise storage.WeightsError(
        f'{tensor.file}: {name}: expected no such tensor by config.json; the '
        'model would compute without it'
      )
  return found


_LAYER = re.compile(r'(?:model\.)?layers\.(\d+)\.(?!.*rotary_emb)')


def _untied(found: Checkpoint) -> Checkpoint:
  """The checkpoint, untied if its head is another matrix than its embedding.

  transformers goes by the files as well where config.json says that they are one.
  """
  embedding, head = (found.tensors.get(name) for name in (found.named(EMBEDDING), HEAD))
  if not found.config.tied or not embedding or not head or embedding == head:
    return found
  if embedding.shape == head.shape and all(
    np.array_equal(embedding.read(rows), head.read(rows))
    for first in range(0, head.shape[0], 4096)
    for rows in [range(first, min(first + 4096, head.shape[0]))]
  ):
    return found
  raw = {**found.raw, 'tie_word_embeddings': False}
  config = dataclasses.replace(found.config, tied=False)
  return dataclasses.replace(found, raw=raw, config=config)


def _headless(found: Checkpoint, shape: tuple[int, ...]) -> storage.WeightsError:
  alike = [name for name in _beside(found) if found.tensors[name].shape == shape]
  what = f'; {alike[0]} has that shape, rename it if it is meant' if alike else ''
  return storage.WeightsError(
    f'{found.folder}: the tensor {HEAD} is missing, expected {shape}, as '
    'tie_word_embeddings is false in config.json; a model that was saved without its '
    f'head reads no logits{what}'
  )


def _beside(like: Checkpoint) -> list[str]:
  """The tensors that are not the model's, without the scales of others."""
  used = {name for _, _, _, names in _parts(like) for name in names}
  used |= {name + storage.SCALES for name in used}
  return [name for name in like.tensors if name not in used]


Part = tuple[tuple[str, ...], Row, tuple[int, ...], list[str]]


def _parts(like: Checkpoint) -> Iterator[Part]:
  """Each leaf of the tree: its path, row, the shape of a tensor of it as ours, names.

  The tensors lie in the leaf one after the other, along its leading axes.
  """
  config = like.config
  shapes = decoder.shapes(config, like.vocab_size)

  def leaf(path: tuple[str, ...]) -> tuple[int, ...]:
    found = shapes
    for key in path:
      found = found[key]
    return found.shape

  for row in families.outside(config):
    yield row.ours, row, leaf(row.ours), [like.named(row.theirs)]
  first = 0
  for stack, count, sparse in config.stacks:
    for row in families.layer(config, sparse, families.interleaved(like.raw)):
      path = (stack, *row.ours)
      each = range(config.experts.count) if '{expert}' in row.theirs else (0,)
      names = [
        like.named(row.theirs).format(layer=first + n, expert=e)
        for n in range(count)
        for e in each
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
    dtype: 'float32' or 'bfloat16', of all but `decoder.FLOAT32`; None keeps the types
      of the files, which may be several.

  Raises:
    storage.WeightsError: a tensor has numbers that are NaN or infinite.
  """
  tree: dict[str, Any] = {}
  parts = list(_parts(checkpoint))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    # The largest first: while one is placed it may be there twice.
    for part in sorted(parts, key=lambda part: -math.prod(part[2]) * len(part[3])):
      path, _, shape, names = part
      whole = (*_lead(checkpoint.config, path, names), *shape)
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
  checkpoint: Checkpoint, path: tuple[str, ...], names: list[str], dtype: str | None
) -> np.dtype:
  """A leaf's type in memory."""
  if path[-1] in decoder.FLOAT32:
    return np.dtype(np.float32)
  if dtype is None:
    kinds = {_kind(checkpoint, name) for name in names}
    dtype = kinds.pop() if len(kinds) == 1 else 'F32'  # of layers of several types
    return storage.DTYPES['F32' if dtype == 'F64' else dtype]
  return storage.DTYPES[storage.KINDS[dtype]]


def _kind(like: Checkpoint, name: str) -> str:
  """The type of a tensor in the files; of FP8, or without files, the config's."""
  known = like.tensors.get(name)
  if known is not None and known.kind in storage.KINDS.values():
    return known.kind
  return storage.KINDS[like.dtype]


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


def tensors(
  params: Any, like: Checkpoint, dtype: str | None = None
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
    kind = storage.KINDS[dtype] if dtype else _kind(like, name)
    if row.ours[-1] in decoder.FLOAT32:
      kind = _kind(like, name) if name in like.tensors and kind != 'F32' else 'F32'
    yield name, storage.narrowed(name, array, kind)
  for name in _beside(like):
    if name == HEAD and like.config.tied:  # stored twice there
      kind = storage.KINDS[dtype] if dtype else _kind(like, name)
      yield name, storage.narrowed(name, np.asarray(params['embedding']), kind)
    elif name + storage.SCALES in like.tensors:  # of blocks, which are not written
      written = storage.DTYPES[storage.KINDS[dtype or like.dtype]]
      yield name, storage.numbers(like.tensors, name, written)
    elif not name.endswith(storage.SCALES):
      yield name, like.tensors[name].copy()


def arrays(params: Any, like: Checkpoint) -> Iterator[tuple[Row, str, np.ndarray]]:
  """The parameters as such a checkpoint's own tensors: row, name, numbers as held."""
  for path, row, shape, names in _parts(like):
    leaf = params
    for key in path:
      leaf = leaf[key]
    lead = _lead(like.config, path, names)
    theirs = _their_shape(row, shape)
    for n, name in enumerate(names):
      one = np.asarray(leaf[np.unravel_index(n, lead)] if lead else leaf)
      yield row, name, np.ascontiguousarray(row.turn_back(one, theirs))
