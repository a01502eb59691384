"""Compilation: the cache on disk, compiler options, and counts of compiled programs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import optax
from jax.experimental.compilation_cache import compilation_cache

from r1jax.runtime import memory

# Programs that compile for at least this long are cached; jax's default, 1, leaves out
# small ones.
MIN_SECONDS = 0.1
# With larger weights memory is a CPU's limit, not how many operations run at a time.
LARGE_WEIGHTS = 2**27  # bytes
_COMPILED = '/jax/core/compile/backend_compile_duration'  # jax's name of the event


def keep_on_disk() -> None:
  """Keeps compiled programs on disk for later runs.

  They go to JAX_COMPILATION_CACHE_DIR if it is set, else to the user's cache folder.
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS overrides `MIN_SECONDS`.
  """
  config: Any = jax.config  # its fields are created at run time
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
  if not config.jax_compilation_cache_dir:
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    config.update('jax_compilation_cache_dir', str(Path(cache) / 'r1jax'))


@contextlib.contextmanager
def nothing_from_disk() -> Iterator[None]:
  """Turns the cache off, as XLA reports costs only of programs that it compiles."""
  config: Any = jax.config
  before = config.jax_enable_compilation_cache
  config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # jax reads its configuration only once
  try:
    yield
  finally:
    config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def is_large(params: optax.Params) -> bool:
  """Whether a model's weights are more than `LARGE_WEIGHTS`."""
  sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
  return sum(sizes) > LARGE_WEIGHTS


def options(
  mesh: jax.sharding.Mesh | None = None, little_memory: bool = False
) -> dict[str, int | str]:
  """Returns compiler options for `jax.jit` of the RL programs.

  On a CPU they lower LLVM's optimization level from 3 to 1: programs compile in three
  quarters of the time, and neither the sampler's nor the learner's ran slower.

  Args:
    mesh: of the program; None is the default device.
    little_memory: on a CPU, order operations for little memory instead of for running
      many at a time. It costs a small model 6 % of an update, a large one nothing.
  """
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  if device.platform != 'cpu':
    return {}
  found: dict[str, int | str] = {'xla_backend_optimization_level': 1}
  if little_memory:
    found['xla_cpu_scheduler_type'] = 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'
  return found


class Compilations:
  """Counts programs compiled, or loaded from disk, while it is open.

  Returns the compiler's memory to the system after each; it can be several times that
  of the model.
  """

  def __init__(self) -> None:
    self._programs, self._seconds = 0, 0.0

  def since(self) -> tuple[int, float]:
    """Returns the number of programs and their seconds since the last call."""
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
