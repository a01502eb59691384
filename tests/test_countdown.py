"""Problems, splits and checked answers of Countdown; for files see test_store."""

import functools
import itertools
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from r1jax import tasks
from r1jax.tasks import Problem, countdown, expressions, splits
from r1jax.tasks.countdown import CountdownConfig, generate

PROBLEM = Problem(
  '2-3-5=16', 'countdown', 'make 16 from 3 5 2', {'numbers': [3, 5, 2], 'target': 16}
)
DIFFICULTIES = [
  CountdownConfig(2, 20, 100),
  CountdownConfig(3, 6, 40),
  CountdownConfig(3, 10, 100),
  CountdownConfig(4, 4, 30),
]


def reachable(numbers):
  """Every value of every expression over all numbers, negative steps included."""
  if len(numbers) == 1:
    return set(numbers)
  found = set()
  for size in range(1, len(numbers)):
    for chosen in itertools.combinations(range(len(numbers)), size):
      rest = [n for i, n in enumerate(numbers) if i not in chosen]
      lefts, rights = reachable([numbers[i] for i in chosen]), reachable(rest)
      for left, right in itertools.product(lefts, rights):
        found |= {left + right, left - right, left * right}
  return found


@pytest.mark.parametrize(
  'answer',
  [
    *('(3+5)*2', '2*(5+3)', ' ( 3 + 5 ) * 2 ', '((5+3))*2', '3*2+5*2', '3*5+2-1', ''),
    *('(3+5)*2=16', '16', '3+5*2', '(3+5)', '(3+5)*2*1', '(3+5)+(3+5)', '(3+3+2)*2'),
  ],
)
def test_an_answer_is_right_with_each_number_once_and_the_target(answer):
  right = {'(3+5)*2', '2*(5+3)', ' ( 3 + 5 ) * 2 ', '((5+3))*2'}
  assert tasks.verify(PROBLEM, answer) == (answer in right)


def test_a_repeated_number_is_used_as_often_as_it_is_given():
  problem = Problem('3-3-2=12', 'countdown', '', {'numbers': [3, 3, 2], 'target': 12})
  assert tasks.verify(problem, '(3+3)*2')
  assert not tasks.verify(problem, '3*2*2')
  assert not tasks.verify(problem, '3*3+3')


@hypothesis.given(
  strategies.text('0123456789+-*/() .', max_size=40) | strategies.text()
)
@hypothesis.example('(' * 100_000)
@hypothesis.example('9**9**9**9**9')
def test_checking_never_raises(answer):
  assert not tasks.verify(PROBLEM, answer) or eval(answer.strip()) == 16
  assert tasks.answer_key(PROBLEM, answer) == tasks.answer_key(PROBLEM, f' {answer} ')


def test_votes_agree_on_the_calculation_not_on_its_value():
  key = functools.partial(tasks.answer_key, PROBLEM)
  assert key('(3+5)*2') == key('2 * (5 + 3)') is not None
  assert key('3*5+2') != key('(3+5)*2')
  assert key('2+3') != key('1+4')
  assert key('I give up') is None
  assert hash(key('(3+5)*2')) == hash(key('2*(5+3)'))


def test_an_unknown_task_is_named():
  problem = Problem('1', 'chess', 'mate in 1', {})
  expected = r"task: expected one of \['arithmetic', 'countdown', .*\], got 'chess'"
  with pytest.raises(ValueError, match=expected):
    tasks.verify(problem, 'Qh7')


@pytest.mark.parametrize(
  'config',
  [CountdownConfig(2, 6, 9), CountdownConfig(3, 5, 40), CountdownConfig(4, 3, 20)],
)
def test_every_solvable_problem_appears_once(config):
  expected = {
    (leaves, target)
    for leaves in itertools.combinations_with_replacement(
      range(1, config.largest + 1), config.numbers
    )
    for target in reachable(list(leaves))
    if 1 <= target <= config.highest_target
  }
  problems = [p for split in splits.SPLITS for p in generate(config, split)]
  found = [(tuple(sorted(p.truth['numbers'])), p.truth['target']) for p in problems]
  assert len(found) == len(set(found))
  assert set(found) == expected
  assert len({problem.id for problem in problems}) == len(problems)


def test_splits_share_no_numbers_for_any_target():
  parts = [
    {
      tuple(sorted(p.truth['numbers']))
      for config in DIFFICULTIES
      for p in generate(config, split)
    }
    for split in splits.SPLITS
  ]
  assert all(parts)
  for one, other in itertools.combinations(parts, 2):
    assert not one & other


def test_the_numbers_of_the_default_difficulty_are_as_documented():
  # C(9 + 2, 3) = 165 multisets of three numbers from 1 to 9
  counts = {}
  for split in splits.SPLITS:
    problems = list(generate(CountdownConfig(), split))
    counts[split] = len(problems), len({countdown.group(p) for p in problems})
  assert counts == {'train': (1429, 126), 'validation': (222, 21), 'test': (214, 18)}
  asked = list(generate(CountdownConfig(), 'test'))[:32]
  assert len({countdown.group(p) for p in asked}) == 18


