"""The device mesh, and the one table from logical to mesh axes.

Models and batches name what an axis is; this table says where it lies. Nobody else
writes a PartitionSpec, and a name that the table lacks is an error.

Devices are arranged along five axes: `data` has copies of the model, `fsdp` cuts it
and the prompts, `expert` cuts the experts and the prompts, `context` the positions of a
row, `tensor` heads, hidden channels and the vocabulary.
"""

import contextvars
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')
# The first axis of an array that names a mesh axis takes it.
RULES: dict[str, tuple[str, ...]] = {
  'prompt': ('data', 'fsdp', 'expert'),  # P: prompts, and the rows of batches
  'length': ('context',),  # T: positions of a row
  'piece': ('data', 'fsdp', 'expert', 'context'),  # of a row that is cut in T
  'vocab': ('tensor',),
  'embed': ('fsdp', 'expert', 'context'),  # of parameters; of activations it is whole
  'gain': (),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'channel': (),
  'mlp': ('tensor',),
  'rank': ('fsdp', 'expert', 'context'),  # of latent attention, where no 'embed' is
  'expert': ('expert',),
  'layers': (),  # scanned, so never cut
}
GATHERED = ('embed', 'rank')  # what is cut so is gathered for each product


class MeshError(ValueError):
  """Devices, axes and sizes that do not go together; names the field and what would."""


@dataclasses.dataclass(frozen=True)
class Config:
  """How the devices are arranged: the product of the axes is their number."""

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


WHOLE = Config()  # a copy of the model on each device


def make(devices: Sequence[jax.Device] | None = None, config: Config = WHOLE) -> Mesh:
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


