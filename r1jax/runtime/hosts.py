"""The hosts of a run: how they find, tell and miss each other.

Each host runs the same command. Device programs meet in JAX's collectives; what hosts
have to tell each other beside (rewards, lengths, that one has failed) goes through the
key-value store of JAX's coordination service, with a time limit. With one host nothing
here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed  # what is used has no public name

from r1jax.runtime.workdir import leaves, plain_config
from r1jax.sharding.mesh import MeshConfig

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


def is_primary() -> bool:
  """Whether this is the host that writes what is written once."""
  return index() == 0


class CleanStop(Exception):
  """An end that all hosts come to at the same step, each by itself."""


@contextlib.contextmanager
def connect(config: Any) -> Iterator[None]:
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
  named = bool(config.mesh.coordinator)
  if not named and not _told_of():
    yield
    return
  arguments: dict[str, Any] = _address(config.mesh) if named else {}
  witness = _Witness()
  try:
    # SIGTERM is the run's own affair.
    jax.config.update('jax_enable_preemption_service', False)
    _meet(arguments)
  except KeyboardInterrupt:
    witness.dismiss()
    atexit.register(_leave, 130)  # before JAX, which would wait for the others
    raise
  except Exception as error:  # of whatever the machine tells
    witness.dismiss()
    raise HostError(
      f'the hosts that this machine tells of could not meet ({error}); name them with '
      'mesh.coordinator, mesh.hosts and mesh.host'
    ) from error
  names = all_gather('name', f'{socket.gethostname()}, pid {os.getpid()}')
  witness.tell(f'{distributed.global_state.coordinator_address} {names[0]}')
  with _watched(names, witness):
    _compare(config, names)
    yield
  jax.distributed.shutdown()


def _meet(arguments: dict[str, Any]) -> None:
  """Returns once all hosts have come; a signal is heard meanwhile."""
  failed: list[Exception] = []

  def meet() -> None:
    try:
      jax.distributed.initialize(**arguments, initialization_timeout=ARRIVAL)
    except Exception as error:  # to be raised by who waits
      failed.append(error)

  # The wait itself can't be interrupted.
  meeting = threading.Thread(target=meet, daemon=True)
  meeting.start()
  while meeting.is_alive():
    meeting.join(BEAT)
  for error in failed:
    raise error


@contextlib.contextmanager
def _watched(names: list[str], witness: _Witness) -> Iterator[None]:
  over = threading.Event()
  threading.Thread(target=_watch, args=(names, witness, over), daemon=True).start()
  try:
    yield
    all_gather('end', None)
  except CleanStop:
    all_gather('end', None)
    raise
  except BaseException as error:
    if isinstance(error, jax.errors.JaxRuntimeError):
      # A collective breaks off where a host has died: who that is shows in a while.
      time.sleep(SILENCE + READ)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    _store().key_value_set(f'stopped/{index()}', text, allow_overwrite=True)
    # Before what JAX does at the end, which is to wait for the others.
    atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
    over.set()
    if is_primary():
      time.sleep(READ)  # the store is here, and others are still to read it
    raise
  finally:
    over.set()
    witness.dismiss()


def all_gather(what: str, value: Any) -> list[Any]:
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
  if is_primary():  # all have read what was told before
    store.key_value_delete(f'agree/{call - 1}')
  return [pickle.loads(found[n]) for n in range(count())]


_calls = itertools.count()


def _store() -> Any:
  return distributed.global_state.client


def _host(key: str) -> int:
  return int(key.rsplit('/', 1)[1])


def _address(config: MeshConfig) -> dict[str, Any]:
  """What JAX is to be told. Raises HostError where it could only end the process."""
  host, port = config.coordinator.rsplit(':', 1)
  host, began = host.strip('[]'), time.monotonic()
  if config.host == 0:
    try:
      socket.create_server(('', int(port))).close()
    except OSError as error:
      raise HostError(
        f'mesh.coordinator: port {port} of this host, which is to coordinate, cannot '
        f'be used ({error.strerror}); take another one'
      ) from error
  while config.host:
    try:
      socket.create_connection((host, int(port)), timeout=BEAT).close()
      break
    except OSError as error:
      if time.monotonic() - began > ARRIVAL:
        raise HostError(
          f'mesh.coordinator: host 0 did not answer at {config.coordinator} for '
          f'{ARRIVAL} s ({error}); start the same command on all hosts, with an '
          'address of host 0 that all can reach'
        ) from error
      time.sleep(BEAT)
  return {
    'coordinator_address': config.coordinator,
    'num_processes': config.hosts,
    'process_id': config.host,
  }


def _told_of() -> bool:
  """Whether the machine tells of other hosts."""
  kinds = clusters.ClusterEnv._cluster_types
  with warnings.catch_warnings(action='ignore'):  # of packages for other clusters
    present = [k for k in kinds if not k.opt_in_only_method and k.is_env_present()]
  return any(kind.get_process_count() > 1 for kind in present[:1])


def _compare(config: Any, names: list[str]) -> None:
  """Raises HostError where hosts would not do the same."""
  own = {
    **leaves(plain_config(config)),
    'the code of r1jax': _code(),
    'the version of jax': jax.__version__,
  }
  del own['mesh.host']
  for other, theirs in enumerate(all_gather('config', own)):
    for name in {**own, **theirs}:
      here, there = str(own.get(name)), str(theirs.get(name))
      if here != there:
        raise HostError(
          f'{name} is {here} on host {index()} ({names[index()]}) and {there} on host '
          f'{other} ({names[other]}); start the same command with the same code on all '
          'hosts'
        )


def _code() -> str:
  """A digest of the package's files."""
  package = Path(__file__).parents[1]
  total = hashlib.sha256()
  for file in sorted(package.rglob('*.py')):
    total.update(str(file.relative_to(package)).encode() + file.read_bytes())
  return total.hexdigest()[:12]


