"""Countdown: reach a target from given numbers with + - *, each used exactly once.

The problems are enumerated: every multiset of numbers, with every target that some
expression over it reaches. A hash of the numbers decides the split. A search for one
target comes across the solutions of others, so all targets of the same numbers are held
out together. By default there are 165 multisets with 1,865 problems: 126 (1,429) for
training, 21 (222) for validation, 18 (214) for test. The 32 test problems of the
evaluation come from all 18 test multisets. A random combination of their numbers is
right in 8.0 % of the cases, of all test problems in 7.6 %, of training problems in
7.8 %.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Hashable, Iterable, Iterator

from r1jax.tasks import Problem, expressions
from r1jax.tasks.splits import of_split, spread, uniform

VERSION = '2.0.0'  # of the files; raise it when their content changes
_CALCULATION = re.compile(r'[0-9+*()-]*[+*-][0-9+*()-]*')


@dataclasses.dataclass(frozen=True)
class CountdownConfig:
  """The difficulty of the problems."""

  numbers: int = 3  # of a problem, 2 to 4
  largest: int = 9  # numbers are 1 to this
  highest_target: int = 100  # targets are 1 to this

  def __post_init__(self) -> None:
    if not 2 <= self.numbers <= 4:
      raise ValueError(f'numbers: expected 2 to 4, got {self.numbers}')
    if not 2 <= self.largest <= 20:
      raise ValueError(f'largest: expected 2 to 20, got {self.largest}')
    if self.highest_target < 1:
      raise ValueError(f'highest_target: expected 1 or more, got {self.highest_target}')

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""
    return f'n{self.numbers}_largest{self.largest}_target{self.highest_target}'


SETTINGS = CountdownConfig  # the class of its settings, under this name in each task


def question(numbers: tuple[int, ...], target: int) -> str:
  """Returns the question: `make 16 from 3 5 2`."""
  return f'make {target} from {" ".join(map(str, numbers))}'


def group_of(numbers: Iterable[int]) -> str:
  """Returns the group of all problems with these numbers in any order: `2-3-5`."""
  return '-'.join(map(str, sorted(numbers)))


def group(problem: Problem) -> str:
  """Returns the group of the problem, its multiset of numbers."""
  return group_of(problem.truth['numbers'])


def problem_id(numbers: tuple[int, ...], target: int) -> str:
  """Returns a name that depends only on the multiset of numbers and the target."""
  return f'{group_of(numbers)}={target}'


@functools.cache
def _all_problems(config: CountdownConfig) -> tuple[Problem, ...]:
  found = []
  every = range(1, config.largest + 1)
  for leaves in itertools.combinations_with_replacement(every, config.numbers):
    # In a fixed but arbitrary order: sorted numbers would be a hint.
    orders = sorted(set(itertools.permutations(leaves)))
    values = {expressions.value(tree) for tree in expressions.candidates(leaves)}
    for target in sorted(v for v in values if 1 <= v <= config.highest_target):
      identity = problem_id(leaves, target)
      shown = orders[int(uniform('order', identity) * len(orders))]
      truth = {'numbers': list(shown), 'target': target}
      found.append(Problem(identity, 'countdown', question(shown, target), truth))
  return tuple(spread(found, group))


def generate(config: CountdownConfig, split: str) -> Iterator[Problem]:
  """Yields every problem of a split, one of `splits.SPLITS`, in a fixed order."""
  return of_split(_all_problems(config), split, group)


def stated(text: str, config: CountdownConfig) -> Iterator[str]:
  """Yields the groups of all problems of this difficulty that `text` calculates with.

  These are the numbers of each calculation, or of each part of a longer one:
  `3*5+2=15+2` calculates with 2, 3 and 5.
  """
  for calculation in _CALCULATION.findall(text):
    numbers = [int(number) for number in re.findall('[0-9]+', calculation)]
    for start in range(len(numbers) - config.numbers + 1):
      part = numbers[start : start + config.numbers]
      if min(part) >= 1 and max(part) <= config.largest:
        yield group_of(part)


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether `answer` uses each number once and evaluates to the target."""
  tree = expressions.read(answer)
  if tree is None:
    return False
  numbers_used = sorted(expressions.numbers(tree))
  return (
    numbers_used == sorted(problem.truth['numbers'])
    and expressions.value(tree) == problem.truth['target']
  )


def answer_key(answer: str) -> Hashable | None:
  """Returns the canonical expression: 2+3 and 3+2 vote together, 1+4 does not."""
  tree = expressions.read(answer)
  return None if tree is None else expressions.canonical(tree)
