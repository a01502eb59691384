"""Few large groups against many small ones, with as many outputs a step.

A large group measures a problem's mean reward well; many small ones see more problems.
R1 takes 16 outputs for each of 32 problems an update (Nature version).
"""

from typing import Any

from experiments.ablations import ablation


def standard(base: Any) -> Any:
  """The base itself."""
  return base


def quarter(base: Any) -> Any:
  """A quarter of the outputs a problem, four times the problems."""
  return _resized(base, base.rl.group_size // 4, base.rl.prompts_per_step * 4)


def fourfold(base: Any) -> Any:
  """Four times the outputs a problem, a quarter of the problems."""
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
