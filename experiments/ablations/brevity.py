"""A reward for short ways in reasoning RL: what it does to accuracy and length.

What the thoughts of a trained model are worth is measured by `experiments.thinking`.
"""

import dataclasses
from collections.abc import Callable

from experiments import reasoning_rl
from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_evaluations
from r1jax.rewards import Weighted, length


@dataclasses.dataclass(frozen=True)
class Brief(reasoning_rl.ReasoningRL):
  """Reasoning RL in which the shorter of two right answers may earn more."""

  brevity_weight: float = 1.0  # weight of `length.shorter`

  def rewards(self) -> list[Weighted]:
    """Returns those of reasoning RL, and the one for short ways."""
    shorter = Weighted('shorter', length.shorter, self.brevity_weight)
    return [*super().rewards(), shorter]


def brief(weight: float) -> Callable[[reasoning_rl.ReasoningRL], Brief]:
  """The variant with this weight of the reward for short ways."""

  def change(base: reasoning_rl.ReasoningRL) -> Brief:
    fields = {x.name: getattr(base, x.name) for x in dataclasses.fields(base)}
    return Brief(**{**fields, 'brevity_weight': weight})

  return change


ABLATION = ablation.Ablation(
  question='Does a reward for short ways make thoughts shorter, and at what price?',
  variants={'without': brief(0.0), 'with': brief(1.0)},
  figures=(
    PASS_AT_1,
    VariantFigure(
      'Mean length over RL steps',
      'Tokens of an output to a reasoning problem of the validation split.',
      over_evaluations('length'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/brevity'))
