"""Arithmetic of several digits: `calculate 47*6`, `calculate 38+57`, `calculate 92-45`.

Numbers that end in 0 are left out: they are the steps of the calculation by digits, so
the thoughts about one problem would state the answer to another.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Hashable, Iterator

from r1jax.tasks import Problem
from r1jax.tasks.splits import balanced, of_split

VERSION = '1.0.0'  # of the files: to be raised with what they hold
MOST_OF_A_KIND = 1500  # problems
LEAST = 21  # of the left number; Countdown's schoolbooks calculate below


@dataclasses.dataclass(frozen=True)
class Config:
  """How large the numbers are."""

  largest: int = 99  # of the left number, and of a right one that is added or taken

  def __post_init__(self) -> None:
    if not 30 <= self.largest <= 99:
      raise ValueError(
        f'tasks.arithmetic.largest: expected 30 to 99, got {self.largest}'
      )

  @property
  def name(self) -> str:
    """The builder's config name: one per difficulty."""
    return f'largest{self.largest}'


def problem(left: int, sign: str, right: int) -> Problem:
  """The calculation of left sign right, the sign one of + - *."""
  identity = f'{left}{sign}{right}'
  result = left + right if sign == '+' else left - right
  truth = {'left': left, 'sign': sign, 'right': right, 'result': result}
  if sign == '*':
    truth['result'] = left * right
  return Problem(identity, 'arithmetic', f'calculate {identity}', truth)


def _allowed(left: int, sign: str, right: int) -> bool:
  return left % 10 > 0 and right % 10 > 0 and (sign != '-' or right < left)


@functools.cache
def _all_problems(config: Config) -> tuple[Problem, ...]:
  kinds = []
  for sign in '+-*':
    rights = range(2, 10) if sign == '*' else range(11, config.largest + 1)
    kinds.append(
      [
        problem(left, sign, right)
        for left in range(LEAST, config.largest + 1)
        for right in rights
        if _allowed(left, sign, right)
      ]
    )
  return tuple(balanced(kinds, MOST_OF_A_KIND))


def generate(config: Config, split: str) -> Iterator[Problem]:
  """Yields every problem of a split ('train' or 'test') in a fixed order."""
  return of_split(_all_problems(config), split)


def draw(config: Config, rng: random.Random) -> Problem:
  """A random problem of either split."""
  while True:
    left, sign = rng.randint(LEAST, config.largest), rng.choice('+-*')
    right = rng.randint(2, 9) if sign == '*' else rng.randint(11, config.largest)
    if _allowed(left, sign, right):
      return problem(left, sign, right)


def verify(problem: Problem, answer: str) -> bool:
  """Whether `answer` is the result, a number alone."""
  return answer_key(answer) == problem.truth['result']


def answer_key(answer: str) -> Hashable | None:
  """The number that the answer gives."""
  found = re.fullmatch(r'\s*([0-9]{1,9})\s*', answer)
  return int(found[1]) if found else None
