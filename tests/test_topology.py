"""Topologies of hardware that is not there."""

import jax
import pytest

from r1jax.planner import topology
from r1jax.planner.topology import TopologyError


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5p:3x3x3', r"'v5p:3x3x3' does not exist; .* v5p has 2x2x1, 2x2x2"),
    ('v5e', r"'v5e' does not exist; "),
    ('tpu', r'expected a slice such as v5e:4x4, .*got .tpu.'),
    ('cpu:0', 'or a number of devices such as cpu:8'),
    ('cpu:99', f'at most the {jax.device_count()} devices that XLA created'),
    ('0xv5e:4x4', 'expected one or more slices of TPUs, such as 2xv5e:4x4, .*got .0x'),
    ('2xcpu:8', 'slices of TPUs, .* or a number of devices such as .*, got .2xcpu:8.'),
    ('2xh100:8', 'a number of devices such as cpu:16 or h100:16, got .2xh100:8.'),
    ('h100:12', 'at most 8 GPUs or full nodes of 8, got h100:12'),
    ('gtx:1', 'expected a slice such as .*, got .gtx:1.'),
    ('2xv5e:3x3', r"'v5e:3x3' does not exist; "),
    ('v5e:0x4', r"'v5e:0x4' does not exist; "),
    ('v5p:2x2x0', r"'v5p:2x2x0' does not exist; "),
    ('v6e:4x4x4', r"'v6e:4x4x4' does not exist; v5e and v6e have 1x1, 2x2, 2x4"),
    ('v5p:4x4', r"'v5p:4x4' does not exist; "),
    ('2x2xv5e:2x2', 'expected one or more slices of TPUs'),
  ],
)
def test_unknown_topologies_are_refused(name, message):
  with pytest.raises(TopologyError, match=message):
    topology.find(name)


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(TopologyError, match=r'not installed; run: pip install libtpu$'):
    topology.find('2xv5e:4x4')
  # This process cannot import the plugin; see scripts/environment.
  wanted = rf'not installed; run: pip install jax-cuda12-plugin=={jax.__version__}$'
  with pytest.raises(TopologyError, match=wanted):
    topology.find('h100:8')
