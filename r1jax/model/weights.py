"""Weights in the Hugging Face layout: read to where they belong, and written back.

A checkpoint is a folder with config.json and one or more safetensors files. Reading
goes tensor by tensor: beside what it keeps, the host never holds more than one leaf of
the tree. The same table (`families`) names the tensors both ways, so that a model that
is read and written is the same bytes. Nothing is ever unpickled.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from r1jax.model import decoder, families
from r1jax.model.config import ModelConfig
from r1jax.model.families import Row

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
_LOOKED_AT = 4096  # bytes of each tensor
SHARD_BYTES = 5 * 10**9  # of a file that is written; a larger tensor has its own
HEAD = 'lm_head.weight'
SCALES = '_scale_inv'  # what DeepSeek's FP8 tensors have beside them
DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
}
KINDS = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}


class WeightsError(ValueError):
  """A checkpoint that can't be read as it is; names tensor, expected, found."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file."""

  file: Path
  kind: str  # a name in DTYPES
  shape: tuple[int, ...]
  start: int  # bytes from the beginning of the file

  def read(self) -> np.ndarray:
    """Returns its numbers, read anew at each call."""
    count = math.prod(self.shape)
    found = np.fromfile(self.file, DTYPES[self.kind], count, offset=self.start)
    if found.size != count:
      raise WeightsError(f'{self.file} was cut off while it was being read')
    return found.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint in a folder; its tensors are looked up and not read yet."""

  folder: Path
  raw: Mapping[str, Any]  # config.json
  config: ModelConfig
  tensors: Mapping[str, Stored]  # by name, in all files

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
    for name, stored in sorted(self.tensors.items()):
      found.update(f'{name} {stored.kind} {stored.shape}'.encode())
      size = min(_LOOKED_AT, math.prod(stored.shape) * DTYPES[stored.kind].itemsize)
      found.update(np.fromfile(stored.file, np.uint8, size, offset=stored.start).data)
    return found.hexdigest()

  @property
  def dtype(self) -> str:
    """The type that its config names, or float32."""
    return self.raw.get('dtype') or self.raw.get('torch_dtype') or 'float32'


# --- Reading --------------------------------------------------------------------------


def open_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
  """Looks a checkpoint up: its config, and where each tensor that the model has lies.

  Raises:
    WeightsError: a file or a tensor is missing, damaged, or of another shape or type.
    families.FamilyError: the config asks for what isn't computed here.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    raise WeightsError(
      f'model.path: expected a folder with config.json and safetensors, got {folder}, '
      f'which is {"a file" if folder.exists() else "not there"}'
    )
  raw = read_json(folder / 'config.json')
  try:
    config = families.read_config(raw)
  except families.FamilyError as error:
    raise families.FamilyError(f'{folder / "config.json"}: {error}') from error
  tensors = dict(find(folder))
  found = Checkpoint(folder, raw, config, tensors)
  if not isinstance(found.dtype, str) or found.dtype not in KINDS:
    raise WeightsError(
      f'{folder / "config.json"}: dtype: expected one of {", ".join(KINDS)}, got '
      f'{found.dtype!r}'
    )
  for name, stored in tensors.items():
    if stored.kind not in DTYPES:
      raise WeightsError(
        f'{stored.file}: {name}: expected one of {", ".join(DTYPES)}, found '
        f'{stored.kind}'
      )
  for _, row, shape, names in _parts(config, found.vocab_size, raw):
    for name in names:
      _check(folder, tensors, name, _their_shape(row, shape))
  for name in _beside(found):
    if (layer := _LAYER.match(name)) and int(layer[1]) < config.layers:
      raise WeightsError(
        f'{tensors[name].file}: {name}: expected no such tensor by config.json; the '
        'model would compute without it'
      )
  return found


_LAYER = re.compile(r'model\.layers\.(\d+)\.(?!.*rotary_emb)')


def _beside(like: Checkpoint) -> list[str]:
  """The tensors that are not the model's, without the scales of others."""
  parts = _parts(like.config, like.vocab_size, like.raw)
  used = {name for _, _, _, names in parts for name in names}
  used |= {name + SCALES for name in used}
  return [name for name in like.tensors if name not in used]


