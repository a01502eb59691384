"""Whether a plan fits the chip, and which settings need less memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from r1jax import optim
from r1jax.planner.measure import Measurement
from r1jax.planner.programs import PlannedRun
from r1jax.planner.topology import Chip
from r1jax.sharding.mesh import (
  slice_of,
)


def fits(found: Sequence[Measurement], chip: Chip) -> bool:
  """Whether each phase has room on the chip."""
  return all(not one.refused and one.total <= chip.memory for one in found)


def changes(
  work: PlannedRun, devices: Sequence[Any]
) -> Iterator[tuple[str, PlannedRun]]:
  """What needs less memory, from what costs least: flags, and the work with them.

  Each is on top of those before it.
  """
  rows, parts = work.rl.micro_batch_rows, work.mesh.fsdp * work.mesh.expert
  parts *= work.mesh.data or max(1, len(devices) // work.mesh.parts)
  while rows % 2 == 0 and rows // 2 % parts == 0:
    rows //= 2
    work = dataclasses.replace(
      work, rl=dataclasses.replace(work.rl, micro_batch_rows=rows)
    )
    yield f'--rl.micro-batch-rows {rows}', work
  for kept in ('dots', 'full'):
    if work.model.remat == {'dots': 'none', 'full': 'dots'}[kept]:
      work = dataclasses.replace(
        work, model=dataclasses.replace(work.model, remat=kept)
      )
      yield f'--remat {kept}', work
  copies = work.mesh.data or max(1, len(devices) // work.mesh.parts)
  fewest = len(set(map(slice_of, devices)))  # a copy is cut within a slice
  if copies > fewest:
    fsdp = work.mesh.fsdp * copies // fewest
    layout = dataclasses.replace(work.mesh, data=fewest, fsdp=fsdp)
    work = dataclasses.replace(work, mesh=layout)
    yield f'--mesh.data {fewest} --mesh.fsdp {fsdp}', work
  if not work.rl.offload:
    work = dataclasses.replace(work, rl=dataclasses.replace(work.rl, offload=True))
    yield '--rl.offload True', work
  if (
    not work.mesh.sampler_gathers and (work.mesh.sampler_expert or work.mesh.expert) > 1
  ):
    layout = dataclasses.replace(work.mesh, sampler_gathers=True)
    work = dataclasses.replace(work, mesh=layout)
    yield '--mesh.sampler-gathers True', work
  decays = work.optim.b1, work.optim.b2
  if work.optim.moments == 'float32' and max(decays) <= optim.MOST_DECAY:
    halved = dataclasses.replace(work.optim, moments='bfloat16')
    work = dataclasses.replace(work, optim=halved)
    yield '--rl-optim.moments bfloat16', work
  if work.optim.masters == 'none':  # in bfloat16 a small step would change nothing
    return
  if work.param_dtype == 'float32':
    work = dataclasses.replace(work, param_dtype='bfloat16')
    yield '--param-dtype bfloat16', work
  if work.optim.masters == 'float32':
    without = dataclasses.replace(work.optim, masters='stochastic')
    work = dataclasses.replace(work, optim=without)
    yield '--rl-optim.masters stochastic', work
