"""What a program that runs on a mesh says of its arrays while it is traced."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from r1jax.sharding.place import is_box
from r1jax.sharding.rules import (
  ONE_REPLICA,
  RULES,
  as_tuple,
  named_sharding,
  num_parts,
  shard_count,
  spec,
)

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'r1jax_mesh', default=None
)


def on_mesh(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function`, for `jax.jit`, so that it is traced on this mesh.

  `constrain` and `num_shards` then mean this mesh; None is no mesh.
  """

  @functools.wraps(function)
  def traced(*args: Any, **kwargs: Any) -> Any:
    token = _MESH.set(mesh)
    try:
      return function(*args, **kwargs)
    finally:
      _MESH.reset(token)

  return traced


def current_mesh() -> Mesh | None:
  """Returns the mesh that what is being traced is bound to; None on one device."""
  mesh = _MESH.get()
  return None if mesh is None or mesh.size == 1 else mesh


def platform() -> str:
  """Returns what runs that which is being traced: 'cpu', 'gpu' or 'tpu'."""
  mesh = _MESH.get()
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return device.platform


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Returns an array of a program, lying as its axes' names say on the bound mesh."""
  mesh = current_mesh()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, named_sharding(mesh, *logical))


def constrain_params(params: Any, boxed: Any) -> Any:
  """`constrain` for a tree of parameters, and for their gradients on the way back.

  What is no array of their shapes is left to the compiler.
  """
  if current_mesh() is None:
    return params

  def one(box: Any, leaf: Any) -> Any:
    alone = getattr(leaf, 'shape', None) == box.value.shape
    return constrain(leaf, *box.names) if alone else leaf

  return jax.tree.map(one, boxed, params, is_leaf=is_box)


def num_shards(logical: str) -> int:
  """Returns how many parts the bound mesh cuts an axis of this name into."""
  mesh = current_mesh()
  return 1 if mesh is None else shard_count(mesh, logical)


def shard_mapped(
  function: Callable[..., Any], inputs: Any, outputs: Any, checked: bool = True
) -> Callable[..., Any]:
  """Returns `function` of each device's own part, on the bound mesh.

  Args:
    function: of local arrays; may use collectives over `AXES`.
    inputs: for each argument its axes' names, or a tree of those.
    outputs: likewise.
    checked: whether jax follows over which axes values differ; no kernel says so.
  """
  mesh = current_mesh()
  assert mesh is not None

  def specs(tree: Any) -> Any:
    return jax.tree.map(
      lambda names: spec(mesh, names), tree, is_leaf=lambda x: isinstance(x, AxisNames)
    )

  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=specs(inputs),
    out_specs=specs(outputs),
    check_vma=checked,
  )


def as_varying(tree: Any, names: Any, logical: str) -> Any:
  """Within `shard_mapped`: arrays of these names as each device's own along an axis.

  What several devices share is summed over them on the way back: with this once, and
  without it wherever it is used, in each run of a loop.
  """
  mesh = current_mesh()
  assert mesh is not None
  wanted = [axis for axis in RULES[logical] if num_parts(mesh, axis) > 1]

  def one(names: AxisNames, x: jax.Array) -> jax.Array:
    cut = [axis for axes in spec(mesh, names) for axis in as_tuple(axes)]
    missing = tuple(axis for axis in wanted if axis not in cut)
    return jax.lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(one, names, tree, is_leaf=lambda x: isinstance(x, AxisNames))


def sum_over_replicas(function: Callable[..., Any], rows: Any, axis: int) -> Any:
  """Returns function(rows), summed over what each copy of the model makes of its rows.

  Copies exchange nothing before: gradients that `function` sums in a loop are sent
  between them once, and not in each run of it.

  Args:
    function: of a tree of arrays to a tree of arrays, in shares that add up.
    rows: a tree of arrays, of which `axis` is P (or rows).
    axis: see `rows`.
  """
  mesh = current_mesh()
  copies = 1 if mesh is None else mesh.shape['data']
  if copies == 1:
    return function(rows)

  def of_one(rows: Any) -> Any:
    token = ONE_REPLICA.set(True)
    try:
      return function(rows)
    finally:
      ONE_REPLICA.reset(token)

  apart = jax.tree.map(
    lambda x: x.reshape(*x.shape[:axis], copies, -1, *x.shape[axis + 1 :]), rows
  )
  each = jax.vmap(of_one, in_axes=axis, spmd_axis_name='data')(apart)
  return jax.tree.map(lambda x: x.sum(0), each)


class AxisNames(tuple):
  """The logical names of an array's axes, as a leaf of a tree."""

  def __new__(cls, *names: str | None) -> 'AxisNames':
    return super().__new__(cls, names)
