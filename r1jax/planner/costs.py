"""FLOPs, memory traffic and communication of a compiled program, from its HLO text.

The text is the program of one device, after partitioning and before fusion. XLA's own
cost analysis counts the body of a loop once; here it counts as often as it runs.
Communication is split into links within a slice and the network between slices.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

from r1jax.model.kernels import flash_gpu
from r1jax.planner.collectives import COLLECTIVES, Exchange, received
from r1jax.planner.hlo import NAME, Instruction, computations, sizes

_CALLED = re.compile(r'(?:to_apply|body|branch_computations|called_computations)=')
# The kernels of `model.kernels.flash_tpu` and `flash_gpu`, forward and backward.
_FLASH = re.compile(
  r'(tpu_custom_call|gpu\.triton)".*op_name="[^"]*(?:splash_mha|\bflash)_(fwd|dq|dkv)'
)
# Those of `model.kernels.grouped_matmul`: rows by matrices, and sums over rows.
_GROUPED = re.compile(r'gpu\.triton".*op_name="[^"]*\bgrouped_(?:rows|sums)')


@dataclasses.dataclass
class Costs:
  """Costs of a program on one device."""

  flops: float = 0.0  # of matrix products
  bytes: float = 0.0  # that matrix products read and write
  # Bytes that the device receives.
  sent: dict[Exchange, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )

  def over(self, way: str) -> float:
    """Returns the bytes that the device receives over 'links' or the 'network'."""
    return sum(size for (_, _, taken), size in self.sent.items() if taken == way)


def program_costs(
  text: str,
  unknown_trips: int = 1,
  ragged_share: float = 1.0,
  slices: Sequence[int] = (),
) -> Costs:
  """Returns the costs of a program on one device.

  Args:
    text: of the HLO module.
    unknown_trips: iterations of a loop whose end is a value of the program.
    ragged_share: share of the rows of a grouped product that belong to a local group.
    slices: the slice of each device, in the program's order; empty for one slice.

  Raises:
    ValueError: a collective's groups are written in an unknown notation.
  """
  bodies, entry = computations(text)
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
        for exchange, size in received(one, kind, times, slices):
          found.sent[exchange] += size
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
          for name in NAME.findall(part.partition(', ')[0]):
            walk(name, times)

  walk(entry, 1.0)
  return found


def _trips(condition: list[Instruction], body: list[Instruction]) -> float | None:
  """Returns the iterations of a loop that counts from 0 to a constant, else None."""
  known = {one.name: one for one in condition}
  last = next(one for one in reversed(condition) if one.kind == 'compare')
  counter, end = (known.get(name) for name in last.operands)
  if counter is None or end is None or end.kind != 'constant':
    return None
  return int(end.inside) / _step(body, counter.attributes)


def _step(body: list[Instruction], index: str) -> int:
  """Returns the increment of a loop counter; the compiler may unroll the body."""
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
  one: Instruction,
  shapes: dict[str, str],
  times: float,
  share: float,
) -> None:
  """Adds the costs of a matrix product."""
  out, out_bytes = sizes(one.shape)
  left, left_bytes = sizes(shapes[one.operands[0]])
  _, right_bytes = sizes(shapes[one.operands[1]])
  inner = _axes('lhs_contracting_dims', one.attributes)
  size = 2 * math.prod(out) * math.prod(left[n] for n in inner)
  if set(inner) & set(_axes('lhs_ragged_dims', one.attributes)):
    size //= out[0]  # a row is a term of its own group's product only
  found.flops += times * share * size
  found.bytes += times * (share * (out_bytes + left_bytes) + right_bytes)


def _flash(
  found: Costs,
  one: Instruction,
  shapes: dict[str, str],
  times: float,
  machine: str,
  kernel: str,
) -> None:
  """Adds the costs of an attention kernel; queries are the last positions of the keys.

  If rows are sharded over devices, these are the costs of the last device.
  """
  operands = [sizes(shapes[name]) for name in one.operands]
  if machine == 'tpu_custom_call':
    (*_, blocks, key_blocks), _ = operands[0]  # of queries, and of keys
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
  of_keys = {'fwd': 1, 'dq': 2, 'dkv': 2}[kernel]  # products over C channels, per pair
  of_values = {'fwd': 1, 'dq': 1, 'dkv': 2}[kernel]
  pairs = math.prod(rows) * used * size * key_size
  inner = of_keys * channels + of_values * value_channels
  found.flops += times * 2 * pairs * inner
  # For every block of one side, the blocks of the other side are read.
  width = q_bytes // math.prod((*rows, length, channels))
  streamed = pairs // (key_size if kernel == 'dkv' else size)
  streamed *= width * (channels + value_channels)
  _, out_bytes = sizes(one.shape)
  found.bytes += times * (sum(size for _, size in operands) + out_bytes + streamed)


def _grouped(
  found: Costs,
  one: Instruction,
  shapes: dict[str, str],
  times: float,
  share: float,
) -> None:
  """Adds the costs of a grouped product, for the rows that belong to a group."""
  parts = [sizes(shapes[name]) for name in one.operands[-2:]] + [sizes(one.shape)]
  # One of the three arrays has a matrix for each group.
  matrices, whole = next(part for part in parts if len(part[0]) == 3)
  (rows, _), _ = parts[0]
  found.flops += times * share * 2 * rows * math.prod(matrices[1:])
  found.bytes += times * (share * (sum(size for _, size in parts) - whole) + whole)


def _axes(name: str, attributes: str) -> list[int]:
  found = re.search(name + r'=\{([\d,]*)\}', attributes)
  return [int(n) for n in found[1].split(',') if n] if found else []
