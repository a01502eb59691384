"""Instructions whose fulfilment a program can check: the miniature's general data.

`sort 5 2 9`, `backwards cat sun tree`, `in Polish: 3+4`, `count 3 to 6 line by line`,
`explain, then answer: 3+4`. An answer must be what was asked for in every respect:
the right number in the wrong language counts nothing.

Held out together is what has the same content: numbers to sort or words to turn around
in whatever order; a sum in whatever order, language or form; a count in whatever
layout. Otherwise `sort 2 9 5` would have the answer to `sort 5 2 9`, and who gives the
wrong layout or language to one question would answer another.
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

VERSION = '2.0.0'  # of the files: to be raised with what they hold
MOST_OF_A_KIND = 400  # problems
LANGUAGES = {'in English': 'en', 'in Polish': 'pl'}
LAYOUTS = {'in one line': ' ', 'line by line': '\n'}


@dataclasses.dataclass(frozen=True)
class InstructionsConfig:
  """How much there is to do."""

  length: int = 3  # numbers to be sorted, words to be turned around
  largest_start: int = 20  # of counting

  def __post_init__(self) -> None:
    if not 2 <= self.length <= 5:
      raise ValueError(f'tasks.instructions.length: expected 2 to 5, got {self.length}')
    if not 1 <= self.largest_start <= 90:
      raise ValueError(
        f'tasks.instructions.largest_start: expected 1 to 90, got {self.largest_start}'
      )

  @property
  def name(self) -> str:
    """The builder's config name: one per difficulty."""
    return f'length{self.length}_start{self.largest_start}'


SETTINGS = InstructionsConfig  # the class of its settings, under this name in each task


def _problem(question: str, kind: str, language: str = 'en', **truth: Any) -> Problem:
  identity = question.replace(' ', '_')
  return Problem(identity, 'instructions', question, {'kind': kind, **truth}, language)


def group(problem: Problem) -> str:
  """What the problem is about, in a form that its twins share; decides its split."""
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
  """To sort numbers, the least one first."""
  shown = ' '.join(map(str, numbers))
  return _problem(f'sort {shown}', 'sort', items=list(numbers))


def backwards(nouns: tuple[str, ...]) -> Problem:
  """To say words in the opposite order."""
  return _problem(f'backwards {" ".join(nouns)}', 'backwards', items=list(nouns))


def translate(how: str, left: int, right: int) -> Problem:
  """To say a sum in a language, one of `LANGUAGES`."""
  question = f'{how}: {left}+{right}'
  return _problem(question, 'translate', LANGUAGES[how], left=left, right=right)


def count(first: int, last: int, how: str) -> Problem:
  """To count in a layout, one of `LAYOUTS`."""
  question = f'count {first} to {last} {how}'
  return _problem(question, 'count', first=first, last=last, how=how)


def explain(left: int, right: int) -> Problem:
  """To give a reason before a sum."""
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
  """A random problem of any split."""
  return rng.choice(rng.choice(_kinds(config)))


def fulfil(problem: Problem) -> str:
  """The answer that does what was asked for."""
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
  """Whether `answer` does what was asked for; spaces around lines do not count."""
  return answer_key(answer) == fulfil(problem)


def answer_key(answer: str) -> Hashable | None:
  """The answer's lines, without the spaces around and doubled ones inside."""
  lines = (' '.join(line.split()) for line in answer.strip().splitlines())
  return '\n'.join(lines) or None
