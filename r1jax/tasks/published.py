"""Published sets by way of tensorflow-datasets: fetched once, then read from disk.

What has been prepared before is read in the file format that it has: array_record,
parquet, or TFRecord, for which tensorflow-datasets itself would need tensorflow.
"""

import contextlib
import dataclasses
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1jax.hub import network, paths

Row = Mapping[str, bytes]


def rows(builder: Any, split: str, data_dir: str | None, page: str) -> list[Row]:
  """Returns the rows of a split, in the order of the files.

  Args:
    builder: class of tensorflow-datasets, for a set whose features are texts.
    split: its name there.
    data_dir: where tensorflow-datasets keeps data; None is its own default.
    page: where a reader learns of the set.

  Raises:
    OSError: the set is neither on disk nor can it be fetched; its folder can't be read
      or written, or is damaged.
    ValueError: the folder is not one of this machine.
  """
  import tensorflow_datasets as tfds  # late: it takes a second

  tfds.disable_progress_bar()
  name, version = builder.name, str(builder.VERSION)
  root = data_dir or str(tfds.core.constants.DATA_DIR)
  folder = paths.local('data_dir', root) / name / version
  if not folder.exists():
    _fetch(builder, folder, page)
  try:
    unreadable = next((path for path in folder.iterdir() if not _readable(path)), None)
    if unreadable is not None:
      raise PermissionError(13, 'Permission denied', str(unreadable))
    return _read(builder(data_dir=str(folder.parents[1])), split)
  except PermissionError as error:
    raise OSError(
      f'data_dir: {error.filename} cannot be read ({error.strerror}); mend that, or '
      'choose another --data-dir'
    ) from error
  except Exception as error:  # whatever a damaged file makes its reader raise
    raise OSError(
      f'data_dir: {name} in {folder} cannot be used ({type(error).__name__}: '
      f'{network.reason(error)}); choose another --data-dir, or delete that folder and '
      'start again where the network allows: it is fetched anew'
    ) from error


def _readable(path: Path) -> bool:
  try:
    path.open('rb').close()
  except PermissionError:
    return False
  return True


def _fetch(builder: Any, folder: Path, page: str) -> None:
  name, root = builder.name, folder.parents[1]
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
      f'data_dir: {folder.parent} cannot be made ({error.strerror}); choose another '
      '--data-dir'
    ) from error
  try:
    fetching = builder(data_dir=str(root), file_format='array_record')
    split_generators = fetching._split_generators
    fetching._split_generators = lambda manager: split_generators(_Asking(manager))
    with contextlib.redirect_stdout(None):  # it speaks of a download of unknown size
      fetching.download_and_prepare()
  except Exception as error:  # whatever a download, or a full disk, raises
    if folder.exists():
      return  # another run was fetching the same and was faster; a move there is atomic
    raise OSError(
      f'{name} is not in {folder} and could not be fetched ({network.reason(error)}); '
      f'fetch it where the network allows, with this same command, and give the folder '
      f'above {name} as --data-dir (the set: {page})'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Asking:
  """A download manager that asks once whether the host answers.

  tensorflow-datasets asks ten times, for minutes.
  """

  manager: Any

  def download_and_extract(self, urls: Mapping[str, str]) -> Any:
    """Returns the files' paths. Raises OSError where there is no way to the host."""
    network.check(next(iter(urls.values())))
    return self.manager.download_and_extract(urls)


def _read(builder: Any, split: str) -> list[Row]:
  """The rows of a set that is on disk.

  Raises:
    ValueError: it has no file format that is read here, or other rows than it says.
  """
  if not builder.info.initialized:
    raise ValueError('its dataset_info.json is missing')
  form = builder.info.file_format.value
  if form == 'tfrecord':
    found = list(_tfrecords(builder.info.splits[split].filepaths))
  elif form in ('array_record', 'parquet'):
    found = list(builder.as_data_source(split=split))
  else:
    raise ValueError(f'expected array_record, parquet or tfrecord files, got {form}')
  expected = builder.info.splits[split].num_examples
  if len(found) != expected:
    raise ValueError(f'{split}: expected {expected} rows, got {len(found)}')
  # What array_record gives for rows that were cut off.
  if not all(isinstance(text, bytes) for row in found for text in row.values()):
    raise ValueError(f'{split}: expected a text in each field of a row')
  return found


def _tfrecords(files: list[Path]) -> Iterator[Row]:
  """The texts of the examples in files of TensorFlow's.

  A record is its length in eight bytes, their checksum, the example, its checksum.
  """
  from tensorboardX.record_writer import masked_crc32c
  from tensorflow_datasets.proto import tf_example_pb2

  def checked(part: bytes, checksum: bytes) -> bytes:
    if checksum != struct.pack('<I', masked_crc32c(part)):
      raise ValueError('a checksum does not fit')
    return part

  for file in files:
    content, start = Path(file).read_bytes(), 0
    while start < len(content):
      header = checked(content[start : start + 8], content[start + 8 : start + 12])
      begin = start + 12
      end = begin + struct.unpack('<Q', header)[0]
      example = checked(content[begin:end], content[end : end + 4])
      features = tf_example_pb2.Example.FromString(example).features.feature
      yield {name: value.bytes_list.value[0] for name, value in features.items()}
      start = end + 4
