"""Published data sets by tensorflow-datasets: downloaded once, then read from disk.

A set that is already on disk is read in its own file format: array_record, parquet, or
TFRecord, for which tensorflow-datasets itself would need tensorflow.
"""

import contextlib
import dataclasses
import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r1jax import tfrecord
from r1jax.hub import network, paths

Row = dict[str, Any]
# Parts of tensorflow-datasets with questions, beside those that it imports by itself.
_CATEGORIES = ('question_answering', 'text')
_NAME = re.compile(r'(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class Split(NamedTuple):
  """The rows of a split, in the order of its files."""

  rows: list[Row]
  files: list[Path]


def read_split(name: str, split: str, data_dir: str | None) -> Split:
  """Returns the rows of a split as plain data: bytes as texts, classes by their names.

  Args:
    name: of a data set that tensorflow-datasets has, or that is prepared in `data_dir`:
      `gsm8k`, `ai2_arc/ARC-Easy`, or `gsm8k:1.0.0`. Without a version, the newest one
      on disk is read.
    split: the set's own name of the split.
    data_dir: the data folder of tensorflow-datasets; None is its default.

  Raises:
    OSError: the set is not on disk and the download failed, or its folder is damaged or
      cannot be read or written.
    ValueError: there is no such set, config or split, or `data_dir` is not a local
      folder.
  """
  import tensorflow_datasets as tfds  # imported late, since it takes a second

  tfds.disable_progress_bar()
  root = paths.local('data_dir', data_dir or str(tfds.core.constants.DATA_DIR))
  folder = _on_disk(root, name) or _fetch(root, name)
  try:
    unreadable = next((path for path in folder.iterdir() if not _readable(path)), None)
    if unreadable is not None:
      raise PermissionError(13, 'Permission denied', str(unreadable))
    builder = tfds.builder_from_directory(folder)
    known = sorted(builder.info.splits)
    found = _read(builder, split) if split in known else None
  except PermissionError as error:
    raise OSError(
      f'data_dir: {error.filename} cannot be read ({error.strerror}); fix the '
      'permissions or choose another --data-dir'
    ) from error
  except Exception as error:  # a damaged file can raise anything
    raise OSError(
      f'data_dir: {_parsed(name)[0]} in {folder} cannot be used '
      f'({type(error).__name__}: {network.reason(error)}); choose another --data-dir, '
      'or delete that folder and start again with network access to download it again'
    ) from error
  if found is None:
    raise ValueError(
      f'{name} of tensorflow-datasets: expected one of the splits {", ".join(known)}, '
      f'got {split}'
    )
  return found


def _parsed(name: str) -> tuple[str, str, str]:
  """Returns a set's name, config and version, each '' if it is not given."""
  found = _NAME.fullmatch(name)
  if found is None:
    raise ValueError(
      f'expected the name of a data set of tensorflow-datasets, such as gsm8k or '
      f'ai2_arc/ARC-Easy, got {name!r}'
    )
  one, config, version = found.groups(default='')
  return one, config, version


def _on_disk(root: Path, name: str) -> Path | None:
  """Returns the folder of a set that is prepared in `root`, or None."""
  one, config, version = _parsed(name)
  folder = root / one / config
  try:
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
  except OSError:
    return None
  versions = [x for x in inside if _VERSION.fullmatch(x) and version in ('', x)]
  if versions:
    return folder / max(versions, key=lambda x: tuple(map(int, x.split('.'))))
  configs = [x for x in inside if _on_disk(root, f'{one}/{x}')] if not config else []
  if len(configs) > 1:
    raise ValueError(
      f'{name} of tensorflow-datasets: expected one of the configs '
      f'{", ".join(configs)} after its name, got none'
    )
  return _on_disk(root, f'{one}/{configs[0]}') if configs else None


def _readable(path: Path) -> bool:
  try:
    path.open('rb').close()
  except PermissionError:
    return False
  return True


def _builder(root: Path, name: str) -> Any:
  """Returns the class of a set that tensorflow-datasets has."""
  import tensorflow_datasets as tfds

  one, config, _ = _parsed(name)
  for category in _CATEGORIES:
    importlib.import_module(f'tensorflow_datasets.{category}')
  known = tfds.list_builders(with_community_datasets=False)
  if one not in known:
    there = [path.name for path in root.iterdir()] if root.is_dir() else []
    near = difflib.get_close_matches(one, {*known, *there}, 3)
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    raise ValueError(
      f'expected a data set that tensorflow-datasets has or that is prepared in {root} '
      f'(--data-dir), got {name!r}{hint}'
    )
  found = tfds.builder_cls(one)
  if config and config not in found.builder_configs:
    raise ValueError(
      f'{one} of tensorflow-datasets: expected one of the configs '
      f'{", ".join(found.builder_configs) or "(none)"}, got {config}'
    )
  return found


def _fetch(root: Path, name: str) -> Path:
  """Downloads and prepares a set; returns its folder."""
  import tensorflow_datasets as tfds

  builder = _builder(root, name)
  one, config, version = _parsed(name)
  try:
    (root / one).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
      f'data_dir: cannot create {root / one} ({error.strerror}); choose another '
      '--data-dir'
    ) from error
  place, page = root / one, ''
  try:
    download = builder(
      data_dir=str(root),
      config=config or None,
      version=version or None,
      file_format='array_record',
    )
    place, page = Path(download.data_dir), f' ({download.info.homepage})'
    split_generators = download._split_generators
    download._split_generators = lambda manager: split_generators(_Checking(manager))
    with contextlib.redirect_stdout(None):  # a message about the download's size
      download.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )
  except Exception as error:  # a download or a full disk can raise anything
    if _VERSION.fullmatch(place.name) and place.exists():
      return place  # another run has downloaded the same set; the final move is atomic
    remedy = (
      f'install that, or run tfds build {name} --file_format array_record elsewhere'
      if isinstance(error, ImportError)
      else 'run the same command on a machine with network access'
    )
    raise OSError(
      f'{one} is not in {place} and could not be downloaded '
      f'({network.reason(error)}); {remedy}, then copy the folder above {one} and give '
      f'it as --data-dir{page}'
    ) from error
  return place


