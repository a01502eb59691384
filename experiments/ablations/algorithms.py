"""Published objectives with the same outputs and updates.

`--algorithms grpo dapo sapo max_rl` compares any of `algorithms.PRESETS`, at the same
number of outputs and updates. Learning rate, group size and gradient clipping are those
of the base. Objectives are as published, and nothing is tuned for any of them. Other
parts of the algorithms are left out, such as DAPO's dynamic sampling and overlong
reward shaping; see docs/algorithms.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation
from r1jax import algorithms
from r1jax.choice import checked
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.stages import methods


@dataclasses.dataclass(frozen=True)
class Algorithms(ablation.Command):
  """The objectives to compare, and the command of any ablation."""

  workdir: str = 'runs/ablations/algorithms'  # a folder for each run, and the page
  # Names of algorithms.PRESETS; the first is compared with the others
  algorithms: tuple[str, ...] = ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo')

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in self.algorithms:
      checked('algorithms', name, dict.fromkeys(algorithms.PRESETS, algorithm))
    standard = type(self.base)().rl.grpo
    if self.base.rl.grpo != standard:
      raise ValueError(
        'base.rl.grpo: expected the default, as each run gets an algorithm of its own, '
        'got other settings; choose from algorithms instead'
      )
    if len(set(self.algorithms)) < max(2, len(self.algorithms)):
      raise ValueError(
        'algorithms: expected two or more different names, got '
        f'{" ".join(self.algorithms)}'
      )


def algorithm(name: str) -> Callable[[Any], Any]:
  """Returns the variant with this objective; Dr. GRPO's constant is `max_length`."""

  def change(base: Any) -> Any:
    return ablation.with_rl(base, grpo=methods.objective(base.rl, name))

  return change


def ablation_of(config: Algorithms) -> ablation.Ablation:
  """Returns the comparison of these algorithms."""
  return ablation.Ablation(
    question='Which objective learns most from the same outputs?',
    variants={name: algorithm(name) for name in config.algorithms},
    figures=(
      PASS_AT_1,
      VariantFigure(
        'Mean length over RL steps',
        'Tokens of an output; the mean over tokens decides what long ones are worth.',
        over_rl_steps('length'),
      ),
    ),
  )


if __name__ == '__main__':
  with user_errors():
    command = cli.parse(Algorithms())
    ablation.show(ablation_of(command), command)
