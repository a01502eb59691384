"""Arithmetic with two-digit numbers: `calculate 47*6`, `57+38`, `92-45`.

Numbers that end in 0 are left out: they occur in the calculation by digits, so thoughts
about one problem would state the answer to another. The larger number comes first,
because 57+38 and 38+57 are the same problem and could be in different splits. Inverse
calculations (57+38=95 and 95-38=57) are different problems.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Hashable, Iterator

from r1jax.tasks import Problem
from r1jax.tasks.splits import balanced, of_split

VERSION = '2.0.0'  # of the files; raise it when their content changes
MOST_OF_A_KIND = 1500  # problems
LEAST = 21  # of the left number; Countdown's drills use smaller ones
# A lookahead, which finds both sums in 3+25+12.
_CALCULATION = re.compile(r'(?<![0-9])(?=([0-9]+)([-+*])([0-9]+)(?![0-9]))')


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
  """The size of the numbers."""

  largest: int = 99  # left number; the right one is smaller

  def __post_init__(self) -> None:
    if not 30 <= self.largest <= 99:
      raise ValueError(f'largest: expected 30 to 99, got {self.largest}')

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""
    return f'largest{self.largest}'


SETTINGS = ArithmeticConfig  # the class of its settings, under this name in each task


def problem(left: int, sign: str, right: int) -> Problem:
  """Returns the problem `left sign right`, where the sign is one of + - *."""
  identity = f'{left}{sign}{right}'
  result = left + right if sign == '+' else left - right
  truth = {'left': left, 'sign': sign, 'right': right, 'result': result}
  if sign == '*':
    truth['result'] = left * right
  return Problem(identity, 'arithmetic', f'calculate {identity}', truth)


def _allowed(left: int, sign: str, right: int) -> bool:
  least, most = (2, 9) if sign == '*' else (11, left - 1)
  return left >= LEAST and least <= right <= most and left % 10 > 0 and right % 10 > 0


@functools.cache
def _all_problems(config: ArithmeticConfig) -> tuple[Problem, ...]:
  kinds = [
    [
      problem(left, sign, right)
      for left in range(LEAST, config.largest + 1)
      for right in range(2, left)
      if _allowed(left, sign, right)
    ]
    for sign in '+-*'
  ]
  return tuple(balanced(kinds, MOST_OF_A_KIND))


def group(problem: Problem) -> str:
  """Returns the problem's name; no other problem is the same calculation."""
  return problem.id


def generate(config: ArithmeticConfig, split: str) -> Iterator[Problem]:
  """Yields every problem of a split, one of `splits.SPLITS`, in a fixed order."""
  return of_split(_all_problems(config), split, group)


def draw(config: ArithmeticConfig, rng: random.Random) -> Problem:
  """Returns a random problem, of any split."""
  while True:
    left, sign = rng.randint(LEAST, config.largest), rng.choice('+-*')
    right = rng.randint(2, 9) if sign == '*' else rng.randint(11, left - 1)
    if _allowed(left, sign, right):
      return problem(left, sign, right)


def stated(text: str) -> Iterator[str]:
  """Yields the groups of all problems that `text` calculates, of any difficulty.

  Also finds parts of longer calculations, and sums and products in either order.
  """
  for left, sign, right in _CALCULATION.findall(text):
    numbers = int(left), int(right)
    larger, smaller = numbers if sign == '-' else (max(numbers), min(numbers))
    if _allowed(larger, sign, smaller):
      yield problem(larger, sign, smaller).id


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether `answer` is the result and nothing else."""
  return answer_key(answer) == problem.truth['result']


def answer_key(answer: str) -> Hashable | None:
  """Returns the number that the answer is, or None."""
  found = re.fullmatch(r'\s*([0-9]{1,9})\s*', answer)
  return int(found[1]) if found else None