def read_json(file: Path) -> dict[str, Any]:
  """Returns the object in a file of JSON; WeightsError says what is wrong with it."""
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise WeightsError(f'{file} is not there') from None
  except (OSError, ValueError) as error:
    raise WeightsError(f'{file} cannot be read ({error})') from error
  if not isinstance(found, dict):
    raise WeightsError(f'{file}: expected an object, got a {type(found).__name__}')
  return found


def find(folder: Path) -> Iterator[tuple[str, Stored]]:
  """The tensors of all files of a checkpoint, by name."""
  if (folder / INDEX).exists():
    placed = read_json(folder / INDEX).get('weight_map')
    if not isinstance(placed, dict) or not all(
      isinstance(name, str) for name in placed.values()
    ):
      raise WeightsError(
        f'{folder / INDEX}: expected a weight_map from tensors to files, found none'
      )
    for name in sorted(set(placed.values())):
      if Path(name).name != name:
        raise WeightsError(f'{folder / INDEX}: expected names of files, got {name!r}')
      if not (folder / name).is_file():
        raise WeightsError(f'{folder / name} is missing, which {INDEX} names')
      yield from header(folder / name)
  elif (folder / SINGLE).is_file():
    yield from header(folder / SINGLE)
  else:
    others = [path.name for path in folder.glob('*.bin')]
    hint = f'; {others[0]} is a pickle, which is never opened' if others else ''
    raise WeightsError(f'{folder}: expected {SINGLE} or {INDEX}, found none{hint}')


def header(file: Path) -> Iterator[tuple[str, Stored]]:
  """The tensors of a file, by name; WeightsError for one that is not whole."""
  try:
    # The library has looked at every length and offset when it returns.
    with safetensors.safe_open(file, 'np'):
      pass
    with file.open('rb') as opened:
      size = int.from_bytes(opened.read(8), 'little')
      header = json.loads(opened.read(size))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise WeightsError(
      f'{file} is cut off, damaged or no safetensors file ({error})'
    ) from error
  for name, entry in header.items():
    if name != '__metadata__':
      start = 8 + size + entry['data_offsets'][0]
      yield name, Stored(file, entry['dtype'], tuple(entry['shape']), start)


