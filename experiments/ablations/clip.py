"""R1's wide clip range against PPO's narrow one.

R1 takes a bound of 10 above: a lower one stops the gradient of many tokens (Nature
version). With few updates a rollout, few ratios come near either.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation, results


def clip(high: float) -> Callable[[Any], Any]:
  """The variant with this bound above 1."""
  return lambda base: dataclasses.replace(
    base, grpo=dataclasses.replace(base.grpo, clip_high=high)
  )


ABLATION = ablation.Ablation(
  question='Does a clip range of 10 do better than one of 0.2?',
  variants={'clip10': clip(10.0), 'clip0.2': clip(0.2)},
  figures=(
    results.PASS_AT_1,
    results.Figure(
      'Tokens clipped above, over RL steps',
      'The share whose gradient the bound stops.',
      results.trained('clip_up'),
      share=True,
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/clip'))
