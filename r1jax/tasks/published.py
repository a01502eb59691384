"""Published data sets by tensorflow-datasets: downloaded once, then read from disk.

A set that is already on disk is read in its own file format: array_record, parquet, or
TFRecord, for which tensorflow-datasets itself would need tensorflow.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1jax import tfrecord
from r1jax.hub import network, paths

Row = Mapping[str, bytes]


def rows(builder: Any, split: str, data_dir: str | None, page: str) -> list[Row]:
  """Returns the rows of a split, in the order of the files.

  Args:
    builder: class of tensorflow-datasets, for a set whose features are texts.
    split: the set's own name of the split.
    data_dir: the data folder of tensorflow-datasets; None is its default.
    page: URL of the set, for error messages.

  Raises:
    OSError: the set is not on disk and the download failed, or its folder is damaged or
      cannot be read or written.
    ValueError: `data_dir` is not a local folder.
  """
  import tensorflow_datasets as tfds  # imported late, since it takes a second

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
      f'data_dir: {error.filename} cannot be read ({error.strerror}); fix the '
      'permissions or choose another --data-dir'
    ) from error
  except Exception as error:  # a damaged file can raise anything
    raise OSError(
      f'data_dir: {name} in {folder} cannot be used ({type(error).__name__}: '
      f'{network.reason(error)}); choose another --data-dir, or delete that folder and '
      'start again with network access to download it again'
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
      f'data_dir: cannot create {folder.parent} ({error.strerror}); choose another '
      '--data-dir'
    ) from error
  try:
    download = builder(data_dir=str(root), file_format='array_record')
    split_generators = download._split_generators
    download._split_generators = lambda manager: split_generators(_Checking(manager))
    with contextlib.redirect_stdout(None):  # a message about the download's size
      download.download_and_prepare()
  except Exception as error:  # a download or a full disk can raise anything
    if folder.exists():
      return  # another run has downloaded the same set; the final move is atomic
    raise OSError(
      f'{name} is not in {folder} and could not be downloaded '
      f'({network.reason(error)}); run the same command on a machine with network '
      f'access, then copy the folder above {name} and give it as --data-dir ({page})'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Checking:
  """A download manager that first checks that the host answers.

  tensorflow-datasets retries ten times, for minutes.
  """

  manager: Any

  def download_and_extract(self, urls: Mapping[str, str]) -> Any:
    """Returns the files' paths.

    Raises:
      OSError: the host does not answer.
    """
    network.check(next(iter(urls.values())))
    return self.manager.download_and_extract(urls)


def _read(builder: Any, split: str) -> list[Row]:
  """Returns the rows of a set on disk.

  Raises:
    ValueError: the file format is not supported, or rows are missing or malformed.
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
  # array_record returns other types for truncated rows.
  if not all(isinstance(text, bytes) for row in found for text in row.values()):
    raise ValueError(f'{split}: expected bytes in each field of a row')
  return found


def _tfrecords(files: list[Path]) -> Iterator[Row]:
  """Yields the texts of the examples in TFRecord files."""
  from tensorflow_datasets.proto import tf_example_pb2

  for file in files:
    for record in tfrecord.records(Path(file).read_bytes()):
      features = tf_example_pb2.Example.FromString(record).features.feature
      yield {name: value.bytes_list.value[0] for name, value in features.items()}
