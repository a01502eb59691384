"""Devices and data sheets of hardware that you do not have, to compile for.

The TPU compiler comes with `libtpu`, the GPU compiler with JAX's CUDA plugin. Both work
without such a device.
"""

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.experimental import topologies

from r1jax.runtime import memory


class TopologyError(ValueError):
  """A topology that does not exist, or whose compiler is not installed."""


class Chip(NamedTuple):
  """The data sheet of one chip; of a CPU only the memory is known."""

  memory: float  # bytes
  flops: float  # per second, bfloat16
  bandwidth: float  # of the memory, bytes per second
  links: float  # bytes per second over all links within a slice, one way
  network: float  # bytes per second to other slices, one way
  joined: int = 0  # chips that links connect; 0 is all chips of a slice


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}. The network has 50 Gb/s per chip
# of v5p, and per pod of 256 chips 6.4 Tb/s (v5e) or 25.6 Tb/s (v6e). GPUs: NVIDIA's
# data sheets; each of the 8 GPUs of a DGX has an InfiniBand port of 200 (A100) or 400
# Gb/s.
CHIPS = {
  'v5e': Chip(16e9, 197e12, 819e9, 200e9, 3.125e9),
  'v5p': Chip(95e9, 459e12, 2765e9, 600e9, 6.25e9),
  'v6e': Chip(32e9, 918e12, 1600e9, 400e9, 12.5e9),
  'a100': Chip(80e9, 312e12, 2039e9, 300e9, 25e9, joined=8),
  'h100': Chip(80e9, 989e12, 3350e9, 450e9, 50e9, joined=8),
  'h200': Chip(141e9, 989e12, 4800e9, 450e9, 50e9, joined=8),
}
FLAT = '1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16'  # slices of v5e and v6e
SLICES = {'v5e': FLAT, 'v5p': '', 'v6e': FLAT}  # v5p has three sides, up to 16

# XLA's description of a GPU: the attributes that the CUDA driver reports for A100 and
# H100 (SXM, 80 GB), and H200.
Attributes = Mapping[str, int | float | Mapping[str, int]]
_AMPERE: Attributes = {
  'core_count': 108,
  'fpus_per_core': 64,
  'l2_cache_size': 41943040,
  'clock_rate_ghz': 1.41,
  'shared_memory_per_core': 167936,
  'shared_memory_per_block_optin': 166912,
  'cuda_compute_capability': {'major': 8},
}
_HOPPER: Attributes = {
  'core_count': 132,
  'fpus_per_core': 128,
  'l2_cache_size': 52428800,
  'clock_rate_ghz': 1.98,
  'shared_memory_per_core': 233472,
  'shared_memory_per_block_optin': 232448,
  'cuda_compute_capability': {'major': 9},
}
_EVERY: Attributes = {
  'threads_per_warp': 32,
  'threads_per_block_limit': 1024,
  'threads_per_core_limit': 2048,
  'block_dim_limit_x': 2147483647,
  'block_dim_limit_y': 65535,
  'block_dim_limit_z': 65535,
  'registers_per_core_limit': 65536,
  'registers_per_block_limit': 65536,
  'shared_memory_per_block': 49152,
}
GPUS: dict[str, Attributes] = {
  'a100': {**_EVERY, **_AMPERE, 'device_memory_size': 85100068864},
  'h100': {**_EVERY, **_HOPPER, 'device_memory_size': 84942979072},
  'h200': {**_EVERY, **_HOPPER, 'device_memory_size': 151397597184},
}
NODE = 8  # GPUs of a node


