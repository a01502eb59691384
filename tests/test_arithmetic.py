"""Calculations, checked with Python."""

import itertools
import random

import hypothesis
import pytest
from hypothesis import strategies

from r1jax import tasks
from r1jax.tasks import splits
from r1jax.tasks.arithmetic import ArithmeticConfig, draw, generate, problem, stated

PROBLEM = problem(47, '*', 6)


def every(config):
  return [p for split in splits.SPLITS for p in generate(config, split)]


@pytest.mark.parametrize('config', [ArithmeticConfig(), ArithmeticConfig(largest=45)])
def test_every_problem_is_verified_by_what_python_calculates(config):
  for made in every(config):
    assert made.question == f'calculate {made.id}'
    right = eval(made.id)
    assert right > 0
    assert tasks.verify(made, str(right))
    assert tasks.verify(made, f' {right}\n')
    assert not tasks.verify(made, str(right + 1))
    assert not tasks.verify(made, made.id)
    assert len(made.question) <= 16


def test_the_problems_are_all_within_the_bounds():
  config = ArithmeticConfig(largest=35)
  digits = [n for n in range(1, 36) if n % 10]
  expected = {
    f'{left}{sign}{right}'
    for left, sign, right in itertools.product(digits, '+-*', digits)
    if left >= 21 and right < left
    if (2 <= right <= 9 if sign == '*' else right >= 11)
  }
  assert {made.id for made in every(config)} == expected
  rng = random.Random(0)
  # Of the 726, each 1/1100 at least: 20,000 miss one of them once in 10^5.
  assert {draw(config, rng).id for _ in range(20_000)} == expected


def test_signs_are_balanced_while_there_are_enough():
  signs = [
    made.truth['sign'] for made in itertools.islice(every(ArithmeticConfig()), 300)
  ]
  for sign in '+-*':
    assert 75 < signs.count(sign) < 125  # 100, with a deviation of 4


@pytest.mark.parametrize(
  'answer',
  ['', '281', '47*6', '-282', '+282', '282.0', '282 282', '=282', '٢٨٢', '2' * 5000],
)
def test_nothing_but_the_result_is_right(answer):
  assert tasks.verify(PROBLEM, '282')  # 240 + 42
  assert not tasks.verify(PROBLEM, answer)


@hypothesis.given(strategies.text('0123456789+- \n', max_size=6) | strategies.text())
def test_checking_never_raises(answer):
  assert not tasks.verify(PROBLEM, answer) or int(answer) == 282
  assert tasks.answer_key(PROBLEM, answer) == tasks.answer_key(PROBLEM, f' {answer} ')


def test_votes_agree_on_the_number():
  assert tasks.answer_key(PROBLEM, ' 7 ') == tasks.answer_key(PROBLEM, '7') == 7
  assert tasks.answer_key(PROBLEM, '8') != 7
  assert tasks.answer_key(PROBLEM, 'seven') is None


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('calculate 47*6', ['47*6']),
    ('6*47=282', ['47*6']),
    ('38+57=95', ['57+38']),
    ('57+38=95', ['57+38']),
    ('3x=45-12=33', ['45-12']),
    ('12-45', []),  # below 0, so no problem
    ('3+25+12+99', ['25+12', '99+12']),
    ('4*9*8=36*8=288', ['36*8']),
    # tens, and what schoolbooks and searches calculate with
    ('40*6=240 7*6=42 240+42=282', []),
    ('38+10=48 48+9=57', []),
    ('9*9=81 18+9=27 18-9=9 20*9=180', []),
    ('21*2 21+11 21-11', ['21*2', '21-11', '21+11']),
    ('21*10 21*1 33+33 33-33 21+10', []),
    ('line 12 - 45*67', []),
    ('', []),
  ],
)
def test_calculations_of_a_problems_size_are_found(text, names):
  assert sorted(stated(text)) == sorted(names)


def test_every_problem_contains_only_itself():
  for made in every(ArithmeticConfig()):
    left, right = made.truth['left'], made.truth['right']
    assert list(stated(made.question)) == [made.id]
    if made.truth['sign'] != '-':
      assert list(stated(f'{right}{made.truth["sign"]}{left}=')) == [made.id]


@pytest.mark.parametrize('largest', [29, 100])
def test_impossible_difficulties_are_refused(largest):
  with pytest.raises(ValueError, match=f'^largest: expected 30 to 99, got {largest}$'):
    ArithmeticConfig(largest)
