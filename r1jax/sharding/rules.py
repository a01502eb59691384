"""The one table from logical axis names to mesh axes.

Models and batches name their axes; this table lists the mesh axes that shard each name.
No other module writes a PartitionSpec, and an unknown name is an error.
"""

import contextvars
import math
from collections.abc import Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

# True while a program is traced for one replica's rows; see `sum_over_replicas`.
ONE_REPLICA = contextvars.ContextVar('r1jax_one_replica', default=False)

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')
# If two axes of an array name the same mesh axis, the first one gets it.
RULES: dict[str, tuple[str, ...]] = {
  'prompt': ('data', 'fsdp', 'expert'),  # P: prompts, and the rows of batches
  'length': ('context',),  # T: positions of a row
  'piece': ('data', 'fsdp', 'expert', 'context'),  # rows and shards of rows in T
  'vocab': ('tensor',),
  'embed': ('fsdp', 'expert', 'context'),  # of parameters only, not of activations
  'gain': (),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'channel': (),
  'mlp': ('tensor',),
  'rank': ('fsdp', 'expert', 'context'),  # of latent attention, without 'embed'
  'expert': ('expert',),
  'layers': (),  # scanned, so never sharded
}
GATHERED = ('embed', 'rank')  # axes that are gathered for each product


class MeshError(ValueError):
  """Devices, axes and sizes that do not fit; names the field and a value that does."""


def spec(mesh: Mesh, logical: Sequence[str | None]) -> PartitionSpec:
  """Returns the PartitionSpec of an array with these logical axes (None: replicated).

  Raises:
    ValueError: for a name that is not in `RULES`.
  """
  unknown = [name for name in logical if name is not None and name not in RULES]
  if unknown:
    raise ValueError(f'logical axis: expected one of {sorted(RULES)}, got {unknown}')
  taken: set[str] = set()
  spec = []
  for name in logical:
    known = RULES[name] if name is not None else ()
    axes = [axis for axis in known if num_parts(mesh, axis) > 1 and axis not in taken]
    taken |= set(axes)
    spec.append(axes[0] if len(axes) == 1 else tuple(axes) or None)
  return PartitionSpec(*spec)


def num_parts(mesh: Mesh, axis: str) -> int:
  """Returns the size of a mesh axis; `data` is 1 inside `sum_over_replicas`."""
  return 1 if axis == 'data' and ONE_REPLICA.get() else mesh.shape[axis]


def as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of an entry of a PartitionSpec."""
  return (axes,) if isinstance(axes, str) else axes or ()


def named_sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
  """Returns the sharding of an array with these logical axes (None: replicated).

  Raises:
    ValueError: for a name that is not in `RULES`.
  """
  return NamedSharding(mesh, spec(mesh, logical))


def shard_count(mesh: Mesh, logical: str) -> int:
  """Returns the number of shards of an axis with this name."""
  return math.prod(num_parts(mesh, axis) for axis in RULES[logical])
