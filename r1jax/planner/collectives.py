"""What a collective sends to one device, over the links of a slice or the network."""

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from r1jax.planner.costs import Costs
from r1jax.planner.hlo import Instruction, sizes

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_TABLE = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'  # a shape, and the order of its axes


def received(
  found: Costs, one: Instruction, kind: str, times: float, slices: Sequence[int]
) -> None:
  """What a device receives of others, as the TPU's compiler has it sent.

  Over several slices a sum is scattered in each, its parts are summed over the network,
  and gathered in each; what is gathered crosses the network first, as each device's own
  part. So a slice's devices share what crosses. All-to-alls that leave a slice are
  handed to the network as a whole.
  """
  _, size = sizes(one.shape)
  if kind == 'collective-permute':
    for way in {
      'network' if slices and slices[source] != slices[target] else 'links'
      for source, target in _pairs(one.attributes)
      if source != target
    }:
      found.sent[kind, 2, way] += times * size  # for one that receives over it
    return
  group, across = 0, 0
  for devices in replica_groups(one):
    spanned = len({slices[n] for n in devices}) if slices else 1
    group, across = max((group, across), (len(devices), spanned))
  within = group // across
  if kind == 'all-to-all' and across > 1:
    within, across = 1, group
  if kind == 'all-reduce':  # scattered, and gathered again
    size *= 2
  if kind == 'reduce-scatter':  # the result is a part of what is sent
    size *= group
  if within > 1:
    found.sent[kind, group, 'links'] += times * size * (within - 1) / within
  if across > 1:
    found.sent[kind, group, 'network'] += times * size / within * (across - 1) / across


def _pairs(attributes: str) -> list[list[int]]:
  """Who sends to whom."""
  found = re.search(r'source_target_pairs=\{([\d,{}]*)\}', attributes)
  return _lists(found[1]) if found else []


def replica_groups(one: Instruction) -> list[list[int]]:
  """The devices that exchange with each other, by their place in the program."""
  text = one.attributes
  # [groups, devices] of all devices, as they stand in a table
  if found := re.search(rf'replica_groups=\[(\d+),\d+\]<={_TABLE}', text):
    groups, *table = found.groups()
    return _table(*table).reshape(int(groups), -1).tolist()
  if found := re.search(
    rf'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_TABLE}\))? \{{([^}}]*)\}}',
    text,
  ):
    mesh, *table, axes = found.groups()
    return _along(mesh, axes, *table)
  if found := re.search(r'replica_groups=\{([\d,{}]+)\}', text):
    return _lists(found[1])
  raise ValueError(
    f'{one.name}: expected replica_groups as lists, as a table or by the axes of a '
    f'mesh, got {text[:200]!r}'
  )


def _lists(text: str) -> list[list[int]]:
  """{0,1},{2,3} as numbers."""
  return [[int(n) for n in x.split(',')] for x in re.findall(r'\{([\d,]+)\}', text)]


def _table(shape: str, order: str | None) -> np.ndarray:
  """All devices in a table of this shape, with its axes in another order."""
  sizes = [int(n) for n in shape.split(',')]
  axes = [int(n) for n in order.split(',')] if order else None
  return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes)


def _along(
  mesh: str, axes: str, shape: str | None, order: str | None
) -> list[list[int]]:
  """Groups along axes of a mesh: whole ones, or a part of one as axis:(before)size.

  The mesh has all devices in their order, or as they stand in a table.
  """
  sizes, inside = [], []
  for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh):
    ranges = [
      (int(before or 1), int(before or 1) * int(part or size))
      for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
      if name == axis
    ]
    for first, last in itertools.pairwise(sorted({1, int(size)}.union(*ranges))):
      sizes.append(last // first)
      inside.append(any(start <= first and last <= end for start, end in ranges))
  devices = _table(shape or str(math.prod(sizes)), order).reshape(sizes)
  devices = devices.transpose(sorted(range(len(sizes)), key=lambda n: inside[n]))
  group = math.prod(n for n, taken in zip(sizes, inside, strict=True) if taken)
  return devices.reshape(-1, group).tolist()
