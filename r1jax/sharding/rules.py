"""The one table from logical axis names to mesh axes.

Models and batches name what an axis is; this table says which mesh axes shard it.
Nobody else writes a PartitionSpec, and a name that the table lacks is an error.
"""

import contextvars
import math
from collections.abc import Sequence

from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Set while a program is traced of one replica's rows; see `sum_over_replicas`.
ONE_REPLICA = contextvars.ContextVar('r1jax_one_replica', default=False)

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


def spec(mesh: Mesh, logical: Sequence[str | None]) -> PartitionSpec:
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
  """The size of an axis; within `sum_over_replicas` there is one copy."""
  return 1 if axis == 'data' and ONE_REPLICA.get() else mesh.shape[axis]


def as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """An entry of a PartitionSpec as the axes that it names."""
  return (axes,) if isinstance(axes, str) else axes or ()


def named_sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
  """Returns where an array lies whose axes have these logical names (None: anywhere).

  Raises:
    ValueError: for a name that is not in `RULES`.
  """
  return NamedSharding(mesh, spec(mesh, logical))


def shard_count(mesh: Mesh, logical: str) -> int:
  """Returns how many parts an axis of this name is cut into."""
  return math.prod(num_parts(mesh, axis) for axis in RULES[logical])
