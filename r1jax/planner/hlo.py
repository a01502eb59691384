"""What a compiled program computes and sends, read from the text of its HLO.

The text is that of one device, after the compiler has cut the program over a mesh and
before it fuses anything. XLA's own count takes the body of a loop once; here bodies
count as often as they run. What devices send each other goes over the links of a slice
or over the network between slices, told by the devices that take part.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from r1jax.model.kernels import flash_gpu

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
         's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:to_apply|body|branch_computations|called_computations)=')
_NAME = re.compile(r'%([\w.\-]+)')
_TABLE = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'  # a shape, and the order of its axes
# The kernels of `model.kernels.flash_tpu`, forward and for the gradients of each side.
_FLASH = re.compile(
  r'(tpu_custom_call|gpu\.triton)".*op_name="[^"]*(?:splash_mha|\bflash)_(fwd|dq|dkv)'
)
# And of `r1jax.model.kernels.grouped_matmul`: rows by matrices, and sums over rows.
_GROUPED = re.compile(r'gpu\.triton".*op_name="[^"]*\bgrouped_(?:rows|sums)')


@dataclasses.dataclass
class Costs:
  """Of one device."""

  flops: float = 0.0  # of products
  bytes: float = 0.0  # that products read and write
  # Bytes that a device receives, by kind of collective, devices that take part, and
  # what they come over: the 'links' of a slice, or the 'network' between slices.
  sent: dict[tuple[str, int, str], float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )

  def over(self, way: str) -> float:
    """Bytes that a device receives over 'links', or the 'network'."""
    return sum(size for (_, _, taken), size in self.sent.items() if taken == way)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  kind: str
  inside: str  # of the parentheses: operands, or a constant's value
  attributes: str

  @property
  def operands(self) -> list[str]:
    """Names of other instructions."""
    return _NAME.findall(self.inside)


def _instructions(lines: list[str]) -> Iterator[_Instruction]:
  joined: list[str] = []
  for line in lines:
    if _INSTRUCTION.match(line) or not joined:
      joined.append(line)
    else:  # attributes of a kernel that are written over several lines
      joined[-1] += line
  for line in joined:
    found = _INSTRUCTION.match(line)
    if not found:
      continue
    name, rest = found.groups()
    if rest.startswith('('):
      shape, rest = _split_tuple(rest)
    else:
      shape, _, rest = rest.partition(' ')
    kind, _, rest = rest.partition('(')
    inside, _, attributes = rest.partition(')')
    yield _Instruction(name, shape, kind, inside, attributes)


def _split_tuple(rest: str) -> tuple[str, str]:
  """A tuple's shape, which ends where its parenthesis closes, and what follows."""
  depth = 0
  for end, letter in enumerate(rest):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return rest[: end + 1], rest[end + 2 :]
  return rest, ''


def _sizes(shape: str) -> tuple[list[int], int]:
  """The axes of an array, or of a tuple's first, and the bytes of all in it."""
  arrays = [
    (kind, [int(n) for n in axes.split(',') if n])
    for kind, axes in _ARRAY.findall(shape)
    if kind in BYTES
  ]
  total = sum(BYTES[kind] * math.prod(axes) for kind, axes in arrays)
  return (arrays[0][1] if arrays else []), total


def costs(
  text: str,
  unknown_trips: int = 1,
  ragged_share: float = 1.0,
  slices: Sequence[int] = (),
) -> Costs:
  """Returns what a program costs one device.

  Args:
    text: of the HLO module.
    unknown_trips: how often a loop runs whose end is a number of the program's.
    ragged_share: of the rows of a grouped product that belong to some group here.
    slices: the slice of each device, in the program's order; none where all are of one.

  Raises:
    ValueError: devices that exchange with each other are written in an unknown way.
  """
  bodies, entry = _computations(text)
  shapes = {
    one.name: one.shape for instructions in bodies.values() for one in instructions
  }
  found = Costs()

  def walk(computation: str, times: float) -> None:
    for one in bodies.get(computation, ()):
      kind = one.kind.removesuffix('-start')
      if kind in ('dot', 'ragged-dot'):
        share = ragged_share if kind == 'ragged-dot' else 1.0
        _product(found, one, shapes, times, share)
      elif kind in COLLECTIVES:
        _collective(found, one, kind, times, slices)
      elif kernel := _FLASH.search(one.attributes):
        _flash(found, one, shapes, times, *kernel.groups())
      elif _GROUPED.search(one.attributes):
        _grouped(found, one, shapes, times, ragged_share)
      elif kind == 'while':
        body = re.search(r'body=%?([\w.\-]+)', one.attributes)
        condition = re.search(r'condition=%?([\w.\-]+)', one.attributes)
        assert body is not None
        assert condition is not None
        trips = _trips(bodies[condition[1]], bodies[body[1]]) or unknown_trips
        walk(body[1], times * trips)
      elif kind in ('call', 'conditional', 'custom-call', 'fusion', 'async'):
        for part in _CALLED.split(one.attributes)[1:]:
          for name in _NAME.findall(part.partition(', ')[0]):
            walk(name, times)

  walk(entry, 1.0)
  return found


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  bodies: dict[str, list[_Instruction]] = {}
  lines: list[str] = []
  entry, name = '', ''
  for line in text.splitlines():
    begun = _COMPUTATION.match(line)
    if begun:
      name, lines = begun[2], []
      entry = name if begun[1] else entry
    elif line.startswith('}') and not line.startswith('}}'):  # ends attributes
      bodies[name] = list(_instructions(lines))
    else:
      lines.append(line)
  return bodies, entry


