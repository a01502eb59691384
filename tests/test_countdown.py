"""Problems, their splits, and the checker of answers; for the files see test_store."""

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
from r1jax.tasks import Problem, countdown, splits
from r1jax.tasks.countdown import Config, generate

PROBLEM = Problem(
  '2-3-5=16', 'countdown', 'make 16 from 3 5 2', {'numbers': [3, 5, 2], 'target': 16}
)
DIFFICULTIES = [
  Config(2, 20, 100),
  Config(3, 6, 40),
  Config(3, 10, 100),
  Config(4, 4, 30),
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
  'config', [Config(2, 6, 9), Config(3, 5, 40), Config(4, 3, 20)]
)
def test_the_problems_are_all_solvable_ones_each_once(config):
  expected = {
    (leaves, target)
    for leaves in itertools.combinations_with_replacement(
      range(1, config.largest + 1), config.numbers
    )
    for target in reachable(list(leaves))
    if 1 <= target <= config.highest_target
  }
  problems = [*generate(config, 'train'), *generate(config, 'test')]
  found = [(tuple(sorted(p.truth['numbers'])), p.truth['target']) for p in problems]
  assert len(found) == len(set(found))
  assert set(found) == expected
  assert len({problem.id for problem in problems}) == len(problems)


def test_no_problem_of_any_test_split_is_in_any_train_split():
  def identity(problem):
    return tuple(sorted(problem.truth['numbers'])), problem.truth['target']

  splits = {
    split: {identity(p) for config in DIFFICULTIES for p in generate(config, split)}
    for split in ('train', 'test')
  }
  assert splits['train']
  assert splits['test']
  assert not splits['train'] & splits['test']


@pytest.mark.parametrize('config', DIFFICULTIES)
def test_the_held_out_share_and_any_prefix_are_fair(config):
  train, test = (list(generate(config, split)) for split in ('train', 'test'))
  total, share = len(train) + len(test), splits.TEST_SHARE
  # Five standard deviations of a fair draw.
  assert abs(len(test) / total - share) < 5 * np.sqrt(share * (1 - share) / total)
  # A fair order does not sort targets: ranks are uncorrelated, within five deviations.
  targets = [problem.truth['target'] for problem in train]
  correlation = np.corrcoef(range(len(targets)), targets)[0, 1]
  assert abs(correlation) < 5 / np.sqrt(len(targets))


def test_questions_show_the_numbers_in_no_telling_order():
  problems = list(generate(Config(3, 10, 100), 'train'))
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


def test_problems_are_the_same_in_every_process():
  code = (
    'from r1jax.tasks import countdown\n'
    'config = countdown.Config(3, 5, 30)\n'
    'print([repr(p) for s in ("train", "test") for p in countdown.generate(config, s)])'
  )
  config = Config(3, 5, 30)
  here = [repr(p) for s in ('train', 'test') for p in generate(config, s)]
  environment = {**os.environ, 'PYTHONHASHSEED': '7'}
  there = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, check=True
  )
  assert there.stdout.decode().strip() == str(here)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match=r"split: expected 'train' or 'test', got 'dev'"):
    list(generate(Config(2, 3, 9), 'dev'))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'numbers': 1}, 'tasks.countdown.numbers: expected 2 to 4, got 1'),
    ({'numbers': 5}, 'tasks.countdown.numbers: expected 2 to 4, got 5'),
    ({'largest': 1}, 'tasks.countdown.largest: expected 2 to 20, got 1'),
    ({'largest': 21}, 'tasks.countdown.largest: expected 2 to 20, got 21'),
    (
      {'highest_target': 0},
      'tasks.countdown.highest_target: expected 1 or more, got 0',
    ),
  ],
)
def test_impossible_difficulties_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    Config(**fields)


def test_the_highest_target_may_be_huge():
  far = countdown.Config(numbers=2, largest=5, highest_target=10**15)
  assert list(countdown.generate(far, 'train'))
