"""What stages learn on meshes of eight devices, beside the same on one."""

import functools
import json

import jax
import numpy as np
import pytest
import stages

from r1jax import mesh

MESHES = {
  'fsdp 4 tensor 2': mesh.Config(fsdp=4, tensor=2),
  'context 2 fsdp 4': mesh.Config(context=2, fsdp=4),
  'data 2 fsdp 4': mesh.Config(data=2, fsdp=4),
}


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
  @functools.cache
  def learned(phase, mesh_name):
    """The logged lines and the parameters."""
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    layout = MESHES.get(mesh_name, mesh.Config())
    devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
    params = stages.learn(workdir, layout, devices, phase)[phase]
    return lines(workdir), params

  return learned


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]


@pytest.mark.parametrize(
  ('phase', 'mesh_name'),
  [
    *(('sft', name) for name in MESHES),
    *(('on_policy', name) for name in MESHES),
    ('preferred', 'fsdp 4 tensor 2'),
  ],
)
def test_what_is_learned_is_that_of_one_device(learned, phase, mesh_name):
  expected, before = learned(phase, 'one')
  found, params = learned(phase, mesh_name)
  same_lines(found, expected)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), params, before
  )


def same_lines(found, expected):
  assert len(found) == len(expected) > 1
  for line, numbers in zip(found, expected, strict=True):
    assert line.keys() == numbers.keys()
    assert (line['phase'], line['step']) == (numbers['phase'], numbers['step'])
    for name in numbers.keys() - {'phase', 'step', 'time'}:
      assert line[name] == pytest.approx(numbers[name], rel=1e-5, abs=1e-5), name
