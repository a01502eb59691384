"""A reward for short outputs, among those with a right answer.

Long outputs that are no better than short ones cost time. A reward for brevity alone
would teach a model to give up. This one needs a right answer, and the longest right
output is worth more than the shortest wrong one.
"""

from r1jax.rewards import rules
from r1jax.tasks import Problem

FLOOR = 0.5  # the reward of an infinitely long right output
# Characters that halve the part above the floor. Undoing sum and product of an equation
# takes about 90, trying eight numbers 250.
HALVING = 200


def shorter(problem: Problem, output: str) -> float:
  """Returns 1.0 to `FLOOR`, falling with the length of a right output; 0.0 if wrong.

  FLOOR + (1 - FLOOR) * 2^(-characters / HALVING), if `rules.accuracy` is 1. Counts the
  characters of the whole output: tokens would depend on the vocabulary, words can be
  run together, and thoughts would move to any part that does not count.
  """
  if not rules.accuracy(problem, output):
    return 0.0
  return FLOOR + (1 - FLOOR) * 2 ** (-len(output) / HALVING)
