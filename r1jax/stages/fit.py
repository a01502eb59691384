"""Chooses devices that divide the batches and lengths of a stage."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.plain import Config
from r1jax.runtime.run import Run
from r1jax.sharding.mesh import MeshConfig, check_lengths, fit_mesh, sampler_mesh
from r1jax.sharding.place import param_shardings
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import RowsConfig
from r1jax.trees import Boxed


def parts(config: Config) -> Iterator[tuple[str, Any]]:
  """Yields the name and value of each field of a stage's config."""
  for field in dataclasses.fields(config):
    yield field.name, getattr(config, field.name)


def fit_stage_mesh(
  config: Config, mesh_config: MeshConfig, *models: Boxed
) -> jax.sharding.Mesh:
  """Returns the devices that every batch of a stage can be sharded over.

  Args:
    config: of the stage.
    mesh_config: how the devices are arranged.
    *models: parameter shapes with axis names; see `Policy.names`.

  Raises:
    MeshError: a batch, a length or a model's axis does not divide.
  """
  sizes = batch_sizes(config)
  prompts = {name: size for name, size in sizes.items() if '.prompts_per_' in name}
  mesh = fit_mesh(sizes, mesh_config, prompts)
  check_lengths(mesh, _lengths(config))
  for names in models:
    param_shardings(mesh, names)
    param_shardings(sampler_mesh(mesh, mesh_config), names, 'mesh.sampler_')
  return mesh


def stage_devices(
  run: Run, config: Config, mesh_config: MeshConfig
) -> jax.sharding.Mesh:
  """Returns `fit_stage_mesh`; reports which devices are used if some are left over."""
  mesh = fit_stage_mesh(config, mesh_config)
  if mesh.size < jax.device_count():
    run.progress.say(
      f'Using {mesh.size} of {jax.device_count()} devices: that many divide '
      + ', '.join(f'{name} = {size}' for name, size in batch_sizes(config).items())
    )
  return mesh


def _lengths(config: Config) -> dict[str, int]:
  """Returns the lengths of a config's rows by name."""
  found = {}
  for name, part in parts(config):
    if isinstance(part, RLConfig):
      found[f'{name}.max_prompt_length'] = part.max_prompt_length
      for _, length in part.max_length:
        found[f'{name}.max_length'] = length
    if isinstance(part, RowsConfig):
      found[f'{name}.row_length'] = part.row_length
  return found


def batch_sizes(config: Config) -> dict[str, int]:
  """Returns by name the numbers of prompts or rows that are computed at once."""
  found = {}
  for name, part in parts(config):
    if isinstance(part, RLConfig):
      found[f'{name}.prompts_per_step'] = part.prompts_per_step
      found[f'{name}.micro_batch_rows'] = part.micro_batch_rows
    if isinstance(part, RejectionConfig | EvalConfig | SuiteConfig):
      found[f'{name}.prompts_per_batch'] = part.prompts_per_batch
    if isinstance(part, RowsConfig):
      rows = part.rows_per_step // part.micro_batches
      found[f'{name}.rows_per_step / {name}.micro_batches'] = rows
    if isinstance(part, PreferenceConfig):
      pairs = part.pairs_per_step // part.micro_batches
      found[f'{name}.pairs_per_step / {name}.micro_batches'] = pairs
  return found
