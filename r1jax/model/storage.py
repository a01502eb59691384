"""Tensors in files of safetensors: found, read in part or whole, and written.

A checkpoint's folder has one file, or several and an index. Nothing is read before it
is asked for, and nothing is ever unpickled.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
SHARD_BYTES = 5 * 10**9  # of a file that is written; a larger tensor has its own
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

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns the numbers of some or all of its rows, read anew at each call."""
    rows = range(self.shape[0]) if rows is None else rows
    dtype, shape = DTYPES[self.kind], (len(rows), *self.shape[1:])
    start = self.start + rows.start * math.prod(shape[1:]) * dtype.itemsize
    found = np.fromfile(self.file, dtype, math.prod(shape), offset=start)
    if found.size != math.prod(shape):
      raise WeightsError(f'{self.file} was cut off while it was being read')
    return found.reshape(shape)


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


def check(
  folder: Path, tensors: Mapping[str, Stored], name: str, shape: tuple[int, ...]
) -> None:
  """WeightsError unless there is such a tensor, with the scales that FP8 needs."""
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


def numbers(
  tensors: Mapping[str, Stored],
  name: str,
  dtype: np.dtype,
  rows: range | None = None,
) -> np.ndarray:
  """Returns a tensor's numbers in another type, FP8 times the scales of its blocks.

  `rows` is some of its rows, one after the other; None is all.
  """
  stored = tensors[name]
  found = stored.read(rows)
  if stored.kind != 'F8_E4M3':
    return found.astype(dtype, copy=False)
  first = 0 if rows is None else rows.start
  blocks = range(first // _BLOCK[0], -(-(first + len(found)) // _BLOCK[0]))
  scales = tensors[name + SCALES].read(blocks).astype(np.float32)
  for axis, size in enumerate(_BLOCK):
    scales = np.repeat(scales, size, axis=axis)
  within = scales[first % _BLOCK[0] :][: len(found), : found.shape[1]]
  return (found.astype(np.float32) * within).astype(dtype)


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


class _Shard:
  """A file of safetensors that is written a tensor at a time and never held.

  Its header comes first and is known last, and wide numbers come before narrow ones, so
  that all are aligned. So the numbers of each width go to a file of their own first.
  """

  def __init__(self, file: Path):
    self.file, self.size = file, 0
    self.names: list[str] = []
    self._bodies: dict[int, Any] = {}  # files by bytes of a number
    self._places: list[tuple[int, str, tuple[int, ...], int]] = []

  def add(self, name: str, array: np.ndarray) -> None:
    """Writes a tensor."""
    kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
    width = array.dtype.itemsize
    if width not in self._bodies:
      body = self.file.with_name(f'{self.file.name}.{width}')
      self._bodies[width] = body.open('w+b')
    body = self._bodies[width]
    self._places.append((width, kind, array.shape, body.tell()))
    body.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    self.names.append(name)
    self.size += array.nbytes

  def close(self) -> None:
    """Writes the file."""
    widths = sorted(self._bodies, reverse=True)
    starts, end = {}, 0
    for width in widths:
      starts[width] = end
      end += self._bodies[width].tell()
    # transformers looks at this entry.
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    for name, (width, kind, shape, first) in zip(self.names, self._places, strict=True):
      start = starts[width] + first
      offsets = start, start + math.prod(shape) * width
      header[name] = {'dtype': kind, 'shape': shape, 'data_offsets': offsets}
    content = json.dumps(header).encode()
    content += b' ' * (-len(content) % 8)  # numbers begin at a multiple of 8 bytes
    with self.file.open('wb') as file:
      file.write(len(content).to_bytes(8, 'little') + content)
      for width in widths:
        with self._bodies[width] as body:
          body.seek(0)
          shutil.copyfileobj(body, file, 2**24)
        Path(body.name).unlink()


def _write_shards(
  folder: Path,
  named: Iterator[tuple[str, np.ndarray]],
  dtype: np.dtype,
  shard_bytes: int,
  single: str,
) -> None:
  shards: list[list[str]] = []
  shard = _Shard(folder / 'shard-0')
  total = 0

  def put() -> None:
    shard.close()
    shards.append(shard.names)

  for name, array in named:
    with np.errstate(over='ignore'):  # said in a sentence
      written = array.astype(dtype, copy=False)
    if dtype == np.float16 and not np.isfinite(written).all():
      raise WeightsError(
        f'{name}: expected numbers that float16 holds, got {np.abs(array).max():.3g}; '
        'choose bfloat16 or float32'
      )
    array = written
    if shard.names and shard.size + array.nbytes > shard_bytes:
      put()
      shard = _Shard(folder / f'shard-{len(shards)}')
    shard.add(name, array)
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
