"""Multi-host runs: connecting, exchanging small values, noticing a dead host.

Each host runs the same command. Device programs communicate by JAX's collectives. Small
host-side values (rewards, lengths, that a host has failed) go through the key-value
store of JAX's coordination service, with a timeout. With one host every function here
returns at once.
"""

import atexit
import contextlib
import hashlib
import itertools
import os
import pickle
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import jax
from jax._src import clusters, distributed  # there is no public API for these parts

from r1jax.plain import Config
from r1jax.runtime.witness import Witness
from r1jax.runtime.workdir import leaves, plain_config
from r1jax.sharding.mesh import MeshConfig

Value = TypeVar('Value')
CONNECT_TIMEOUT = 300  # seconds in which all hosts must connect
GATHER_TIMEOUT = 900  # seconds that `all_gather` waits for the other hosts
HEARTBEAT = 2.0  # seconds between two heartbeats
HEARTBEAT_TIMEOUT = 30.0  # seconds without one after which a host counts as dead
GRACE = 2.5 * HEARTBEAT  # seconds in which all hosts read why one stops
RESTART = (
  'start the same command on all hosts again: the run resumes from its last checkpoint'
)


class HostError(Exception):
  """A host is missing, has failed, or runs another config; the message names it."""


class MeshedConfig(Config, Protocol):
  """A config that says where the hosts are."""

  @property
  def mesh(self) -> MeshConfig:
    """How the devices are arranged, and the addresses of the hosts."""


def count() -> int:
  """Returns the number of hosts."""
  return distributed.global_state.num_processes


def index() -> int:
  """Returns the index of this host."""
  return distributed.global_state.process_id


def is_primary() -> bool:
  """Returns whether this is host 0, which writes files that exist once per run."""
  return index() == 0


class CleanStop(Exception):
  """An exception that every host raises by itself at the same step."""


@contextlib.contextmanager
def connect(config: MeshedConfig) -> Iterator[None]:
  """Connects to the other hosts, if there are any; disconnects at the end.

  `config.mesh.coordinator` names host 0. If it is empty, hosts are detected from the
  environment (TPU metadata, SLURM, GKE, Open MPI). If a host fails or dies, the others
  exit with an error that names it.

  Raises:
    HostError: a host did not connect in time, or has another config or other code.
  """
  if _store() is not None:  # connected already: a run within another one
    yield
    return
  named = bool(config.mesh.coordinator)
  if not named and not _detects_hosts():
    yield
    return
  arguments: dict[str, Any] = _address(config.mesh) if named else {}
  witness = Witness(CONNECT_TIMEOUT, RESTART)
  try:
    # The run handles SIGTERM itself.
    jax.config.update('jax_enable_preemption_service', False)
    _initialize(arguments)
  except KeyboardInterrupt:
    witness.dismiss()
    atexit.register(_exit, 130)  # before JAX, which would wait for the others
    raise
  except Exception as error:  # its type depends on the cluster
    witness.dismiss()
    raise HostError(
      'could not connect to the hosts detected from the environment '
      f'({error}); set mesh.coordinator, mesh.hosts and mesh.host explicitly'
    ) from error
  names = all_gather('name', f'{socket.gethostname()}, pid {os.getpid()}')
  witness.connected(f'{distributed.global_state.coordinator_address} {names[0]}')
  with _heartbeats(names, witness):
    _check_same(config, names)
    yield
  jax.distributed.shutdown()


def _initialize(arguments: dict[str, Any]) -> None:
  """Returns once all hosts are connected; signals interrupt the wait."""
  failed: list[Exception] = []

  def initialize() -> None:
    try:
      jax.distributed.initialize(**arguments, initialization_timeout=CONNECT_TIMEOUT)
    except Exception as error:  # raised again by the caller
      failed.append(error)

  # In a thread, as JAX's own wait can't be interrupted.
  thread = threading.Thread(target=initialize, daemon=True)
  thread.start()
  while thread.is_alive():
    thread.join(HEARTBEAT)
  for error in failed:
    raise error


@contextlib.contextmanager
def _heartbeats(names: list[str], witness: Witness) -> Iterator[None]:
  """Exchanges heartbeats, and reports to the others how this host ends."""
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
      # A collective fails where a host has died; wait until it is known which one.
      time.sleep(HEARTBEAT_TIMEOUT + GRACE)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    _store().key_value_set(f'stopped/{index()}', text, allow_overwrite=True)
    # Before JAX's own exit handler, which waits for the others.
    atexit.register(_exit, 130 if isinstance(error, KeyboardInterrupt) else 1)
    over.set()
    if is_primary():
      time.sleep(GRACE)  # this host serves the store, and others must still read it
    raise
  finally:
    over.set()
    witness.dismiss()


