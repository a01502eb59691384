"""The objectives of GRPO and four relatives, with the same outputs and updates.

Learning rate, group size and gradient clipping are those of the base. Objectives are as
published (`algorithms.PRESETS`), and nothing is tuned for any of them. Other parts of
the algorithms are left out, such as DAPO's dynamic sampling and overlong reward
shaping; see docs/algorithms.md.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation
from r1jax import algorithms
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps

NAMES = ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo')


def algorithm(name: str) -> Callable[[Any], Any]:
  """Returns the variant with this objective; Dr. GRPO's constant is `max_length`."""

  def change(base: Any) -> Any:
    preset = algorithms.PRESETS[name]
    if preset.mean == 'constant':
      preset = dataclasses.replace(preset, constant_length=base.rl.longest)
    return ablation.with_rl(base, grpo=preset)

  return change


ABLATION = ablation.Ablation(
  question='Which objective learns most from the same outputs?',
  variants={name: algorithm(name) for name in NAMES},
  figures=(
    PASS_AT_1,
    VariantFigure(
      'Mean length over RL steps',
      'Tokens of an output; how tokens are averaged decides what long ones are worth.',
      over_rl_steps('length'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/algorithms'))
