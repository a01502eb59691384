"""GRPO and four of its relatives at equal compute: as many outputs and updates.

Learning rate, group and clip of gradients are the base's for all; what is published as
a part of an algorithm (`grpo.PRESETS`) differs, and nothing is tuned for any of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation, results
from r1jax import grpo

NAMES = ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo')


def algorithm(name: str) -> Callable[[Any], Any]:
  """The variant with this published algorithm."""
  return lambda base: dataclasses.replace(base, grpo=grpo.PRESETS[name])


ABLATION = ablation.Ablation(
  question='Which algorithm learns most from as many outputs?',
  variants={name: algorithm(name) for name in NAMES},
  figures=(
    results.PASS_AT_1,
    results.Figure(
      'Mean length over RL steps',
      'Tokens of an output; how tokens are averaged decides what long ones are worth.',
      results.trained('length'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/algorithms'))
