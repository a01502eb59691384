"""The work directory of a run: created, recognised and locked.

A run is identified by its directory. The same command started again resumes the run
there; any other command must not touch it. `config.json` holds the run's settings,
`.lock` the process that writes it.
"""

import dataclasses
import fcntl
import json
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from r1jax import __version__
from r1jax.hub import paths
from r1jax.plain import Config, JsonDict, JsonObject, is_config
from r1jax.runtime.log import explained

RECORD = 'stage.json'  # of a finished stage; see `stages.artifact`
PIPELINE = 'pipeline.json'  # in a pipeline's folder: stage -> its folder, in order

_CONFIG = 'config.json'
# Keys in it besides the settings:
_PROBLEMS = 'problems'  # versions of the problems, by task
_VERSION = 'version'  # of r1jax
MACHINE = 'machine_settings'  # names of the settings that may change between starts
_LOCK = '.lock'
_HALF_WRITTEN = '.config.json.new'

# Directories locked by this process, with the file that carries the lock. The kernel
# releases the lock when the process ends, however it ends.
_held: dict[Path, int] = {}


class WorkdirError(Exception):
  """The run can't use this work directory; the message says what to change."""


def open_workdir(
  path: str | os.PathLike[str],
  config: Config,
  *,
  may_change: Collection[str] = ('workdir',),
  data: Mapping[str, str] | None = None,
) -> Path:
  """Creates a run's directory, or opens it again; returns its path.

  A new directory gets a `config.json` with the config and the command. An existing one
  must hold the same config. The directory stays locked until this process ends.

  Args:
    path: of the directory.
    config: a dataclass of JSON values, paths and further such dataclasses.
    may_change: dotted names of fields that may differ from the first start;
      `config.json` then stays unchanged.
    data: versions of the run's problems, by task. They may not change: problems that
      the run has learned from could be held out now.

  Raises:
    WorkdirError: the directory can't be created or written, holds another run or other
      files, its problems have other versions, its `config.json` is damaged, or another
      process writes it.
    ValueError: the path is not on this machine.
  """
  paths.check_local('workdir', os.fspath(path))
  workdir = Path(path)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(workdir)
    _lock(workdir)
    ours, may_change = plain_config(config), (*may_change, 'command')
    if (workdir / _CONFIG).exists():
      theirs = _read(workdir)
      before = theirs.pop(_PROBLEMS, {})
      theirs.pop(_VERSION)
      theirs.pop(MACHINE, None)
      _compare(workdir, theirs, ours, may_change)
      _compare_data(workdir, before, data or {})
    else:
      versions = {_PROBLEMS: dict(data)} if data else {}
      written = {
        _VERSION: __version__,
        MACHINE: sorted(may_change),
        'command': _command(),
      }
      _write(workdir, {**ours, **versions, **written})
  except FileExistsError as error:
    raise WorkdirError(
      f'{error.filename} is not a directory; choose another --workdir'
    ) from error
  except OSError as error:
    raise WorkdirError(
      f'{workdir} cannot be used as a work directory ({error.strerror}: '
      f'{error.filename or workdir}); choose another --workdir'
    ) from error
  return workdir


def read_settings(path: str | os.PathLike[str]) -> JsonDict:
  """Returns the settings of the run in a directory, {} if there is none.

  Raises:
    WorkdirError: its `config.json` is damaged, or of another version.
  """
  workdir = Path(path)
  return _read(workdir) if (workdir / _CONFIG).exists() else {}


def _refuse_foreign(workdir: Path) -> None:
  """Raises WorkdirError for a directory with files but without a config."""
  # A run killed before its config was written leaves these two files at most.
  found = {entry.name for entry in workdir.iterdir()} - {_LOCK, _HALF_WRITTEN}
  if found and _CONFIG not in found:
    raise WorkdirError(
      f'{workdir} is not empty ({min(found)}, ...) and holds no {_CONFIG}, so it is '
      'not a run; choose another --workdir'
    )


def _lock(workdir: Path) -> None:
  """Locks the directory; raises WorkdirError if another process has."""
  key = workdir.resolve()
  if key in _held:
    return
  lock = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    holder = os.read(lock, 32).decode(errors='replace').strip()
    os.close(lock)
    if not isinstance(error, BlockingIOError):
      raise
    raise WorkdirError(
      f'{workdir} is being written by another process ({holder or "unknown"}); wait '
      'until it ends, or choose another --workdir'
    ) from error
  os.ftruncate(lock, 0)
  os.write(lock, f'pid {os.getpid()}\n'.encode())
  _held[key] = lock


