"""Moves arrays to where a mesh needs them: from host to devices, and back."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from r1jax.sharding.mesh import divisors, local_shards
from r1jax.sharding.rules import (
  GATHERED,
  MeshError,
  as_tuple,
  named_sharding,
  shard_count,
)


def put_batch(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
  """Places a tree of arrays one axis of which is P (or rows) on the mesh.

  All hosts have the whole of it, and each places the parts of its devices.
  """
  return _put(batch, named_sharding(mesh, *[None] * axis, 'prompt'))


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Places a copy of each array of the tree on every device of the mesh."""
  return _put(tree, named_sharding(mesh))


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


def feed_rows(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
  """Places a tree of arrays of which each host has the parts that its devices have.

  As `put_batch` does with what is whole; the parts lie side by side along the axis.
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


def fetch_rows(mesh: Mesh, tree: Any, axis: int = 0) -> Any:
  """Returns this host's parts of arrays that are cut as `feed` cuts them; undoes it."""
  place = named_sharding(mesh, *[None] * axis, 'prompt')

  def one(x: jax.Array) -> np.ndarray:
    assert x.sharding.is_equivalent_to(place, x.ndim)
    parts = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[n]) for n in sorted(parts)], axis)

  return jax.tree.map(one, tree)


def param_shardings(mesh: Mesh, boxed: Any, fields: str = 'mesh.') -> Any:
  """Returns where parameters lie that carry logical axis names, or only shapes do.

  `fields` is what the names of the fields begin with that say how many parts there are.

  Raises:
    MeshError: an axis of one is no multiple of the parts that it is cut into.
  """

  def one(path: Any, box: Any) -> NamedSharding:
    found = named_sharding(mesh, *box.names)
    for name, size, axes in zip(box.names, box.value.shape, found.spec, strict=True):
      axes = as_tuple(axes)
      parts = math.prod(mesh.shape[a] for a in axes)
      if size % parts:
        cut = ' x '.join(f'{fields}{a} {mesh.shape[a]}' for a in axes)
        possible = [n for n in divisors(size) if n > parts] or [size]
        raise MeshError(
          f'{cut}: expected a divisor of {size}, the axis {name} of '
          f'{jax.tree_util.keystr(path, simple=True, separator=".")}, got {parts}; '
          f'the next is {possible[0]}'
        )
    return found

  return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)


def put_boxed(mesh: Mesh, boxed: Any) -> Any:
  """Unboxes parameters that carry logical axis names and places them by the table."""
  return _put(unbox(boxed), param_shardings(mesh, boxed))


def without_gathers(boxed: Any) -> Any:
  """Returns names of parameters' axes without those that are gathered to be used."""

  def one(box: Any) -> Any:
    kept = (None if name in GATHERED else name for name in box.names)
    return box.replace(names=tuple(kept))

  return jax.tree.map(one, boxed, is_leaf=is_box)


def reshard(mesh: Mesh, params: Any, boxed: Any) -> Any:
  """Places parameters by the names of their axes on another mesh of the same devices.

  What stands in the place of one of them with parts of other shapes, such as adapters
  or the scales of int8, lies everywhere.
  """

  def one(place: NamedSharding, like: Any, leaf: Any) -> Any:
    return jax.tree.map(
      lambda x: _put(x, place if x.shape == like.shape else named_sharding(mesh)),
      leaf,
    )

  return jax.tree.map(one, param_shardings(mesh, boxed), unbox(boxed), params)


def like_params(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Places a tree that has further copies of parameters in it as they lie.

  Such as the state of an optimizer. A copy is known by the end of its path; what is
  none lies everywhere.
  """
  return _put(tree, shardings_like_params(mesh, tree, params))


def shardings_like_params(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Returns where `like_params` places a tree; both may be shapes alone."""
  known = {
    _keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def one(path: Any, leaf: Any) -> NamedSharding:
    keys = _keys(path)
    for start in range(len(keys)):
      like = known.get(keys[start:])
      if like is not None and like.shape == leaf.shape:
        return like.sharding
    return named_sharding(mesh)

  return jax.tree_util.tree_map_with_path(one, tree)


def abstract_like_params(mesh: Mesh, tree: Any, params: Any) -> Any:
  """Returns shapes that lie as `like_params` places arrays of them."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    tree,
    shardings_like_params(mesh, tree, params),
  )


def _keys(path: Any) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def to_host(tree: Any) -> Any:
  """Moves arrays to the memory of the hosts that they lie on; no program takes them."""
  return _put_in('pinned_host', tree)


def to_device(tree: Any) -> Any:
  """Moves arrays that were put aside back to their devices; leaves others."""
  return _put_in('device', tree)


def device_sharding(x: jax.Array) -> Any:
  """Returns where an array lies once it is put back."""
  return x.sharding.with_memory_kind('device')


def _put_in(memory: str, tree: Any) -> Any:
  places = jax.tree.map(lambda x: x.sharding.with_memory_kind(memory), tree)
  return jax.device_put(tree, places)


def unbox(boxed: Any) -> Any:
  """Parameters, or their shapes, without the logical names of their axes."""
  return jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box)


def is_box(leaf: Any) -> bool:
  return hasattr(leaf, 'names')


# --- Within a program -----------------------------------------------------------------
