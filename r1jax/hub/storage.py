"""Finds and reads tensors in safetensors files.

A checkpoint's folder has one file, or several shards and an index. Headers are read
first, and the rows of a tensor only when they are needed. Pickles are never opened.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import safetensors

from r1jax.plain import JsonObject

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
SCALES = '_scale_inv'  # suffix of the scales of an FP8 tensor, as in DeepSeek-V3
# Types of weights, by name in safetensors.
DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F64': np.dtype(np.float64),
}
# Further types, of tensors that no model reads; they are only copied.
COPIED = {
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
  'BOOL': np.dtype(np.bool_),
  'C64': np.dtype(np.complex64),
  **{f'{kind}{8 * size}': np.dtype(f'{kind.lower()}{size}')
     for kind in 'IU' for size in (1, 2, 4, 8)},
}  # fmt: skip
KINDS = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'float64': 'F64'}


class WeightsError(ValueError):
  """A checkpoint that cannot be read or written; names tensor, expected, found."""


class Tensor(Protocol):
  """A tensor in a file of any format, with the layout of the hub."""

  @property
  def file(self) -> Path:
    """The file."""

  @property
  def name(self) -> str:
    """The tensor's name in the file, for errors."""

  @property
  def kind(self) -> str:
    """The name in safetensors of the type that `read` returns."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape."""

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns some or all rows of the tensor, read from the file at each call."""

  def copy(self) -> np.ndarray:
    """Returns the whole tensor, which may have a type that no model reads."""

  def first_bytes(self, count: int) -> np.ndarray:
    """Returns up to so many bytes of the file, from where the tensor begins."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in a safetensors file."""

  file: Path
  name: str
  kind: str  # its type's name in safetensors
  shape: tuple[int, ...]
  start: int  # bytes from the beginning of the file
  size: int  # bytes

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns some or all rows of the tensor, read from the file at each call.

    Raises:
      WeightsError: the file is shorter than its header says.
    """
    rows = range(self.shape[0]) if rows is None else rows
    dtype, shape = DTYPES[self.kind], (len(rows), *self.shape[1:])
    start = self.start + rows.start * math.prod(shape[1:]) * dtype.itemsize
    found = np.fromfile(self.file, dtype, math.prod(shape), offset=start)
    if found.size != math.prod(shape):
      raise WeightsError(f'{self.file} was truncated while it was being read')
    return found.reshape(shape)

  def copy(self) -> np.ndarray:
    """Returns the whole tensor in its own type.

    Raises:
      WeightsError: numpy has no such type.
    """
    dtype = {**DTYPES, **COPIED}.get(self.kind)
    if dtype is None:
      raise WeightsError(
        f'{self.file}: expected a type that numpy has, found {self.kind}; delete that '
        'tensor from the file, since the model does not use it'
      )
    found = np.fromfile(self.file, np.uint8, self.size, offset=self.start)
    return found.view(dtype).reshape(self.shape)

  def first_bytes(self, count: int) -> np.ndarray:
    """Returns up to so many bytes from the beginning of the tensor."""
    return np.fromfile(self.file, np.uint8, min(count, self.size), offset=self.start)


def read_json(file: Path) -> JsonObject:
  """Returns the object in a JSON file.

  Raises:
    WeightsError: the file is missing, unreadable or no JSON object.
  """
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise WeightsError(f'{file} does not exist') from None
  except (OSError, ValueError) as error:
    raise WeightsError(f'{file} cannot be read ({error})') from error
  if not isinstance(found, dict):
    raise WeightsError(f'{file}: expected an object, got a {type(found).__name__}')
  return found


def find_tensors(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
  """Yields the tensors of all files of a checkpoint, by name.

  If a folder has both a single file and an index, the single file wins, as in
  transformers: the index comes from an earlier save. Warns if its shards exist too.

  Raises:
    WeightsError: a file is missing or damaged.
  """
  if (folder / SINGLE).is_file():
    others = [name for name in _shards(folder) if name != SINGLE]
    if others and all((folder / name).is_file() for name in others):
      warnings.warn(
        f'{folder} has both {SINGLE} and the shards of {INDEX}; {SINGLE} is read, as '
        'transformers does. Delete the files that you do not want',
        stacklevel=2,
      )
    yield from read_header(folder / SINGLE)
  elif (folder / INDEX).exists():
    for name in _shards(folder):
      if not (folder / name).is_file():
        raise WeightsError(f'{folder / name}, which {INDEX} names, is missing')
      yield from read_header(folder / name)
  else:
    others = [path.name for path in folder.glob('*.bin')]
    hint = f'; {others[0]} is a pickle, which is never opened' if others else ''
    raise WeightsError(f'{folder}: expected {SINGLE} or {INDEX}, found none{hint}')


def _shards(folder: Path) -> list[str]:
  """Returns the files that an index names; none if there is no index."""
  if not (folder / INDEX).exists():
    return []
  placed = read_json(folder / INDEX).get('weight_map')
  if not isinstance(placed, dict) or not all(
    isinstance(name, str) for name in placed.values()
  ):
    raise WeightsError(
      f'{folder / INDEX}: expected a weight_map from tensors to files, found none'
    )
  for name in placed.values():
    if Path(name).name != name:
      raise WeightsError(f'{folder / INDEX}: expected file names, got {name!r}')
  return sorted(set(placed.values()))


def read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
  """Yields the tensors of a file, by name.

  Raises:
    WeightsError: the file is missing or damaged.
  """
  try:
    # The library checks every length and offset.
    with safetensors.safe_open(file, 'np'):
      pass
    with file.open('rb') as opened:
      size = int.from_bytes(opened.read(8), 'little')
      header = json.loads(opened.read(size))
  except FileNotFoundError:
    others = [path.name for path in file.parent.glob('*.bin')]
    hint = f'; {others[0]} is a pickle, which is never opened' if others else ''
    raise WeightsError(f'{file} does not exist{hint}') from None
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise WeightsError(
      f'{file} is truncated, damaged or not a safetensors file ({error})'
    ) from error
  for name, entry in header.items():
    if name != '__metadata__':
      first, last = entry['data_offsets']
      shape = tuple(entry['shape'])
      yield (
        name,
        StoredTensor(file, name, entry['dtype'], shape, 8 + size + first, last - first),
      )


def check_tensor(
  folder: Path, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]
) -> None:
  """Raises WeightsError unless a tensor has this shape, a float type and FP8 scales."""
  if name not in tensors:
    raise WeightsError(f'{folder}: the tensor {name} is missing, expected {shape}')
  found = tensors[name]
  if found.shape != shape:
    raise WeightsError(
      f'{found.file}: {found.name}: expected the shape {shape} by the config, found '
      f'{found.shape}'
    )
  if found.kind not in DTYPES:
    raise WeightsError(
      f'{found.file}: {found.name}: expected one of {", ".join(DTYPES)}, found '
      f'{found.kind}'
    )
  if found.kind == 'F8_E4M3':
    blocks = tuple(-(-n // size) for n, size in zip(shape, _BLOCK, strict=False))
    scales = tensors.get(name + SCALES)
    if scales is None or scales.shape != blocks or scales.kind not in DTYPES:
      raise WeightsError(
        f'{found.file}: {name}: expected its scales {name + SCALES} of shape {blocks}, '
        f'found {"none" if scales is None else scales.shape}'
      )


_BLOCK = (128, 128)  # elements of an FP8 tensor that share a scale


def read_as(
  tensors: Mapping[str, Tensor],
  name: str,
  dtype: np.dtype,
  rows: range | None = None,
) -> np.ndarray:
  """Returns a tensor in another type; FP8 is multiplied with the scales of its blocks.

  Args:
    tensors: all tensors of the checkpoint, by name.
    name: of the tensor.
    dtype: of the result.
    rows: contiguous rows to read; None reads all.

  Raises:
    WeightsError: a number is NaN, infinite or too large for the type.
  """
  stored = tensors[name]
  with np.errstate(over='ignore'):  # reported below
    found = _dequantized(tensors, name, stored.read(rows), rows).astype(
      dtype, copy=False
    )
  if not is_finite(found):
    row = int(np.argwhere(~np.isfinite(found.astype(np.float32)))[0][0])
    raise WeightsError(
      f'{stored.file}: {stored.name}: expected finite numbers, found NaN or infinity '
      f'in row {row + (rows.start if rows else 0)}; the file is damaged, or its '
      'training diverged'
    )
  return found


def is_finite(x: np.ndarray) -> bool:
  """Returns whether no number is NaN or infinite.

  Compares the bits: for bfloat16 that takes a twentieth of the time of `np.isfinite`.
  """
  if not x.size:
    return True
  size = 8 * x.dtype.itemsize
  infinity = int(np.array(np.inf, x.dtype).view(f'u{x.dtype.itemsize}'))
  largest = x.view(f'i{x.dtype.itemsize}').max()  # of those without a sign
  of_negative = x.view(f'u{x.dtype.itemsize}').max()
  return largest < infinity and of_negative < infinity + (1 << (size - 1))


def _dequantized(
  tensors: Mapping[str, Tensor], name: str, found: np.ndarray, rows: range | None
) -> np.ndarray:
  if tensors[name].kind != 'F8_E4M3':
    return found
  first = 0 if rows is None else rows.start
  blocks = range(first // _BLOCK[0], -(-(first + len(found)) // _BLOCK[0]))
  scales = tensors[name + SCALES].read(blocks).astype(np.float32)
  for axis, size in enumerate(_BLOCK):
    scales = np.repeat(scales, size, axis=axis)
  within = scales[first % _BLOCK[0] :][: len(found), : found.shape[1]]
  return found.astype(np.float32) * within
