"""Which problems are held out, and in which order a split comes: hashes decide.

So train and test share no problem, whatever a task's settings, and no list of names
has to be kept.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from r1jax.tasks import Problem

TEST_SHARE = 0.15  # of all problems, held out


def held_out(identity: str) -> bool:
  """Whether the problem of this name belongs to the test split."""
  return uniform('split', identity) < TEST_SHARE


def uniform(purpose: str, identity: str) -> float:
  """A number from 0 to 1 that looks random and is always the same."""
  digest = hashlib.blake2b(f'{purpose} {identity}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'big') / 2**64


def rank(identity: str) -> float:
  """Sorts problems so that neighbours are unrelated and any prefix is a fair sample."""
  return uniform('rank', identity)


def of_split(problems: Iterable[Problem], split: str) -> Iterator[Problem]:
  """Yields the problems of 'train' or 'test', in their order."""
  if split not in ('train', 'test'):
    raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
  for problem in problems:
    if held_out(problem.id) == (split == 'test'):
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
