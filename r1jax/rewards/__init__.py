"""What an output is worth: a problem and a text in, a number out.

`rules` holds the rewards of R1-Zero, `pool` runs any rewards in worker processes under
a time limit. A reward is an importable function; it returns a finite number for every
text a model may write and never raises on one.
"""

import dataclasses
import math
from collections.abc import Callable

from r1jax.tasks import Problem

Reward = Callable[[Problem, str], float]


@dataclasses.dataclass(frozen=True)
class Weighted:
  """A reward with the name it has in the logs and its factor in the sum."""

  name: str
  function: Reward
  weight: float

  def __post_init__(self):
    if not math.isfinite(self.weight):
      raise ValueError(
        f'weight of reward {self.name!r}: expected a finite number, got {self.weight}'
      )
