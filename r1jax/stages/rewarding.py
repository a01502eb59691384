"""Rewards by rule from worker processes, and by a preference model from the device.

R1's last stage adds both (Nature version): rules for reasoning, the preference model
for general prompts alone. A panel is used like the pool that it holds.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from r1jax.rewards.pool import Pending, RewardPool, Scores
from r1jax.tasks import GENERAL, Problem


@dataclasses.dataclass(frozen=True)
class PreferenceReward:
  """A pool of rules and a preference model."""

  pool: RewardPool
  scorer: Callable[[Sequence[Problem], Sequence[str]], np.ndarray]
  weight: float  # of the preference, in the sum

  @property
  def names(self) -> tuple[str, ...]:
    """The pool's rewards, and after them 'preference'."""
    return (*self.pool.names, 'preference')

  def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Pending:
    """Starts to score `texts[i]` as output for `problems[i]`."""
    pending = self.pool.submit(problems, texts)
    general = np.array([problem.task in GENERAL for problem in problems], bool)
    preference = np.zeros(len(texts), np.float32)
    if general.any():
      chosen = np.flatnonzero(general).tolist()
      preference[chosen] = self.scorer(
        [problems[n] for n in chosen], [texts[n] for n in chosen]
      )

    def collect() -> Scores:
      scores = pending.result()
      return dataclasses.replace(
        scores,
        values=np.column_stack([scores.values, preference]),
        total=scores.total + self.weight * preference,
      )

    return Pending(collect)
