"""Tensors in files of safetensors: found, read in part or whole, and written.

A checkpoint's folder has one file, or several and an index. Nothing is read before it
is asked for, and nothing is ever unpickled. Tensors of one file may have several types,
and each is written in its own.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
SCALES = '_scale_inv'  # what DeepSeek's FP8 tensors have beside them
# Types of weights, by their names in safetensors.
DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F64': np.dtype(np.float64),
}
# Further ones, of tensors that no model reads: they are copied.
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
  """A checkpoint that can't be read as it is; names tensor, expected, found."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in a file."""

  file: Path
  kind: str  # its type's name in safetensors
  shape: tuple[int, ...]
  start: int  # bytes from the beginning of the file
  size: int  # bytes

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns the numbers of some or all of its rows, read anew at each call."""
    rows = range(self.shape[0]) if rows is None else rows
    dtype, shape = DTYPES[self.kind], (len(rows), *self.shape[1:])
    start = self.start + rows.start * math.prod(shape[1:]) * dtype.itemsize
    found = np.fromfile(self.file, dtype, math.prod(shape), offset=start)
    if found.size != math.prod(shape):
      raise WeightsError(f'{self.file} was cut off while it was being read')
    return found.reshape(shape)

  def copy(self) -> np.ndarray:
    """Returns the tensor as it is, of any type that numpy knows."""
    dtype = {**DTYPES, **COPIED}.get(self.kind)
    if dtype is None:
      raise WeightsError(
        f'{self.file}: expected tensors of types that numpy knows, found {self.kind}; '
        'leave that tensor, which no model reads, out of the file'
      )
    found = np.fromfile(self.file, np.uint8, self.size, offset=self.start)
    return found.view(dtype).reshape(self.shape)


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


def find_tensors(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
  """The tensors of all files of a checkpoint, by name.

  The single file comes first, as in transformers: where there is an index beside it, an
  earlier save in the same folder has left it behind. A warning says so if its shards
  are there as well.
  """
  if (folder / SINGLE).is_file():
    others = [name for name in _shards(folder) if name != SINGLE]
    if others and all((folder / name).is_file() for name in others):
      warnings.warn(
        f'{folder} has both {SINGLE} and the shards of {INDEX}; {SINGLE} is read, as '
        'transformers does. Delete those that are not meant',
        stacklevel=2,
      )
    yield from read_header(folder / SINGLE)
  elif (folder / INDEX).exists():
    for name in _shards(folder):
      if not (folder / name).is_file():
        raise WeightsError(f'{folder / name} is missing, which {INDEX} names')
      yield from read_header(folder / name)
  else:
    others = [path.name for path in folder.glob('*.bin')]
    hint = f'; {others[0]} is a pickle, which is never opened' if others else ''
    raise WeightsError(f'{folder}: expected {SINGLE} or {INDEX}, found none{hint}')


def _shards(folder: Path) -> list[str]:
  """The files that an index names; none if there is no index."""
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
      raise WeightsError(f'{folder / INDEX}: expected names of files, got {name!r}')
  return sorted(set(placed.values()))


def read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
  """The tensors of a file, by name; WeightsError for one that is not whole."""
  try:
    # The library has looked at every length and offset when it returns.
    with safetensors.safe_open(file, 'np'):
      pass
    with file.open('rb') as opened:
      size = int.from_bytes(opened.read(8), 'little')
      header = json.loads(opened.read(size))
  except FileNotFoundError:
    others = [path.name for path in file.parent.glob('*.bin')]
    hint = f'; {others[0]} is a pickle, which is never opened' if others else ''
    raise WeightsError(f'{file} is not there{hint}') from None
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise WeightsError(
      f'{file} is cut off, damaged or no safetensors file ({error})'
    ) from error
  for name, entry in header.items():
    if name != '__metadata__':
      first, last = entry['data_offsets']
      shape = tuple(entry['shape'])
      yield (
        name,
        StoredTensor(file, entry['dtype'], shape, 8 + size + first, last - first),
      )


def check_tensor(
  folder: Path, tensors: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]
) -> None:
  """WeightsError unless there is such a tensor of numbers, with FP8's scales."""
  if name not in tensors:
    raise WeightsError(f'{folder}: the tensor {name} is missing, expected {shape}')
  found = tensors[name]
  if found.shape != shape:
    raise WeightsError(
      f'{found.file}: {name}: expected the shape {shape} by config.json, found '
      f'{found.shape}'
    )
  if found.kind not in DTYPES:
    raise WeightsError(
      f'{found.file}: {name}: expected one of {", ".join(DTYPES)}, found {found.kind}'
    )
  if found.kind == 'F8_E4M3':
    blocks = tuple(-(-n // size) for n, size in zip(shape, _BLOCK, strict=False))
    scales = tensors.get(name + SCALES)
    if scales is None or scales.shape != blocks or scales.kind not in DTYPES:
      raise WeightsError(
        f'{found.file}: {name}: expected its scales {name + SCALES} of shape {blocks}, '
        f'found {"none" if scales is None else scales.shape}'
      )


_BLOCK = (128, 128)  # numbers of an FP8 tensor that share a scale


def read_as(
  tensors: Mapping[str, StoredTensor],
  name: str,
  dtype: np.dtype,
  rows: range | None = None,
) -> np.ndarray:
  """Returns a tensor's numbers in another type, FP8 times the scales of its blocks.

  `rows` is some of its rows, one after the other; None is all.

  Raises:
    WeightsError: one of them is NaN or infinite, or too large for that type.
  """
  stored = tensors[name]
  with np.errstate(over='ignore'):  # said in a sentence
    found = _dequantized(tensors, name, stored.read(rows), rows).astype(
      dtype, copy=False
    )
  if not is_finite(found):
    row = int(np.argwhere(~np.isfinite(found.astype(np.float32)))[0][0])
    raise WeightsError(
      f'{stored.file}: {name}: expected finite numbers, found NaN or infinity in row '
      f'{row + (rows.start if rows else 0)}; the file is damaged, or its training had '
      'diverged'
    )
  return found


def is_finite(x: np.ndarray) -> bool:
  """Whether no number is NaN or infinite, by the bits of the exponent.

  Reading the memory twice, with no copy, costs a twentieth of `isfinite` for bfloat16.
  """
  if not x.size:
    return True
  size = 8 * x.dtype.itemsize
  infinity = int(np.array(np.inf, x.dtype).view(f'u{x.dtype.itemsize}'))
  largest = x.view(f'i{x.dtype.itemsize}').max()  # of numbers from 0 on, if any is
  of_negative = x.view(f'u{x.dtype.itemsize}').max()
  return largest < infinity and of_negative < infinity + (1 << (size - 1))


def _dequantized(
  tensors: Mapping[str, StoredTensor], name: str, found: np.ndarray, rows: range | None
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
