"""Machines that need not be there: their devices, to compile for, and what these can.

The TPU's compiler comes with `libtpu` and that of GPUs with JAX's plugin for CUDA. Both
work where there is no such device.
"""

import importlib.metadata
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class TopologyError(ValueError):
  """A topology that there is not, or whose compiler there is not."""


class Chip(NamedTuple):
  """What a data sheet says of one chip; of a CPU its memory alone is known."""

  memory: float  # bytes
  flops: float  # a second, bfloat16
  bandwidth: float  # bytes a second, of its memory
  links: float  # bytes a second, all its links within a slice, one way
  network: float  # bytes a second, to other slices, one way
  joined: int = 0  # how many in a row links join; 0: as many as a slice has


# TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, whose network is 50 Gb/s a chip of
# v5p, and of a pod's 256 chips 6.4 Tb/s (v5e) and 25.6 (v6e). GPUs: NVIDIA's data
# sheets; of a DGX, whose 8 GPUs have a port each, InfiniBand of 200 (A100), 400 Gb/s.
CHIPS = {
  'v5e': Chip(16e9, 197e12, 819e9, 200e9, 3.125e9),
  'v5p': Chip(95e9, 459e12, 2765e9, 600e9, 6.25e9),
  'v6e': Chip(32e9, 918e12, 1600e9, 400e9, 12.5e9),
  'a100': Chip(80e9, 312e12, 2039e9, 300e9, 25e9, joined=8),
  'h100': Chip(80e9, 989e12, 3350e9, 450e9, 50e9, joined=8),
  'h200': Chip(141e9, 989e12, 4800e9, 450e9, 50e9, joined=8),
}
FLAT = '1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16'  # slices of v5e and v6e
SLICES = {'v5e': FLAT, 'v5p': '', 'v6e': FLAT}  # of v5p: of three sides, up to 16

# What XLA's compiler is told of a GPU, as it tells of those that are there: the CUDA
# driver's attributes of A100 and H100 (SXM, 80 GB), and H200.
_AMPERE = {
  'core_count': 108,
  'fpus_per_core': 64,
  'l2_cache_size': 41943040,
  'clock_rate_ghz': 1.41,
  'shared_memory_per_core': 167936,
  'shared_memory_per_block_optin': 166912,
  'cuda_compute_capability': {'major': 8},
}
_HOPPER = {
  'core_count': 132,
  'fpus_per_core': 128,
  'l2_cache_size': 52428800,
  'clock_rate_ghz': 1.98,
  'shared_memory_per_core': 233472,
  'shared_memory_per_block_optin': 232448,
  'cuda_compute_capability': {'major': 9},
}
_EVERY = {
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
GPUS: dict[str, dict[str, Any]] = {
  'a100': _EVERY | _AMPERE | {'device_memory_size': 85100068864},
  'h100': _EVERY | _HOPPER | {'device_memory_size': 84942979072},
  'h200': _EVERY | _HOPPER | {'device_memory_size': 151397597184},
}
NODE = 8  # GPUs


def find(name: str) -> tuple[list[Any], Chip]:
  """Returns the devices of a topology, and what one of them can.

  Args:
    name: a TPU slice such as 'v5p:4x4x4', or several as '2xv5p:4x4x4'; or a kind of
      device and a number: 'h100:8', 'cpu:8'.

  Raises:
    TopologyError: there is no such topology, or its compiler is not installed.
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
      f'topology: expected at most the {len(devices)} devices that XLA was told to '
      f'make, got {name!r}; set --xla_force_host_platform_device_count in XLA_FLAGS'
    )
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return devices[: int(shape)], Chip(memory / int(shape), 0.0, 0.0, 0.0, 0.0)


def _slices(name: str, count: int) -> list[Any]:
  kind, _, shape = name.partition(':')
  flat = SLICES[kind].split(', ') if SLICES[kind] else []
  unknown = TopologyError(
    f'topology: there is no {name!r}; for v5e and v6e there are {FLAT}, for v5p 2x2x1, '
    '2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8, 8x8x16, 8x16x16, 16x16x16 and '
    'other multiples of 4'
  )
  # Of some that there are not the compiler makes devices, and of others it dies.
  if not (shape in flat if flat else re.fullmatch(r'(?:[1-9]\d*x){2}[1-9]\d*', shape)):
    raise unknown
  if importlib.util.find_spec('libtpu') is None:
    raise TopologyError(
      "topology: the TPU's compiler is not installed; it comes with: pip install libtpu"
    )
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to ask
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # nor to be held alone
  try:
    return topologies.get_topology_desc(name, platform='tpu', num_slices=count).devices
  except Exception as error:  # of several kinds, by what is wrong
    if 'opology' in str(error):
      raise unknown from error
    raise TopologyError(
      f"topology: the TPU's compiler did not start ({str(error).splitlines()[0]})"
    ) from error


def _gpus(kind: str, count: int) -> list[Any]:
  """GPUs in nodes of eight, as far as their number allows."""
  if count > NODE and count % NODE:
    raise TopologyError(
      f'topology: expected at most {NODE} GPUs or a multiple of {NODE}, a node each, '
      f'got {kind}:{count}'
    )
  plugins = importlib.metadata.entry_points(group='jax_plugins')
  if not any(plugin.name.startswith('xla_cuda') for plugin in plugins):
    raise TopologyError(
      "topology: the GPU's compiler is not installed; it comes with: pip install "
      f'jax-cuda12-plugin=={jax.__version__}'
    )
  known = GPUS[kind] | {'memory_bandwidth': int(CHIPS[kind].bandwidth)}
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
      f"topology: the GPU's compiler did not start ({str(error).splitlines()[0]})"
    ) from error
  return found.devices


def _text(fields: dict[str, Any]) -> str:
  """Fields as a protocol buffer's text."""
  return ' '.join(
    f'{name} {{ {_text(x)} }}' if isinstance(x, dict) else f'{name}: {x}'
    for name, x in fields.items()
  )
