"""The coefficient of the KL penalty.

R1 uses 0.001, DeepSeekMath 0.04 (arXiv 2402.03300). Later work often leaves the penalty
out, which also saves the reference's forward pass.
"""

from collections.abc import Callable
from typing import Any

from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps


def penalty(coefficient: float) -> Callable[[Any], Any]:
  """Returns the variant with this coefficient."""
  return lambda base: ablation.with_rl(base, grpo={'kl_coef': coefficient})


ABLATION = ablation.Ablation(
  question='How much of a KL penalty does RL need?',
  variants={'kl0.001': penalty(0.001), 'kl0': penalty(0.0), 'kl0.04': penalty(0.04)},
  figures=(
    PASS_AT_1,
    VariantFigure(
      'KL to the reference over RL steps',
      'Nats a token. Without a penalty it is not computed.',
      over_rl_steps('kl'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/kl'))