def _other_devices(config: Config, devices: int) -> MeshError:
  given = {axis: size for axis in AXES if (size := getattr(config, axis)) > 1}
  said = ' x '.join(f'{axis} {size}' for axis, size in given.items())
  what = f'mesh: expected axes whose product is the {devices} devices, got {said}'
  for axis, size in given.items():
    rest = math.prod(given.values()) // size
    if devices % rest == 0:
      fits = devices // rest
      possible = [fits] if config.data else [n for n in _divisors(fits) if n >= size]
      return MeshError(f'{what}; mesh.{axis} {(possible or [fits])[0]} would do')
  return MeshError(what)


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def fitting(
  sizes: dict[str, int],
  config: Config = WHOLE,
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
  mesh = make(devices, dataclasses.replace(config, data=copies))
  check_rows(mesh, sizes)
  check_rows(sampler(mesh, config), sampled, 'samplers cut prompts')
  return mesh


def check_rows(
  mesh: Mesh, sizes: dict[str, int], what: str = 'prompts are cut'
) -> None:
  """Raises MeshError for prompts or rows, by name, that can't be cut over the mesh."""
  parts = shards(mesh, 'prompt')
  for name, size in sizes.items():
    if size % parts:
      cut = ' x '.join(f'{a} {n}' for a in RULES['prompt'] if (n := mesh.shape[a]) > 1)
      raise MeshError(
        f'{name}: expected a multiple of {parts}, the parts that {what} into ({cut}), '
        f'got {size}; the next is {-(-size // parts) * parts}'
      )


def sampler(mesh: Mesh, config: Config = WHOLE) -> Mesh:
  """Returns the same devices as samplers use them.

  A step of decoding reads all parameters, so they are not gathered for each: the
  devices of `fsdp` and `context` get copies, or parts of the `sampler_*` axes.

  Raises:
    MeshError: these axes do not divide the devices.
  """
  tensor = config.sampler_tensor or mesh.shape['tensor']
  expert = config.sampler_expert or mesh.shape['expert']
  if mesh.size % (tensor * expert):
    possible = [n for n in _divisors(mesh.size // expert) if n >= tensor] or [1]
    raise MeshError(
      f"mesh.sampler_tensor: expected its product with the sampler's {expert} expert "
      f'parts to divide the {mesh.size} devices, got {tensor}; {possible[0]} would do'
    )
  if mesh.size == 1:
    return mesh
  shape = (mesh.size // (tensor * expert), 1, expert, 1, tensor)
  return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def local(mesh: Mesh) -> Mesh:
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


def _spec(mesh: Mesh, logical: Sequence[str | None]) -> PartitionSpec:
  unknown = [name for name in logical if name is not None and name not in RULES]
  if unknown:
    raise ValueError(f'logical axis: expected one of {sorted(RULES)}, got {unknown}')
  taken: set[str] = set()
  spec = []
  for name in logical:
    known = RULES[name] if name is not None else ()
    axes = [axis for axis in known if _parts(mesh, axis) > 1 and axis not in taken]
    taken |= set(axes)
    spec.append(axes[0] if len(axes) == 1 else tuple(axes) or None)
  return PartitionSpec(*spec)


def _parts(mesh: Mesh, axis: str) -> int:
  """The size of an axis; within `sum_of_copies` there is one copy."""
  return 1 if axis == 'data' and _ONE_COPY.get() else mesh.shape[axis]


def _tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """An entry of a PartitionSpec as the axes that it names."""
  return (axes,) if isinstance(axes, str) else axes or ()


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
  """Returns where an array lies whose axes have these logical names (None: anywhere).

  Raises:
    ValueError: for a name that is not in `RULES`.
  """
  return NamedSharding(mesh, _spec(mesh, logical))


def shards(mesh: Mesh, logical: str) -> int:
  """Returns how many parts an axis of this name is cut into."""
  return math.prod(_parts(mesh, axis) for axis in RULES[logical])


def put_batch(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
  """Places a tree of arrays one axis of which is P (or rows) on the mesh.

  All hosts have the whole of it, and each places the parts of its devices.
  """
  return _put(batch, sharding(mesh, *[None] * axis, 'prompt'))


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
  """Places a copy of each array of the tree on every device of the mesh."""
  return _put(tree, sharding(mesh))


def _put(tree: Any, place: Any) -> Any:
  """`jax.device_put`, of what all hosts have, to devices of several of them."""
  if jax.process_count() == 1:
    return jax.device_put(tree, place)

  def one(x: Any, place: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
      return jax.device_put(x, place)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  if isinstance(place, NamedSharding):
    place = jax.tree.map(lambda _: place, tree)
  return jax.tree.map(one, tree, place)


def holders(mesh: Mesh) -> list[list[int]]:
  """Returns for each part of the prompts the hosts whose devices have it, in order."""
  parts = shards(mesh, 'prompt')
  found: list[set[int]] = [set() for _ in range(parts)]
  lying: Any = sharding(mesh, 'prompt').devices_indices_map((parts,))
  for device, (cut,) in lying.items():
    found[cut.start or 0].add(device.process_index)
  return [sorted(hosts) for hosts in found]


def held(mesh: Mesh) -> list[int]:
  """Returns the parts of the prompts that devices of this host have."""
  return [n for n, of in enumerate(holders(mesh)) if jax.process_index() in of]


def feed(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
  """Places a tree of arrays of which each host has the parts that its devices have.

  As `put_batch` does with what is whole; the parts lie side by side along the axis.
  """
  place, here = sharding(mesh, *[None] * axis, 'prompt'), held(mesh)

  def one(x: np.ndarray) -> jax.Array:
    size = x.shape[axis] // len(here)
    shape = (*x.shape[:axis], size * shards(mesh, 'prompt'), *x.shape[axis + 1 :])

    def part(index: Any) -> np.ndarray:
      first, last, _ = index[axis].indices(shape[axis])
      start = here.index(first // size) * size
      return x[(*index[:axis], slice(start, start + last - first))]

    return jax.make_array_from_callback(shape, place, part)

  return jax.tree.map(one, batch)


def fetch(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
  """Returns this host's parts of arrays that are cut as `feed` cuts them; undoes it."""
  place = sharding(mesh, *[None] * axis, 'prompt')

  def one(x: jax.Array) -> np.ndarray:
    assert x.sharding.is_equivalent_to(place, x.ndim)
    parts = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[n]) for n in sorted(parts)], axis)

  return jax.tree.map(one, tree)


def places(mesh: Mesh, boxed: Any, fields: str = 'mesh.') -> Any:
  """Returns where parameters lie that carry logical axis names, or only shapes do.

  `fields` is what the names of the fields begin with that say how many parts there are.

  Raises:
    MeshError: an axis of one is no multiple of the parts that it is cut into.
  """

  def one(path: Any, box: Any) -> NamedSharding:
    found = sharding(mesh, *box.names)
    for name, size, axes in zip(box.names, box.value.shape, found.spec, strict=True):
      axes = _tuple(axes)
      parts = math.prod(mesh.shape[a] for a in axes)
      if size % parts:
        cut = ' x '.join(f'{fields}{a} {mesh.shape[a]}' for a in axes)
        possible = [n for n in _divisors(size) if n > parts] or [size]
        raise MeshError(
          f'{cut}: expected a divisor of {size}, the axis {name} of '
          f'{jax.tree_util.keystr(path, simple=True, separator=".")}, got {parts}; '
          f'the next is {possible[0]}'
        )
    return found

  return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=_is_box)


def put_boxed(mesh: Mesh, boxed: Any) -> Any:
  """Unboxes parameters that carry logical axis names and places them by the table."""
  return _put(unbox(boxed), places(mesh, boxed))


def without_gathers(boxed: Any) -> Any:
  """Returns names of parameters' axes without those that are gathered to be used."""

  def one(box: Any) -> Any:
    kept = (None if name in GATHERED else name for name in box.names)
    return box.replace(names=tuple(kept))

  return jax.tree.map(one, boxed, is_leaf=_is_box)


def put_like(mesh: Mesh, params: Any, boxed: Any) -> Any:
  """Places parameters by the names of their axes on another mesh of the same devices.

  What stands in the place of one of them with parts of other shapes, such as adapters
  or the scales of int8, lies everywhere.
  """

  def one(place: NamedSharding, like: Any, leaf: Any) -> Any:
    return jax.tree.map(
      lambda x: _put(x, place if x.shape == like.shape else sharding(mesh)),
      leaf,
    )

  return jax.tree.map(one, places(mesh, boxed), unbox(boxed), params)


def put_beside(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Places a tree that has further copies of parameters in it as they lie.

  Such as the state of an optimizer. A copy is known by the end of its path; what is
  none lies everywhere.
  """
  return _put(tree, places_beside(mesh, tree, params))


def places_beside(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Returns where `put_beside` places a tree; both may be shapes alone."""
  known = {
    _keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def one(path: Any, leaf: Any) -> NamedSharding:
    keys = _keys(path)
    for start in range(len(keys)):
      like = known.get(keys[start:])
      if like is not None and like.shape == leaf.shape:
        return like.sharding
    return sharding(mesh)

  return jax.tree_util.tree_map_with_path(one, tree)


def shapes_beside(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Returns shapes that lie as `put_beside` places arrays of them."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    places_beside(mesh, tree, params),
  )


def _keys(path: Any) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def put_aside(tree: Any) -> Any:
  """Moves arrays to the memory of the hosts that they lie on; no program takes them."""
  return _put_in('pinned_host', tree)


def put_back(tree: Any) -> Any:
  """Moves arrays that were put aside back to their devices; leaves others."""
  return _put_in('device', tree)


def place_on_device(x: jax.Array) -> Any:
  """Returns where an array lies once it is put back."""
  return x.sharding.with_memory_kind('device')


def _put_in(memory: str, tree: Any) -> Any:
  places = jax.tree.map(lambda x: x.sharding.with_memory_kind(memory), tree)
  return jax.device_put(tree, places)


def unbox(boxed: Any) -> Any:
  """Parameters, or their shapes, without the logical names of their axes."""
  return jax.tree.map(lambda box: box.value, boxed, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
  return hasattr(leaf, 'names')


# --- Within a program -----------------------------------------------------------------

_BOUND: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'r1jax_mesh', default=None
)
_ONE_COPY = contextvars.ContextVar('r1jax_one_copy', default=False)


def bound(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function`, to be traced by `jax.jit`, on this mesh: see `lay`, `cut`.

  None is no mesh, also within what is bound to one.
  """

  @functools.wraps(function)
  def traced(*args: Any, **kwargs: Any) -> Any:
    token = _BOUND.set(mesh)
    try:
      return function(*args, **kwargs)
    finally:
      _BOUND.reset(token)

  return traced


def current() -> Mesh | None:
  """Returns the mesh that what is being traced is bound to; None on one device."""
  mesh = _BOUND.get()
  return None if mesh is None or mesh.size == 1 else mesh


def platform() -> str:
  """Returns what runs that which is being traced: 'cpu', 'gpu' or 'tpu'."""
  mesh = _BOUND.get()
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return device.platform


def lay(x: jax.Array, *logical: str | None) -> jax.Array:
  """Returns an array of a program, lying as its axes' names say on the bound mesh."""
  mesh = current()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, sharding(mesh, *logical))


def lay_like(params: Any, boxed: Any) -> Any:
  """`lay` for a tree of parameters, and for their gradients on the way back.

  What is no array of their shapes is left to the compiler.
  """
  if current() is None:
    return params

  def one(box: Any, leaf: Any) -> Any:
    alone = getattr(leaf, 'shape', None) == box.value.shape
    return lay(leaf, *box.names) if alone else leaf

  return jax.tree.map(one, boxed, params, is_leaf=_is_box)


def cut(logical: str) -> int:
  """Returns how many parts the bound mesh cuts an axis of this name into."""
  mesh = current()
  return 1 if mesh is None else shards(mesh, logical)


def mapped(
  function: Callable[..., Any], inputs: Any, outputs: Any, checked: bool = True
) -> Callable[..., Any]:
  """Returns `function` of each device's own part, on the bound mesh.

  Args:
    function: of local arrays; may use collectives over `AXES`.
    inputs: for each argument its axes' names, or a tree of those.
    outputs: likewise.
    checked: whether jax follows over which axes values differ; no kernel says so.
  """
  mesh = current()
  assert mesh is not None

  def specs(tree: Any) -> Any:
    return jax.tree.map(
      lambda names: _spec(mesh, names), tree, is_leaf=lambda x: isinstance(x, Named)
    )

  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=specs(inputs),
    out_specs=specs(outputs),
    check_vma=checked,
  )


def own(tree: Any, names: Any, logical: str) -> Any:
  """Within `mapped`: arrays of these names as each device's own along an axis.

  What several devices share is summed over them on the way back: with this once, and
  without it wherever it is used, in each run of a loop.
  """
  mesh = current()
  assert mesh is not None
  wanted = [axis for axis in RULES[logical] if _parts(mesh, axis) > 1]

  def one(names: Named, x: jax.Array) -> jax.Array:
    cut = [axis for axes in _spec(mesh, names) for axis in _tuple(axes)]
    missing = tuple(axis for axis in wanted if axis not in cut)
    return jax.lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(one, names, tree, is_leaf=lambda x: isinstance(x, Named))


def sum_of_copies(function: Callable[..., Any], rows: Any, axis: int) -> Any:
  """Returns function(rows), summed over what each copy of the model makes of its rows.

  Copies exchange nothing before: gradients that `function` sums in a loop are sent
  between them once, and not in each run of it.

  Args:
    function: of a tree of arrays to a tree of arrays, in shares that add up.
    rows: a tree of arrays, of which `axis` is P (or rows).
    axis: see `rows`.
  """
  mesh = current()
  copies = 1 if mesh is None else mesh.shape['data']
  if copies == 1:
    return function(rows)

  def of_one(rows: Any) -> Any:
    token = _ONE_COPY.set(True)
    try:
      return function(rows)
    finally:
      _ONE_COPY.reset(token)

  apart = jax.tree.map(
    lambda x: x.reshape(*x.shape[:axis], copies, -1, *x.shape[axis + 1 :]), rows
  )
  each = jax.vmap(of_one, in_axes=axis, spmd_axis_name='data')(apart)
  return jax.tree.map(lambda x: x.sum(0), each)


class Named(tuple):
  """The logical names of an array's axes, as a leaf of a tree."""

  def __new__(cls, *names: str | None) -> 'Named':
    return super().__new__(cls, names)
