"""Parses the text of an HLO module into instructions, by computation."""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
         's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}  # fmt: skip
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  shape: str
  kind: str
  inside: str  # text in parentheses: operands, or the value of a constant
  attributes: str

  @property
  def operands(self) -> list[str]:
    """The names of the instructions whose results this one reads."""
    return NAME.findall(self.inside)


def _instructions(lines: list[str]) -> Iterator[Instruction]:
  joined: list[str] = []
  for line in lines:
    if _INSTRUCTION.match(line) or not joined:
      joined.append(line)
    else:  # the attributes of a kernel can span several lines
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
    yield Instruction(name, shape, kind, inside, attributes)


def _split_tuple(rest: str) -> tuple[str, str]:
  """Returns a tuple's shape, up to its closing parenthesis, and the rest."""
  depth = 0
  for end, letter in enumerate(rest):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return rest[: end + 1], rest[end + 2 :]
  return rest, ''


def sizes(shape: str) -> tuple[list[int], int]:
  """Returns the axes of an array, or of a tuple's first array, and the bytes of all."""
  arrays = [
    (kind, [int(n) for n in axes.split(',') if n])
    for kind, axes in _ARRAY.findall(shape)
    if kind in BYTES
  ]
  total = sum(BYTES[kind] * math.prod(axes) for kind, axes in arrays)
  return (arrays[0][1] if arrays else []), total


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns the instructions of each computation by its name, and the entry's name."""
  bodies: dict[str, list[Instruction]] = {}
  lines: list[str] = []
  entry, name = '', ''
  for line in text.splitlines():
    begun = _COMPUTATION.match(line)
    if begun:
      name, lines = begun[2], []
      entry = name if begun[1] else entry
    elif line.startswith('}') and not line.startswith('}}'):  # '}}' ends attributes
      bodies[name] = list(_instructions(lines))
    else:
      lines.append(line)
  return bodies, entry
