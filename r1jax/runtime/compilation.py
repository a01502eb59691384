"""Compiled programs: kept on disk between runs, and counted while one goes on."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from jax.experimental.compilation_cache import compilation_cache

from r1jax.runtime import memory

WORTH_KEEPING = (
  0.1  # seconds of compilation; jax's own default, 1, leaves out small ones
)
_COMPILED = '/jax/core/compile/backend_compile_duration'  # jax's name of the event


def keep_on_disk() -> None:
  """Lets later runs take compiled programs from the user's cache folder.

  Or from where JAX_COMPILATION_CACHE_DIR points to. Small ones too, unless
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says otherwise.
  """
  config: Any = jax.config  # its fields are made at run time
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    config.update('jax_persistent_cache_min_compile_time_secs', WORTH_KEEPING)
  if not config.jax_compilation_cache_dir:
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    config.update('jax_compilation_cache_dir', str(Path(cache) / 'r1jax'))


@contextlib.contextmanager
def nothing_from_disk() -> Iterator[None]:
  """Compiles what is inside even if it was kept: XLA tells only then how it did it."""
  config: Any = jax.config
  before = config.jax_enable_compilation_cache
  config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # jax looks at its configuration once
  try:
    yield
  finally:
    config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def options(mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
  """Compiler options of the programs of RL, for `jax.jit`.

  On a CPU LLVM's level 1, where its own default is 3: programs come a quarter sooner,
  and none of the sampler's or the learner's was slower. Without a mesh it is the
  default device that counts.
  """
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  on_cpu = device.platform == 'cpu'
  return {'xla_backend_optimization_level': 1} if on_cpu else {}


class Compilations:
  """Counts what is compiled, or loaded from disk, while it is open.

  The compiler's memory, which may be that of several models, is given back each time.
  """

  def __init__(self) -> None:
    self._programs, self._seconds = 0, 0.0

  def since(self) -> tuple[int, float]:
    """How many programs, and in how many seconds, since the last call."""
    counted = self._programs, self._seconds
    self._programs, self._seconds = 0, 0.0
    return counted

  def __enter__(self) -> Self:
    memory.map_large_blocks()
    jax.monitoring.register_event_duration_secs_listener(self._note)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    jax.monitoring.unregister_event_duration_listener(self._note)

  def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
    if event == _COMPILED:
      self._programs += 1
      self._seconds += duration_secs
      memory.give_back()
