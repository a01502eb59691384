"""Checkpoints: orbax writes them, a digest of every array proves them whole.

Each host writes the parts that its devices have, while the run goes on, and reads
those that they are to have, on whatever mesh. A checkpoint appears under its step
number only once it is complete, so a kill or a full disk leaves the ones before it as
they were.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from r1jax.runtime import hosts

# What the system says when a file may be whole but can't be read now.
REFUSED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Of a checkpoint that is copied and written while the run goes on. A larger one the run
# waits for: there may be no room for the copy.
COPIED = 2**28  # bytes
KEEP = 2  # newest; the older of them is there if the newest turns out damaged


class CheckpointError(Exception):
  """A checkpoint that can't be written or read; the message says what to do."""


class Checkpoints:
  """The checkpoints of one stage, in one folder.

  Opening finds the newest one whose arrays match their digests and moves damaged ones
  aside, to `<folder>-damaged`; `step` is its step, or None without any. With several
  hosts all call the same methods.

  Of another run's, with `own` False, nothing is moved: `restore` looks.
  """

  def __init__(self, folder: Path, own: bool = True) -> None:
    self._folder = folder.absolute()
    self.warnings: list[str] = []  # a sentence for every damaged checkpoint
    if self._folder.exists() and not self._folder.is_dir():
      raise CheckpointError(
        f'{self._folder} is a file, expected a folder of checkpoints; move it away'
      )
    # With several hosts one alone would read all that all have.
    self._looked = own and hosts.count() == 1
    if self._looked:
      self._set_damaged_aside()
    self._manager = _manager(self._folder)
    self._writing: int | None = None

  @property
  def step(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Any, manifest: dict[str, Any]) -> None:
    """Begins to write a tree of arrays and a manifest of JSON values under `step`.

    Returns once the arrays are copied to the host; they are written while the run goes
    on. `wait` says how it ended; so does the next `save`, which waits first. On a CPU
    a large tree is not copied, and written when this returns.
    """
    self.wait()
    content = {'digest': digest_of(tree), 'step': step, **manifest}
    arrays = _by_path(tree)
    on_host = jax.default_backend() == 'cpu'
    size = sum(x.nbytes for x in arrays.values())
    if on_host and size <= COPIED:  # the next step uses their memory again
      arrays = {name: jnp.copy(x) for name, x in arrays.items()}
    args = ocp.args.Composite(
      arrays=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(content)
    )
    self._writing = step
    with self._explained(step):
      self._manager.save(step, args=args)
    if on_host and size > COPIED:
      self.wait()

  def wait(self) -> None:
    """Returns when the last checkpoint is on the disk.

    Raises:
      CheckpointError: the disk is full or the folder can't be written. Earlier
        checkpoints are untouched.
    """
    step, self._writing = self._writing, None
    if step is not None:
      with self._explained(step):
        self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self, step: int) -> Iterator[None]:
    """Turns what orbax and tensorstore say about writing into what to do about it."""
    try:
      yield
    except Exception as error:  # they wrap OSError in their own
      self._writing = None
      _hush()
      whole = max(self._manager.all_steps(read=True), default=None)
      kept = f'the one of step {whole} is intact' if whole else 'none is kept'
      full = 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error)
      reason = 'No space left on device' if full else _first_line(error)
      raise CheckpointError(
        f'the checkpoint of step {step} could not be written to {self._folder} '
        f'({reason}); {kept}; free some space and run the same command'
      ) from error

  def restore(self, like: Any) -> Any:
    """Returns the newest checkpoint's arrays in the structure of `like`.

    They lie as those of `like`, which may be shapes alone, say that they do.

    Raises:
      CheckpointError: its arrays are not those of `like` (names, shapes or types), or,
        where opening has not looked, not those that were saved.
    """
    place = f'{self._folder}/{self.step}'
    flat, structure = jax.tree.flatten_with_path(like)
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    saved = _shapes(self._folder, self._newest)
    for name in sorted(wanted.keys() | saved.keys()):
      expected, found = (_shape(tree.get(name)) for tree in (wanted, saved))
      if expected != found:
        raise CheckpointError(
          f'{place}: {name} was expected to be {expected}, but the checkpoint has '
          f'{found}; it belongs to another model or optimizer'
        )
    try:
      arrays, manifest = _read(self._folder, self._newest, wanted)
    except Exception as error:
      _hush()
      raise CheckpointError(
        f'{place} could not be read ({_first_line(error)}); restore it, or move it '
        'away: the same command then goes on from the one before it'
      ) from error
    if not self._looked and _digest(arrays) != manifest['digest']:
      raise CheckpointError(
        f'{place} is damaged (its arrays do not match their digest); move it away: the '
        'same command then goes on from the one before it'
      )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])

  def in_own_types(self, like: Any) -> Any:
    """Returns the shapes of `like` with the types that the newest checkpoint has.

    Raises CheckpointError without one.
    """
    saved = _shapes(self._folder, self._newest)

    def one(path: Any, x: Any) -> jax.ShapeDtypeStruct:
      own = saved.get(jax.tree_util.keystr(path), x)
      return jax.ShapeDtypeStruct(x.shape, own.dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, like)

  def resume(self, state: Any) -> tuple[Any, int]:
    """Returns the newest checkpoint, placed like `state`, and its step.

    Without any it is `state` itself, and step 0. Raises what `restore` raises.
    """
    return (state, 0) if self.step is None else (self.restore(state), self.step)

  def manifest(self) -> dict[str, Any]:
    """The newest checkpoint's manifest: what `save` was given, with its digest.

    Raises CheckpointError where it can't be read.
    """
    args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    step = self._newest
    with _manager(self._folder) as manager:
      try:
        return manager.restore(step, args=args)['manifest']
      except Exception as error:  # of several kinds
        _hush()
        raise CheckpointError(
          f'the manifest of {self._folder}/{step} could not be read '
          f'({_first_line(error)}); restore it'
        ) from error

  @property
  def _newest(self) -> int:
    if self.step is None:
      raise CheckpointError(f'{self._folder} has no complete checkpoint')
    return self.step

  def _set_damaged_aside(self) -> None:
    found = self._folder.glob('[1-9]*') if self._folder.exists() else ()
    steps = sorted((int(p.name) for p in found if p.name.isdecimal()), reverse=True)
    for step in steps:
      try:
        arrays, manifest = _read(self._folder, step, _shapes(self._folder, step))
        if manifest['digest'] == _digest(arrays):
          if self.warnings:
            self.warnings.append(f'The one of step {step} before it is used.')
          return
        reason = 'its arrays do not match their digest'
      except Exception as error:  # whatever a damaged file makes its reader raise
        _hush()
        if isinstance(error, MemoryError) or getattr(error, 'errno', None) in REFUSED:
          raise CheckpointError(
            f'{self._folder}/{step} could not be read ({_first_line(error)}); it may '
            'be whole, so it is left as it is'
          ) from error
        reason = _first_line(error)
      aside = self._folder.with_name(f'{self._folder.name}-damaged')
      aside.mkdir(exist_ok=True)
      number = len(list(aside.iterdir()))
      (self._folder / str(step)).rename(aside / f'{step}-{number}')
      self.warnings.append(
        f'The checkpoint of step {step} in {self._folder} is damaged ({reason}); it '
        f'was moved to {aside}.'
      )
    if self.warnings:
      self.warnings.append(f'No whole checkpoint is left in {self._folder}.')


