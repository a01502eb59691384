"""The reward for short outputs, by hand and on any text."""

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.rewards import length
from r1jax.tasks import equations

PROBLEM = equations.problem(3, 4, 0, 5)  # 3x+4=19
TAGS = len('<think></think><answer>5</answer>')


def output(thoughts, answer='5'):
  return f'<think>{thoughts}</think><answer>{answer}</answer>'


@pytest.mark.parametrize(
  ('characters', 'reward'),
  [
    # 1/2 + 1/2 * 2^(-characters / 200)
    (200, 1 / 2 + 1 / 4),
    (400, 1 / 2 + 1 / 8),
    (600, 1 / 2 + 1 / 16),
  ],
)
def test_every_200_characters_halve_the_part_above_the_floor(characters, reward):
  right = output('.' * (characters - TAGS))
  assert length.shorter(PROBLEM, right) == reward


def test_undoing_is_worth_more_than_trying():
  undone = output('3x+4=19\n3x=19-4=15\nx=15/3=5')
  tried = output('\n'.join(f'x={x} 3*{x}+4={3 * x + 4}?19' for x in range(1, 6)))
  assert length.shorter(PROBLEM, undone) > length.shorter(PROBLEM, tried) > 1 / 2


@pytest.mark.parametrize(
  'wrong',
  [output('', '4'), output('3x=15', '15'), '5', '', output('') + output(''), 'x' * 999],
)
def test_wrong_or_malformed_outputs_get_0(wrong):
  assert length.shorter(PROBLEM, wrong) == 0


@pytest.mark.parametrize(
  'padded',
  [
    output('so' + ' ' * 50),  # thoughts without a visible sign
    output('so').replace('<answer>', 'x=5' * 16 + 'xx<answer>'),  # in the summary
    output('so', '5' + '\n' * 50),  # in the answer
    output('so' + 50 * 'a'),  # one word
  ],
)
def test_every_part_of_an_output_counts(padded):
  # Each is 50 characters longer than the same output without them.
  assert len(padded) == len(output('so')) + 50
  expected = 1 / 2 + 1 / 2 * 2 ** (-(TAGS + 2 + 50) / 200)
  assert length.shorter(PROBLEM, padded) == pytest.approx(expected, rel=1e-12)


WAYS = strategies.text().filter(lambda text: '<' not in text)


@hypothesis.given(WAYS, WAYS, strategies.integers(0, 99).filter(lambda x: x != 5))
def test_a_wrong_answer_is_never_above_a_right_one(thoughts, other, wrong):
  assert 1 / 2 <= length.shorter(PROBLEM, output(thoughts)) <= 1
  assert length.shorter(PROBLEM, output(other, str(wrong))) == 0
  assert length.shorter(PROBLEM, other) == 0


@hypothesis.given(WAYS, WAYS)
def test_longer_is_never_worth_more(thoughts, more):
  short, long = output(thoughts), output(thoughts + more)
  assert length.shorter(PROBLEM, long) <= length.shorter(PROBLEM, short)
