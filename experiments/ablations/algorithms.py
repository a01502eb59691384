"""The objectives of GRPO and four relatives, with as many outputs and updates.

Learning rate, group and clip of gradients are the base's for all; objectives differ as
published (`grpo.PRESETS`), and nothing is tuned for any of them. What algorithms have
beside an objective is left out, such as DAPO's dynamic sampling and its shaping of the
rewards of overlong outputs; see `grpo.PUBLISHED`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation
from r1jax import grpo
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps

NAMES = ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo')


def algorithm(name: str) -> Callable[[Any], Any]:
  """The variant with this objective; Dr. GRPO's constant is the longest output."""

  def change(base: Any) -> Any:
    preset = grpo.PRESETS[name]
    if preset.mean == 'constant':
      longest = max(length for _, length in base.rl.max_length)
      preset = dataclasses.replace(preset, constant_length=longest)
    return ablation.with_rl(base, grpo=preset)

  return change


ABLATION = ablation.Ablation(
  question='Which objective learns most from as many outputs?',
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