def _hush() -> None:
  """Keeps tasks that orbax leaves behind from printing tracebacks at the end."""
  sys.unraisablehook = lambda unraisable: None
  logging.getLogger('asyncio').setLevel(logging.CRITICAL + 1)


def digest_of(tree: Any) -> str:
  """The digest of a tree's arrays, as a checkpoint's manifest has it.

  The SHA-256 of all names, types and shapes and of a sum over each array's numbers,
  which does not depend on how the array is cut: see `number_sum`. All hosts call it.
  """
  return _digest(_by_path(tree))


def _digest(arrays: dict[str, jax.Array]) -> str:
  with concurrent.futures.ThreadPoolExecutor() as threads:
    own = dict(zip(arrays, threads.map(_own_sum, arrays.values()), strict=True))
  parts = hosts.all_gather('digest', own)
  total = hashlib.sha256()
  for name in sorted(arrays):
    x, number = arrays[name], sum(part[name] for part in parts) % 2**64
    total.update(f'{name} {x.dtype} {x.shape} {number:016x} '.encode())
  return total.hexdigest()


def number_sum(x: np.ndarray, first: Sequence[int] = ()) -> int:
  """The sum, modulo 2^64, of an array's numbers, as bits, each times its weight.

  The weight is the product of one for each index, odd and otherwise random, so any
  change of one number changes the sum, and parts of an array add up to the whole.

  Args:
    x: the array, or a part of one.
    first: the index in the array of the part's first number; none is the whole.
  """
  total = np.ascontiguousarray(x).view(f'u{x.dtype.itemsize}').reshape(x.shape)
  for axis in reversed(range(x.ndim)):
    start = first[axis] if first else 0
    places = np.arange(start, start + x.shape[axis], dtype=np.uint64)
    total = _weighted(total, _random(places + np.uint64(axis << 48)) | np.uint64(1))
  return int(total)


def _weighted(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """x @ weights in 64 bits, a cache's worth of rows at a time."""
  flat = x.reshape(-1, x.shape[-1])
  rows = max(1, 2**15 // max(1, flat.shape[1]))
  total = np.zeros(len(flat), np.uint64)
  for start in range(0, len(flat), rows):
    some = slice(start, start + rows)
    total[some] = flat[some].astype(np.uint64) @ weights
  return total.reshape(x.shape[:-1])


def _random(x: np.ndarray) -> np.ndarray:
  """splitmix64 (Steele et al. 2014) of each number."""
  x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _own_sum(x: jax.Array) -> int:
  """`number_sum` of the parts of an array that no other device or host counts."""
  total = 0
  for shard in x.addressable_shards:
    if shard.replica_id == 0:
      first = [cut.start or 0 for cut in shard.index]
      total += number_sum(np.asarray(shard.data), first)
  return total


def _by_path(tree: Any) -> dict[str, jax.Array]:
  """Arrays by path: a name says more in an error than a position does."""
  flat, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in flat}


def _manager(folder: Path) -> ocp.CheckpointManager:
  handlers = {
    'arrays': ocp.StandardCheckpointHandler(),
    'manifest': ocp.JsonCheckpointHandler(),
  }
  options = ocp.CheckpointManagerOptions(max_to_keep=KEEP)
  return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _shapes(folder: Path, step: int) -> dict[str, Any]:
  """The arrays of a checkpoint, without their numbers."""
  with _manager(folder) as manager:
    found = manager.item_metadata(step)['arrays']
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.items()}


def _read(
  folder: Path, step: int, like: dict[str, Any]
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
  """Arrays that lie as those of `like` do, or on the first device; the manifest."""
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or first
    )
    for name, x in like.items()
  }
  args = ocp.args.Composite(
    arrays=ocp.args.StandardRestore(wanted), manifest=ocp.args.JsonRestore()
  )
  with _manager(folder) as manager:
    content = manager.restore(step, args=args)
  return content['arrays'], content['manifest']


def _shape(array: Any) -> str:
  return 'absent' if array is None else f'{np.dtype(array.dtype)}{list(array.shape)}'


def _first_line(error: BaseException) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
