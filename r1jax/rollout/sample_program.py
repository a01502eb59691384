"""The compiled sampler: works on token ids, on the learner's devices."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from r1jax.runtime import compilation
from r1jax.sampling import continuous, generate
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, sampler_mesh
from r1jax.sharding.place import reshard, without_gathers
from r1jax.sharding.rules import named_sharding, shard_count
from r1jax.trees import Boxed

_LINUX = hasattr(os, 'sched_getaffinity')  # elsewhere all cores count as available


@dataclasses.dataclass(frozen=True)
class SampleProgram:
  """The compiled sampler of a model on a mesh; works on token ids.

  Fields:
    model: the decoder's functions.
    stop_ids: tokens that end a completion.
    mesh: the learner's devices.
    layout: how the sampler uses these devices.
    names: of the parameters' axes.
  """

  model: DecoderFns
  stop_ids: Sequence[int]
  mesh: jax.sharding.Mesh
  layout: MeshConfig
  names: Boxed

  @functools.cached_property
  def sampling_mesh(self) -> jax.sharding.Mesh:
    """The devices as the sampler uses them."""
    return sampler_mesh(self.mesh, self.layout)

  @functools.cached_property
  def sampling_names(self) -> Boxed:
    """Names of the parameters' axes that the sampler shards."""
    if self.layout.sampler_gathers:
      return self.names
    return without_gathers(self.names)

  def place(self, params: optax.Params) -> optax.Params:
    """Returns the parameters resharded on the devices for sampling."""
    if self.mesh.size == 1:
      return params
    return reshard(self.sampling_mesh, params, self.sampling_names)

  @functools.cached_property
  def compiled(self) -> Callable[..., tuple[generate.Completions, jax.Array]]:
    """The jitted sampler, which also returns the lengths [P, G].

    With `slots` it is `continuous.sample`, otherwise `generate.sample`.
    """
    shards = self._shards

    def function(
      params: optax.Params,
      key_data: jax.Array,
      prompts: jax.Array,
      mask: jax.Array,
      slots: int,
      **settings: Any,
    ) -> tuple[generate.Completions, jax.Array]:
      sample: Callable[..., generate.Completions]
      if slots:
        sample = functools.partial(continuous.sample, slots=slots, shards=shards)
      else:
        compact = self.sampling_mesh.size == 1
        sample = functools.partial(generate.sample, compact=compact)
      completions = sample(
        params,
        jax.random.wrap_key_data(key_data),
        prompts,
        mask,
        model=self.model,
        stop_ids=self.stop_ids,
        **settings,
      )
      return completions, completions.mask.sum(-1)

    # Completions are sharded for the learner; every host gets all lengths.
    places = None
    if self.sampling_mesh.size > 1:
      places = named_sharding(self.mesh, 'prompt'), named_sharding(self.mesh)
    return jax.jit(
      on_mesh(self.sampling_mesh, function),
      static_argnames=('config', 'group_size', 'max_length', 'slots'),
      out_shardings=places,
      compiler_options=compilation.options(self.sampling_mesh),
    )

  def parallel_parts(self, prompts: int, params: optax.Params) -> int:
    """Returns how many programs to run in parallel: of a small model, one per core."""
    if self.sampling_mesh.size > 1 or jax.default_backend() != 'cpu':
      return 1
    # Then memory bandwidth is the limit, and one program reads the weights once.
    if compilation.is_large(params):
      return 1
    cores = len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count() or 1
    return max(n for n in range(1, cores + 1) if prompts % n == 0)

  def slots(self, outputs: int, parts: int) -> int:
    """Returns how many of its outputs a program decodes at a time; 0 is all.

    Args:
      outputs: that the program samples, on all devices.
      parts: programs that run in parallel.
    """
    slots = max(1, self.layout.sampler_slots // parts) * self._shards
    return slots if self.layout.sampler_slots and slots < outputs else 0

  @property
  def _shards(self) -> int:
    """Number of devices, or groups of them, that prompts are sharded over."""
    return shard_count(self.sampling_mesh, 'prompt')
