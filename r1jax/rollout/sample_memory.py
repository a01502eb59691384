"""Whether a sampler fits the memory of its devices, before anything is compiled.

Counted are weights, and keys and values. A program also has activations, so a sampler
that passes may still not fit, but one that is refused never does.
"""

import bisect
import dataclasses
import functools

import jax
import jax.numpy as jnp

from r1jax.model import decoder
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.decoder_api import read_prompts
from r1jax.sharding.place import bytes_per_device, param_shardings, unbox
from r1jax.sharding.rules import MeshError, shard_count

# Copies of the outputs' keys and values at the peak. XLA's CPU compiler has two while
# slots are sorted, and one and a half while blocks are joined; that for TPUs has one.
COPIES = {'cpu': (2.0, 1.5)}
GB = 1e9


@dataclasses.dataclass(frozen=True)
class SampleMemory:
  """What a sampler takes on each device.

  Fields:
    weights: bytes.
    position: bytes of the keys and values of one position of one row. A layer with a
      window has as many as the others.
    prompts, outputs: P and P * G of the device, sampled at a time.
    prompt_length: S, tokens.
    platform: of the devices.
  """

  weights: float
  position: float
  prompts: float
  outputs: int
  prompt_length: int
  platform: str

  def cache(self, slots: int, max_length: int) -> float:
    """Returns the bytes of keys and values with so many slots (0: all outputs)."""
    with_slots, without = COPIES.get(self.platform, (1.0, 1.0))
    columns = self.prompts * self.prompt_length
    if 0 < slots < self.outputs:
      columns += with_slots * slots * (self.prompt_length + max_length)
    else:
      columns += without * self.outputs * max_length
    return self.position * columns

  def total(self, slots: int, max_length: int) -> float:
    """Returns the bytes of weights, keys and values."""
    return self.weights + self.cache(slots, max_length)


def of_sampler(
  sampler: Sampler, prompts: int, group_size: int, param_dtype: str
) -> SampleMemory:
  """Returns what a sampler takes.

  Args:
    sampler: see `Sampler`.
    prompts: P, sampled at a time.
    group_size: G.
    param_dtype: of most parameters.
  """
  policy, program = sampler.policy, sampler.program
  mesh, shards = program.sampling_mesh, shard_count(program.sampling_mesh, 'prompt')
  platform = mesh.devices.flat[0].platform
  # On a CPU decoding reads a copy, in the type of the products.
  types = (param_dtype, policy.config.dtype) if platform == 'cpu' else (param_dtype,)
  places = param_shardings(mesh, program.sampling_names, 'mesh.sampler_')
  weights = 0.0
  for dtype in types:
    shapes = decoder.with_dtype(unbox(policy.names), dtype)
    shapes = jax.tree.map(lambda x, place: x.update(sharding=place), shapes, places)
    weights += bytes_per_device(shapes)
  return SampleMemory(
    weights,
    _position(sampler, platform) / shard_count(mesh, 'kv_heads'),
    prompts / shards,
    prompts * group_size // shards,
    sampler.max_prompt_length,
    platform,
  )


def _position(sampler: Sampler, platform: str) -> float:
  """Returns the bytes of the keys and values of a position of a row."""
  row = 1, sampler.max_prompt_length
  _, (kv, _), _ = jax.eval_shape(
    functools.partial(read_prompts, model=sampler.policy.functions),
    unbox(sampler.policy.names),
    jax.ShapeDtypeStruct(row, jnp.int32),
    jax.ShapeDtypeStruct(row, jnp.bool_),
  )
  # XLA's compiler for TPUs keeps them in bfloat16, as its products round them.
  sizes = [2 if platform == 'tpu' else x.dtype.itemsize for x in jax.tree.leaves(kv)]
  leaves = zip(jax.tree.leaves(kv), sizes, strict=True)
  return sum(x.size * size for x, size in leaves) / sampler.max_prompt_length


def check(
  sampler: Sampler,
  *,
  prompts: int,
  group_size: int,
  max_length: int,
  param_dtype: str,
  memory: float,
) -> None:
  """Raises MeshError if a sampler needs more than a device has, with what would fit.

  Args:
    sampler, prompts, group_size, param_dtype: see `of_sampler`.
    max_length: T, tokens.
    memory: of a device, bytes.
  """
  slots = sampler.layout.sampler_slots
  need = of_sampler(sampler, prompts, group_size, param_dtype)
  if need.total(slots, max_length) <= memory:
    return
  decoded = min(slots or need.outputs, need.outputs)
  fewer = bisect.bisect(
    range(1, decoded), memory, key=lambda n: need.total(n, max_length)
  )
  shorter = bisect.bisect(
    range(1, max_length), memory, key=lambda n: need.total(slots, n)
  )
  changes = []
  if fewer:
    changes.append(f'mesh.sampler_slots to {fewer} or less')
  if shorter:
    changes.append(f'max_length to {shorter} or less')
  if sampler.policy.config.dtype != 'bfloat16':
    half = of_sampler(_in_bfloat16(sampler), prompts, group_size, param_dtype)
    if half.total(slots, max_length) <= memory:
      changes.append('dtype to bfloat16')
  place = 'the machine' if need.platform == 'cpu' else 'a device'
  raise MeshError(
    f'mesh.sampler_slots: expected outputs that fit the {memory / GB:.1f} GB of '
    f'{place}, got {decoded} at a time of up to {max_length} tokens, whose keys and '
    f'values take {need.cache(slots, max_length) / GB:.1f} GB beside '
    f'{need.weights / GB:.1f} GB of weights; '
    + (f'set {", or ".join(changes)}' if changes else 'evaluate a smaller model')
  )


def _in_bfloat16(sampler: Sampler) -> Sampler:
  """Returns the sampler with products, keys and values in bfloat16."""
  config = dataclasses.replace(sampler.policy.config, dtype='bfloat16')
  policy = dataclasses.replace(sampler.policy, config=config)
  return dataclasses.replace(sampler, policy=policy)
