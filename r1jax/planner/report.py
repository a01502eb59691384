"""A plan as text: memory, communication and lower bounds of time by program."""

from collections.abc import Sequence

from r1jax.planner.fit import fits
from r1jax.planner.measure import Measurement
from r1jax.planner.programs import PlannedRun
from r1jax.planner.topology import Chip


def lower_bounds(found: Measurement, chip: Chip) -> dict[str, float]:
  """Returns the least seconds that a phase takes in a step, by limiting resource.

  Assumes that links and network work at the same time, and that a program reads each of
  its arguments at least once.
  """
  read = max(found.costs.bytes, found.argument_bytes)
  one = {
    'compute': found.costs.flops / chip.flops,
    'memory': read / chip.bandwidth,
    'links': found.costs.over('links') / chip.links,
    'network': found.costs.over('network') / chip.network,
  }
  return {name: seconds * found.runs for name, seconds in one.items()}


def summary(plan: PlannedRun, found: Sequence[Measurement], chip: Chip) -> list[str]:
  """Returns the plan as lines of text."""
  lines = []
  for one in found:
    named = sorted(one.memory.items(), key=lambda item: -item[1])
    parts = ', '.join(f'{name} {_size(x)}' for name, x in named if x)
    lines.append(f'{one.name:8} {_size(one.total)} a chip: {parts}')
    if one.offloaded and chip.flops:  # on a CPU it is part of the memory above
      lines.append(f'{"":8} {_size(one.offloaded)} a chip in host memory')
    if one.error:
      lines.append(f'{"":8} refused: {one.error}')
    if not one.costs.flops:  # no matrix products, or the program did not compile
      continue
    lines.append(
      f'{"":8} {one.costs.flops:.3g} FLOPs, {_size(one.costs.bytes)} read or written a '
      f'chip, {one.runs} times a step; compiled in {one.compile_seconds:.0f} s'
    )
    for way in ('links', 'network'):
      sent = sorted(
        (size, f'{kind} over {group} chips {_size(size)}')
        for (kind, group, taken), size in one.costs.sent.items()
        if taken == way
      )
      if sent:
        most = ', '.join(words for _, words in sent[:-6:-1])
        lines.append(f'{"":8} {_size(one.costs.over(way))} by {way}: {most}')
  peak = max(found, key=lambda one: one.total)
  says = 'fits' if fits(found, chip) else 'does NOT fit'
  lines.append(
    f'{peak.name} needs the most, {_size(peak.total)} of {_size(chip.memory)}: {says}'
  )
  if chip.flops and not any(one.error for one in found):
    lines += _speed(plan, found, chip)
  return lines


def _speed(plan: PlannedRun, found: Sequence[Measurement], chip: Chip) -> list[str]:
  lines, total = [], 0.0
  for one in found:
    times = lower_bounds(one, chip)
    bound = max(times, key=lambda name: times[name])
    total += times[bound]
    rest = ', '.join(f'{name} {s:.3g} s' for name, s in times.items())
    lines.append(
      f'{one.name:8} at least {times[bound]:.3g} s a step, by {bound} ({rest})'
    )
  lines.append(
    f'A step takes at least {total:.3g} s: at most {plan.tokens / total:,.0f} '
    f'tokens/s, {86_400 / total:,.1f} steps a day, if every output is {plan.length} '
    'tokens long and nothing but products, memory, links and network takes time'
  )
  if any(one.offloaded for one in found):
    lines.append('Transfers from and to host memory are not counted')
  return lines


def _size(count: float) -> str:
  return f'{count / 1e9:.2f} GB' if count >= 1e7 else f'{count / 1e6:.2f} MB'
