"""Linear equations in one unknown with an integer solution: `solve 3x+4=19`.

Solutions differ in length: undo the sum and the product, or try one number after the
other. Solving 3x+11=x+27 leads to 2x+11=27, so all equations that reduce to the same
one are held out together.
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
_EQUATION = re.compile(
  r'(?<!\S)([0-9]*)x([-+][0-9]+)=(?:([0-9]*)x([-+]))?([0-9]+)(?!\S)'
)


@dataclasses.dataclass(frozen=True)
class EquationsConfig:
  """The difficulty of the equations."""

  largest_factor: int = 9  # of x, from 2
  largest_solution: int = 12  # x, from 1
  largest_term: int = 12  # added to or subtracted from the multiple of x, from 1

  def __post_init__(self) -> None:
    for name, most in (
      ('largest_factor', 20),
      ('largest_solution', 50),
      ('largest_term', 50),
    ):
      if not 2 <= getattr(self, name) <= most:
        raise ValueError(f'{name}: expected 2 to {most}, got {getattr(self, name)}')

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""
    return f'f{self.largest_factor}_x{self.largest_solution}_t{self.largest_term}'


SETTINGS = EquationsConfig  # the class of its settings, under this name in each task


def problem(factor: int, term: int, other: int, solution: int) -> Problem:
  """Returns the problem factor·x + term = other·x + …; `other` may be 0."""
  right = factor * solution + term - other * solution
  equation = f'{_side(factor, term)}={_side(other, right)}'
  truth = {'factor': factor, 'term': term, 'other': other, 'x': solution}
  return Problem(equation, 'equations', f'solve {equation}', truth)


def group(problem: Problem) -> str:
  """Returns the equation with all x on the left: `2x+11=27`."""
  truth = problem.truth
  factor = truth['factor'] - truth['other']
  return _reduced(factor, truth['term'], factor * truth['x'] + truth['term'])


def _reduced(factor: int, term: int, right: int) -> str:
  return f'{_side(factor, term)}={right}'


def _side(factor: int, term: int) -> str:
  if not factor:
    return str(term)
  multiple = 'x' if factor == 1 else f'{factor}x'
  return f'{multiple}{term:+d}'


def _allowed(factor: int, term: int, other: int, solution: int) -> bool:
  """Returns whether the right side has a positive term."""
  return other < factor and (factor - other) * solution + term > 0


@functools.cache
def _all_problems(config: EquationsConfig) -> tuple[Problem, ...]:
  terms = range(1, config.largest_term + 1)
  kinds: dict[str, list[Problem]] = {'plus': [], 'minus': [], 'both': []}
  for factor in range(2, config.largest_factor + 1):
    for solution in range(1, config.largest_solution + 1):
      for term in terms:
        kinds['plus'].append(problem(factor, term, 0, solution))
        if _allowed(factor, -term, 0, solution):
          kinds['minus'].append(problem(factor, -term, 0, solution))
        for other in range(1, factor):
          kinds['both'].append(problem(factor, term, other, solution))
  return tuple(balanced(kinds.values(), MOST_OF_A_KIND))


def generate(config: EquationsConfig, split: str) -> Iterator[Problem]:
  """Yields every problem of a split, one of `splits.SPLITS`, in a fixed order."""
  return of_split(_all_problems(config), split, group)


def draw(config: EquationsConfig, rng: random.Random) -> Problem:
  """Returns a random problem, of any split."""
  while True:
    factor = rng.randint(2, config.largest_factor)
    term = rng.randint(1, config.largest_term) * rng.choice((1, 1, -1))
    other = rng.choice((0, 0, rng.randint(1, factor - 1))) if term > 0 else 0
    solution = rng.randint(1, config.largest_solution)
    if _allowed(factor, term, other, solution):
      return problem(factor, term, other, solution)


def stated(text: str) -> Iterator[str]:
  """Yields the groups of all equations between spaces in `text`, of any difficulty.

  The right side must have a positive term, as in every problem.
  """
  for factor, term, other, sign, right in _EQUATION.findall(text):
    multiple = int(other or 1) if sign else 0
    # With all x on the left, other·x + right is less by other·x.
    yield _reduced(int(factor or 1) - multiple, int(term), int(f'{sign}{right}'))


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether `answer` is the solution, written as `5` or `x=5`."""
  return answer_key(answer) == problem.truth['x']


def answer_key(answer: str) -> Hashable | None:
  """Returns the number that the answer is, or None."""
  found = re.fullmatch(r'\s*(?:x\s*=\s*)?([0-9]{1,9})\s*', answer)
  return int(found[1]) if found else None
