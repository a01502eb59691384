"""The hosts of a run: how they find, tell and miss each other.

Each host runs the same command. Device programs meet in JAX's collectives; what hosts
have to tell each other beside (rewards, lengths, that one has failed) goes through the
key-value store of JAX's coordination service, with a time limit. With one host nothing
here does anything.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed  # what is used has no public name

from r1jax import mesh as mesh_lib

ARRIVAL = 300  # seconds in which all hosts must have come
PATIENCE = 900  # seconds that a host waits for what another one has to tell
BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which a host is taken for dead
READ = 2.5 * BEAT  # seconds in which all have read why one stops
AGAIN = (
  'start the same command on all hosts again: the run goes on from its last checkpoint'
)


class HostError(Exception):
  """A host that is missing, failed, or runs something else; the message names it."""


def count() -> int:
  """How many hosts there are."""
  return distributed.global_state.num_processes


def index() -> int:
  """Which of them this one is."""
  return distributed.global_state.process_id


def first() -> bool:
  """Whether this is the host that writes what is written once."""
  return index() == 0


class Together(Exception):
  """An end that all hosts come to at the same step, each by itself."""


@contextlib.contextmanager
def joined(config: Any) -> Iterator[None]:
  """Finds the other hosts, if there are any, and leaves them again.

  With `config.mesh.coordinator` these are the ones that it names; without, those that
  the machine tells of (metadata of a TPU, SLURM, GKE, Open MPI). If one fails, or dies,
  the others end, with a sentence that names it.

  Raises:
    HostError: a host did not come in time, or has another config or other code.
  """
  if _store() is not None:  # a run within another one
    yield
    return
  _initialize(config.mesh)
  if count() == 1:
    yield
    return
  names = agree('name', f'{socket.gethostname()}, pid {os.getpid()}')
  with _watched(names):
    _compare(config, names)
    yield
  jax.distributed.shutdown()


@contextlib.contextmanager
def _watched(names: list[str]) -> Iterator[None]:
  witness, over = _witness(names[0]), threading.Event()
  threading.Thread(target=_watch, args=(names, witness, over), daemon=True).start()
  try:
    yield
    agree('end', None)
  except Together:
    agree('end', None)
    raise
  except BaseException as error:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    _store().key_value_set(f'stopped/{index()}', text, allow_overwrite=True)
    # Before what JAX does at the end, which is to wait for the others.
    atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
    over.set()
    time.sleep(READ)
    raise
  finally:
    over.set()
    witness.communicate(b'end')


def agree(what: str, value: Any) -> list[Any]:
  """Returns what each host has to tell, in their order; all must call it alike.

  Raises:
    HostError: a host has told nothing in time.
  """
  if count() == 1:
    return [value]
  store, call = _store(), next(_calls)
  here = f'agree/{call}'
  store.key_value_set_bytes(f'{here}/{index()}', pickle.dumps(value))
  try:
    store.wait_at_barrier(here, int(1000 * PATIENCE))
    late = None
  except jax.errors.JaxRuntimeError as error:
    late = error
  found = {_host(key): told for key, told in store.key_value_dir_get_bytes(here)}
  if late is not None:
    missing = [str(n) for n in range(count()) if n not in found]
    raise HostError(
      f'waited {PATIENCE} s for what host {" and ".join(missing)} of {count()} had to '
      f'tell ({what}); {AGAIN}'
    ) from late
  if first():  # all have read what was told before
    store.key_value_delete(f'agree/{call - 1}')
  return [pickle.loads(found[n]) for n in range(count())]


_calls = itertools.count()


def _store() -> Any:
  return distributed.global_state.client


def _host(key: str) -> int:
  return int(key.rsplit('/', 1)[1])


def _initialize(config: mesh_lib.Config) -> None:
  named: dict[str, Any] = {}
  if config.coordinator:
    named = {
      'coordinator_address': config.coordinator,
      'num_processes': config.hosts,
      'process_id': config.host,
    }
  elif not _told_of():
    return
  try:
    jax.distributed.initialize(**named, initialization_timeout=ARRIVAL)
  except (RuntimeError, ValueError) as error:
    who = f'host {config.host} of {config.hosts}' if named else 'this host'
    # What JAX has begun would end with a stack trace.
    atexit.register(_leave, 1)
    raise HostError(
      f'mesh.coordinator: {who} did not meet the others at '
      f'{config.coordinator or "the address that the machine tells of"} within '
      f'{ARRIVAL} s ({str(error).splitlines()[0]:.160}); start the same command on all '
      'of them, with an address of host 0 that all can reach'
    ) from error


def _told_of() -> bool:
  """Whether the machine tells of other hosts."""
  kinds = clusters.ClusterEnv._cluster_types
  with warnings.catch_warnings(action='ignore'):  # of packages for other clusters
    present = [k for k in kinds if not k.opt_in_only_method and k.is_env_present()]
  return any(kind.get_process_count() > 1 for kind in present[:1])


def _compare(config: Any, names: list[str]) -> None:
  """Raises HostError where hosts would not do the same."""
  own = {
    'the experiment': type(config).__name__,
    **_leaves(dataclasses.asdict(config)),
    'the code of r1jax': _code(),
    'the version of jax': jax.__version__,
  }
  del own['mesh.host']
  for other, theirs in enumerate(agree('config', own)):
    for name in {**own, **theirs}:
      here, there = str(own.get(name)), str(theirs.get(name))
      if here != there:
        raise HostError(
          f'{name} is {here} on host {index()} ({names[index()]}) and {there} on host '
          f'{other} ({names[other]}); start the same command with the same code on all '
          'hosts'
        )


def _leaves(fields: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      found |= _leaves(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


def _code() -> str:
  """A digest of the package's files."""
  package = Path(__file__).parents[1]
  total = hashlib.sha256()
  for file in sorted(package.rglob('*.py')):
    total.update(str(file.relative_to(package)).encode() + file.read_bytes())
  return total.hexdigest()[:12]


