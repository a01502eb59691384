"""TFRecord files: the records of data sets and of TensorBoard's events.

A record is its length in eight bytes, their checksum, the content, its checksum.
"""

import functools
import importlib
import struct
import sys
from collections.abc import Iterator
from types import ModuleType


@functools.cache
def tensorboard(name: str) -> ModuleType:
  """Returns tensorboardX's module of this name, imported without PyTorch.

  tensorboardX imports PyTorch where that is installed, which takes 0.2 GB and 2 s, and
  needs it for nothing that is used here.
  """
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]  # the import then fails
  try:
    return importlib.import_module(f'tensorboardX.{name}')
  finally:
    if hidden:
      del sys.modules['torch']


def record(content: bytes) -> bytes:
  """Returns the content as a record."""
  length = _checked(struct.pack('<Q', len(content)))
  return length + _checked(content)


def records(content: bytes) -> Iterator[bytes]:
  """Yields the contents of a file's records.

  Raises:
    ValueError: a checksum is wrong.
  """
  start = 0
  while start < len(content):
    (length,) = struct.unpack('<Q', _verified(content[start : start + 12]))
    end = start + 12 + length + 4
    yield _verified(content[start + 12 : end])
    start = end


def _checked(part: bytes) -> bytes:
  checksum = tensorboard('record_writer').masked_crc32c(part)
  return part + struct.pack('<I', checksum)


def _verified(part: bytes) -> bytes:
  """Returns what stands before a checksum; raises ValueError if that is wrong."""
  found = part[:-4]
  if _checked(found) != part:
    raise ValueError('a checksum is wrong')
  return found
