"""Few large groups against many small ones, with the same number of outputs per step.

A large group estimates a problem's mean reward well; many small ones cover more
problems. R1 uses 16 outputs for each of 32 problems per update (Nature version).
"""

from typing import Any

from experiments.ablations import ablation


def standard(base: Any) -> Any:
  """Returns the base."""
  return base


def quarter(base: Any) -> Any:
  """Returns the base with a quarter of the group size and four times the problems."""
  return _resized(base, base.rl.group_size // 4, base.rl.prompts_per_step * 4)


def fourfold(base: Any) -> Any:
  """Returns the base with four times the group size and a quarter of the problems."""
  return _resized(base, base.rl.group_size * 4, base.rl.prompts_per_step // 4)


def _resized(base: Any, group_size: int, prompts: int) -> Any:
  outputs = base.rl.group_size * base.rl.prompts_per_step
  if group_size * prompts != outputs:
    raise ValueError(
      'base.rl.group_size and base.rl.prompts_per_step: expected multiples of 4, got '
      f'{base.rl.group_size} and {base.rl.prompts_per_step}'
    )
  return ablation.with_rl(base, group_size=group_size, prompts_per_step=prompts)


ABLATION = ablation.Ablation(
  question='Few large groups or many small ones?',
  variants={'standard': standard, 'quarter': quarter, 'fourfold': fourfold},
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/group_size'))
