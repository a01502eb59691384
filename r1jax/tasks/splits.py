"""Training, validation and test splits, and the order of their problems, by hashes.

The hash is that of a group's name. Problems that differ only in form, such as 3+4 and
4+3, share a group (each task's `group`) and are held out together. So no training
problem is a variant of a test problem, whatever a task's settings, and no list of names
has to be kept. What a model calculates on its way to another answer during training is
not checked.

`validation` is for choices: curves during training, and the settings of a recipe.
`test` is for the numbers that are reported, once, at the end. Earlier versions of this
package tuned the rates, shares and rewards of the miniature on what they called test.
In arithmetic, and in equations with x on one side, that is `validation` now, and no
choice was made by a problem of `test`. In Countdown, instructions and the other
equations the splits are new, and some problems of `test` were seen in tuning.
"""

import collections
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from r1jax.tasks import Problem

SPLITS = ('train', 'validation', 'test')
HELD_OUT = SPLITS[1:]
VALIDATION_SHARE = 0.15  # of all groups, for choices
TEST_SHARE = 0.15  # of all groups, for reported numbers

Group = Callable[[Problem], str]  # problem -> the name of its group


@functools.lru_cache(maxsize=1 << 16)
def split_of(group: str) -> str:
  """Returns the split of a group's problems, one of `SPLITS`."""
  place = uniform('split', group)
  if place < VALIDATION_SHARE:
    return 'validation'
  return 'test' if place < VALIDATION_SHARE + TEST_SHARE else 'train'


def of_published(identity: str) -> str:
  """Returns 'train' or 'validation' for a problem of a published train split."""
  validation = uniform('split', identity) < VALIDATION_SHARE
  return 'validation' if validation else 'train'


def held_out(group: str) -> bool:
  """Returns whether a group is held out, for validation or test."""
  return split_of(group) != 'train'


def uniform(purpose: str, identity: str) -> float:
  """Returns a number from 0 to 1, pseudorandom and always the same."""
  digest = hashlib.blake2b(f'{purpose} {identity}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'big') / 2**64


def rank(identity: str) -> float:
  """Returns a sort key that makes any prefix of the problems a fair sample."""
  return uniform('rank', identity)


def of_split(
  problems: Iterable[Problem], split: str, group: Group
) -> Iterator[Problem]:
  """Yields the problems of a split, in their order.

  Raises:
    ValueError: `split` is not one of `SPLITS`.
  """
  if split not in SPLITS:
    raise ValueError(f'split: expected one of {SPLITS}, got {split!r}')
  for problem in problems:
    if split_of(group(problem)) == split:
      yield problem


def balanced(kinds: Iterable[Sequence[Problem]], most: int) -> list[Problem]:
  """Returns at most `most` problems of each kind, one of each kind in turn.

  Of a larger kind, the first problems in hash order.
  """
  chosen = []
  for kind in kinds:
    ordered = sorted(kind, key=lambda problem: rank(problem.id))[:most]
    chosen += list(enumerate(ordered))
  return [problem for _, problem in sorted(chosen, key=lambda pair: pair[0])]


def spread(problems: Iterable[Problem], group: Group) -> list[Problem]:
  """Returns the problems in an order whose prefixes have every group in proportion.

  Problem j of a group of n is at the position (j + u)/n of the whole, with one u from 0
  to 1 per group. So a few problems come from as many groups as possible.
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
