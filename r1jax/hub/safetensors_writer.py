"""Writes tensors as safetensors files: one file, or several shards with an index.

Tensors are written one by one, each in its own type, and never all held in memory.
"""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from r1jax.hub.storage import COPIED, DTYPES, INDEX, SINGLE, WeightsError, is_finite
from r1jax.plain import JsonDict

SHARD_BYTES = 5 * 10**9  # of one file; a larger tensor gets a file of its own


def cast(name: str, array: np.ndarray, kind: str) -> np.ndarray:
  """Returns the array in a type of `storage.DTYPES`.

  Raises:
    WeightsError: the type is float16, and a number is too large for it.
  """
  with np.errstate(over='ignore'):  # reported below
    found = array.astype(DTYPES[kind], copy=False)
  if kind == 'F16' and not is_finite(found):
    raise WeightsError(
      f'{name}: expected numbers that fit float16, got {np.abs(array).max():.3g}; '
      'choose bfloat16 or float32'
    )
  return found


def write_folder(
  folder: str | os.PathLike[str],
  named: Iterator[tuple[str, np.ndarray]],
  files: Mapping[str, str | Path] | None = None,
  shard_bytes: int = SHARD_BYTES,
  name: str = SINGLE,
) -> None:
  """Writes a checkpoint's folder, completely or not at all.

  Args:
    folder: that does not exist yet.
    named: tensors by name, each in the type to write.
    files: further files by name: the text to write, or the path of a file to copy.
    shard_bytes: the most bytes of one file; several files get an index.
    name: of the file if there is only one.

  Raises:
    WeightsError: the folder exists.
  """
  folder = Path(folder).expanduser()
  if folder.exists():
    raise WeightsError(f'{folder} already exists; choose another folder')
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = Path(tempfile.mkdtemp(prefix=f'{folder.name}.partial', dir=folder.parent))
  try:
    _write_shards(partial, named, shard_bytes, name)
    for other, content in (files or {}).items():
      (partial / other).parent.mkdir(exist_ok=True)
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
  """A safetensors file that is written tensor by tensor.

  The header is at the beginning of the file but known only at the end, and wide types
  come before narrow ones, which aligns all tensors. So tensors of each width are first
  written to a file of their own.
  """

  def __init__(self, file: Path):
    self.file, self.size = file, 0
    self.names: list[str] = []
    self._bodies: dict[int, BinaryIO] = {}  # open files, by bytes of an element
    self._places: list[tuple[int, str, tuple[int, ...], int]] = []

  def add(self, name: str, array: np.ndarray) -> None:
    """Appends a tensor."""
    kinds = {**DTYPES, **COPIED}
    kind = next(kind for kind, dtype in kinds.items() if dtype == array.dtype)
    width = array.dtype.itemsize
    if width not in self._bodies:
      file = self.file.with_name(f'{self.file.name}.{width}')
      self._bodies[width] = file.open('w+b')
    body = self._bodies[width]
    self._places.append((width, kind, array.shape, body.tell()))
    body.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    self.names.append(name)
    self.size += array.nbytes

  def close(self) -> None:
    """Writes the header, then the tensors."""
    widths = sorted(self._bodies, reverse=True)
    starts, end = {}, 0
    for width in widths:
      starts[width] = end
      end += self._bodies[width].tell()
    # transformers requires this entry.
    header: JsonDict = {'__metadata__': {'format': 'pt'}}
    for name, (width, kind, shape, first) in zip(self.names, self._places, strict=True):
      start = starts[width] + first
      offsets = start, start + math.prod(shape) * width
      header[name] = {'dtype': kind, 'shape': shape, 'data_offsets': offsets}
    content = json.dumps(header).encode()
    content += b' ' * (-len(content) % 8)  # tensors begin at a multiple of 8 bytes
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
