"""The device mesh, and the one table from logical to mesh axes.

Models and batches name what an axis is; this table says where it lies. Nobody else
writes a PartitionSpec, and a name that the table lacks is an error.

Devices are arranged along five axes: `data` has copies of the model, `fsdp` cuts it
and the prompts, `expert` cuts the experts and the prompts, `context` the positions of a
row, `tensor` heads, hidden channels and the vocabulary.
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


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices are arranged: the product of the axes is their number."""

  machine: ClassVar[bool] = True  # a run may go on with another mesh

  data: int = 0  # copies of the model; 0 is as many as the other axes leave
  fsdp: int = 1  # parts of the model, gathered layer by layer, and of the prompts
  tensor: int = 1  # parts of heads, hidden channels and vocabulary
  expert: int = 1  # parts of the experts, and of the prompts
  context: int = 1  # parts of the positions of a row
  # Samplers have whole copies of the model but for these two; 0 is as above.
  sampler_tensor: int = 0
  sampler_expert: int = 0
  # Whether samplers cut over these expert parts what is no expert, too: that takes less
  # memory, and is gathered for each step of decoding.
  sampler_gathers: bool = False
  # Of several hosts, where the machines don't tell: an address of the first, host:port,
  # how many there are, and which one this is.
  coordinator: str = ''
  hosts: int = 1
  host: int = 0

  def __post_init__(self) -> None:
    for name in (*AXES, 'sampler_tensor', 'sampler_expert', 'hosts', 'host'):
      zero = name in ('data', 'sampler_tensor', 'sampler_expert', 'host')
      value, least = getattr(self, name), 0 if zero else 1
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
    """Devices that a copy of the model lies on."""
    return self.fsdp * self.tensor * self.expert * self.context


ONE_DEVICE = MeshConfig()  # a copy of the model on each device


def make_mesh(
  devices: Sequence[jax.Device] | None = None, config: MeshConfig = ONE_DEVICE
) -> Mesh:
  """Returns a mesh of all (or the given) devices.

  Copies of the model lie on different slices, if there are several, and what a copy is
  cut into within one.

  Raises:
    MeshError: the axes' product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  copies = config.data or len(devices) // config.parts
  if copies * config.parts != len(devices) or not copies:
    raise _other_devices(config, len(devices))
  sizes = {axis: getattr(config, axis) for axis in AXES} | {'data': copies}
  # Auto: the default, Explicit, does not take Linen's partitioned parameters.
  slices = len(set(map(slice_of, devices)))
  if copies % slices:
    raise MeshError(
      f'mesh.data: expected a multiple of the {slices} slices, got {copies}; a copy of '
      f'the model lies within the {len(devices) // slices} devices of a slice, and the '
      f'other axes come to {config.parts}'
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
  """Returns the number of the slice that a device is of."""
  return getattr(device, 'slice_index', 0)


def _other_devices(config: MeshConfig, devices: int) -> MeshError:
  given = {axis: size for axis in AXES if (size := getattr(config, axis)) > 1}
  said = ' x '.join(f'{axis} {size}' for axis, size in given.items())
  what = f'mesh: expected axes whose product is the {devices} devices, got {said}'
  for axis, size in given.items():
    rest = math.prod(given.values()) // size
    if devices % rest == 0:
      fits = devices // rest
      possible = [fits] if config.data else [n for n in divisors(fits) if n >= size]
      return MeshError(f'{what}; mesh.{axis} {(possible or [fits])[0]} would do')
  return MeshError(what)


def divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def fit_mesh(
  sizes: dict[str, int],
  config: MeshConfig = ONE_DEVICE,
  sampled: dict[str, int] | None = None,
) -> Mesh:
  """Returns a mesh on which prompts, or rows, of all these sizes can be cut.

  Without `config.data` it has as many copies of the model as divide the sizes, and may
  leave devices out, but not those of other hosts. `sampled` are numbers of prompts
  that samplers are given.

  Raises:
    MeshError: the axes do not fit the devices, or a size is no multiple of the parts.
  """
  devices, sampled = jax.devices(), sampled or {}
  copies = config.data
  if not copies:
    if len(devices) % config.parts:
      raise _other_devices(config, len(devices))

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
  check_rows(sampler_mesh(mesh, config), sampled, 'samplers cut prompts')
  return mesh


def check_rows(
  mesh: Mesh, sizes: dict[str, int], what: str = 'prompts are cut'
) -> None:
  """Raises MeshError for prompts or rows, by name, that can't be cut over the mesh."""
  parts = shard_count(mesh, 'prompt')
  for name, size in sizes.items():
    if size % parts:
      cut = ' x '.join(f'{a} {n}' for a in RULES['prompt'] if (n := mesh.shape[a]) > 1)
      raise MeshError(
        f'{name}: expected a multiple of {parts}, the parts that {what} into ({cut}), '
        f'got {size}; the next is {-(-size // parts) * parts}'
      )


def sampler_mesh(mesh: Mesh, config: MeshConfig = ONE_DEVICE) -> Mesh:
  """Returns the same devices as samplers use them.

  A step of decoding reads all parameters, so they are not gathered for each: the
  devices of `fsdp` and `context` get copies, or parts of the `sampler_*` axes.

  Raises:
    MeshError: these axes do not divide the devices.
  """
  tensor = config.sampler_tensor or mesh.shape['tensor']
  expert = config.sampler_expert or mesh.shape['expert']
  if mesh.size % (tensor * expert):
    possible = [n for n in divisors(mesh.size // expert) if n >= tensor] or [1]
    raise MeshError(
      f"mesh.sampler_tensor: expected its product with the sampler's {expert} expert "
      f'parts to divide the {mesh.size} devices, got {tensor}; {possible[0]} would do'
    )
  if mesh.size == 1:
    return mesh
  shape = (mesh.size // (tensor * expert), 1, expert, 1, tensor)
  return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def local_mesh(mesh: Mesh) -> Mesh:
  """Returns the devices of a mesh that this host has, for copies of a model."""
  shape = (-1, *[1] * len(AXES[1:]))
  devices = np.array(mesh.local_devices).reshape(shape)
  return Mesh(devices, AXES, axis_types=mesh.axis_types)


def check_lengths(mesh: Mesh, sizes: dict[str, int]) -> None:
  """Raises MeshError for rows' lengths, by name, that can't be cut over the mesh."""
  parts = mesh.shape['context']
  for name, size in sizes.items():
    if size % parts:
      raise MeshError(
        f'{name}: expected a multiple of mesh.context = {parts}, got {size}; the next '
        f'is {-(-size // parts) * parts}'
      )


def shard_owners(mesh: Mesh) -> list[list[int]]:
  """Returns for each part of the prompts the hosts whose devices have it, in order."""
  parts = shard_count(mesh, 'prompt')
  found: list[set[int]] = [set() for _ in range(parts)]
  lying: Any = named_sharding(mesh, 'prompt').devices_indices_map((parts,))
  for device, (cut,) in lying.items():
    found[cut.start or 0].add(device.process_index)
  return [sorted(hosts) for hosts in found]


def local_shards(mesh: Mesh) -> list[int]:
  """Returns the parts of the prompts that devices of this host have."""
  return [n for n, of in enumerate(shard_owners(mesh)) if jax.process_index() in of]
