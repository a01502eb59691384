"""Where the rows of a user's problems are: in a file, or in a data set by name.

A path is a local file, a file of the hub (`hf://datasets/owner/name/file`), a data set
of the hub (`hf://datasets/owner/name`, with a config `…/name/config`), or one of
tensorflow-datasets (`tfds:name`, `tfds:name/config`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.hub import dataset_files, download
from r1jax.tasks import published, rows

TFDS = 'tfds:'


class Located(NamedTuple):
  """A row, and where it is.

  Fields:
    id: the file or set, and the row's number there from 1: `train.jsonl:5`.
    place: in errors: `line 5`.
    row: what it holds.
  """

  id: str
  place: str
  row: Any


class Source(NamedTuple):
  """The rows of a file or of a split.

  Fields:
    name: of the file or split, in sentences.
    path: of the file, or `name`.
    rows: in the order of the files.
    digests: sha256 of the files, by path.
  """

  name: str
  path: str
  rows: list[Located]
  digests: dict[str, str]


def has_splits(path: str) -> bool:
  """Returns whether a path names a data set rather than a file."""
  if path.startswith(TFDS):
    return True
  return path.startswith(download.DATASETS) and Path(path).suffix not in rows.FORMATS


def read(
  path: str, split: str, *, flag: str, fields: Sequence[str], data_dir: str | None
) -> Source:
  """Returns the rows of a file, or of a split of a data set.

  Args:
    path: see above.
    split: of a data set; a file has none.
    flag: that gave the path.
    fields: that are needed; others may be left out.
    data_dir: the data folder of tensorflow-datasets; None is its default.

  Raises:
    HubError: a download failed.
    OSError: a set of tensorflow-datasets cannot be downloaded or read.
    ValueError: there is no such file, set or split, or it cannot be parsed.
  """
  name = f'{path} ({split})'
  if path.startswith(TFDS):
    try:
      found, files = published.read_split(path.removeprefix(TFDS), split, data_dir)
    except ValueError as error:
      raise ValueError(f'{flag}: {error}') from error
    located = [
      Located(f'{path}-{split}:{n}', f'row {n}', row) for n, row in enumerate(found, 1)
    ]
    return Source(
      name, name, located, {str(file.absolute()): _digest(file) for file in files}
    )
  if has_splits(path):
    parts = dataset_files.fetch(path, split, flag)
    located = [
      one._replace(place=f'{one.place} of {part}')
      for part, file in parts.items()
      for one in _located(file, part, flag, fields)
    ]
    digests = {part: _digest(file) for part, file in parts.items()}
    return Source(name, name, located, digests)
  file = download.dataset_file(path, flag)
  located = list(_located(file, file.name, flag, fields))
  key = path if path.startswith(download.REMOTE) else str(file.absolute())
  return Source(file.name, str(file), located, {key: _digest(file)})


def _located(
  file: Path, name: str, flag: str, fields: Sequence[str]
) -> Iterator[Located]:
  unit = 'row' if file.suffix == '.parquet' else 'line'
  for number, row in rows.read(flag, file, fields):
    yield Located(f'{name}:{number}', f'{unit} {number}', row)


def _digest(file: Path) -> str:
  with file.open('rb') as content:
    return hashlib.file_digest(content, 'sha256').hexdigest()
