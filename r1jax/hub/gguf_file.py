"""Reads the header of a GGUF file, and rows of its tensors.

A file has metadata by name, then names, shapes and types of tensors, then their data.
"""

import dataclasses
import functools
import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from r1jax.hub.storage import WeightsError
from r1jax.plain import JsonObject

VERSIONS = (2, 3)
# Types whose numbers are read as they are; all others are dequantized to float32.
FLOATS = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_ALIGNMENT = 'general.alignment'
_SPLIT = re.compile(r'-\d{5}-of-(\d{5})\.gguf$')
# Types of metadata: format characters of `struct`.
_SCALARS = {
  GGUFValueType.UINT8: 'B',
  GGUFValueType.INT8: 'b',
  GGUFValueType.UINT16: 'H',
  GGUFValueType.INT16: 'h',
  GGUFValueType.UINT32: 'I',
  GGUFValueType.INT32: 'i',
  GGUFValueType.UINT64: 'Q',
  GGUFValueType.INT64: 'q',
  GGUFValueType.FLOAT32: 'f',
  GGUFValueType.FLOAT64: 'd',
  GGUFValueType.BOOL: '?',
}


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """A tensor in a file, or one expert of a tensor of experts."""

  file: Path
  name: str
  type: GGMLQuantizationType
  shape: tuple[int, ...]
  start: int  # bytes from the beginning of the file
  # Heads whose rows are those of RoPE pairs (2i, 2i + 1) there, and (i, i + C/2) on the
  # hub; 0 for tensors with the same rows.
  heads: int = 0
  plus_1: bool = False  # numbers there are 1 more than on the hub (Gemma's norms)

  @property
  def kind(self) -> str:
    """The type's name in safetensors; F32 for a quantized tensor."""
    return self.type.name if self.type.name in FLOATS and not self.plus_1 else 'F32'

  @property
  def size(self) -> int:
    """Bytes in the file."""
    block, size = gguf.GGML_QUANT_SIZES[self.type]
    return math.prod(self.shape) // block * size

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns some or all rows, in the hub's order; quantized ones as float32.

    Raises:
      WeightsError: the file is shorter than its header says.
    """
    rows = range(self.shape[0]) if rows is None else rows
    if self.plus_1:
      return self._stored(rows).astype(np.float32) - 1
    if not self.heads:
      return self._stored(rows)
    head = self.shape[0] // self.heads
    first, last = rows.start // head, -(-rows.stop // head)
    stored = self._stored(range(first * head, last * head))
    bits = stored.view(f'u{stored.itemsize}')  # bfloat16 would be copied one by one
    pairs = bits.reshape(last - first, head // 2, 2, -1)
    halves = np.ascontiguousarray(pairs.swapaxes(1, 2)).view(stored.dtype)
    return halves.reshape(stored.shape)[rows.start - first * head :][: len(rows)]

  def _stored(self, rows: range) -> np.ndarray:
    shape = (len(rows), *self.shape[1:])
    row = self.size // self.shape[0]
    start = self.start + rows.start * row
    found = np.fromfile(self.file, np.uint8, len(rows) * row, offset=start)
    if found.size != len(rows) * row:
      raise WeightsError(f'{self.file} was truncated while it was being read')
    if self.type.name in FLOATS:
      return found.view(FLOATS[self.type.name]).reshape(shape)
    return gguf.dequantize(found.reshape(len(rows), row), self.type).reshape(shape)

  def copy(self) -> np.ndarray:
    """Returns the whole tensor."""
    return self.read()

  def first_bytes(self, count: int) -> np.ndarray:
    """Returns up to so many bytes from the beginning of the tensor."""
    return np.fromfile(self.file, np.uint8, min(count, self.size), offset=self.start)


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """The header of a file."""

  path: Path
  fields: JsonObject  # metadata by name; arrays of numbers are numpy's
  tensors: Mapping[str, GGUFTensor]

  @property
  def architecture(self) -> str:
    """llama.cpp's name of the model's family."""
    return str(self.fields.get('general.architecture'))


def read(path: Path) -> GGUFFile:
  """Returns the header of a file.

  Raises:
    WeightsError: the file is no GGUF file, is truncated or damaged, is one of several
      parts, or has tensors of a type that cannot be read.
  """
  status = path.stat()
  return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: Path, time: int, size: int) -> GGUFFile:
  """Returns the header of a file that was written at this time."""
  with path.open('rb') as opened:
    if opened.read(4) != b'GGUF':
      raise WeightsError(
        f'{path}: expected a GGUF file, or a folder with config.json and safetensors, '
        'got another file'
      )
    with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
      try:
        return _header(path, _Cursor(data))
      except (struct.error, UnicodeDecodeError, OverflowError, ValueError) as error:
        if isinstance(error, WeightsError):
          raise
        raise WeightsError(
          f'{path} is truncated or damaged: its header has wrong lengths, or ends at '
          f'byte {size} ({error})'
        ) from error


def _header(path: Path, cursor: '_Cursor') -> GGUFFile:
  (version,) = cursor.take('I')
  if version not in VERSIONS:
    found = 'a big-endian file' if version % (1 << 16) == 0 else f'version {version}'
    raise WeightsError(f'{path}: expected GGUF of version 2 or 3, got {found}')
  count, num_fields = cursor.take('QQ')
  fields: dict[str, Any] = {}
  for _ in range(num_fields):
    name = cursor.string()
    fields[name] = cursor.value(cursor.take('I')[0])
  named = _SPLIT.search(path.name)
  parts = fields.get('split.count', int(named[1]) if named else 1)
  if parts not in (0, 1):
    raise WeightsError(
      f'{path}: expected a model in one file, got one of {parts} parts; merge them '
      'with llama-gguf-split --merge'
    )
  listed = []
  for _ in range(count):
    name = cursor.string()
    (axes,) = cursor.take('I')
    shape = cursor.take(f'{axes}Q')[::-1]
    listed.append((name, shape, *cursor.take('IQ')))
  alignment = fields.get(_ALIGNMENT, gguf.GGUF_DEFAULT_ALIGNMENT)
  if not isinstance(alignment, int) or alignment < 1:
    raise ValueError(f'{_ALIGNMENT}: expected 1 or more bytes, got {alignment!r}')
  start = -(-cursor.at // alignment) * alignment
  tensors = {
    name: _tensor(path, name, shape, kind, start + offset)
    for name, shape, kind, offset in listed
  }
  for tensor in tensors.values():
    if tensor.start + tensor.size > len(cursor.data):
      raise WeightsError(
        f'{path} is truncated: expected {tensor.start + tensor.size} bytes for '
        f'{tensor.name}, got {len(cursor.data)}'
      )
  return GGUFFile(path, fields, tensors)


def _tensor(
  path: Path, name: str, shape: tuple[int, ...], kind: int, start: int
) -> GGUFTensor:
  """Returns a tensor; raises WeightsError if its type or shape cannot be read."""
  known = {one.value: one for one in GGMLQuantizationType if _readable(one)}
  if kind not in known:
    others = {one.value: one.name for one in GGMLQuantizationType}
    raise WeightsError(
      f'{path}: {name}: expected one of the types '
      f'{", ".join(sorted(one.name for one in known.values()))}, got '
      f'{others.get(kind, kind)}'
    )
  block, _ = gguf.GGML_QUANT_SIZES[known[kind]]
  if not all(shape) or (shape or (0,))[-1] % block or len(shape) < 1 + (block > 1):
    raise WeightsError(
      f'{path}: {name}: expected rows of a multiple of {block} numbers for '
      f'{known[kind].name}, got the shape {shape}'
    )
  return GGUFTensor(path, name, known[kind], shape, start)


@functools.cache
def _readable(kind: GGMLQuantizationType) -> bool:
  """Returns whether GGUF's library can read a type."""
  if kind.name in FLOATS:
    return True
  try:
    gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
  except NotImplementedError:
    return False
  return True


