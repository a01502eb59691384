"""Places arrays on a mesh: from host to devices, between layouts, and back."""

import math
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import KeyPath

from r1jax.sharding.mesh import divisors, local_shards
from r1jax.sharding.rules import (
  GATHERED,
  MeshError,
  as_tuple,
  named_sharding,
  shard_count,
)
from r1jax.trees import Box, Boxed, Shardings, T, Tree


def put_batch(mesh: Mesh, batch: T, axis: int = 0) -> T:
  """Shards a tree of arrays along `axis`, which is P (or rows), over the mesh.

  Every host has the whole arrays and places the shards of its devices.
  """
  return _put(batch, named_sharding(mesh, *[None] * axis, 'prompt'))


def replicate(mesh: Mesh, tree: T) -> T:
  """Places each array of the tree on every device of the mesh."""
  return _put(tree, named_sharding(mesh))


def _put(tree: T, place: Shardings) -> T:
  """`jax.device_put` for arrays that every host has whole, to devices of all hosts."""
  if jax.process_count() == 1:
    return jax.device_put(tree, place)

  def one(x: jax.Array | np.ndarray, place: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
      return jax.device_put(x, place)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  if isinstance(place, NamedSharding):
    place = jax.tree.map(lambda _: place, tree)
  return jax.tree.map(one, tree, place)


def feed_rows(mesh: Mesh, batch: T, axis: int = 0) -> T:
  """Shards a tree of arrays along `axis` over the mesh; each host has its own shards.

  Like `put_batch`, but a host's arrays hold only the shards of its devices,
  concatenated along the axis.
  """
  place, here = named_sharding(mesh, *[None] * axis, 'prompt'), local_shards(mesh)

  def one(x: np.ndarray) -> jax.Array:
    size = x.shape[axis] // len(here)
    shape = (*x.shape[:axis], size * shard_count(mesh, 'prompt'), *x.shape[axis + 1 :])

    def part(index: Any) -> np.ndarray:
      first, last, _ = index[axis].indices(shape[axis])
      start = here.index(first // size) * size
      return x[(*index[:axis], slice(start, start + last - first))]

    return jax.make_array_from_callback(shape, place, part)

  return jax.tree.map(one, batch)


def fetch_rows(mesh: Mesh, tree: T, axis: int = 0) -> T:
  """Returns this host's shards of arrays, concatenated: the inverse of `feed_rows`."""
  place = named_sharding(mesh, *[None] * axis, 'prompt')

  def one(x: jax.Array) -> np.ndarray:
    assert x.sharding.is_equivalent_to(place, x.ndim)
    parts = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[n]) for n in sorted(parts)], axis)

  return jax.tree.map(one, tree)


def param_shardings(mesh: Mesh, boxed: Boxed, fields: str = 'mesh.') -> Shardings:
  """Returns the shardings of boxed parameters (or shapes) on the mesh.

  Args:
    mesh: of the devices.
    boxed: parameters with their logical axis names.
    fields: prefix of the config fields that an error names.

  Raises:
    MeshError: if an axis is not a multiple of its shards.
  """

  def one(path: KeyPath, box: Box) -> NamedSharding:
    found = named_sharding(mesh, *box.names)
    for name, size, axes in zip(box.names, box.value.shape, found.spec, strict=True):
      axes = as_tuple(axes)
      parts = math.prod(mesh.shape[a] for a in axes)
      if size % parts:
        given = ' x '.join(f'{fields}{a} {mesh.shape[a]}' for a in axes)
        possible = [n for n in divisors(size) if n > parts] or [size]
        raise MeshError(
          f'{given}: expected a divisor of {size}, the axis {name} of '
          f'{jax.tree_util.keystr(path, simple=True, separator=".")}, got {parts}; '
          f'the next is {possible[0]}'
        )
    return found

  return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)


def put_boxed(mesh: Mesh, boxed: Boxed) -> optax.Params:
  """Returns boxed parameters unboxed and sharded by their logical axis names."""
  return _put(unbox(boxed), param_shardings(mesh, boxed))


def without_gathers(boxed: Boxed) -> Boxed:
  """Returns boxed parameters without the axis names in `GATHERED`.

  Placed by the remaining names, they need not be gathered for a product.
  """

  def one(box: Box) -> Box:
    kept = (None if name in GATHERED else name for name in box.names)
    return box.replace(names=tuple(kept))

  return jax.tree.map(one, boxed, is_leaf=is_box)


def reshard(mesh: Mesh, params: optax.Params, boxed: Boxed) -> optax.Params:
  """Moves parameters to another mesh of the same devices, by their axis names.

  Arrays of other shapes, such as LoRA adapters or int8 scales, are replicated.
  """

  def one(
    place: NamedSharding, like: jax.Array, leaf: Tree[jax.Array]
  ) -> Tree[jax.Array]:
    return jax.tree.map(
      lambda x: _put(x, place if x.shape == like.shape else named_sharding(mesh)),
      leaf,
    )

  return jax.tree.map(one, param_shardings(mesh, boxed), unbox(boxed), params)


def like_params(mesh: Mesh, tree: T, params: optax.Params) -> T:
  """Places a tree with parameter-like arrays, such as an optimizer's state.

  An array whose path ends with that of a parameter of the same shape is sharded like
  it; the others are replicated.
  """
  return _put(tree, shardings_like_params(mesh, tree, params))


def shardings_like_params(mesh: Mesh, tree: object, params: optax.Params) -> Shardings:
  """Returns the shardings that `like_params` uses; both trees may be shapes."""
  known = {
    _keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def one(path: KeyPath, leaf: jax.Array) -> NamedSharding:
    keys = _keys(path)
    for start in range(len(keys)):
      like = known.get(keys[start:])
      if like is not None and like.shape == leaf.shape:
        return like.sharding
    return named_sharding(mesh)

  return jax.tree_util.tree_map_with_path(one, tree)


def abstract_like_params(mesh: Mesh, tree: T, params: optax.Params) -> T:
  """Returns the tree as `jax.ShapeDtypeStruct`s with the shardings of `like_params`."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    shardings_like_params(mesh, tree, params),
  )


def _keys(path: KeyPath) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def to_host(tree: T) -> T:
  """Moves arrays to the pinned memory of their hosts."""
  return _put_in('pinned_host', tree)


def to_device(tree: T) -> T:
  """Moves arrays back from `to_host`; leaves those on devices unchanged."""
  return _put_in('device', tree)


def device_sharding(x: jax.Array) -> jax.sharding.Sharding:
  """Returns the sharding that `to_device` gives an array."""
  return x.sharding.with_memory_kind('device')


def _put_in(memory: str, tree: T) -> T:
  shardings = jax.tree.map(lambda x: x.sharding.with_memory_kind(memory), tree)
  return jax.device_put(tree, shardings)


def bytes_per_device(tree: Tree[jax.ShapeDtypeStruct]) -> float:
  """Returns the bytes of shapes with shardings on each device."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
  )


def unbox(boxed: Boxed) -> optax.Params:
  """Returns parameters, or shapes, without their logical axis names."""
  return jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box)


def is_box(leaf: object) -> bool:
  """Whether a leaf is a parameter with its logical axis names."""
  return hasattr(leaf, 'names')
