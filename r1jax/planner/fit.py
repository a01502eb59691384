"""Checks that a plan fits the chip, and proposes settings that need less memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from r1jax import optim
from r1jax.planner.measure import Measurement
from r1jax.planner.programs import PlannedRun
from r1jax.planner.topology import Chip
from r1jax.sharding.mesh import slice_of


def fits(found: Sequence[Measurement], chip: Chip) -> bool:
  """Returns whether every phase fits the chip's memory."""
  return all(not one.error and one.total <= chip.memory for one in found)


def smaller_plans(
  plan: PlannedRun, devices: Sequence[jax.Device]
) -> Iterator[tuple[str, PlannedRun]]:
  """Yields plans that need less memory, the cheapest change first, each with its flag.

  Each plan keeps the changes of those before it.
  """
  rows, parts = plan.rl.micro_batch_rows, plan.mesh.fsdp * plan.mesh.expert
  parts *= plan.mesh.data or max(1, len(devices) // plan.mesh.parts)
  while rows % 2 == 0 and rows // 2 % parts == 0:
    rows //= 2
    plan = dataclasses.replace(
      plan, rl=dataclasses.replace(plan.rl, micro_batch_rows=rows)
    )
    yield f'--rl.micro-batch-rows {rows}', plan
  for remat in ('dots', 'full'):
    if plan.model.remat == {'dots': 'none', 'full': 'dots'}[remat]:
      plan = dataclasses.replace(
        plan, model=dataclasses.replace(plan.model, remat=remat)
      )
      yield f'--remat {remat}', plan
  replicas = plan.mesh.data or max(1, len(devices) // plan.mesh.parts)
  fewest = len(set(map(slice_of, devices)))  # a replica is sharded within a slice
  if replicas > fewest:
    fsdp = plan.mesh.fsdp * replicas // fewest
    mesh = dataclasses.replace(plan.mesh, data=fewest, fsdp=fsdp)
    plan = dataclasses.replace(plan, mesh=mesh)
    yield f'--mesh.data {fewest} --mesh.fsdp {fsdp}', plan
  if not plan.rl.offload:
    plan = dataclasses.replace(plan, rl=dataclasses.replace(plan.rl, offload=True))
    yield '--rl.offload True', plan
  if (
    not plan.mesh.sampler_gathers and (plan.mesh.sampler_expert or plan.mesh.expert) > 1
  ):
    mesh = dataclasses.replace(plan.mesh, sampler_gathers=True)
    plan = dataclasses.replace(plan, mesh=mesh)
    yield '--mesh.sampler-gathers True', plan
  rates = plan.rl.optim
  if rates.moments == 'float32' and max(rates.b1, rates.b2) <= optim.MAX_BFLOAT16_DECAY:
    plan = _with_optim(plan, moments='bfloat16')
    yield '--rl.optim.moments bfloat16', plan
  if rates.masters == 'none':  # a small step would change nothing in bfloat16
    return
  if plan.param_dtype == 'float32':
    plan = dataclasses.replace(plan, param_dtype='bfloat16')
    yield '--param-dtype bfloat16', plan
  if rates.masters == 'float32':
    plan = _with_optim(plan, masters='stochastic')
    yield '--rl.optim.masters stochastic', plan


def _with_optim(plan: PlannedRun, **changes: Any) -> PlannedRun:
  """Returns the plan with other settings of the optimizer."""
  changed = dataclasses.replace(plan.rl.optim, **changes)
  return dataclasses.replace(plan, rl=dataclasses.replace(plan.rl, optim=changed))
