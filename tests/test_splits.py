"""Splits, the order of problems, and that all tasks follow them."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from r1jax import tasks
from r1jax.tasks import Problem, splits
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.tasks.instructions import InstructionsConfig

DIFFICULTIES: dict[str, list[Any]] = {
  'equations': [EquationsConfig(), EquationsConfig(4, 9, 30), EquationsConfig(20)],
  'arithmetic': [ArithmeticConfig(), ArithmeticConfig(largest=40)],
  'instructions': [
    InstructionsConfig(),
    InstructionsConfig(2),
    InstructionsConfig(4, 60),
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


def test_a_hash_decides_the_split():
  # 0xfd / 256 = 0.99 and 0x0d / 256 = 0.05, see above
  assert splits.split_of('2-3-5=16') == 'train'
  assert splits.split_of('2-4-7=30') == 'validation'
  assert not splits.held_out('2-3-5=16')
  assert splits.held_out('2-4-7=30')
  found = Counter(splits.split_of(str(number)) for number in range(10_000))
  for split, share in (('train', 0.7), ('validation', 0.15), ('test', 0.15)):
    deviation = np.sqrt(share * (1 - share) / 10_000)
    assert abs(found[split] / 10_000 - share) < 5 * deviation


def test_a_part_of_a_published_train_split_is_for_validation():
  found = Counter(splits.of_published(f'train-{number}') for number in range(7473))
  assert set(found) == {'train', 'validation'}
  # Five deviations
  assert abs(found['validation'] / 7473 - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 7473)


def test_of_split_keeps_the_order_and_loses_nothing():
  every = [problem(str(number)) for number in range(100)]
  parts = {
    split: [int(p.id) for p in splits.of_split(every, split, lambda p: p.id)]
    for split in splits.SPLITS
  }
  assert all(part == sorted(part) for part in parts.values())
  assert sorted(n for part in parts.values() for n in part) == list(range(100))
  held_out = {n for n in range(100) if splits.held_out(str(n))}
  assert {*parts['validation'], *parts['test']} == held_out


def test_a_group_is_in_one_split():
  every = [problem(f'{number}{sign}') for number in range(100) for sign in 'ab']
  for split in splits.SPLITS:
    found = [p.id for p in splits.of_split(every, split, lambda p: p.id[:-1])]
    assert found == [f'{p[:-1]}{sign}' for p in found[::2] for sign in 'ab']


def test_any_prefix_has_every_group_in_its_share():
  # Groups of 3 and 9 problems: of the first 4 about one and three, of 8 two and six.
  every = [
    problem(f'{name}{n}') for name, size in (('a', 3), ('b', 9)) for n in range(size)
  ]
  found = splits.spread(every, lambda p: p.id[0])
  assert sorted(p.id for p in found) == sorted(p.id for p in every)
  for length in range(1, 13):
    count = sum(p.id[0] == 'a' for p in found[:length])
    assert abs(count - length / 4) <= 1


def test_kinds_alternate_and_the_largest_is_cut():
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
  parts = [
    [p for config in DIFFICULTIES[task] for p in module.generate(config, split)]
    for split in splits.SPLITS
  ]
  for one, other in itertools.combinations(parts, 2):
    assert one
    assert other
    for name in (lambda p: p.id, lambda p: p.question, module.group):
      assert not {name(p) for p in one} & {name(p) for p in other}


@pytest.mark.parametrize('task', DIFFICULTIES)
def test_splits_have_their_share_in_a_fair_order(task):
  for config in DIFFICULTIES[task]:
    module = tasks.module(task)
    parts = {split: list(module.generate(config, split)) for split in splits.SPLITS}
    every = [p for part in parts.values() for p in part]
    assert len({p.id for p in every}) == len(every)
    assert {p.task for p in every} == {task}
    groups = len({module.group(p) for p in every})
    for split, share in (
      ('validation', splits.VALIDATION_SHARE),
      ('test', splits.TEST_SHARE),
    ):
      found = len({module.group(p) for p in parts[split]})
      # Five standard deviations of a fair draw of groups.
      assert abs(found / groups - share) < 5 * np.sqrt(share * (1 - share) / groups)
    assert parts['train'] == list(module.generate(config, 'train'))


@pytest.mark.parametrize('task', DIFFICULTIES)
def test_names_of_difficulties_differ(task):
  names = [config.name for config in DIFFICULTIES[task]]
  assert len(set(names)) == len(names)


@pytest.mark.parametrize('task', [*DIFFICULTIES, 'countdown'])
def test_an_unknown_split_is_refused(task):
  module = tasks.module(task)
  with pytest.raises(ValueError, match=r"split: expected one of .*, got 'dev'"):
    list(itertools.islice(module.generate(module.SETTINGS(), 'dev'), 1))
