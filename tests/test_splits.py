"""Who is held out, in which order problems come, and that tasks keep to it."""

import itertools
from typing import Any

import numpy as np
import pytest

from r1jax import tasks
from r1jax.tasks import Problem, arithmetic, equations, instructions, splits

DIFFICULTIES: dict[str, list[Any]] = {
  'equations': [equations.Config(), equations.Config(4, 9, 30), equations.Config(20)],
  'arithmetic': [arithmetic.Config(), arithmetic.Config(largest=40)],
  'instructions': [
    instructions.Config(),
    instructions.Config(2),
    instructions.Config(4, 60),
  ],
}


def problem(identity):
  return Problem(identity, 'countdown', '', {})


@pytest.mark.parametrize(
  ('text', 'digest'),
  [
    # printf 'split 2-3-5=16' | b2sum -l 64
    ('split 2-3-5=16', 'fdc29267b16d6956'),
    ('split 2-4-7=30', '0dc3e54cc2fe8257'),
    ('rank 47*6', '31ccded213a557c0'),
  ],
)
def test_uniform_is_a_hash_as_a_fraction(text, digest):
  purpose, identity = text.split()
  assert splits.uniform(purpose, identity) == int(digest, 16) / 16**16


def test_held_out_is_what_hashes_below_the_share():
  # 0xfd / 256 and 0x0d / 256 = 0.05, see above
  assert not splits.held_out('2-3-5=16')
  assert splits.held_out('2-4-7=30')
  found = np.mean([splits.held_out(str(number)) for number in range(10_000)])
  assert abs(found - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 10_000)  # five deviations


def test_of_split_keeps_the_order_and_loses_nothing():
  every = [problem(str(number)) for number in range(100)]
  train, test = (list(splits.of_split(every, split)) for split in ('train', 'test'))
  assert [int(p.id) for p in train] == sorted(int(p.id) for p in train)
  assert {p.id for p in train} | {p.id for p in test} == {str(n) for n in range(100)}
  assert len(train) + len(test) == 100
  assert {p.id for p in test} == {str(n) for n in range(100) if splits.held_out(str(n))}


def test_kinds_come_by_turns_and_the_largest_is_cut():
  kinds = [
    [problem(f'{kind}{number}') for number in range(size)]
    for kind, size in (('a', 2), ('b', 9), ('c', 4))
  ]
  ids = [p.id for p in splits.balanced(kinds, most=5)]
  assert ''.join(identity[0] for identity in ids) == 'abcabcbcbcb'
  assert len(set(ids)) == 11
  for kind, members in zip('abc', kinds, strict=True):
    ranked = sorted((p.id for p in members), key=splits.rank)
    assert [identity for identity in ids if identity[0] == kind] == ranked[:5]


@pytest.mark.parametrize('task', DIFFICULTIES)
def test_no_problem_of_any_test_split_is_in_any_train_split(task):
  module = tasks.module(task)
  train, test = (
    [p for config in DIFFICULTIES[task] for p in module.generate(config, split)]
    for split in ('train', 'test')
  )
  assert train
  assert test
  assert not {p.id for p in train} & {p.id for p in test}
  assert not {p.question for p in train} & {p.question for p in test}


@pytest.mark.parametrize('task', DIFFICULTIES)
def test_splits_hold_their_share_in_a_fair_order(task):
  for config in DIFFICULTIES[task]:
    train, test = (
      list(tasks.module(task).generate(config, split)) for split in ('train', 'test')
    )
    total, share = len(train) + len(test), splits.TEST_SHARE
    assert len({p.id for p in [*train, *test]}) == total
    # Five standard deviations of a fair draw.
    assert abs(len(test) / total - share) < 5 * np.sqrt(share * (1 - share) / total)
    assert {p.task for p in [*train, *test]} == {task}
    assert train == list(tasks.module(task).generate(config, 'train'))


@pytest.mark.parametrize('task', DIFFICULTIES)
def test_names_of_difficulties_differ(task):
  names = [config.name for config in DIFFICULTIES[task]]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize('task', [*DIFFICULTIES, 'countdown'])
def test_an_unknown_split_is_refused(task):
  module = tasks.module(task)
  with pytest.raises(ValueError, match=r"split: expected 'train' or 'test', got 'dev'"):
    list(itertools.islice(module.generate(module.Config(), 'dev'), 1))
