"""Verifiers by name, and those of one's own."""

import pytest

from r1jax.tasks import verifiers
from r1jax.tasks.verifiers import find


def same_first_letter(answer: str, truth: str) -> bool:
  """A verifier of one's own."""
  return answer[0] == truth[0]


@pytest.mark.parametrize(
  ('name', 'answer', 'truth', 'right'),
  [
    ('number', '$1,000.00', '1000', True),
    ('number', '\\boxed{7} apples', '7', True),
    ('number', '1/2', '0.5', False),  # an answer must be worked out
    ('number', 'none', 'none', False),
    ('math', '1/2', '0.5', True),
    ('exact', ' two  words\n', 'two words', True),
    ('exact', 'Two words', 'two words', False),
    ('exact', '', '', False),
    ('choice', '(C)', 'C', True),
    ('choice', 'c', '(C)', True),
    ('choice', '\\text{(C)}', 'C', True),
    ('choice', 'C. 4 apples', 'C', True),
    ('choice', '(C) 4 apples', 'C', True),
    ('choice', 'D', 'C', False),
    ('choice', 'Carrots', 'C', False),
    ('choice', 'A or C', 'A', False),
    ('choice', '', '', False),
    ('countdown', '2*(5+3)', '(3+5)*2', True),
    ('countdown', '4*4', '(3+5)*2', False),  # other numbers
    ('countdown', '3+5*2', '(3+5)*2', False),  # another value
    ('countdown', '16', '16', True),
    ('countdown', '2 * (5+3)', '16 = 3, 5, 2', True),
    ('countdown', '5*3+2', '16 = 3, 5, 2', False),
    ('countdown', '5*3+1', '16 = 3, 5, 2', False),
    ('countdown', '16 = 3, 5, 2', '16 = 3, 5, 2', False),
    ('countdown', '8/(3-8/3)', '24=8,3,8,3', True),  # exact: 8/(1/3)
    ('countdown', '3-(5+2)', '-4 = 2, 3, 5', True),
    ('countdown', '5/(3-3)', '5/(3-3)', False),
    ('countdown', '5//2', '2 = 5, 2', False),
    ('countdown', '5', '5 = x', False),
    ('countdown', 'x', 'x', False),
  ],
)
def test_a_verifier_says_whether_an_answer_is_right(name, answer, truth, right):
  assert find(name)(answer, truth) is right


@pytest.mark.parametrize(
  ('name', 'truth', 'can'),
  [
    ('countdown', '16 = 3, 5, 2', True),
    ('countdown', '(3+5)*2', True),
    ('countdown', '16 = 3 5 2', False),
    ('countdown', 'sixteen', False),
    ('number', '16 = 3, 5, 2', False),
    ('exact', '16 = 3, 5, 2', True),
  ],
)
def test_a_truth_is_accepted_if_an_answer_can_be_right_by_it(name, truth, can):
  assert verifiers.accepts(name, truth) is can


def test_a_verifier_may_be_a_function_of_a_module():
  verify = find(f'{__name__}:same_first_letter')
  assert verify('apple', 'ant')
  assert not verify('apple', 'bee')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nmber', 'data.verify: expected one of math, number, .*, got .nmber.'),
    ('no.such:f', 'data.verify: the module no.such of .* cannot be imported'),
    (f'{__name__}:g', "data.verify: the module test_verifiers has no function 'g'"),
    ('a b:f', 'data.verify: expected package.module:function'),
  ],
)
def test_an_unknown_verifier_is_named(name, message):
  with pytest.raises(ValueError, match=message):
    find(name)


def test_workers_import_what_a_verifier_needs():
  assert verifiers.imports('math') == ('math_verify',)
  assert verifiers.imports('number') == ()
  assert verifiers.imports('my.module:f') == ('my.module',)
