"""What a stage of RL would take of a TPU slice, found out without one.

  python -m scripts.plan experiments.paper.r1_zero --topology v5p:4x8x8 --mesh.fsdp 8
  python -m scripts.plan experiments.grpo --model Qwen2.5-7B --topology v5e:4x4
  python -m scripts.plan experiments.grpo --model Qwen2.5-7B --topology 2xv5e:4x4

The stage's own programs are compiled by the TPU's compiler, which `pip install libtpu`
brings, and what each needs of a chip is printed: memory, computation, what is sent, and
the time that this takes at least. Where there is not room enough, settings that need
less are tried in order. `2xv5e:4x4` are two slices, each with copies of the model, that
a network joins. `--topology h100:8` compiles for GPUs, whose compiler comes with `pip
install jax-cuda12-plugin`, and `cpu:8` for CPU devices.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import importlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # the compiler needs no accelerator
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
if asked := re.search(r'--topology[= ][a-z]\w*:(\d+)( |$)', ' '.join(sys.argv)):
  # As many CPU devices; read once, when jax starts.
  flags = os.environ.get('XLA_FLAGS', '')
  count = f'--xla_force_host_platform_device_count={asked[1]}'
  os.environ['XLA_FLAGS'] = f'{flags} {count}'.strip()

from r1jax import algorithms
from r1jax.hub import families
from r1jax.hub.hf_checkpoint import read_raw
from r1jax.model import presets
from r1jax.model.config import ModelConfig
from r1jax.planner import fit, measure, programs, report, topology
from r1jax.planner.measure import Measurement
from r1jax.planner.programs import PlannedRun
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages.methods import Methods
from r1jax.stages.rl_config import RLConfig


@dataclasses.dataclass(frozen=True)
class Plan:
  """A stage, and the machine that it is planned for."""

  # Of TPUs: v5p:4x4x4, several slices: 2xv5p:4x4x4; a number of devices: cpu:8, h100:8
  topology: str = ''
  # A name in r1jax.model.presets, or a folder with a config.json.
  model: str = ''
  remat: Literal['none', 'dots', 'full'] = 'full'  # see `ModelConfig`
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'  # of products, keys and values
  # Of the parameters, of the reference and of samplers; see docs/precision.md.
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  search: bool = True  # for settings that fit, if these don't
  rl: RLConfig = RLConfig()
  mesh: MeshConfig = MeshConfig()


# Flags of experiments that a plan does not take, and what to do instead.
_ELSEWHERE = {
  '--model.path': 'give the folder, or a name in r1jax.model.presets, as --model',
  '--model.lora': 'a plan is of all parameters, which need more than adapters do',
  '--model.param-dtype': 'give it as --param-dtype',
  '--model.dtype': 'give it as --dtype',
  '--model.remat': 'give it as --remat',
}


def named(config: Plan) -> cli.Presets:
  """Returns the methods and objectives that a plan may name."""
  return {'rl': Methods(config.rl), 'rl.grpo': algorithms.PRESETS}


def check_words(words: Sequence[str]) -> None:
  """Raises PlanError for a flag of experiments that has another name here, or none."""
  for word in words:
    flag = word.partition('=')[0].replace('_', '-')
    for name, instead in _ELSEWHERE.items():
      if flag == name or flag.startswith(f'{name}.'):
        raise programs.PlanError(f'scripts.plan takes no {flag}: {instead}')


def defaults(name: str) -> tuple[Plan, tuple[ModelConfig, int] | None]:
  """The plan of an experiment as it is, and its model if it has one of its own.

  Raises:
    PlanError: there is no such experiment, or it has no stage of RL.
  """
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if not name.startswith(error.name or ' '):
      raise
    raise programs.PlanError(
      f'expected an experiment, such as experiments.grpo, got {name!r}'
    ) from error
  # Its own before what it imports, such as the experiment that it makes smaller.
  own = sorted(
    vars(module).values(), key=lambda value: getattr(value, '__module__', '') != name
  )
  for value in own:
    if isinstance(value, type) and value.__module__ == name:
      fields = getattr(value, '__dataclass_fields__', {})
      if 'rl' in fields:
        value = value()
    if isinstance(getattr(value, 'rl', None), RLConfig):
      return _of(value)
  raise programs.PlanError(f'expected an experiment with a stage of RL, got {name!r}')


def _of(config: Any) -> tuple[Plan, tuple[ModelConfig, int] | None]:
  model = getattr(config, 'model', None)
  own = (model, config.vocab_size) if isinstance(model, ModelConfig) else None
  chosen = Plan(
    model=getattr(config, 'start', ''),
    rl=config.rl,
    mesh=getattr(config, 'mesh', MeshConfig()),
  )
  if own:
    chosen = dataclasses.replace(chosen, remat=own[0].remat, dtype=own[0].dtype)
  return chosen, own


def work(config: Plan, own: tuple[ModelConfig, int] | None) -> PlannedRun:
  """What is to be compiled.

  Raises:
    PlanError: the model is neither a preset nor a folder with a config.json.
  """
  if config.model in presets.PRESETS:
    model, rows = presets.PRESETS[config.model]
  elif config.model and (path := Path(config.model).expanduser()).exists():
    raw = read_raw(path)
    model, rows = families.read_config(raw), families.vocab_size(raw)
  elif own and not config.model:
    model, rows = own
  else:
    raise programs.PlanError(
      f'model: expected one of {", ".join(presets.PRESETS)}, or a folder with a '
      f'config.json, or a GGUF file, got {config.model!r}'
    )
  model = dataclasses.replace(model, remat=config.remat, dtype=config.dtype)
  return PlannedRun(model, rows, config.rl, config.mesh, config.param_dtype)


def compiled(
  planned: PlannedRun, devices: Sequence[Any], chip: topology.Chip
) -> list[Measurement]:
  """Compiles every phase, and says so as it goes."""
  found = []
  for phase in programs.phases(planned, devices):
    print(f'Compiling {phase.name} ...', file=sys.stderr, flush=True)
    found.append(measure.measure(phase, chip))
  if not chip.flops:  # a CPU
    found.append(measure.measure_checkpoint(planned, devices))
    found = measure.add_process_memory(found, len(devices))
  return found


def main(config: Plan, own: tuple[ModelConfig, int] | None) -> None:
  """Prints the plan, and if it does not fit, one that does."""
  began = time.monotonic()
  planned = work(config, own)
  devices, chip = topology.find(config.topology)
  found = compiled(planned, devices, chip)
  print('\n'.join(report.summary(planned, found, chip)))
  flags: list[str] = []
  fitting = fit.fits(found, chip)
  if not fitting and config.search:
    for flag, less in fit.smaller_plans(planned, devices):
      flags.append(flag)
      print(f'Trying {" ".join(flags)}', file=sys.stderr, flush=True)
      found = compiled(less, devices, chip)
      if fit.fits(found, chip):
        print(f'\nWith {" ".join(flags)}:')
        print('\n'.join(report.summary(less, found, chip)))
        fitting = True
        break
    else:
      print(f'None of {" ".join(flags) or "the settings"} made it fit.')
  print(f'Planned in {time.monotonic() - began:.0f} s.')
  sys.exit(0 if fitting else 1)


if __name__ == '__main__':
  with user_errors():
    experiment = sys.argv[1] if len(sys.argv) > 1 else ''
    if experiment in ('-h', '--help'):
      print(__doc__.strip(), end='\n\n')
      cli.parse(Plan(), ['--help'], named(Plan()))
    if not experiment or experiment.startswith('-'):
      raise programs.PlanError('expected an experiment first, such as experiments.grpo')
    check_words(sys.argv[2:])
    start, model_of_its_own = defaults(experiment)
    chosen = cli.parse(start, sys.argv[2:], named(start))
    main(chosen, model_of_its_own)