def machine_settings(config: Config, prefix: str = '') -> frozenset[str]:
  """Returns the dotted names of settings that may change when a run resumes.

  They describe the machine, not the experiment: the work directory, fields with the
  metadata {'machine': True}, and all fields of a group whose class has `machine` set.
  """
  found = set() if prefix else {'workdir'}
  marked = {
    field.name
    for kind in type(config).__mro__
    if dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if field.metadata.get('machine')
  }
  for field in dataclasses.fields(config):
    name, value = prefix + field.name, getattr(config, field.name)
    if getattr(value, 'machine', False):
      found |= leaves(dataclasses.asdict(value), f'{name}.').keys()
    elif is_config(value):
      found |= machine_settings(value, f'{name}.')
    elif field.name in marked:
      found.add(name)
  return frozenset(found)


def plain_config(config: Config) -> JsonDict:
  """Returns `config` in JSON's types: functions by name, paths as strings."""
  fields = {'experiment': type(config).__name__, **dataclasses.asdict(config)}
  return json.loads(json.dumps(fields, default=_name_or_path))


def _name_or_path(value: Callable | os.PathLike) -> str:
  if callable(value):
    return f'{value.__module__}.{value.__qualname__}'
  return os.fspath(value)


def _command() -> str | None:
  """Returns the command of this process; None if it is not a `python -m` command."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  if spec is None:
    return None
  module = spec.name.removesuffix('.__main__')
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


def _write(workdir: Path, fields: JsonObject) -> None:
  half_written = workdir / _HALF_WRITTEN
  with half_written.open('w', encoding='utf-8') as file:
    json.dump(fields, file, indent=2, ensure_ascii=False)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  half_written.replace(workdir / _CONFIG)


def write_whole(file: Path, content: str) -> None:
  """Writes a file atomically. Raises OSError with advice if that fails."""
  partial = file.with_name(f'{file.name}.partial')
  with explained(file):
    # JSON can hold half a surrogate pair, which UTF-8 can't.
    partial.write_text(content, encoding='utf-8', errors='backslashreplace')
    partial.replace(file)


def _read(workdir: Path) -> JsonDict:
  file = workdir / _CONFIG
  try:
    fields = json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise WorkdirError(
      f'{file} is damaged ({error}); choose another --workdir, or restore the file'
    ) from error
  if not isinstance(fields, dict) or 'experiment' not in fields:
    raise WorkdirError(
      f'{file} was not written by an experiment; choose another --workdir'
    )
  check_version(file, fields)
  return fields


def check_version(file: Path, fields: JsonObject) -> None:
  """Raises WorkdirError for a file of a version whose settings have other names."""
  version = str(fields.get(_VERSION, '0.1.0'))
  if version.split('.')[:2] != __version__.split('.')[:2]:
    raise WorkdirError(
      f'{file} was written by r1jax {version}, whose settings have other names than '
      f'those of {__version__}; use that version for this folder, or choose another one'
    )


def _compare(
  workdir: Path,
  theirs: JsonObject,
  ours: JsonObject,
  may_change: Collection[str],
) -> None:
  if theirs['experiment'] != ours['experiment']:
    raise WorkdirError(
      f'{workdir} holds a run of {theirs["experiment"]}, not of {ours["experiment"]}; '
      'choose another --workdir'
    )
  before, now = leaves(theirs), leaves(ours)
  differing = [
    f'--{name.replace("_", "-")} is {_shown(before, name)} there and '
    f'{_shown(now, name)} here'
    for name in dict.fromkeys([*now, *before])
    # As text, as nan differs from itself.
    if _shown(before, name) != _shown(now, name) and name not in may_change
  ]
  if differing:
    raise WorkdirError(
      f'{workdir} holds a run with other settings: {"; ".join(differing)}. Choose '
      'another --workdir, or give the same settings to go on with that run'
    )


def _compare_data(
  workdir: Path, theirs: Mapping[str, str], ours: Mapping[str, str]
) -> None:
  differing = [
    f'{task} is of version {theirs.get(task, "(unknown)")} there and '
    f'{ours.get(task, "(none)")} here'
    for task in dict.fromkeys([*ours, *theirs])
    if theirs.get(task) != ours.get(task)
  ]
  if differing:
    raise WorkdirError(
      f'{workdir} holds a run with other problems: {"; ".join(differing)}. What it '
      'learned from may be held out now; choose another --workdir'
    )


def leaves(fields: JsonObject, prefix: str = '') -> JsonDict:
  """Returns values by dotted name: {'grpo': {'kl_coef': 0}} -> {'grpo.kl_coef': 0}."""
  found: JsonDict = {}
  for name, value in fields.items():
    if isinstance(value, dict):
      found |= leaves(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


def _shown(leaves: JsonObject, name: str) -> str:
  if name not in leaves:
    return '(absent)'
  return json.dumps(leaves[name], ensure_ascii=False)