def _watch(names: list[str], witness: Any, over: threading.Event) -> None:
  """Tells the others that this host lives; ends it when another does not."""
  store, began = _store(), time.monotonic()
  seen = dict.fromkeys(range(count()), ('', began))
  for beat in itertools.count():
    if over.wait(BEAT):
      return
    try:
      store.key_value_set(f'alive/{index()}', str(beat), allow_overwrite=True)
      stopped = store.key_value_dir_get('stopped')
      alive = store.key_value_dir_get('alive')
    except jax.errors.JaxRuntimeError:
      return  # host 0 is gone: JAX ends this process, and the witness says why
    now = time.monotonic()
    for key, value in alive:
      if seen[_host(key)][0] != value:
        seen[_host(key)] = value, now
    said = {_host(key): f'has stopped: {text}' for key, text in stopped}
    for other, (_, when) in seen.items():
      if now - when > SILENCE:
        said.setdefault(other, f'has given no sign of life for {SILENCE:g} s; {AGAIN}')
    for other, sentence in said.items():
      if not over.is_set():
        print(f'error: host {other} ({names[other]}) {sentence}', file=sys.stderr)
        if first():
          time.sleep(READ)  # the store is here, and others are still to read it
        witness.communicate(b'end')
        _leave(1)


def _leave(status: int) -> NoReturn:
  """Ends this process, whatever its other threads wait for."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _witness(name: str) -> subprocess.Popen[bytes]:
  """A process that says what happened when host 0 dies, as JAX then ends this one."""
  address = distributed.global_state.coordinator_address
  sentence = f'error: host 0 ({name}), which coordinates, has died; {AGAIN}'
  command = [sys.executable, '-S', '-c', _WITNESS, str(address), sentence]
  return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


# Its input ends with its parent; unless that has said so, something went wrong.
_WITNESS = """
import socket, sys, time
host, port = sys.argv[1].rsplit(':', 1)
if not sys.stdin.read():
  time.sleep(1)  # what the parent printed comes first
  try:
    socket.create_connection((host.strip('[]'), int(port)), 5).close()
  except OSError:
    print(sys.argv[2], file=sys.stderr, flush=True)
"""
