"""A reward for shorter outputs in reasoning RL: its effect on accuracy and length.

`experiments.thinking` measures how the accuracy of a trained model depends on the
length of its thoughts.
"""

import dataclasses
from collections.abc import Callable

from experiments import reasoning_rl
from experiments.ablations import ablation
from r1jax.report.ablation import PASS_AT_1, VariantFigure, over_evaluations
from r1jax.rewards import Weighted, length


@dataclasses.dataclass(frozen=True)
class Brief(reasoning_rl.ReasoningRL):
  """Reasoning RL in which the shorter of two right outputs may earn more."""

  brevity_weight: float = 1.0  # weight of `length.shorter`

  def rewards(self) -> list[Weighted]:
    """Returns the rewards of reasoning RL, and the one for shorter outputs."""
    shorter = Weighted('shorter', length.shorter, self.brevity_weight)
    return [*super().rewards(), shorter]


def brief(weight: float) -> Callable[[reasoning_rl.ReasoningRL], Brief]:
  """Returns the variant with this weight of the reward for shorter outputs."""

  def change(base: reasoning_rl.ReasoningRL) -> Brief:
    fields = {x.name: getattr(base, x.name) for x in dataclasses.fields(base)}
    return Brief(**{**fields, 'brevity_weight': weight})

  return change


ABLATION = ablation.Ablation(
  question='Does a reward for shorter outputs shorten thoughts, and at what price?',
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
