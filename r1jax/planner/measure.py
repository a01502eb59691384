"""Compiles one program of a stage and measures it: memory, FLOPs, communication."""

import dataclasses
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from r1jax.planner import costs
from r1jax.planner.costs import Costs
from r1jax.planner.programs import Phase, PlannedRun, learner_of, state_of
from r1jax.planner.topology import Chip
from r1jax.runtime import checkpoint, compilation
from r1jax.sharding.mesh import (
  make_mesh,
  slice_of,
)


@dataclasses.dataclass(frozen=True)
class Measurement:
  """What a compiled phase takes of one device."""

  name: str
  seconds: float  # that it took to compile
  memory: dict[str, float]  # bytes, by what they are for
  costs: Costs
  times: int
  refused: str = ''  # the compiler's words, where it found no room
  aside: float = 0.0  # bytes in the host's memory, of each of its devices
  given: float = 0.0  # bytes of the program's arguments

  @property
  def total(self) -> float:
    """Bytes at the peak."""
    return sum(self.memory.values())


def bytes_per_device(tree: Any) -> float:
  """Of a tree of shapes, on each device."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
  )


def checkpoint_memory(work: PlannedRun, devices: Sequence[Any]) -> Measurement:
  """What a checkpoint needs of a CPU's memory: a small one is copied."""
  where = make_mesh(devices, work.mesh)
  state, reference = state_of(work, learner_of(work, where))
  held = {
    'policy': bytes_per_device(state.params),
    'optimizer': bytes_per_device(state.opt_state),
    'reference': bytes_per_device(reference),
  }
  size = sum(held.values())
  memory = {**held, 'copies': size if size <= checkpoint.COPIED else 0.0}
  return Measurement('save', 0.0, memory, Costs(), times=1)


def with_process(found: Sequence[Measurement], devices: int) -> list[Measurement]:
  """Adds what a run needs of a CPU's memory beside the arrays of its programs.

  That is what it puts aside, and its process with Python, libraries and compiler: what
  this one, which has compiled the same programs and holds no arrays, has come to, each
  device its share.
  """
  unit = 1 if sys.platform == 'darwin' else 1024
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / devices
  return [
    dataclasses.replace(
      one, memory={**one.memory, 'put aside': one.aside, 'the process': own}
    )
    for one in found
  ]


def _slice_of_each(phase: Phase, chip: Chip | None) -> list[int]:
  """The slice of each device, in the order of the phase's mesh."""
  mesh = jax.tree.leaves(phase.args)[0].sharding.mesh
  if chip and chip.joined:
    return [n // chip.joined for n in range(mesh.size)]
  return [slice_of(device) for device in mesh.devices.flat]


def measure(phase: Phase, chip: Chip | None = None) -> Measurement:
  """Compiles a phase; what it takes of a device, which is no CPU if there is a chip."""
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
    except Exception as error:  # the compiler's; only one of them is expected
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      used = re.search(r'([\d.]+)([GM])\)? (?:of|exceeds)', str(error))
      scale = {'G': 2**30, 'M': 2**20}[used[2]] if used else 1
      needed = float(used[1]) * scale if used else math.inf
      return Measurement(
        phase.name,
        time.monotonic() - began,
        {**phase.beside, 'the program': needed},
        Costs(),
        phase.times,
        str(error).splitlines()[0][:200],
        phase.aside,
      )
    cut = sorted(Path(folder).glob('*after_*spmd-partitioning.before*'))
    whole = sorted(Path(folder).glob('*before_optimizations.txt'))
    text = (cut or whole)[-1].read_text()
  seconds = time.monotonic() - began
  stats = compiled.memory_analysis()
  given = {name: bytes_per_device(tree) for name, tree in phase.given.items()}
  arguments = float(stats.argument_size_in_bytes)
  memory = {
    **phase.beside,
    **given,
    'padding': arguments - sum(given.values()),  # and single numbers
    phase.gives: float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
    'activations and temporaries': float(stats.temp_size_in_bytes),
  }
  return Measurement(
    phase.name,
    seconds,
    memory,
    costs.program_costs(
      text,
      phase.unknown_trips,
      phase.ragged_share,
      _slice_of_each(phase, chip),
    ),
    phase.times,
    aside=phase.aside,
    given=arguments,
  )


# --- What it comes to -----------------------------------------------------------------
