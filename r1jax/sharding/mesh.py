"""Device meshes: their config, construction and size checks.

A mesh has five axes: `data` holds replicas of the model, `fsdp` shards parameters and
prompts, `expert` shards experts and prompts, `context` the positions of a row, `tensor`
heads, hidden channels and the vocabulary.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from r1jax.sharding.rules import AXES, RULES, MeshError, named_sharding, shard_count

_FROM_ZERO = ('data', 'sampler_tensor', 'sampler_expert', 'sampler_slots', 'host')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The axes of the device mesh; their product is the number of devices."""

  machine: ClassVar[bool] = True  # a run may go on with another mesh

  data: int = 0  # replicas of the model; 0: as many as the other axes leave
  fsdp: int = 1  # shards of parameters (gathered layer by layer) and of prompts
  tensor: int = 1  # shards of heads, hidden channels and vocabulary
  expert: int = 1  # shards of experts and of prompts
  context: int = 1  # shards of the positions of a row
  # A sampler replicates the model except along these two axes; 0: as above.
  sampler_tensor: int = 0
  sampler_expert: int = 0
  # Whether samplers also shard the other parameters over `sampler_expert`: this takes
  # less memory, but each decode step gathers them.
  sampler_gathers: bool = False
  # Outputs that a sampler decodes at a time on the devices of one prompt; a finished
  # one makes room for the next. 0: all of a batch.
  sampler_slots: int = 0
  # For several hosts, where the environment does not name them: address of the first
  # (host:port), number of hosts, and the index of this one.
  coordinator: str = ''
  hosts: int = 1
  host: int = 0

  def __post_init__(self) -> None:
    for name in (*AXES[1:], *_FROM_ZERO, 'hosts'):
      value, least = getattr(self, name), 0 if name in _FROM_ZERO else 1
      if value < least:
        raise MeshError(f'mesh.{name}: expected {least} or more, got {value}')
    if self.coordinator and not re.fullmatch(r'.+:\d+', self.coordinator):
      raise MeshError(f'mesh.coordinator: expected host:port, got {self.coordinator!r}')
    if self.coordinator and not 0 < int(self.coordinator.rsplit(':')[-1]) < 2**16:
      raise MeshError(
        f'mesh.coordinator: expected a port from 1 to {2**16 - 1}, got '
        f'{self.coordinator!r}'
      )
    if self.hosts > 1 and not self.coordinator:
      raise MeshError(
        f'mesh.coordinator: expected an address with mesh.hosts {self.hosts}, got none'
      )
    if self.host >= self.hosts:
      raise MeshError(
        f'mesh.host: expected less than mesh.hosts = {self.hosts}, got {self.host}'
      )

  @property
  def parts(self) -> int:
    """Devices per replica of the model."""
    return self.fsdp * self.tensor * self.expert * self.context


REPLICATED = MeshConfig()  # one replica of the model per device


