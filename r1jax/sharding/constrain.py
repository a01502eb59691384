"""Sharding inside a program: constraints and shard_map on the mesh it is traced for."""

import contextvars
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import optax
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
from r1jax.trees import Box, Boxed, Tree

P = ParamSpec('P')
R = TypeVar('R')
S = TypeVar('S')
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'r1jax_mesh', default=None
)


def on_mesh(mesh: Mesh | None, function: Callable[P, R]) -> Callable[P, R]:
  """Returns `function`, for `jax.jit`, traced with this as the current mesh.

  `constrain`, `num_shards` and the like use the current mesh; None is no mesh.
  """

  @functools.wraps(function)
  def traced(*args: P.args, **kwargs: P.kwargs) -> R:
    token = _MESH.set(mesh)
    try:
      return function(*args, **kwargs)
    finally:
      _MESH.reset(token)

  return traced


def current_mesh() -> Mesh | None:
  """Returns the mesh of the program that is being traced; None on one device."""
  mesh = _MESH.get()
  return None if mesh is None or mesh.size == 1 else mesh


def platform() -> str:
  """Returns the platform that is being traced for: 'cpu', 'gpu' or 'tpu'."""
  mesh = _MESH.get()
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return device.platform


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Returns x, sharded on the current mesh by the logical names of its axes."""
  mesh = current_mesh()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, named_sharding(mesh, *logical))


def constrain_rows(x: jax.Array) -> jax.Array:
  """Returns x, sharded by rows; keys and values [B, K, ..] also by kv heads."""
  axes = ['kv_heads', None, None] if x.ndim == 4 else [None] * (x.ndim - 1)
  return constrain(x, 'prompt', *axes)


def constrain_params(params: optax.Params, boxed: Boxed) -> optax.Params:
  """Returns parameters sharded by their axis names; their gradients are sharded alike.

  Leaves of another shape, such as adapters, are left to the compiler.
  """
  if current_mesh() is None:
    return params

  def one(box: Box, leaf: jax.Array) -> jax.Array:
    same_shape = getattr(leaf, 'shape', None) == box.value.shape
    return constrain(leaf, *box.names) if same_shape else leaf

  return jax.tree.map(one, boxed, params, is_leaf=is_box)


def num_shards(logical: str) -> int:
  """Returns the number of shards of a logical axis on the current mesh."""
  mesh = current_mesh()
  return 1 if mesh is None else shard_count(mesh, logical)


def shard_mapped(
  function: Callable[..., R],
  inputs: Tree['AxisNames'],
  outputs: Tree['AxisNames'],
  checked: bool = True,
) -> Callable[..., R]:
  """Returns `jax.shard_map` of the function on the current mesh.

  Args:
    function: of each device's shards; may use collectives over `AXES`.
    inputs: for each argument its `AxisNames`, or a tree of them.
    outputs: likewise.
    checked: whether JAX tracks varying axes (`check_vma`); Pallas kernels don't.
  """
  mesh = current_mesh()
  assert mesh is not None

  def specs(tree: Tree[AxisNames]) -> Tree[jax.sharding.PartitionSpec]:
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


def as_varying(tree: R, names: Tree['AxisNames'], logical: str) -> R:
  """Marks arrays inside `shard_mapped` as device-varying along a logical axis.

  Their gradient is then psum-ed once, after a loop, instead of in every iteration.

  Args:
    tree: arrays.
    names: a tree of their `AxisNames`.
    logical: the axis.
  """
  mesh = current_mesh()
  assert mesh is not None
  wanted = [axis for axis in RULES[logical] if num_parts(mesh, axis) > 1]

  def one(names: AxisNames, x: jax.Array) -> jax.Array:
    sharded = [axis for axes in spec(mesh, names) for axis in as_tuple(axes)]
    missing = tuple(axis for axis in wanted if axis not in sharded)
    return jax.lax.pcast(x, missing, to='varying') if missing else x

  return jax.tree.map(one, names, tree, is_leaf=lambda x: isinstance(x, AxisNames))


def sum_over_replicas(function: Callable[[R], S], rows: R, axis: int) -> S:
  """Returns function(rows) summed over the model replicas, each on its own rows.

  Gradients that `function` accumulates in a loop are all-reduced across replicas once,
  after the loop, instead of in every iteration.

  Args:
    function: a tree of arrays -> a tree of arrays; results of parts add up.
    rows: a tree of arrays.
    axis: the axis of `rows` that is P (or rows).
  """
  mesh = current_mesh()
  replicas = 1 if mesh is None else mesh.shape['data']
  if replicas == 1:
    return function(rows)

  def of_one(rows: R) -> S:  # one replica
    token = ONE_REPLICA.set(True)
    try:
      return function(rows)
    finally:
      ONE_REPLICA.reset(token)

  by_replica = jax.tree.map(
    lambda x: x.reshape(*x.shape[:axis], replicas, -1, *x.shape[axis + 1 :]), rows
  )
  each = jax.vmap(of_one, in_axes=axis, spmd_axis_name='data')(by_replica)
  return jax.tree.map(lambda x: x.sum(0), each)


class AxisNames(tuple):
  """The logical names of an array's axes; a leaf of a tree."""

  def __new__(cls, *names: str | None) -> 'AxisNames':
    return super().__new__(cls, names)
