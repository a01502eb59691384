"""Checkpoints: orbax writes them, a digest of every array proves them whole.

A checkpoint appears under its step number only once it is complete, so a kill or a
full disk leaves the ones before it as they were.
"""

import concurrent.futures
import errno
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# What the system says when a file may be whole but can't be read now.
REFUSED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
KEEP = 2  # newest; the older of them is there if the newest turns out damaged


class CheckpointError(Exception):
  """A checkpoint that can't be written or read; the message says what to do."""


class Checkpoints:
  """The checkpoints of one stage, in one folder.

  Opening finds the newest one whose arrays match their digests and moves damaged ones
  aside, to `<folder>-damaged`; `step` is its step, or None without any.
  """

  def __init__(self, folder: Path) -> None:
    self._folder = folder.absolute()
    self.warnings: list[str] = []  # a sentence for every damaged checkpoint
    self._set_damaged_aside()
    self._manager = self._open()
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future[None] | None = None

  def _open(self) -> ocp.CheckpointManager:
    # Synchronous, in a thread of our own that computes the digest too.
    options = ocp.CheckpointManagerOptions(
      max_to_keep=KEEP, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(self._folder, options=options)

  @property
  def step(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Any, manifest: dict[str, Any]) -> None:
    """Begins to write a tree of arrays and a manifest of JSON values under `step`.

    Returns once the arrays are copied to the host; they are written while the run goes
    on. `wait` says how it ended; so does the next `save`, which waits first.
    """
    self.wait()
    arrays = _by_path(tree)
    self._writing = self._writer.submit(self._write, step, arrays, manifest)

  def wait(self) -> None:
    """Returns when the last checkpoint is on the disk.

    Raises:
      CheckpointError: the disk is full or the folder can't be written. Earlier
        checkpoints are untouched.
    """
    writing, self._writing = self._writing, None
    if writing is not None:
      writing.result()

  def _write(
    self, step: int, arrays: dict[str, np.ndarray], manifest: dict[str, Any]
  ) -> None:
    content = {'digest': digest(arrays), 'step': step, **manifest}
    args = ocp.args.Composite(
      arrays=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(content)
    )
    try:
      self._manager.save(step, args=args)
    except Exception as error:  # orbax and tensorstore wrap OSError in their own
      # Left behind, its tasks would each print a traceback when the process ends.
      sys.unraisablehook = lambda unraisable: None
      logging.getLogger('asyncio').setLevel(logging.CRITICAL + 1)
      kept = f'the one of step {self.step} is intact' if self.step else 'none is kept'
      full = 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error)
      reason = 'No space left on device' if full else _first_line(error)
      raise CheckpointError(
        f'the checkpoint of step {step} could not be written to {self._folder} '
        f'({reason}); {kept}; free some space and run the same command'
      ) from error

  def restore(self, like: Any) -> Any:
    """Returns the newest checkpoint's arrays in the structure of `like`.

    Raises:
      CheckpointError: its arrays are not those of `like` (names, shapes or types).
    """
    arrays, _ = self._newest()
    flat, structure = jax.tree.flatten_with_path(like)
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    for name in sorted(wanted.keys() | arrays.keys()):
      expected, found = (_shape(tree.get(name)) for tree in (wanted, arrays))
      if expected != found:
        raise CheckpointError(
          f'{self._folder}/{self.step}: {name} was expected to be {expected}, but the '
          f'checkpoint has {found}; it belongs to another model or optimizer'
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in wanted])

  def resume(self, state: Any) -> tuple[Any, int]:
    """Returns the newest checkpoint, placed like `state`, and its step.

    Without any it is `state` itself, and step 0. Raises what `restore` raises.
    """
    if self.step is None:
      return state, 0
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.device_put(self.restore(state), shardings), self.step

  def manifest(self) -> dict[str, Any]:
    """The newest checkpoint's manifest: what `save` was given, with its digest."""
    return self._newest()[1]

  def _newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if self.step is None:
      raise CheckpointError(f'{self._folder} has no complete checkpoint')
    return _read(self._folder, self.step)

  def _set_damaged_aside(self) -> None:
    if self._folder.exists() and not self._folder.is_dir():
      raise CheckpointError(
        f'{self._folder} is a file, expected a folder of checkpoints; move it away'
      )
    found = self._folder.glob('[1-9]*') if self._folder.exists() else ()
    steps = sorted((int(p.name) for p in found if p.name.isdecimal()), reverse=True)
    for step in steps:
      try:
        arrays, manifest = _read(self._folder, step)
        if manifest['digest'] == digest(arrays):
          if self.warnings:
            self.warnings.append(f'The one of step {step} before it is used.')
          return
        reason = 'its arrays do not match their digest'
      except Exception as error:  # whatever a damaged file makes its reader raise
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


def digest_of(tree: Any) -> str:
  """The digest of a tree's arrays, as a checkpoint's manifest has it."""
  return digest(_by_path(tree))


def digest(arrays: dict[str, np.ndarray]) -> str:
  """The SHA-256 of all names, types, shapes and bytes."""
  total = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    total.update(f'{name} {array.dtype} {array.shape} '.encode())
    total.update(array.tobytes())
  return total.hexdigest()


def _by_path(tree: Any) -> dict[str, np.ndarray]:
  """Host copies by path: a name says more in an error than a position does.

  Copies: on a CPU a view would share the buffer that the next step donates.
  """
  flat, _ = jax.tree.flatten_with_path(tree)
  return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in flat}


def _read(folder: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  with ocp.CheckpointManager(folder) as manager:
    content = manager.restore(
      step,
      args=ocp.args.Composite(
        arrays=ocp.args.StandardRestore(), manifest=ocp.args.JsonRestore()
      ),
    )
  return content['arrays'], content['manifest']


def _shape(array: Any) -> str:
  return 'absent' if array is None else f'{np.dtype(array.dtype)}{list(array.shape)}'


def _first_line(error: BaseException) -> str:
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