def _watch(names: list[str], witness: _Witness, over: threading.Event) -> None:
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
        if is_primary():
          time.sleep(READ)  # the store is here, and others are still to read it
        witness.dismiss()
        _leave(1)


def _leave(status: int) -> NoReturn:
  """Ends this process, whatever its other threads wait for."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class _Witness:
  """A process that outlives this one, and says why JAX has ended it without a word.

  That is what JAX does when not all hosts come, and when host 0 dies.
  """

  def __init__(self) -> None:
    began = str(time.time())
    command = [sys.executable, '-S', '-c', _WITNESS, str(ARRIVAL), AGAIN, began]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, start_new_session=True
    )

  def tell(self, met: str) -> None:
    """Lets it know that all hosts have met: the address, and who is host 0."""
    assert self._process.stdin is not None
    self._process.stdin.write(f'{met}\n'.encode())
    self._process.stdin.flush()

  def dismiss(self) -> None:
    """Lets it end without a word."""
    self._process.communicate(b'end')


# What it reads ends with its parent.
_WITNESS = """
import socket, sys, time
limit, again, began = sys.argv[1:]
told = sys.stdin.read().splitlines()
waited = time.time() - float(began)
if not told and waited < float(limit):
  print(f'error: this host has ended after {waited:.0f} s, before all had come; start '
        'the same command on all of them', file=sys.stderr)
elif not told:
  print(f'error: not all hosts have come within {limit} s, or what answers at the '
        'address of host 0 is something else; start the same command on all of them',
        file=sys.stderr)
elif told[-1] != 'end':
  time.sleep(1)  # what the parent prints comes first
  address, name = told[0].split(' ', 1)
  host, port = address.rsplit(':', 1)
  try:
    socket.create_connection((host.strip('[]'), int(port)), 5).close()
  except OSError:
    print(f'error: host 0 ({name}), which coordinates, has died; {again}',
          file=sys.stderr)
"""