def chance(problems):
  """The share of the ways to combine a problem's numbers that reach its target."""
  shares = []
  for problem in problems:
    trees = expressions.candidates(tuple(problem.truth['numbers']))
    right = [expressions.value(tree) == problem.truth['target'] for tree in trees]
    shares.append(np.mean(right))
  return np.mean(shares)


def test_splits_are_of_one_difficulty():
  train, validation, test = (
    list(generate(CountdownConfig(), s)) for s in splits.SPLITS
  )
  # A standard error of 32 problems is 0.007.
  for part in (train, validation, test, validation[:32], test[:32]):
    assert abs(chance(part) - 0.078) < 0.005


@pytest.mark.parametrize('config', DIFFICULTIES)
def test_the_held_out_share_and_any_prefix_are_fair(config):
  parts = {split: list(generate(config, split)) for split in splits.SPLITS}
  groups = {
    split: len({countdown.group(p) for p in part}) for split, part in parts.items()
  }
  train, total = parts['train'], sum(groups.values())
  for split in ('validation', 'test'):
    # Five standard deviations of a fair draw of multisets.
    deviation = np.sqrt(0.15 * 0.85 / total)
    assert abs(groups[split] / total - 0.15) < 5 * deviation
  # A fair order does not sort targets: ranks are uncorrelated, within five deviations.
  targets = [problem.truth['target'] for problem in train]
  correlation = np.corrcoef(range(len(targets)), targets)[0, 1]
  assert abs(correlation) < 5 / np.sqrt(len(targets))


def test_the_order_of_numbers_gives_no_hint():
  problems = list(generate(CountdownConfig(3, 10, 100), 'train'))
  for problem in problems[:100]:
    numbers = ' '.join(map(str, problem.truth['numbers']))
    assert problem.question == f'make {problem.truth["target"]} from {numbers}'
    assert problem.task == 'countdown'
  # Of three different numbers each of six orders shows up in a sixth of the problems.
  ranks = [
    tuple(np.argsort(p.truth['numbers']))
    for p in problems
    if len(set(p.truth['numbers'])) == 3
  ]
  counts = np.array([ranks.count(rank) for rank in itertools.permutations(range(3))])
  assert sum(counts) == len(ranks)
  expected = len(ranks) / 6
  # Chi-square with 5 degrees of freedom is above 20.5 once in a thousand.
  assert ((counts - expected) ** 2 / expected).sum() < 20.5


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('3+5*2=3+10=13?16 low', ['2-3-5']),
    ('x=2 4*2+9=8+9=17?17 yes', ['2-4-9']),
    ('(3+5)*2=8*2=16', ['2-3-5']),
    ('4*2*9-1', ['2-4-9', '1-2-9']),
    ('10*2+9=20+9 3*0+9', []),  # beyond the difficulty
    ('3x+4=19 3x=19-4=15 3+4=7 make 16 from 3 5 2', []),
  ],
)
def test_calculations_with_a_problems_numbers_are_found(text, groups):
  assert list(countdown.stated(text, CountdownConfig())) == groups
  pairs = list(countdown.stated('3+5*2=3+10', CountdownConfig(numbers=2)))
  assert pairs == ['3-5', '2-5']


def test_problems_are_the_same_in_every_process():
  code = (
    'from r1jax.tasks import countdown\n'
    'config = countdown.CountdownConfig(3, 5, 30)\n'
    'parts = "train", "validation", "test"\n'
    'print([repr(p) for s in parts for p in countdown.generate(config, s)])'
  )
  config = CountdownConfig(3, 5, 30)
  here = [repr(p) for s in splits.SPLITS for p in generate(config, s)]
  environment = {**os.environ, 'PYTHONHASHSEED': '7'}
  there = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, check=True
  )
  assert there.stdout.decode().strip() == str(here)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match=r"split: expected one of .*, got 'dev'"):
    list(generate(CountdownConfig(2, 3, 9), 'dev'))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'numbers': 1}, 'numbers: expected 2 to 4, got 1'),
    ({'numbers': 5}, 'numbers: expected 2 to 4, got 5'),
    ({'largest': 1}, 'largest: expected 2 to 20, got 1'),
    ({'largest': 21}, 'largest: expected 2 to 20, got 21'),
    (
      {'highest_target': 0},
      'highest_target: expected 1 or more, got 0',
    ),
  ],
)
def test_impossible_difficulties_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    CountdownConfig(**fields)


def test_the_highest_target_may_be_huge():
  far = CountdownConfig(numbers=2, largest=5, highest_target=10**15)
  assert list(countdown.generate(far, 'train'))
