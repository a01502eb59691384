"""A reward for short ways: among right answers, the one that took fewer characters.

Long outputs that are no better than short ones cost time. A reward for brevity alone
would teach a model to give up; this one is paid for right answers only, and the longest
right answer is worth more than the shortest wrong one.
"""

from r1jax.rewards import rules
from r1jax.tasks import Problem

FLOOR = 0.5  # of a right answer, however long
# Characters that halve what is above the floor. An equation takes about 90 where sum
# and product are undone, and 250 where eight numbers are tried.
HALVING = 200


def shorter(problem: Problem, output: str) -> float:
  """From 1.0 down to `FLOOR` with the length of a right output; 0.0 for a wrong one.

  FLOOR + (1 - FLOOR) * 2^(-characters / HALVING), with the strict form and answer that
  `rules.accuracy` asks for. The measure is characters of the whole output: tokens would
  make it a question of the vocabulary, words can be run together, and what is left out
  of the count (blanks, the summary) is where thoughts would move to.
  """
  if not rules.accuracy(problem, output):
    return 0.0
  return FLOOR + (1 - FLOOR) * 2 ** (-len(output) / HALVING)
