"""Paths that users give: local ones, without a scheme."""

import re
from pathlib import Path

# pathlib would read `gs://bucket/run` as a folder `gs:` in the working directory.
_SCHEME = re.compile(r'(?i)([a-z][a-z0-9+.-]+)://?|file:')


def check_local(flag: str, path: str) -> None:
  """Raises ValueError for a URL such as `gs://bucket/run`; only local paths work."""
  if found := _SCHEME.match(path):
    raise ValueError(
      f'{flag}: expected a path on this machine, got {path}; {found[0]} is not '
      'supported: copy or mount the files and give that folder'
    )


def local(flag: str, path: str) -> Path:
  """Returns a local path, with `~` expanded.

  Raises:
    ValueError: the path has a scheme.
  """
  check_local(flag, path)
  return Path(path).expanduser()
