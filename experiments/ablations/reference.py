"""A reference that is regularly replaced by the policy, against a fixed one.

R1-Zero replaces it every 400 of 10,400 steps (Nature version), so that the penalty
bounds the speed of change and not its extent. Here it is replaced six times per run.
The coefficient is DeepSeekMath's 0.04: with R1's 0.001 the penalty has hardly any
effect in so few steps.
"""

from typing import Any

from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_rl_steps

PENALTY = 0.04
REPLACED = 6  # times per run


def replaced(base: Any) -> Any:
  """Returns the variant whose reference follows the policy."""
  every = max(1, base.rl.steps // REPLACED)
  return ablation.with_rl(fixed(base), reference_every=every)


def fixed(base: Any) -> Any:
  """Returns the variant whose reference stays the parent."""
  return ablation.with_rl(base, reference_every=0, grpo={'kl_coef': PENALTY})


ABLATION = ablation.Ablation(
  question='Does it pay to replace the reference?',
  variants={'replaced': replaced, 'fixed': fixed},
  figures=(
    PASS_AT_1,
    VariantFigure(
      'KL to the reference over RL steps',
      'Nats a token; it drops where the reference is replaced.',
      over_rl_steps('kl'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/reference'))
