"""Bytes that collectives send to one device, over links and over the network."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.planner.hlo import Instruction, sizes

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_TABLE = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'  # a shape, and the order of its axes


# A kind of collective, the number of devices in a group, and what the bytes travel
# over: the 'links' within a slice, or the 'network' between slices.
Exchange = tuple[str, int, str]


def received(
  one: Instruction, kind: str, times: float, slices: Sequence[int]
) -> Iterator[tuple[Exchange, float]]:
  """Yields the bytes that one device receives, as the TPU's compiler implements it.

  An all-reduce over several slices is a reduce-scatter in each slice, an all-reduce of
  the parts over the network, and an all-gather in each slice. An all-gather crosses the
  network first, with each device's own part. So the devices of a slice share the
  traffic between slices. An all-to-all across slices uses the network alone.

  Args:
    one: the instruction.
    kind: one of COLLECTIVES.
    times: how often the program runs it.
    slices: the slice of each device; empty if all devices are in one slice.
  """
  _, size = sizes(one.shape)
  if kind == 'collective-permute':
    for way in {
      'network' if slices and slices[source] != slices[target] else 'links'
      for source, target in _pairs(one.attributes)
      if source != target
    }:
      yield (kind, 2, way), times * size  # of a device that receives over it
    return
  group, across = 0, 0
  for devices in replica_groups(one):
    spanned = len({slices[n] for n in devices}) if slices else 1
    group, across = max((group, across), (len(devices), spanned))
  within = group // across
  if kind == 'all-to-all' and across > 1:
    within, across = 1, group
  if kind == 'all-reduce':  # reduce-scatter, then all-gather
    size *= 2
  if kind == 'reduce-scatter':  # the result is one part of what is sent
    size *= group
  if within > 1:
    yield (kind, group, 'links'), times * size * (within - 1) / within
  if across > 1:
    yield (kind, group, 'network'), times * size / within * (across - 1) / across


def _pairs(attributes: str) -> list[list[int]]:
  """Returns the pairs of source and target devices of a collective-permute."""
  found = re.search(r'source_target_pairs=\{([\d,{}]*)\}', attributes)
  return _lists(found[1]) if found else []


def replica_groups(one: Instruction) -> list[list[int]]:
  """Returns groups of devices that exchange data, by position in the program.

  Raises:
    ValueError: the groups are written in an unknown notation.
  """
  text = one.attributes
  # [groups, devices per group]<=[a table of all devices]
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
    f'{one.name}: expected replica_groups as lists, as a table or as axes of a mesh, '
    f'got {text[:200]!r}'
  )


def _lists(text: str) -> list[list[int]]:
  """Returns the numbers of {0,1},{2,3}."""
  return [[int(n) for n in x.split(',')] for x in re.findall(r'\{([\d,]+)\}', text)]


def _table(shape: str, order: str | None) -> np.ndarray:
  """Returns all devices in a table of this shape, with transposed axes."""
  sizes = [int(n) for n in shape.split(',')]
  axes = [int(n) for n in order.split(',')] if order else None
  return np.arange(math.prod(sizes)).reshape(sizes).transpose(axes)


def _along(
  mesh: str, axes: str, shape: str | None, order: str | None
) -> list[list[int]]:
  """Returns groups along axes of a mesh, or along a part of one: axis:(before)size.

  The devices of the mesh are in their own order, or in that of a table.
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
