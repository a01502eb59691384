"""Instructions that a program can check: the general data of the miniature.

`sort 5 2 9`, `backwards cat sun tree`, `in Polish: 3+4`, `count 3 to 6 line by line`,
`explain, then answer: 3+4`. An answer must do all that the instruction says: the right
number in the wrong language is wrong.

Problems with the same content are held out together: the same numbers to sort or words
to reverse, in any order; the same sum in any order, language or form; the same count in
any layout. Otherwise `sort 2 9 5` would give away the answer to `sort 5 2 9`, and an
answer in the wrong layout or language would be right for another problem.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Hashable, Iterator
from typing import Any

from r1jax.tasks import Problem
from r1jax.tasks.splits import balanced, of_split
from r1jax.text.language import NOUNS, NUMBERS

VERSION = '2.0.0'  # of the files; raise it when their content changes
MOST_OF_A_KIND = 400  # problems
LANGUAGES = {'in English': 'en', 'in Polish': 'pl'}
LAYOUTS = {'in one line': ' ', 'line by line': '\n'}


@dataclasses.dataclass(frozen=True)
class InstructionsConfig:
  """The difficulty of the instructions."""

  length: int = 3  # numbers to sort, words to reverse
  largest_start: int = 20  # of a count

  def __post_init__(self) -> None:
    if not 2 <= self.length <= 5:
      raise ValueError(f'length: expected 2 to 5, got {self.length}')
    if not 1 <= self.largest_start <= 90:
      raise ValueError(f'largest_start: expected 1 to 90, got {self.largest_start}')

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""
    return f'length{self.length}_start{self.largest_start}'


SETTINGS = InstructionsConfig  # the class of its settings, under this name in each task


def _problem(question: str, kind: str, language: str = 'en', **truth: Any) -> Problem:
  identity = question.replace(' ', '_')
  return Problem(identity, 'instructions', question, {'kind': kind, **truth}, language)


def group(problem: Problem) -> str:
  """Returns the content of the problem, which problems of its group share."""
  truth = problem.truth
  match truth['kind']:
    case 'sort' | 'backwards':
      return f'{truth["kind"]} {" ".join(sorted(map(str, truth["items"])))}'
    case 'translate' | 'explain':
      low, high = sorted((truth['left'], truth['right']))
      return f'say {low}+{high}'
    case 'count':
      return f'count {truth["first"]} to {truth["last"]}'
  raise ValueError(f'kind: expected one of the instructions, got {truth["kind"]!r}')


def sort(numbers: tuple[int, ...]) -> Problem:
  """Returns the problem of sorting numbers in ascending order."""
  shown = ' '.join(map(str, numbers))
  return _problem(f'sort {shown}', 'sort', items=list(numbers))


def backwards(nouns: tuple[str, ...]) -> Problem:
  """Returns the problem of reversing the order of words."""
  return _problem(f'backwards {" ".join(nouns)}', 'backwards', items=list(nouns))


def translate(how: str, left: int, right: int) -> Problem:
  """Returns the problem of writing a sum in words, in one of `LANGUAGES`."""
  question = f'{how}: {left}+{right}'
  return _problem(question, 'translate', LANGUAGES[how], left=left, right=right)


def count(first: int, last: int, how: str) -> Problem:
  """Returns the problem of counting in one of `LAYOUTS`."""
  question = f'count {first} to {last} {how}'
  return _problem(question, 'count', first=first, last=last, how=how)


def explain(left: int, right: int) -> Problem:
  """Returns the problem of explaining a sum before its result."""
  question = f'explain, then answer: {left}+{right}'
  return _problem(question, 'explain', left=left, right=right)


def _sums() -> list[tuple[int, int]]:
  every = range(1, len(NUMBERS['en']))
  return [(a, b) for a, b in itertools.product(every, every) if a + b <= every[-1]]


@functools.cache
def _kinds(config: InstructionsConfig) -> tuple[tuple[Problem, ...], ...]:
  starts = range(1, config.largest_start + 1)
  kinds = (
    map(sort, itertools.permutations(range(1, 10), config.length)),
    map(backwards, itertools.permutations(NOUNS, config.length)),
    (translate(how, *pair) for how in LANGUAGES for pair in _sums()),
    (count(n, n + more, how) for n in starts for more in (2, 3, 4) for how in LAYOUTS),
    (explain(*pair) for pair in _sums()),
  )
  return tuple(map(tuple, kinds))


@functools.cache
def _all_problems(config: InstructionsConfig) -> tuple[Problem, ...]:
  return tuple(balanced(_kinds(config), MOST_OF_A_KIND))


def generate(config: InstructionsConfig, split: str) -> Iterator[Problem]:
  """Yields every problem of a split, one of `splits.SPLITS`, in a fixed order."""
  return of_split(_all_problems(config), split, group)


def draw(config: InstructionsConfig, rng: random.Random) -> Problem:
  """Returns a random problem, of any split."""
  return rng.choice(rng.choice(_kinds(config)))


def solution(problem: Problem) -> str:
  """Returns the only right answer."""
  truth = problem.truth
  match truth['kind']:
    case 'sort':
      return ' '.join(map(str, sorted(truth['items'])))
    case 'backwards':
      return ' '.join(reversed(truth['items']))
    case 'translate':
      return NUMBERS[problem.language][truth['left'] + truth['right']]
    case 'count':
      numbers = map(str, range(truth['first'], truth['last'] + 1))
      return LAYOUTS[truth['how']].join(numbers)
    case 'explain':
      left, right = truth['left'], truth['right']
      return f'because {left}+{right}={left + right}: {left + right}'
  raise ValueError(f'kind: expected one of the instructions, got {truth["kind"]!r}')


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether `answer` is right; spaces around lines do not matter."""
  return answer_key(answer) == solution(problem)


def answer_key(answer: str) -> Hashable | None:
  """Returns the answer's lines, without surrounding and repeated spaces."""
  lines = (' '.join(line.split()) for line in answer.strip().splitlines())
  return '\n'.join(lines) or None
