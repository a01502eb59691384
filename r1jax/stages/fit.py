"""Which devices can share the batches and lengths of a stage."""

import dataclasses
from typing import Any

import jax

from r1jax.runtime.run import Run
from r1jax.sharding.mesh import check_lengths, fit_mesh, sampler_mesh
from r1jax.sharding.place import param_shardings


def fit_stage_mesh(config: Any, *models: Any) -> jax.sharding.Mesh:
  """The devices that all portions of a stage's config can be cut over, and its models.

  Of models the parameters' shapes with the names of their axes. Raises MeshError.
  """
  sizes = batch_sizes(config)
  asked = {name: size for name, size in sizes.items() if '.prompts_per_' in name}
  mesh = fit_mesh(sizes, config.mesh, asked)
  _check_lengths(mesh, config)
  for names in models:
    param_shardings(mesh, names)
    param_shardings(sampler_mesh(mesh, config.mesh), names, 'mesh.sampler_')
  return mesh


def stage_devices(run: Run, config: Any) -> jax.sharding.Mesh:
  """The devices that are `fitting`; says which, where others are left."""
  mesh = fit_stage_mesh(config)
  if mesh.size < jax.device_count():
    run.progress.say(
      f'Using {mesh.size} of {jax.device_count()} devices: that many divide '
      + ', '.join(f'{name} = {size}' for name, size in batch_sizes(config).items())
    )
  return mesh


def _check_lengths(mesh: jax.sharding.Mesh, config: Any) -> None:
  lengths = {}
  for name in ('rl', 'base', 'sft'):
    part = getattr(config, name, None)
    for field in ('max_prompt_length', 'row_length'):
      if hasattr(part, field):
        lengths[f'{name}.{field}'] = getattr(part, field)
    for _, length in getattr(part, 'max_length', ()) if name == 'rl' else ():
      lengths['rl.max_length'] = length
  check_lengths(mesh, lengths)


def batch_sizes(config: Any) -> dict[str, int]:
  """By name: how many prompts or rows a config has computed at a time."""
  found = {}
  for field in dataclasses.fields(config):
    part = getattr(config, field.name)
    for name in ('prompts_per_step', 'micro_batch_rows', 'prompts_per_batch'):
      if hasattr(part, name):
        found[f'{field.name}.{name}'] = getattr(part, name)
    for name in ('rows_per_step', 'pairs_per_step'):
      if hasattr(part, name):
        rows = getattr(part, name) // part.micro_batches
        found[f'{field.name}.{name} / {field.name}.micro_batches'] = rows
  return found