def find(name: str) -> tuple[list[jax.Device], Chip]:
  """Returns the devices of a topology, and the data sheet of one of them.

  Args:
    name: a TPU slice such as 'v5p:4x4x4', several slices such as '2xv5p:4x4x4', or a
      kind and number of devices: 'h100:8', 'cpu:8'.

  Raises:
    TopologyError: the topology does not exist, or its compiler is not installed.
  """
  several = re.fullmatch(r'(\d+)x(.*)', name)
  one, slices = (several[2], int(several[1])) if several else (name, 1)
  kind, _, shape = one.partition(':')
  if kind in SLICES and slices:
    return _slices(one, slices), CHIPS[kind]
  if several:
    raise TopologyError(
      'topology: expected one or more slices of TPUs, such as 2xv5e:4x4, or a number '
      f'of devices such as cpu:16 or h100:16, got {name!r}'
    )
  if kind not in (*GPUS, 'cpu') or not shape.isdecimal() or not int(shape):
    raise TopologyError(
      f'topology: expected a slice such as v5e:4x4, v5p:4x4x4 or v6e:4x4, or '
      f'a number of devices such as cpu:8 or h100:8, got {name!r}'
    )
  if kind in GPUS:
    return _gpus(kind, int(shape)), CHIPS[kind]
  devices = jax.devices('cpu')
  if len(devices) < int(shape):
    raise TopologyError(
      f'topology: expected at most the {len(devices)} devices that XLA created, '
      f'got {name!r}; set --xla_force_host_platform_device_count in XLA_FLAGS'
    )
  share = memory.of_machine() / int(shape)
  return devices[: int(shape)], Chip(share, 0.0, 0.0, 0.0, 0.0)


def _slices(name: str, count: int) -> list[jax.Device]:
  kind, _, shape = name.partition(':')
  flat = SLICES[kind].split(', ') if SLICES[kind] else []
  unknown = TopologyError(
    f'topology: {name!r} does not exist; v5e and v6e have {FLAT}, v5p has 2x2x1, '
    '2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8, 8x8x16, 8x16x16, 16x16x16 and '
    'other multiples of 4'
  )
  # For some sizes that do not exist the compiler makes devices, for others it crashes.
  if not (shape in flat if flat else re.fullmatch(r'(?:[1-9]\d*x){2}[1-9]\d*', shape)):
    raise unknown
  if importlib.util.find_spec('libtpu') is None:
    raise TopologyError(
      'topology: the TPU compiler is not installed; run: pip install libtpu'
    )
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to query
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nor one to lock
  try:
    return topologies.get_topology_desc(name, platform='tpu', num_slices=count).devices
  except Exception as error:  # of several types
    if 'opology' in str(error):
      raise unknown from error
    raise TopologyError(
      f'topology: the TPU compiler did not start ({str(error).splitlines()[0]})'
    ) from error


def _gpus(kind: str, count: int) -> list[jax.Device]:
  """Returns GPUs in nodes of eight, or in one smaller node."""
  if count > NODE and count % NODE:
    raise TopologyError(
      f'topology: expected at most {NODE} GPUs or full nodes of {NODE}, '
      f'got {kind}:{count}'
    )
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  if not any(plugin.name.startswith('xla_cuda') for plugin in plugins):
    raise TopologyError(
      'topology: the GPU compiler is not installed; run: pip install '
      f'jax-cuda12-plugin=={jax.__version__}'
    )
  known = {**GPUS[kind], 'memory_bandwidth': int(CHIPS[kind].bandwidth)}
  target = f"""
    gpu_device_info {{ {_text(known)} }} platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "{kind.upper()}"
  """
  shape = f'1x{max(count // NODE, 1)}x{min(count, NODE)}'
  try:
    found = topologies.get_topology_desc(
      platform='cuda', topology=shape, target_config=target
    )
  except Exception as error:
    raise TopologyError(
      f'topology: the GPU compiler did not start ({str(error).splitlines()[0]})'
    ) from error
  return found.devices


def _text(fields: Attributes) -> str:
  """Returns fields in the text format of protocol buffers."""
  return ' '.join(
    f'{name} {{ {_text(x)} }}' if isinstance(x, Mapping) else f'{name}: {x}'
    for name, x in fields.items()
  )
