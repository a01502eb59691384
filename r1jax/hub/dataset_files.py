"""The files with the rows of a split, of a data set on the Hugging Face hub.

The card, README.md, can name the files of each config and split. Without that, the
names of files and folders say it: `train.jsonl`, `data/train-00000-of-00002.parquet`,
or `main/train-00000-of-00001.parquet` for the config `main`.
"""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from fsspec.utils import glob_translate

from r1jax.hub import download
from r1jax.plain import JsonObject

CARD = 'README.md'
FORMATS = (
  '.parquet',
  '.jsonl',
  '.json',
  '.csv',
)  # the first one is read
SHOWN = 8  # names in an error; the rest are counted
# Files that describe a data set.
_NO_ROWS = {
  f'{x}.json' for x in ('config', 'dataset_info', 'dataset_infos', 'dataset_dict')
}
_SPLITS = ('train', 'training', 'validation', 'valid', 'val', 'dev', 'test', 'eval')


def fetch(path: str, split: str, flag: str) -> dict[str, Path]:
  """Returns the files with the rows of a split, by name on the hub, in order.

  Args:
    path: `hf://datasets/owner/name`, or `hf://datasets/owner/name/config`. If the hub
      does not answer, an earlier download is used.
    split: name of the split.
    flag: that gave the path.

  Raises:
    HubError: the download failed.
    ValueError: the path names no data set, or it has no such files.
  """
  owner, name, config = f'{path.removeprefix(download.DATASETS)}//'.split('/', 2)
  if not (owner and name):
    raise ValueError(f'{flag}: expected {download.DATASETS}owner/name, got {path}')
  repository = f'{owner}/{name}'

  def look_up() -> tuple[Path, list[str], JsonObject]:
    folder = _snapshot(repository, [CARD])
    files = huggingface_hub.get_cached_repo_tree(
      repository, repo_type='dataset', revision=folder.name
    )
    card = folder / CARD
    metadata = huggingface_hub.metadata_load(card) if card.exists() else None
    return folder, [file.path for file in files], metadata or {}

  ask = path, flag, 'the path of a data file'
  folder, names, card = download.fetched(look_up, *ask)
  try:
    chosen = choose(names, card, config.strip('/'), split)
  except ValueError as error:
    raise ValueError(f'{flag}: {path}: {error}') from error
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{flag}: {path}: its {CARD} lists the configs in an unknown form; name a file'
    ) from error
  download.fetched(lambda: _snapshot(repository, chosen, folder.name), *ask)
  return {f'{download.DATASETS}{repository}/{one}': folder / one for one in chosen}


def _snapshot(repository: str, names: Sequence[str], commit: str | None = None) -> Path:
  """Returns the folder of a commit, by default the newest, with these files in it."""
  found = huggingface_hub.snapshot_download(
    repository,
    repo_type='dataset',
    revision=commit,
    allow_patterns=[glob.escape(name) for name in names],
  )
  return Path(found)


def choose(
  names: Sequence[str], card: JsonObject, config: str, split: str
) -> list[str]:
  """Returns the names of the files with the rows of a split, in order.

  Args:
    names: of all files of the data set.
    card: the metadata of its README.md.
    config: name of a part of the data set, '' for its default.
    split: name of the split.

  Raises:
    ValueError: there are none; the message is the end of a sentence.
  """
  data = sorted(
    name
    for name in names
    if name.endswith(FORMATS) and PurePosixPath(name).name not in _NO_ROWS
  )
  if configs := card.get('configs'):
    chosen = _config(configs, config)
    folder = str(chosen.get('data_dir', ''))
    if 'data_files' in chosen:
      found = _listed(data, _patterns(chosen['data_files']), folder, split)
    else:
      found = _named(data, folder, split)
  else:
    found = _named(data, config, split)
  for suffix in FORMATS:
    if same := [name for name in found if name.endswith(suffix)]:
      return same
  raise ValueError(
    f'expected Parquet, JSONL, JSON or CSV files of the split {split}, got '
    f'{_first(names)}; choose another split, or name a file'
  )


def _config(configs: Sequence[JsonObject], name: str) -> JsonObject:
  """Returns the config of a name, or the default one."""
  known = {str(one.get('config_name', 'default')): one for one in configs}
  marked = [key for key, one in known.items() if one.get('default')]
  only = list(known) if len(known) == 1 else []
  chosen = name or [*marked, *only, 'default'][0]
  if chosen not in known:
    raise ValueError(
      f'expected one of the configs {_first(list(known))} after its name, got '
      f'{name or "none"}'
    )
  return known[chosen]


def _patterns(data_files: Any) -> dict[str, list[str]]:
  """Returns the patterns of files by split, as the card can state them."""
  if isinstance(data_files, Mapping):
    pairs = list(data_files.items())
  else:
    every = [data_files] if isinstance(data_files, str) else data_files
    pairs = [
      (one['split'], one['path']) if isinstance(one, Mapping) else ('train', one)
      for one in every
    ]
  found: dict[str, list[str]] = {}
  for split, path in pairs:
    found.setdefault(str(split), []).extend([path] if isinstance(path, str) else path)
  return found


def _listed(
  data: Sequence[str], patterns: Mapping[str, Sequence[str]], folder: str, split: str
) -> list[str]:
  """Returns the files of a split in the order of its patterns."""
  if split not in patterns:
    raise ValueError(
      f'expected one of the splits {_first(list(patterns))}, got {split}'
    )
  found = [
    name
    for pattern in patterns[split]
    for name in data
    if re.fullmatch(glob_translate(str(PurePosixPath(folder, pattern))), name)
  ]
  return list(dict.fromkeys(found))


def _named(data: Sequence[str], folder: str, split: str) -> list[str]:
  """Returns the files in a folder whose path has the word of a split."""
  inside = [name for name in data if PurePosixPath(name).is_relative_to(folder)]
  paths = {name: str(PurePosixPath(name).relative_to(folder)) for name in inside}
  found = [name for name in inside if _has_word(paths[name], split)]
  if split == 'train' and not any(
    _has_word(path, word) for path in paths.values() for word in _SPLITS
  ):
    found = inside
  folders = list(dict.fromkeys(str(PurePosixPath(name).parent) for name in found))
  if len(folders) > 1:
    raise ValueError(
      f'expected one of the folders {_first(folders)} after its name, got none'
    )
  return found


def _has_word(path: str, word: str) -> bool:
  return bool(re.search(f'(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])', path))


def _first(names: Sequence[str]) -> str:
  more = len(names) - SHOWN
  return ', '.join(names[:SHOWN]) + (f' and {more} more' if more > 0 else '')