def _trips(condition: list[_Instruction], body: list[_Instruction]) -> float | None:
  """How often a loop runs whose counter, from 0 on, is compared with a constant."""
  known = {one.name: one for one in condition}
  last = next(one for one in reversed(condition) if one.kind == 'compare')
  counter, end = (known.get(name) for name in last.operands)
  if counter is None or end is None or end.kind != 'constant':
    return None
  return int(end.inside) / _step(body, counter.attributes)


def _step(body: list[_Instruction], index: str) -> int:
  """What is added to a counter in one run; the compiler may write a body twice."""
  known = {one.name: one for one in body}
  place = re.search(r'index=(\d+)', index)
  if not place:
    return 1
  at, total = known.get(body[-1].operands[int(place[1])]), 0
  while at is not None and at.kind == 'add':
    numbers = [x for x in at.operands if x in known and known[x].kind == 'constant']
    others = [x for x in at.operands if x not in numbers]
    if len(numbers) != 1:
      return 1
    total += int(known[numbers[0]].inside)
    at = known.get(others[0])
  return max(total, 1)


def _product(
  found: Costs,
  one: _Instruction,
  shapes: dict[str, str],
  times: float,
  share: float,
) -> None:
  out, out_bytes = _sizes(one.shape)
  left, left_bytes = _sizes(shapes[one.operands[0]])
  _, right_bytes = _sizes(shapes[one.operands[1]])
  inner = _axes('lhs_contracting_dims', one.attributes)
  size = 2 * math.prod(out) * math.prod(left[n] for n in inner)
  if set(inner) & set(_axes('lhs_ragged_dims', one.attributes)):
    size //= out[0]  # a row is summed in the product of its own group alone
  found.flops += times * share * size
  found.bytes += times * (share * (out_bytes + left_bytes) + right_bytes)


def _flash(
  found: Costs,
  one: _Instruction,
  shapes: dict[str, str],
  times: float,
  machine: str,
  kernel: str,
) -> None:
  """What a kernel computes of a row's queries, the last ones of its keys.

  As that of the last device where a row is cut over several.
  """
  operands = [_sizes(shapes[name]) for name in one.operands]
  if machine == 'tpu_custom_call':
    (*_, blocks, key_blocks), _ = operands[0]  # of queries and of keys
    (*rows, length, channels), q_bytes = operands[2]
    (*_, keys, _), _ = operands[3]
    (*_, value_channels), _ = operands[4]
  else:
    (*rows, length, heads, channels), q_bytes = operands[0]
    (*_, keys, _, _), _ = operands[1]
    (*_, value_channels), _ = operands[2]
    rows = [*rows, heads]
    of_queries = flash_gpu.KEYS if kernel == 'dkv' else flash_gpu.QUERIES
    blocks, key_blocks = length // of_queries, keys // flash_gpu.KEYS
  size, key_size = length // blocks, keys // key_blocks
  before = keys - length
  used = sum(
    min(-(-(before + (n + 1) * size) // key_size), key_blocks) for n in range(blocks)
  )
  of_keys = {'fwd': 1, 'dq': 2, 'dkv': 2}[kernel]  # products of C channels a pair
  of_values = {'fwd': 1, 'dq': 1, 'dkv': 2}[kernel]
  pairs = math.prod(rows) * used * size * key_size
  inner = of_keys * channels + of_values * value_channels
  found.flops += times * 2 * pairs * inner
  # And for each block of one side the blocks of the other are read.
  width = q_bytes // math.prod((*rows, length, channels))
  streamed = pairs // (key_size if kernel == 'dkv' else size)
  streamed *= width * (channels + value_channels)
  _, out_bytes = _sizes(one.shape)
  found.bytes += times * (sum(size for _, size in operands) + out_bytes + streamed)


def _grouped(
  found: Costs,
  one: _Instruction,
  shapes: dict[str, str],
  times: float,
  share: float,
) -> None:
  """What a kernel computes with the rows that are some group's."""
  parts = [_sizes(shapes[name]) for name in one.operands[-2:]] + [_sizes(one.shape)]
  # One of the three is a matrix for each group.
  matrices, whole = next(part for part in parts if len(part[0]) == 3)
  (rows, _), _ = parts[0]
  found.flops += times * share * 2 * rows * math.prod(matrices[1:])
  found.bytes += times * (share * (sum(size for _, size in parts) - whole) + whole)


def _axes(name: str, attributes: str) -> list[int]:
  found = re.search(name + r'=\{([\d,]*)\}', attributes)
  return [int(n) for n in found[1].split(',') if n] if found else []


def _collective(
  found: Costs, one: _Instruction, kind: str, times: float, slices: Sequence[int]
) -> None:
  """What a device receives of others, as the TPU's compiler has it sent.

  Over several slices a sum is scattered in each, its parts are summed over the network,
  and gathered in each; what is gathered crosses the network first, as each device's own
  part. So a slice's devices share what crosses. All-to-alls that leave a slice are
  handed to the network as a whole.
  """
  _, size = _sizes(one.shape)
  if kind == 'collective-permute':
    for way in {
      'network' if slices and slices[source] != slices[target] else 'links'
      for source, target in _pairs(one.attributes)
      if source != target
    }:
      found.sent[kind, 2, way] += times * size  # for one that receives over it
    return
  group, across = 0, 0
  for devices in _groups(one):
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


def _groups(one: _Instruction) -> list[list[int]]:
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
