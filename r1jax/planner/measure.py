"""Compiles one program of a stage and measures it: memory, FLOPs, communication.

The compiler reports the memory of a device. FLOPs and communication are counted in the
program after partitioning.
"""

import dataclasses
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from r1jax.planner.costs import Costs, program_costs
from r1jax.planner.programs import (
  Phase,
  PlannedRun,
  learner_of,
  state_of,
)
from r1jax.planner.topology import Chip
from r1jax.runtime import checkpoint, compilation
from r1jax.sharding.mesh import make_mesh, slice_of
from r1jax.sharding.place import bytes_per_device


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What a compiled phase needs on one device."""

  name: str
  compile_seconds: float
  memory: dict[str, float]  # bytes, by purpose
  costs: Costs
  runs: int  # in one step
  error: str = ''  # of the compiler, if the program does not fit
  offloaded: float = 0.0  # bytes in host memory
  argument_bytes: float = 0.0  # of the program

  @property
  def total(self) -> float:
    """Bytes at the peak."""
    return sum(self.memory.values())


def measure(phase: Phase, chip: Chip | None = None) -> Measurement:
  """Compiles a phase and returns what it needs on one device.

  `chip` tells which devices of a GPU node links join; see `Chip.joined`.
  """
  began = time.monotonic()
  lowered = phase.program.lower(*phase.args)
  with tempfile.TemporaryDirectory() as folder:
    dump = {
      'xla_dump_to': folder,
      'xla_dump_hlo_as_text': True,
      'xla_dump_hlo_pass_re': '.*spmd-partitioning',
    }
    try:
      with compilation.nothing_from_disk():
        compiled = lowered.compile(compiler_options=dump)
    except Exception as error:  # of the compiler
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      return _does_not_fit(phase, time.monotonic() - began, str(error))
    partitioned = sorted(Path(folder).glob('*after_*spmd-partitioning.before*'))
    whole = sorted(Path(folder).glob('*before_optimizations.txt'))
    text = (partitioned or whole)[-1].read_text()
  seconds = time.monotonic() - began
  stats = compiled.memory_analysis()
  arguments = {name: bytes_per_device(x) for name, x in phase.arguments.items()}
  argument_bytes = float(stats.argument_size_in_bytes)
  slices = _slices(phase, chip)
  return Measurement(
    phase.name,
    seconds,
    {
      **phase.resident,
      **arguments,
      'padding': argument_bytes - sum(arguments.values()),  # and scalars
      phase.output: float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
      'activations and temporaries': float(stats.temp_size_in_bytes),
    },
    program_costs(text, phase.unknown_trips, phase.ragged_share, slices),
    phase.runs,
    offloaded=phase.offloaded,
    argument_bytes=argument_bytes,
  )


def _does_not_fit(phase: Phase, seconds: float, error: str) -> Measurement:
  """Returns the memory that the compiler's error names, if any."""
  used = re.search(r'([\d.]+)([GM])\)? (?:of|exceeds)', error)
  scale = {'G': 2**30, 'M': 2**20}[used[2]] if used else 1
  needed = float(used[1]) * scale if used else math.inf
  memory = {**phase.resident, 'the program': needed}
  reason = error.splitlines()[0][:200]
  return Measurement(
    phase.name, seconds, memory, Costs(), phase.runs, reason, phase.offloaded
  )


def _slices(phase: Phase, chip: Chip | None) -> list[int]:
  """Returns the slice of each device, in the order of the phase's mesh."""
  mesh = jax.tree.leaves(phase.args)[0].sharding.mesh
  if chip and chip.joined:
    return [n // chip.joined for n in range(mesh.size)]
  return [slice_of(device) for device in mesh.devices.flat]


def measure_checkpoint(plan: PlannedRun, devices: Sequence[jax.Device]) -> Measurement:
  """Returns the memory that a CPU needs to save a checkpoint; small ones are copied."""
  mesh = make_mesh(devices, plan.mesh)
  state, reference = state_of(plan, learner_of(plan, mesh))
  held = {
    'policy': bytes_per_device(state.params),
    'optimizer': bytes_per_device(state.opt_state),
    'reference': bytes_per_device(reference),
  }
  size = sum(held.values())
  memory = {**held, 'copies': size if size <= checkpoint.COPIED else 0.0}
  return Measurement('save', 0.0, memory, Costs(), runs=1)


def add_process_memory(
  measured: Sequence[Measurement], devices: int
) -> list[Measurement]:
  """Returns the measurements with the memory that a CPU needs besides the programs.

  That is the offloaded arrays, and the process with Python, libraries and compiler. The
  latter is the peak of this process, which has compiled the same programs and holds no
  arrays, divided by the number of devices.
  """
  unit = 1 if sys.platform == 'darwin' else 1024
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / devices
  return [
    dataclasses.replace(
      one, memory={**one.memory, 'offloaded': one.offloaded, 'the process': own}
    )
    for one in measured
  ]