@dataclasses.dataclass(frozen=True)
class _Checking:
  """A download manager that first checks that the host answers.

  tensorflow-datasets retries ten times, for minutes.
  """

  manager: Any

  def __getattr__(self, name: str) -> Any:
    """Returns what the manager has under this name."""
    return getattr(self.manager, name)

  def download(self, urls: Any) -> Any:
    """Returns the files' paths.

    Raises:
      OSError: the host does not answer.
    """
    network.check(_first_url(urls))
    return self.manager.download(urls)

  def download_and_extract(self, urls: Any) -> Any:
    """Returns the files' paths, or folders of what archives contain.

    Raises:
      OSError: the host does not answer.
    """
    network.check(_first_url(urls))
    return self.manager.download_and_extract(urls)


def _first_url(urls: Any) -> str:
  """Returns one of the URLs, which are nested in any way."""
  while not isinstance(urls, str):
    if isinstance(urls, Mapping):
      urls = list(urls.values())
    urls = urls[0] if isinstance(urls, (list, tuple)) else urls.url
  return urls


def _read(builder: Any, split: str) -> Split:
  """Returns the rows of a set on disk.

  Raises:
    ValueError: the file format is not supported, or rows are missing or malformed.
  """
  import tensorflow_datasets as tfds

  info = builder.info.splits[split]
  features, files = builder.info.features, list(map(Path, info.filepaths))
  form = builder.info.file_format.value
  if form == 'tfrecord':
    found = [features.deserialize_example_np(x) for x in _records(files)]
  elif form in ('array_record', 'parquet'):
    found = list(builder.as_data_source(split=split))
  else:
    raise ValueError(f'expected array_record, parquet or tfrecord files, got {form}')
  if len(found) != info.num_examples:
    raise ValueError(f'{split}: expected {info.num_examples} rows, got {len(found)}')
  texts = [x for x in features if isinstance(features[x], tfds.features.Text)]
  # array_record returns other types for truncated rows.
  if not all(isinstance(row[name], bytes) for row in found for name in texts):
    raise ValueError(f'{split}: expected bytes in the fields {", ".join(texts)}')
  kinds = {
    name: feature
    for name, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  }
  rows = [
    {
      name: kinds[name].int2str(value) if name in kinds else _plain(value)
      for name, value in row.items()
    }
    for row in found
  ]
  return Split(rows, files)


def _records(files: list[Path]) -> Iterator[bytes]:
  """Yields the records of TFRecord files."""
  for file in files:
    yield from tfrecord.records(file.read_bytes())


def _plain(value: Any) -> Any:
  """Returns a value as JSON has it; bytes that are no UTF-8 stay bytes."""
  if isinstance(value, Mapping):
    return {name: _plain(inner) for name, inner in value.items()}
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  if isinstance(value, list):
    return [_plain(inner) for inner in value]
  if isinstance(value, bytes):
    with contextlib.suppress(UnicodeDecodeError):
      return value.decode()
  return value