def _check(
  folder: Path, tensors: Mapping[str, Stored], name: str, shape: tuple[int, ...]
) -> None:
  if name not in tensors:
    raise WeightsError(f'{folder}: the tensor {name} is missing, expected {shape}')
  found = tensors[name]
  if found.shape != shape:
    raise WeightsError(
      f'{found.file}: {name}: expected the shape {shape} by config.json, found '
      f'{found.shape}'
    )
  if found.kind == 'F8_E4M3':
    blocks = tuple(-(-n // size) for n, size in zip(shape, _BLOCK, strict=False))
    scales = tensors.get(name + SCALES)
    if scales is None or scales.shape != blocks:
      raise WeightsError(
        f'{found.file}: {name}: expected its scales {name + SCALES} of shape {blocks}, '
        f'found {"none" if scales is None else scales.shape}'
      )


_BLOCK = (128, 128)  # numbers of an FP8 tensor that share a scale


def numbers(tensors: Mapping[str, Stored], name: str, dtype: np.dtype) -> np.ndarray:
  """Returns a tensor's numbers in another type, FP8 times the scales of its blocks."""
  stored = tensors[name]
  found = stored.read()
  if stored.kind != 'F8_E4M3':
    return found.astype(dtype, copy=False)
  scales = tensors[name + SCALES].read().astype(np.float32)
  for axis, size in enumerate(_BLOCK):
    scales = np.repeat(scales, size, axis=axis)
  rows, columns = found.shape
  return (found.astype(np.float32) * scales[:rows, :columns]).astype(dtype)


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
  inputs = 2 if row.ours[-1] == 'out' else 1
  return math.prod(shape[inputs:]), math.prod(shape[:inputs])


def _is_bias(row: Row) -> bool:
  return row.ours[-1].endswith('_bias')


def read(
  checkpoint: Checkpoint,
  place: Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding],
  dtype: str | None = None,
) -> Any:
  """Returns the parameters, each leaf read straight to where it lies.

  Args:
    checkpoint: see `open_checkpoint`.
    place: path and shape of a leaf -> its sharding.
    dtype: 'float32' or 'bfloat16'; None keeps what the config names.
  """
  kind = DTYPES[KINDS[dtype or checkpoint.dtype]]
  tree: dict[str, Any] = {}
  parts = list(_parts(checkpoint.config, checkpoint.vocab_size, checkpoint.raw))
  # The largest first: while one is placed it may be there twice.
  for path, row, shape, names in sorted(
    parts, key=lambda part: -math.prod(part[2]) * len(part[3])
  ):
    lead = _lead(checkpoint.config, path, names)
    whole = (*lead, *shape)

    def slices(index, names=names, row=row, shape=shape, lead=lead, whole=whole):
      ranges = [range(n)[part] for n, part in zip(whole, index, strict=True)]
      out = _aligned([len(r) for r in ranges], kind)
      chosen = np.arange(len(names)).reshape(lead)[tuple(index[: len(lead)])]
      flat = _bits(out).reshape(-1, *out.shape[len(lead) :])
      for n, which in enumerate(np.ravel(chosen)):
        theirs = _bits(numbers(checkpoint.tensors, names[which], kind))
        flat[n] = row.turn(theirs, shape)[tuple(index[len(lead) :])]
      return out

    array = jax.make_array_from_callback(whole, place(path, whole), slices)
    inner = tree
    for key in path[:-1]:
      inner = inner.setdefault(key, {})
    # Else the next leaf would be read while this one is still there twice.
    inner[path[-1]] = array.block_until_ready()
  return tree


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
  kind = DTYPES[KINDS[like.dtype]]
  for name in _beside(like):
    if name == HEAD and like.config.tied:  # stored twice there
      yield name, np.asarray(params['embedding'])
    elif not name.endswith(SCALES):
      yield name, numbers(like.tensors, name, kind)


def write(
  folder: str | os.PathLike[str],
  named: Iterator[tuple[str, np.ndarray]],
  dtype: str,
  files: Mapping[str, str | Path] | None = None,
  shard_bytes: int = SHARD_BYTES,
  name: str = SINGLE,
) -> None:
  """Writes a checkpoint's folder whole or not at all.

  Args:
    folder: that there is not yet.
    named: tensors by name, see `tensors`.
    dtype: that they are written in.
    files: further files, by name: a text, or a path to copy.
    shard_bytes: of a file; more than one gets an index.
    name: of the file if it is one.

  Raises:
    WeightsError: there is something in the folder's place.
  """
  folder = Path(folder).expanduser()
  if folder.exists():
    raise WeightsError(f'{folder} is there already; choose another folder')
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = Path(tempfile.mkdtemp(prefix=f'{folder.name}.partial', dir=folder.parent))
  try:
    _write_shards(partial, named, DTYPES[KINDS[dtype]], shard_bytes, name)
    for other, content in (files or {}).items():
      if isinstance(content, Path):
        shutil.copyfile(content, partial / other)
      else:
        (partial / other).write_text(content, encoding='utf-8')
    partial.chmod(0o755)
    partial.rename(folder)
  finally:
    with contextlib.suppress(FileNotFoundError):
      shutil.rmtree(partial)


def _write_shards(
  folder: Path,
  named: Iterator[tuple[str, np.ndarray]],
  dtype: np.dtype,
  shard_bytes: int,
  single: str,
) -> None:
  shards: list[list[str]] = []
  held: dict[str, np.ndarray] = {}
  total = 0

  def put() -> None:
    # transformers looks at this entry.
    name = folder / f'shard-{len(shards)}'
    safetensors.numpy.save_file(held, name, metadata={'format': 'pt'})
    name.chmod(0o644)  # the library's is for the owner alone
    shards.append(list(held))
    held.clear()

  for name, array in named:
    with np.errstate(over='ignore'):  # said in a sentence
      written = array.astype(dtype, copy=False)
    if dtype == np.float16 and not np.isfinite(written).all():
      raise WeightsError(
        f'{name}: expected numbers that float16 holds, got {np.abs(array).max():.3g}; '
        'choose bfloat16 or float32'
      )
    array = written
    if held and sum(x.nbytes for x in held.values()) + array.nbytes > shard_bytes:
      put()
    held[name] = array
    total += array.nbytes
  put()
  if len(shards) == 1:
    (folder / 'shard-0').rename(folder / single)
    return
  placed: dict[str, str] = {}
  for n, names in enumerate(shards):
    file = f'model-{n + 1:05d}-of-{len(shards):05d}.safetensors'
    (folder / f'shard-{n}').rename(folder / file)
    placed |= dict.fromkeys(names, file)
  index = {'metadata': {'total_size': total}, 'weight_map': placed}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
