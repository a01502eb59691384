"""Machines that are not there."""

import jax
import pytest

from r1jax.planner import topology
from r1jax.planner.topology import TopologyError


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5p:3x3x3', r"there is no 'v5p:3x3x3'; .* for v5p 2x2x1, 2x2x2"),
    ('v5e', r"there is no 'v5e'; "),
    ('tpu', r'expected a slice such as v5e:4x4, .*got .tpu.'),
    ('cpu:0', 'or a number of devices such as cpu:8'),
    ('cpu:99', f'at most the {jax.device_count()} devices that XLA was told to make'),
    ('0xv5e:4x4', 'expected one or more slices of TPUs, such as 2xv5e:4x4, .*got .0x'),
    ('2xcpu:8', 'slices of TPUs, .* or a number of devices such as .*, got .2xcpu:8.'),
    ('2xh100:8', 'a number of devices such as cpu:16 or h100:16, got .2xh100:8.'),
    ('h100:12', 'at most 8 GPUs or a multiple of 8, a node each, got h100:12'),
    ('gtx:1', 'expected a slice such as .*, got .gtx:1.'),
    ('2xv5e:3x3', r"there is no 'v5e:3x3'; "),
    ('v5e:0x4', r"there is no 'v5e:0x4'; "),
    ('v5p:2x2x0', r"there is no 'v5p:2x2x0'; "),
    ('v6e:4x4x4', r"there is no 'v6e:4x4x4'; for v5e and v6e there are 1x1, 2x2, 2x4"),
    ('v5p:4x4', r"there is no 'v5p:4x4'; "),
    ('2x2xv5e:2x2', 'expected one or more slices of TPUs'),
  ],
)
def test_a_topology_that_there_is_not_is_refused(name, message):
  with pytest.raises(TopologyError, match=message):
    topology.find(name)


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(TopologyError, match=r'not installed; .*: pip install libtpu$'):
    topology.find('2xv5e:4x4')
  # It is not among what tests import, see scripts/environment.
  wanted = rf'not installed; .*: pip install jax-cuda12-plugin=={jax.__version__}$'
  with pytest.raises(TopologyError, match=wanted):
    topology.find('h100:8')
