"""What a compiled program computes and sends, read from the text of its HLO.

The text is that of one device, after the compiler has cut the program over a mesh and
before it fuses anything. XLA's own count takes the body of a loop once; here bodies
count as often as they run.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

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
# The kernels of `r1jax.model.flash`, forward and for the gradients of each side.
_FLASH = re.compile(r'tpu_custom_call.*op_name="[^"]*/splash_mha_(fwd|dq|dkv)')


@dataclasses.dataclass
class Costs:
  """Of one device."""

  flops: float = 0.0  # of products
  bytes: float = 0.0  # that products read and write
  # Bytes that a device receives, by kind of collective and devices that take part.
  sent: dict[tuple[str, int], float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )


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


def costs(text: str, unknown_trips: int = 1, ragged_share: float = 1.0) -> Costs:
  """Returns what a program costs one device.

  Args:
    text: of the HLO module.
    unknown_trips: how often a loop runs whose end is a number of the program's.
    ragged_share: of the rows of a grouped product that belong to some group here.
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
        _, size = _sizes(one.shape)
        group = _group(one.attributes)
        if kind == 'all-reduce':  # scattered, and gathered again
          size = 2 * size
        if kind == 'reduce-scatter':  # the result is a part of what is sent
          size *= group
        share = (group - 1) / group if kind != 'collective-permute' else 1.0
        found.sent[kind, group] += times * size * share
      elif kernel := _FLASH.search(one.attributes):
        _flash(found, one, shapes, times, kernel[1])
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
  kernel: str,
) -> None:
  """What a kernel computes of a row's queries, the last ones of its keys.

  As that of the last device where a row is cut over several.
  """
  operands = [_sizes(shapes[name]) for name in one.operands]
  (*_, blocks, key_blocks), _ = operands[0]  # of queries and of keys
  (*rows, length, channels), q_bytes = operands[2]
  (*_, keys, _), _ = operands[3]
  (*_, value_channels), _ = operands[4]
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
  width = q_bytes // math.prod(operands[2][0])
  streamed = pairs // (key_size if kernel == 'dkv' else size)
  streamed *= width * (channels + value_channels)
  _, out_bytes = _sizes(one.shape)
  found.bytes += times * (sum(size for _, size in operands) + out_bytes + streamed)


def _axes(name: str, attributes: str) -> list[int]:
  found = re.search(name + r'=\{([\d,]*)\}', attributes)
  return [int(n) for n in found[1].split(',') if n] if found else []


def _group(attributes: str) -> int:
  """How many devices exchange with each other."""
  # [groups, devices] in a line of all devices, or sizes of the mesh's axes by name
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', attributes):
    return int(found[2])
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    # An axis, or a part of one as axis:(before)size
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if found := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
    return len(found[1].split(','))
  return 2
