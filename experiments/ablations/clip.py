"""R1's wide clip range against PPO's narrow one.

R1 uses ε = 10, since a lower one stops the gradient of many tokens (Nature version):
ratios are clipped above 11 and never below, as no ratio is under 1 - 10. PPO uses 0.2
on both sides. With few updates per rollout, few ratios come near either bound.
"""

from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps


def clip(epsilon: float) -> Callable[[Any], Any]:
  """Returns the variant that clips ratios to 1 - ε … 1 + ε, but not below 0."""
  bounds = {'clip_low': min(epsilon, 1.0), 'clip_high': epsilon}
  return lambda base: ablation.with_rl(base, grpo=bounds)


ABLATION = ablation.Ablation(
  question='Does a clip range of 10 do better than one of 0.2?',
  variants={'clip10': clip(10.0), 'clip0.2': clip(0.2)},
  figures=(
    PASS_AT_1,
    *(
      VariantFigure(
        f'Tokens clipped {side}, over RL steps',
        'The share whose gradient the bound stops.',
        over_rl_steps(name),
        share=True,
      )
      for side, name in (('above', 'clip_up'), ('below', 'clip_down'))
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/clip'))
