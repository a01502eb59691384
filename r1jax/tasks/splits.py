"""Which problems are held out, and in which order a split comes: hashes decide.

What is hashed is the name of a group: problems that are the same but for their form,
such as 3+4 and 4+3, share one (each task's `group`) and are held out together. So no
problem to learn from is the twin of one that is measured, whatever a task's settings,
and no list of names has to be kept. What a model itself calculates on its way to
another answer, while it learns, is not looked through.

`validation` is for choices: curves during training, and the settings of a recipe.
`test` is for the numbers that are reported, once, at the end. The rates, shares and
rewards of the miniature were tuned by earlier versions of this package on what they
called test: in arithmetic, and in equations with x on one side, that is `validation`
now, and no choice was made by a problem of `test`. In Countdown, instructions and the
other equations the parts are new, and some problems of `test` were looked at.
"""

import collections
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from r1jax.tasks import Problem

SPLITS = ('train', 'validation', 'test')
HELD_OUT = SPLITS[1:]
VALIDATION_SHARE = 0.15  # of all groups, held out for choices
TEST_SHARE = 0.15  # of all groups, held out for what is reported

Group = Callable[[Problem], str]  # the name that a problem shares with its twins


@functools.lru_cache(maxsize=1 << 16)
def split_of(group: str) -> str:
  """The split, one of `SPLITS`, that the problems of a group belong to."""
  place = uniform('split', group)
  if place < VALIDATION_SHARE:
    return 'validation'
  return 'test' if place < VALIDATION_SHARE + TEST_SHARE else 'train'


def of_published(identity: str) -> str:
  """'train' or 'validation': where a problem of a published train split belongs."""
  validation = uniform('split', identity) < VALIDATION_SHARE
  return 'validation' if validation else 'train'


def held_out(group: str) -> bool:
  """Whether the problems of a group are held out, for validation or test."""
  return split_of(group) != 'train'


def uniform(purpose: str, identity: str) -> float:
  """A number from 0 to 1 that looks random and is always the same."""
  digest = hashlib.blake2b(f'{purpose} {identity}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'big') / 2**64


def rank(identity: str) -> float:
  """Sorts problems so that neighbours are unrelated and any prefix is a fair sample."""
  return uniform('rank', identity)


def of_split(
  problems: Iterable[Problem], split: str, group: Group
) -> Iterator[Problem]:
  """Yields the problems of a split, in their order.

  Raises:
    ValueError: `split` is none of `SPLITS`.
  """
  if split not in SPLITS:
    raise ValueError(f'split: expected one of {SPLITS}, got {split!r}')
  for problem in problems:
    if split_of(group(problem)) == split:
      yield problem


def balanced(kinds: Iterable[Sequence[Problem]], most: int) -> list[Problem]:
  """At most `most` problems of each kind, one of each by turns while there are any.

  Of a kind that is larger only the first in hash order are taken.
  """
  chosen = []
  for kind in kinds:
    ordered = sorted(kind, key=lambda problem: rank(problem.id))[:most]
    chosen += list(enumerate(ordered))
  return [problem for _, problem in sorted(chosen, key=lambda pair: pair[0])]


def spread(problems: Iterable[Problem], group: Group) -> list[Problem]:
  """The problems ordered so that any prefix has every group in about its share.

  Of n problems of a group, problem j stands at (j + u)/n of the way, with one u from 0
  to 1 for the group. So a few problems come from as many groups as they can.
  """
  groups: dict[str, list[Problem]] = collections.defaultdict(list)
  for problem in problems:
    groups[group(problem)].append(problem)
  placed = []
  for name, members in groups.items():
    ordered = sorted(members, key=lambda problem: rank(problem.id))
    first = uniform('spread', name)
    placed += [
      ((j + first) / len(ordered), problem) for j, problem in enumerate(ordered)
    ]
  return [problem for _, problem in sorted(placed, key=lambda pair: pair[0])]
