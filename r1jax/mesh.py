"""The device mesh, and the one table from logical to mesh axes.

Models and batches name what an axis is; this table says where it lies. Nobody else
writes a PartitionSpec, and a name that the table lacks is an error.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RULES: dict[str, str | None] = {
  'prompt': 'data',  # P: prompts, and the rows of supervised batches
  'vocab': None,
  'embed': None,
  'heads': None,
  'kv_heads': None,
  'channel': None,
  'mlp': None,
  'rank': None,  # of latent attention
  'expert': None,
  'layers': None,  # scanned, so never cut
}


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh of all (or the given) devices along `data`."""
  devices = jax.devices() if devices is None else devices
  # Auto: the default, Explicit, does not take Linen's partitioned parameters.
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
  """Returns where an array lies whose axes have these logical names (None: anywhere).

  Raises:
    ValueError: for a name that is not in `RULES`.
  """
  unknown = [name for name in logical if name is not None and name not in RULES]
  if unknown:
    raise ValueError(f'logical axis: expected one of {sorted(RULES)}, got {unknown}')
  spec = PartitionSpec(*(name and RULES[name] for name in logical))
  return NamedSharding(mesh, spec)


def fitting(sizes: Sequence[int]) -> Mesh:
  """Returns a mesh of the largest number of devices that divides all these sizes."""
  devices = jax.devices()
  common = math.gcd(*sizes)
  count = max(n for n in range(1, len(devices) + 1) if common % n == 0)
  return make(devices[:count])


def put_batch(mesh: Mesh, batch: Any, axis: int = 0) -> Any:
  """Places a tree of arrays one axis of which is P (or rows) on the mesh."""
  return jax.device_put(batch, sharding(mesh, *[None] * axis, 'prompt'))


def put_everywhere(mesh: Mesh, tree: Any) -> Any:
  """Places a copy of each array of the tree on every device of the mesh."""
  return jax.device_put(tree, sharding(mesh))


def put_boxed(mesh: Mesh, boxed: Any) -> Any:
  """Unboxes parameters that carry logical axis names and places them by the table."""
  return jax.tree.map(
    lambda box: jax.device_put(box.value, sharding(mesh, *box.names)),
    boxed,
    is_leaf=_is_box,
  )


def unbox(boxed: Any) -> Any:
  """Parameters, or their shapes, without the logical names of their axes."""
  return jax.tree.map(lambda box: box.value, boxed, is_leaf=_is_box)


def _is_box(leaf: Any) -> bool:
  return hasattr(leaf, 'names')