def make_mesh(
  devices: Sequence[jax.Device] | None = None, config: MeshConfig = REPLICATED
) -> Mesh:
  """Returns a mesh of all (or the given) devices.

  With several TPU slices, replicas are distributed over the slices, and each replica is
  sharded within one slice.

  Raises:
    MeshError: if the product of the axes is not the number of devices, or a replica
      does not fit in a slice.
  """
  devices = jax.devices() if devices is None else devices
  copies = config.data or len(devices) // config.parts
  if copies * config.parts != len(devices) or not copies:
    raise _wrong_product(config, len(devices))
  sizes = {axis: getattr(config, axis) for axis in AXES} | {'data': copies}
  # Auto: the default, Explicit, does not take Linen's partitioned parameters.
  slices = len(set(map(slice_of, devices)))
  if copies % slices:
    raise MeshError(
      f'mesh.data: expected a multiple of the {slices} slices, got {copies}; a replica '
      f'of the model must fit in the {len(devices) // slices} devices of a slice, and '
      f'the product of the other axes is {config.parts}'
    )
  shape = (copies // slices, *(sizes[axis] for axis in AXES[1:]))
  if slices > 1:
    across = (slices, *[1] * len(AXES[1:]))
    arranged = mesh_utils.create_hybrid_device_mesh(
      shape, across, devices, allow_split_physical_axes=True
    )
  else:
    arranged = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_of(device: jax.Device) -> int:
  """Returns the index of the device's TPU slice."""
  return getattr(device, 'slice_index', 0)


def _wrong_product(config: MeshConfig, devices: int) -> MeshError:
  given = {axis: size for axis in AXES if (size := getattr(config, axis)) > 1}
  product = ' x '.join(f'{axis} {size}' for axis, size in given.items())
  what = f'mesh: expected axes whose product is the {devices} devices, got {product}'
  for axis, size in given.items():
    rest = math.prod(given.values()) // size
    if devices % rest == 0:
      fits = devices // rest
      possible = [fits] if config.data else [n for n in divisors(fits) if n >= size]
      return MeshError(f'{what}; set mesh.{axis} to {(possible or [fits])[0]}')
  return MeshError(what)


def divisors(number: int) -> list[int]:
  """Returns the divisors of a number, ascending."""
  return [n for n in range(1, number + 1) if number % n == 0]


def fit_mesh(
  sizes: dict[str, int],
  config: MeshConfig = REPLICATED,
  sampled: dict[str, int] | None = None,
) -> Mesh:
  """Returns the largest mesh that divides batches of all these sizes.

  Without `config.data` it takes as many replicas as divide the sizes. It may leave
  devices of this host unused, but with several hosts it uses all.

  Args:
    sizes: numbers of prompts or rows, by the name of their config field.
    config: the axes.
    sampled: numbers of prompts that samplers get at a time, likewise.

  Raises:
    MeshError: if the axes do not fit the devices, or a size is not a multiple of the
      shards.
  """
  devices, sampled = jax.devices(), sampled or {}
  copies = config.data
  if not copies:
    if len(devices) % config.parts:
      raise _wrong_product(config, len(devices))

    def divides(copies: int) -> bool:
      parts = copies * config.fsdp * config.expert
      tensor = config.sampler_tensor or config.tensor
      whole = max(1, copies * config.parts // tensor)
      return not (
        any(size % parts for size in sizes.values())
        or any(size % whole for size in sampled.values())
      )

    most = len(devices) // config.parts
    least = 1 if jax.process_count() == 1 else most
    copies = max(filter(divides, range(least, most + 1)), default=least)
    devices = devices[: copies * config.parts]
  mesh = make_mesh(devices, dataclasses.replace(config, data=copies))
  check_rows(mesh, sizes)
  check_rows(sampler_mesh(mesh, config), sampled, 'samplers shard prompts')
  return mesh


def check_rows(
  mesh: Mesh, sizes: dict[str, int], what: str = 'prompts are sharded'
) -> None:
  """Raises MeshError for a number of prompts or rows that the mesh does not divide."""
  parts = shard_count(mesh, 'prompt')
  for name, size in sizes.items():
    if size % parts:
      axes = ' x '.join(f'{a} {n}' for a in RULES['prompt'] if (n := mesh.shape[a]) > 1)
      raise MeshError(
        f'{name}: expected a multiple of {parts}, as {what} over {axes}, got {size}; '
        f'the next is {-(-size // parts) * parts}'
      )


def sampler_mesh(mesh: Mesh, config: MeshConfig = REPLICATED) -> Mesh:
  """Returns the mesh of the same devices that samplers use.

  A decode step reads all parameters, so gathering them at each step would be slow.
  Devices of `fsdp` and `context` hold replicas instead, or shards of the `sampler_*`
  axes.

  Raises:
    MeshError: if these axes do not divide the devices.
  """
  tensor = config.sampler_tensor or mesh.shape['tensor']
  expert = config.sampler_expert or mesh.shape['expert']
  if mesh.size % (tensor * expert):
    possible = [n for n in divisors(mesh.size // expert) if n >= tensor] or [1]
    raise MeshError(
      f"mesh.sampler_tensor: expected its product with the sampler's {expert} expert "
      f'shards to divide the {mesh.size} devices, got {tensor}; set it to {possible[0]}'
    )
  if mesh.size == 1:
    return mesh
  shape = (mesh.size // (tensor * expert), 1, expert, 1, tensor)
  return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def local_mesh(mesh: Mesh) -> Mesh:
  """Returns the mesh of this host's devices, each with a replica of the model."""
  shape = (-1, *[1] * len(AXES[1:]))
  devices = np.array(mesh.local_devices).reshape(shape)
  return Mesh(devices, AXES, axis_types=mesh.axis_types)


def check_lengths(mesh: Mesh, sizes: dict[str, int]) -> None:
  """Raises MeshError for a row length that `mesh.context` does not divide."""
  parts = mesh.shape['context']
  for name, size in sizes.items():
    if size % parts:
      raise MeshError(
        f'{name}: expected a multiple of mesh.context = {parts}, got {size}; the next '
        f'is {-(-size // parts) * parts}'
      )


def shard_owners(mesh: Mesh) -> list[list[int]]:
  """Returns for each shard of the prompts the hosts that hold it, in order."""
  parts = shard_count(mesh, 'prompt')
  found: list[set[int]] = [set() for _ in range(parts)]
  indices: Any = named_sharding(mesh, 'prompt').devices_indices_map((parts,))
  for device, (shard,) in indices.items():
    found[shard.start or 0].add(device.process_index)
  return [sorted(hosts) for hosts in found]


def local_shards(mesh: Mesh) -> list[int]:
  """Returns the shards of the prompts that this host's devices hold."""
  owners = enumerate(shard_owners(mesh))
  return [n for n, hosts in owners if jax.process_index() in hosts]
