"""Rewards: a problem and an output in, a number out.

`rules` has the rewards of R1-Zero, `pool` runs rewards in worker processes with a time
limit. A reward is an importable function. It returns a finite number for every text
that a model may write, and never raises.
"""

import dataclasses
import math
from collections.abc import Callable

from r1jax import choice
from r1jax.tasks import Problem

Reward = Callable[[Problem, str], float]


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A reward, its name in the logs and its weight in the sum."""

  name: str
  function: Reward
  weight: float

  def __post_init__(self):
    if not math.isfinite(self.weight):
      raise ValueError(
        f'weight of reward {self.name!r}: expected a finite number, got {self.weight}'
      )


def weighted(words: str) -> Weighted:
  """Returns the reward `package.module:function=weight`, with the function's name.

  Raises:
    ValueError: there is no such function, or the weight is no finite number.
  """
  path, equals, weight = words.rpartition('=')
  if not equals:
    raise ValueError(f'rewards: expected package.module:function=weight, got {words!r}')
  function = choice.imported('rewards', path)
  try:
    return Weighted(path.rpartition(':')[2], function, float(weight))
  except ValueError as error:
    raise ValueError(
      f'rewards: expected a finite number as the weight of {path}, got {weight!r}'
    ) from error