class _Cursor:
  """Reads a header from front to back; raises ValueError or struct.error at its end."""

  def __init__(self, data: mmap.mmap):
    self.data, self.at = data, 4

  def take(self, kinds: str) -> tuple[Any, ...]:
    found = struct.unpack_from(f'<{kinds}', self.data, self.at)
    self.at += struct.calcsize(f'<{kinds}')
    return found

  def string(self) -> str:
    (size,) = self.take('Q')
    found = self.data[self.at : self.at + size]
    if len(found) != size:
      raise ValueError('a text is longer than the file')
    self.at += size
    return found.decode()

  def value(self, kind: int) -> Any:
    if kind == GGUFValueType.STRING:
      return self.string()
    if kind == GGUFValueType.ARRAY:
      inner, count = self.take('IQ')
      if inner in (GGUFValueType.STRING, GGUFValueType.ARRAY):
        return [self.value(inner) for _ in range(count)]
      dtype = np.dtype(f'<{_SCALARS[GGUFValueType(inner)]}')
      found = np.frombuffer(self.data, dtype, count, self.at).copy()
      self.at += found.nbytes
      return found
    (found,) = self.take(_SCALARS[GGUFValueType(kind)])
    # The shortest decimals: 1e-06 and not 9.999999974752427e-07.
    return float(str(np.float32(found))) if kind == GGUFValueType.FLOAT32 else found
