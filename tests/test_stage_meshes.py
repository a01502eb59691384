"""What stages learn on meshes of eight devices, compared with one device."""

import functools

import jax
import numpy as np
import pytest
import stages

from r1jax.sharding.mesh import MeshConfig

MESHES = {
  'fsdp 4 tensor 2': MeshConfig(fsdp=4, tensor=2),
  'context 2 fsdp 4': MeshConfig(context=2, fsdp=4),
  'data 2 fsdp 4': MeshConfig(data=2, fsdp=4),
}


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  @functools.cache
  def learned(phase, mesh_name):
    """The work directory and the parameters."""
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    layout = MESHES.get(mesh_name, MeshConfig())
    devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
    return workdir, stages.learn(workdir, layout, devices, phase)[phase]

  return learned


@pytest.mark.parametrize(
  ('phase', 'mesh_name'),
  [
    ('sft', 'context 2 fsdp 4'),
    ('on_policy', 'data 2 fsdp 4'),
    ('preferred', 'fsdp 4 tensor 2'),
  ],
)
def test_what_is_learned_is_that_of_one_device(learned, phase, mesh_name):
  expected, before = learned(phase, 'one')
  workdir, params = learned(phase, mesh_name)
  stages.check_lines(workdir, expected)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), params, before
  )