def all_gather(what: str, value: Value) -> list[Value]:
  """Returns the values of all hosts, in their order. All hosts must call it.

  Args:
    what: name of the value, for error messages.
    value: of this host; any object that pickles.

  Raises:
    HostError: a host did not send its value within `GATHER_TIMEOUT`.
  """
  if count() == 1:
    return [value]
  store, call = _store(), next(_calls)
  here = f'agree/{call}'
  store.key_value_set_bytes(f'{here}/{index()}', pickle.dumps(value))
  try:
    store.wait_at_barrier(here, int(1000 * GATHER_TIMEOUT))
    late = None
  except jax.errors.JaxRuntimeError as error:
    late = error
  found = {_host(key): sent for key, sent in store.key_value_dir_get_bytes(here)}
  if late is not None:
    missing = [str(n) for n in range(count()) if n not in found]
    raise HostError(
      f'waited {GATHER_TIMEOUT} s for {what!r} from host {" and ".join(missing)} of '
      f'{count()}; {RESTART}'
    ) from late
  if is_primary():  # all hosts have read the values of the call before
    store.key_value_delete(f'agree/{call - 1}')
  return [pickle.loads(found[n]) for n in range(count())]


_calls = itertools.count()


def _store() -> Any:
  return distributed.global_state.client


def _host(key: str) -> int:
  return int(key.rsplit('/', 1)[1])


def _address(config: MeshConfig) -> dict[str, str | int]:
  """Returns arguments of `jax.distributed.initialize`.

  Raises HostError for addresses with which JAX would end the process.
  """
  host, port = config.coordinator.rsplit(':', 1)
  host, began = host.strip('[]'), time.monotonic()
  if config.host == 0:
    try:
      socket.create_server(('', int(port))).close()
    except OSError as error:
      raise HostError(
        f'mesh.coordinator: expected a free port on this host, which is host 0, got '
        f'{port} ({error.strerror}); choose another one'
      ) from error
  while config.host:
    try:
      socket.create_connection((host, int(port)), timeout=HEARTBEAT).close()
      break
    except OSError as error:
      if time.monotonic() - began > CONNECT_TIMEOUT:
        raise HostError(
          f'mesh.coordinator: host 0 did not answer at {config.coordinator} for '
          f'{CONNECT_TIMEOUT} s ({error}); start the same command on all hosts, with '
          'an address of host 0 that all can reach'
        ) from error
      time.sleep(HEARTBEAT)
  return {
    'coordinator_address': config.coordinator,
    'num_processes': config.hosts,
    'process_id': config.host,
  }


def _detects_hosts() -> bool:
  """Returns whether the environment names other hosts."""
  kinds = clusters.ClusterEnv._cluster_types
  with warnings.catch_warnings(action='ignore'):  # about packages for other clusters
    present = [k for k in kinds if not k.opt_in_only_method and k.is_env_present()]
  return any(kind.get_process_count() > 1 for kind in present[:1])


def _check_same(config: Config, names: list[str]) -> None:
  """Raises HostError unless all hosts have the same config, code and JAX."""
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
  """Returns a digest of the package's files."""
  package = Path(__file__).parents[1]
  total = hashlib.sha256()
  for file in sorted(package.rglob('*.py')):
    total.update(str(file.relative_to(package)).encode() + file.read_bytes())
  return total.hexdigest()[:12]


def _watch(names: list[str], witness: Witness, over: threading.Event) -> None:
  """Sends heartbeats; exits this process when another host has stopped or died."""
  store, began = _store(), time.monotonic()
  seen = dict.fromkeys(range(count()), ('', began))
  for beat in itertools.count():
    if over.wait(HEARTBEAT):
      return
    try:
      store.key_value_set(f'alive/{index()}', str(beat), allow_overwrite=True)
      stopped = store.key_value_dir_get('stopped')
      alive = store.key_value_dir_get('alive')
    except jax.errors.JaxRuntimeError:
      return  # host 0 is gone: JAX ends this process, and the witness reports why
    now = time.monotonic()
    for key, value in alive:
      if seen[_host(key)][0] != value:
        seen[_host(key)] = value, now
    failed = {_host(key): f'has stopped: {text}' for key, text in stopped}
    for other, (_, when) in seen.items():
      if now - when > HEARTBEAT_TIMEOUT:
        dead = f'has sent no heartbeat for {HEARTBEAT_TIMEOUT:g} s; {RESTART}'
        failed.setdefault(other, dead)
    for other, sentence in failed.items():
      if not over.is_set():
        print(f'error: host {other} ({names[other]}) {sentence}', file=sys.stderr)
        if is_primary():
          time.sleep(GRACE)  # this host serves the store, and others must still read it
        witness.dismiss()
        _exit(1)


def _exit(status: int) -> NoReturn:
  """Ends this process without waiting for its other threads."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
