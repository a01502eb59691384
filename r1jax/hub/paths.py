"""Paths that a user gives: those of this machine, without a scheme."""

import re
from pathlib import Path

# pathlib would take `gs://bucket/run` for a folder `gs:` in the working directory.
_SCHEME = re.compile(r'(?i)([a-z][a-z0-9+.-]+)://?|file:')


def check_local(flag: str, path: str) -> None:
  """Raises ValueError for `gs://bucket/run` and the like, which nothing here opens."""
  if found := _SCHEME.match(path):
    raise ValueError(
      f'{flag}: expected a path on this machine, got {path}; files behind '
      f'{found[0]} are not opened from here: copy or mount them, and give that folder'
    )


def local(flag: str, path: str) -> Path:
  """Returns a path that `check_local` lets pass, with `~` as the home folder.

  Raises:
    ValueError: it has a scheme.
  """
  check_local(flag, path)
  return Path(path).expanduser()
