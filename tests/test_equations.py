"""Equations, solved again in Python."""

import itertools
import random
import re

import hypothesis
import pytest
from hypothesis import strategies

from r1jax import tasks
from r1jax.tasks import equations, splits
from r1jax.tasks.equations import EquationsConfig, draw, generate, problem, stated

PROBLEM = problem(3, 4, 0, 5)


def difference(equation, x):
  """Left minus right side."""
  left, right = re.sub(r'(\d)x', r'\1*x', equation).split('=')
  return eval(left, {'x': x}) - eval(right, {'x': x})


@pytest.mark.parametrize(
  ('numbers', 'equation'),
  [
    ((3, 4, 0, 5), '3x+4=19'),
    ((3, -4, 0, 5), '3x-4=11'),
    ((2, 3, 1, 5), '2x+3=x+8'),
    ((9, 12, 8, 1), '9x+12=8x+13'),
  ],
)
def test_an_equation_is_written_as_at_school(numbers, equation):
  made = problem(*numbers)
  assert (made.id, made.question) == (equation, f'solve {equation}')
  assert (made.language, made.truth['x']) == ('en', numbers[-1])


@pytest.mark.parametrize(
  'config', [EquationsConfig(), EquationsConfig(3, 5, 9), EquationsConfig(15, 20, 9)]
)
def test_every_problem_has_one_solution_which_verifies(config):
  for made in (p for split in splits.SPLITS for p in generate(config, split)):
    x = made.truth['x']
    assert 1 <= x <= config.largest_solution
    assert difference(made.id, x) == 0
    assert difference(made.id, x + 1) != 0  # so it is no identity: x is the only one
    assert tasks.verify(made, str(x))
    assert not tasks.verify(made, str(x + 1))
    assert len(made.question) <= 20


def test_the_problems_are_all_equations_within_the_bounds():
  config = EquationsConfig(largest_factor=3, largest_solution=2, largest_term=4)
  found = {p.id for split in splits.SPLITS for p in generate(config, split)}
  expected = set()
  for factor, x, term in itertools.product((2, 3), (1, 2), (1, 2, 3, 4)):
    expected.add(f'{factor}x+{term}={factor * x + term}')
    if factor * x > term:
      expected.add(f'{factor}x-{term}={factor * x - term}')
    expected.add(f'{factor}x+{term}=x+{(factor - 1) * x + term}')
    if factor == 3:
      expected.add(f'3x+{term}=2x+{x + term}')
  assert found == expected
  rng = random.Random(0)
  assert {draw(config, rng).id for _ in range(2000)} == expected


def test_kinds_are_balanced_in_every_part_of_a_split():
  signs = [
    'both' if made.truth['other'] else 'minus' if made.truth['term'] < 0 else 'plus'
    for made in itertools.islice(generate(EquationsConfig(), 'train'), 300)
  ]
  for kind in ('plus', 'minus', 'both'):
    assert 75 < signs.count(kind) < 125  # 100, with a deviation of 4


@pytest.mark.parametrize('answer', ['5', 'x=5', ' x = 5 ', '\n5\n', 'x =5', '05'])
def test_the_solution_may_follow_the_unknown(answer):
  assert tasks.verify(PROBLEM, answer)
  assert tasks.answer_key(PROBLEM, answer) == 5


@pytest.mark.parametrize(
  'answer',
  ['', '4', 'x', 'x=', '=5', 'y=5', 'x=x=5', '5=x', '-5', '+5', '5.0', '5 5', '3x+4=19',
   '10/2', '٥', '²', 'five', '5' * 5000],
)  # fmt: skip
def test_nothing_else_is_the_solution(answer):
  assert not tasks.verify(PROBLEM, answer)


@hypothesis.given(strategies.text('0123456789x=+- \n', max_size=8) | strategies.text())
def test_checking_never_raises(answer):
  right = answer.replace('=', ' ').split() in (['x', '5'], ['5'])
  assert not tasks.verify(PROBLEM, answer) or right or int(answer.split('=')[-1]) == 5
  assert tasks.answer_key(PROBLEM, answer) == tasks.answer_key(PROBLEM, f' {answer} ')


def test_votes_agree_on_the_number():
  assert tasks.answer_key(PROBLEM, 'x=7') == tasks.answer_key(PROBLEM, '7') == 7
  assert tasks.answer_key(PROBLEM, '8') != 7
  assert tasks.answer_key(PROBLEM, 'I give up') is None


def test_separate_equations_are_found():
  thoughts = 'so\n3x+11=x+27\n2x+11=27\nx+11=27\n2x=27-11=16\nx=16/2=8'
  assert list(stated(thoughts)) == ['2x+11=27', '2x+11=27', 'x+11=27']
  assert list(stated('solve 3x-4=11')) == ['3x-4=11']
  assert list(stated('x=3 3*3+4=9+4=13?19 low')) == []
  assert list(stated('12+3x+4=19 3x+4=19+1')) == []
  for split in splits.SPLITS:
    for made in itertools.islice(generate(EquationsConfig(), split), 300):
      assert list(stated(made.text)) == [equations.group(made)]


def test_equations_that_reduce_to_the_same_are_a_group():
  assert equations.group(problem(3, 11, 1, 8)) == '2x+11=27'  # 3x+11=x+27
  assert equations.group(problem(9, 11, 7, 8)) == '2x+11=27'  # 9x+11=7x+27
  assert equations.group(problem(2, 11, 0, 8)) == '2x+11=27'
  assert equations.group(problem(9, 12, 8, 1)) == 'x+12=13'
  assert equations.group(problem(3, -4, 0, 5)) == '3x-4=11'
  for made in generate(EquationsConfig(), 'test'):
    for x in (0, 7):  # the sides of both are as far apart
      assert difference(made.id, x) == difference(equations.group(made), x)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'largest_factor': 1}, 'largest_factor: expected 2 to 20, got 1'),
    ({'largest_factor': 21}, 'largest_factor: expected 2 to 20, got 21'),
    ({'largest_solution': 51}, 'largest_solution: expected 2 to 50, got 51'),
    ({'largest_term': 0}, 'largest_term: expected 2 to 50, got 0'),
  ],
)
def test_impossible_difficulties_are_refused(fields, message):
  with pytest.raises(ValueError, match=rf'^{message}$'):
    EquationsConfig(**fields)
