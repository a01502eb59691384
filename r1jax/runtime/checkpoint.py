"""Checkpoints: written by orbax, verified by a digest of their arrays.

Each host writes its devices' shards in the background, and reads the shards that its
devices need, on any mesh. A checkpoint appears under its step number only once it is
complete, so a kill or a full disk leaves earlier checkpoints intact.
"""

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import KeyPath

from r1jax.plain import JsonObject
from r1jax.runtime import hosts
from r1jax.runtime.digest import by_path, digest_arrays, digest_of
from r1jax.trees import T

# System errors after which a file may be intact although it can't be read now.
REFUSED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Checkpoints up to this size are copied, and written while the run continues. For a
# larger one the run waits, as there may be no memory for the copy.
COPIED = 2**28  # bytes
KEEP = 2  # newest checkpoints; the older one serves if the newest is damaged


class CheckpointError(Exception):
  """A checkpoint can't be written or read; the message says what to do."""


class Checkpoints:
  """The checkpoints of one stage, in one folder.

  Opening moves damaged checkpoints to `<folder>-damaged`, until the newest one matches
  its digest. With several hosts, all hosts must call the same methods.

  With `own` False the folder belongs to another run: nothing is moved, and `restore`
  verifies the digest.

  Attributes:
    warnings: a sentence for every damaged checkpoint.
  """

  def __init__(self, folder: Path, own: bool = True) -> None:
    self._folder = folder.absolute()
    self.warnings: list[str] = []
    if self._folder.exists() and not self._folder.is_dir():
      raise CheckpointError(
        f'{self._folder} is a file, expected a folder of checkpoints; move it away'
      )
    # Not with several hosts: each would have to read the arrays of all.
    self._verified = own and hosts.count() == 1
    if self._verified:
      self._move_damaged()
    self._manager = _manager(self._folder)
    self._writing: int | None = None

  @property
  def step(self) -> int | None:
    """Step of the newest checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, tree: object, manifest: JsonObject) -> None:
    """Starts to write a tree of arrays and a manifest of JSON values under `step`.

    Returns once the arrays are copied to the host; they are written in the background.
    `wait`, or the next `save`, raises if writing failed. On a CPU a tree larger than
    `COPIED` is not copied, and is on disk when this returns.
    """
    self.wait()
    content = {'digest': digest_of(tree), 'step': step, **manifest}
    arrays = by_path(tree)
    on_host = jax.default_backend() == 'cpu'
    size = sum(x.nbytes for x in arrays.values())
    if on_host and size <= COPIED:  # the next step uses their memory again
      arrays = {name: jnp.copy(x) for name, x in arrays.items()}
    args = ocp.args.Composite(
      arrays=ocp.args.PyTreeSave(arrays), manifest=ocp.args.JsonSave(content)
    )
    self._writing = step
    with self._explained(step):
      self._manager.save(step, args=args)
    if on_host and size > COPIED:
      self.wait()

  def wait(self) -> None:
    """Waits until the last checkpoint is on disk.

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
    """Turns errors of orbax and tensorstore into a CheckpointError with advice."""
    try:
      yield
    except Exception as error:  # they wrap OSError in their own types
      self._writing = None
      _silence_orbax()
      whole = max(self._manager.all_steps(read=True), default=None)
      kept = f'the one of step {whole} is intact' if whole else 'none is kept'
      full = 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error)
      reason = 'No space left on device' if full else _first_line(error)
      raise CheckpointError(
        f'the checkpoint of step {step} could not be written to {self._folder} '
        f'({reason}); {kept}; free some space and run the same command'
      ) from error

  def restore(self, like: T) -> T:
    """Returns the newest checkpoint's arrays, structured and sharded like `like`.

    Args:
      like: a tree of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      CheckpointError: names, shapes or types differ from `like`, or the arrays do not
        match their digest (verified here unless it was on opening).
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
      _silence_orbax()
      raise CheckpointError(
        f'{place} could not be read ({_first_line(error)}); restore it, or move it '
        'away: the same command then resumes from the one before it'
      ) from error
    if not self._verified and digest_arrays(arrays) != manifest['digest']:
      raise CheckpointError(
        f'{place} is damaged (its arrays do not match their digest); move it away: the '
        'same command then resumes from the one before it'
      )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])

  def in_own_types(self, like: T) -> T:
    """Returns the shapes of `like` with the newest checkpoint's dtypes.

    Raises CheckpointError without one.
    """
    saved = _shapes(self._folder, self._newest)

    def one(path: KeyPath, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      own = saved.get(jax.tree_util.keystr(path), x)
      return jax.ShapeDtypeStruct(x.shape, own.dtype, sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, like)

  def resume(self, state: T) -> tuple[T, int]:
    """Returns the newest checkpoint, sharded like `state`, and its step.

    Returns `state` itself and 0 if there is no checkpoint. Raises like `restore`.
    """
    return (state, 0) if self.step is None else (self.restore(state), self.step)

  def manifest(self) -> JsonObject:
    """Returns the newest checkpoint's manifest: that of `save`, digest and step.

    Raises CheckpointError if it can't be read.
    """
    args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    step = self._newest
    with _manager(self._folder) as manager:
      try:
        return manager.restore(step, args=args)['manifest']
      except Exception as error:  # of several types
        _silence_orbax()
        raise CheckpointError(
          f'the manifest of {self._folder}/{step} could not be read '
          f'({_first_line(error)}); restore it'
        ) from error

  @property
  def _newest(self) -> int:
    if self.step is None:
      raise CheckpointError(f'{self._folder} has no complete checkpoint')
    return self.step

  def _move_damaged(self) -> None:
    found = self._folder.glob('[1-9]*') if self._folder.exists() else ()
    steps = sorted((int(p.name) for p in found if p.name.isdecimal()), reverse=True)
    for step in steps:
      try:
        arrays, manifest = _read(self._folder, step, _shapes(self._folder, step))
        if manifest['digest'] == digest_arrays(arrays):
          if self.warnings:
            self.warnings.append(f'The one of step {step} before it is used.')
          return
        reason = 'its arrays do not match their digest'
      except Exception as error:  # a damaged file can raise anything
        _silence_orbax()
        if isinstance(error, MemoryError) or getattr(error, 'errno', None) in REFUSED:
          raise CheckpointError(
            f'{self._folder}/{step} could not be read ({_first_line(error)}); it may '
            'be intact, so it was not moved; fix that and run the same command'
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


def _silence_orbax() -> None:
  """Silences tracebacks at exit from tasks that orbax leaves behind."""
  sys.unraisablehook = lambda unraisable: None
  logging.getLogger('asyncio').setLevel(logging.CRITICAL + 1)


def _manager(folder: Path) -> ocp.CheckpointManager:
  """Returns orbax's manager of a folder of checkpoints."""
  handlers = {
    # Of all arrays, compressed bytes would be in memory at once: 2 GB for 2 GB of
    # random numbers, which are 7 % shorter on disk.
    'arrays': ocp.PyTreeCheckpointHandler(use_compression=False),
    'manifest': ocp.JsonCheckpointHandler(),
  }
  options = ocp.CheckpointManagerOptions(max_to_keep=KEEP)
  return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _shapes(folder: Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and dtypes of a checkpoint's arrays, by path."""
  with _manager(folder) as manager:
    found = manager.item_metadata(step)['arrays']
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in found.items()}


def _read(
  folder: Path, step: int, like: Mapping[str, jax.Array | jax.ShapeDtypeStruct]
) -> tuple[dict[str, jax.Array], JsonObject]:
  """Returns arrays, sharded like `like` or on the first device, and the manifest."""
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    name: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or first
    )
    for name, x in like.items()
  }
  args = ocp.args.Composite(
    arrays=ocp.args.PyTreeRestore(
      wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
    ),
    manifest=ocp.args.JsonRestore(),
  )
  with _manager(folder) as manager:
    content = manager.restore(step, args=args)
  return content['arrays'], content['manifest']


def _shape(array: jax.Array | jax.ShapeDtypeStruct | None) -> str:
  return 'absent' if array is None else f'{np.dtype(array.dtype)}{list(array.shape)}'


def _first_line(error: BaseException) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
