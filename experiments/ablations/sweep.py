"""Values of any flag of stage 2, as variants.

  python -m experiments.ablations.sweep --field rl.grpo.kl-coef --values 0 0.001 0.04

A value with several words, such as a schedule, is quoted: `--values '0 1.0' '0 0.6'`.
"""

import dataclasses
import functools
import re
from typing import Any

from experiments.ablations import ablation
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.stages.experiment import algorithm_presets


@dataclasses.dataclass(frozen=True)
class Sweep(ablation.Command):
  """The flag and its values, and the command of any ablation."""

  workdir: str = 'runs/ablations/sweep'  # a folder for each run, and the page
  field: str = 'rl.optim.learning-rate'  # a flag of the base without --
  values: tuple[str, ...] = ('4e-4', '8e-4')  # the first is compared with the others

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.field.replace('-', '_') in (*ablation.PLANNED, 'seed'):
      raise ValueError(
        f'field: expected one that the ablation does not set itself, got {self.field!r}'
      )
    if len(set(self.values)) < max(2, len(self.values)):
      raise ValueError(
        f'values: expected two or more different values of {self.field}, got '
        f'{" ".join(self.values) or "none"}'
      )


def ablation_of(config: Sweep) -> ablation.Ablation:
  """Returns the comparison; an impossible value ends the program with a sentence."""
  presets = algorithm_presets(config.base)
  configs = {
    value: cli.parse(config.base, [f'--{config.field}', *value.split()], presets)
    for value in config.values
  }
  for n, value in enumerate(config.values):
    same = [x for x in config.values[:n] if configs[x] == configs[value]]
    if same:
      raise ValueError(f'values: expected different ones, got {same[0]} and {value}')
  last = config.field.rpartition('.')[2]
  return ablation.Ablation(
    question=f'What does {config.field} change?',
    variants={
      # The name of a folder
      f'{last}-{re.sub("[^A-Za-z0-9.+-]", "_", value)}': functools.partial(_is, found)
      for value, found in configs.items()
    },
  )


def _is(found: Any, base: Any) -> Any:
  del base
  return found


if __name__ == '__main__':
  with user_errors():
    command = cli.parse(Sweep())
    ablation.show(ablation_of(command), command)
