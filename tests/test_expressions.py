"""Trees, their text and their candidates, against Python's arithmetic."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.tasks import expressions
from r1jax.tasks.expressions import (
  candidates,
  canonical,
  read,
  reduce_once,
  value,
  write,
)

TREES = strategies.recursive(
  strategies.integers(0, 20),
  lambda inner: strategies.tuples(strategies.sampled_from('+-*'), inner, inner),
  max_leaves=8,
)


def tree_of(text):
  tree = read(text)
  assert tree is not None
  return tree


def every_text(numbers):
  """Every order, operation and full parenthesisation of the numbers, as text."""

  def grow(row):
    if len(row) == 1:
      yield str(row[0])
    for cut in range(1, len(row)):
      for left, right in itertools.product(grow(row[:cut]), grow(row[cut:])):
        for op in '+-*':
          yield f'({left}{op}{right})'

  for row in set(itertools.permutations(numbers)):
    yield from grow(row)


def lowest_step(text):
  """The smallest value of any part of a fully parenthesised text."""
  opened, lowest = [], 0
  for end, character in enumerate(text):
    if character == '(':
      opened.append(end)
    elif character == ')':
      lowest = min(lowest, eval(text[opened.pop() : end + 1]))
  return lowest


@hypothesis.given(TREES)
def test_text_means_what_the_tree_means(tree):
  text = write(tree)
  assert value(tree) == eval(text)
  # 80 characters are room for 8 numbers up to 20, 7 signs and most parentheses.
  hypothesis.assume(len(text) <= expressions.LONGEST_ANSWER)
  again = tree_of(text)
  assert value(again) == value(tree)
  assert expressions.numbers(again) == expressions.numbers(tree)
  assert canonical(again) == canonical(tree)


@pytest.mark.parametrize(
  ('tree', 'text', 'result'),
  [
    (7, '7', 7),
    (('*', ('+', 3, 5), 2), '(3+5)*2', 16),
    (('*', 2, ('-', 3, 5)), '2*(3-5)', -4),
    (('-', 5, ('-', 3, 1)), '5-(3-1)', 3),
    (('-', ('-', 5, 3), 1), '5-3-1', 1),
    (('+', 5, ('-', 3, 1)), '5+3-1', 7),
    (('-', 5, ('*', 3, 1)), '5-3*1', 2),
    (('*', 5, ('*', 3, 2)), '5*3*2', 30),
  ],
)
def test_parentheses_only_where_they_are_needed(tree, text, result):
  assert write(tree) == text
  assert value(tree) == result


@pytest.mark.parametrize(
  ('text', 'tree'),
  [
    (' (3 + 5)*2\n', ('*', ('+', 3, 5), 2)),
    ('3-5-2', ('-', ('-', 3, 5), 2)),
    ('3+5*2', ('+', 3, ('*', 5, 2))),
    ('((12))', 12),
    ('1' * expressions.LONGEST_ANSWER, int('1' * expressions.LONGEST_ANSWER)),
  ],
)
def test_reading_follows_precedence(text, tree):
  assert read(text) == tree


GARBAGE = [
  *[
    '',
    ' ',
    '()',
    '3 5',
    '3+',
    '+3',
    '-3',
    '3+-5',
    '--3',
    '3**5',
    '3/5',
    '6//5',
    '3=3',
  ],
  *[
    '3.0',
    '3e2',
    '0x3',
    '1_0',
    '03',
    '(3',
    '3)',
    ')(',
    '3(5)',
    '(3)(5)',
    '(3,5)',
    '3,5',
  ],
  *[
    'x',
    'True',
    'None',
    '3 if 5 else 2',
    '[3]',
    '"3"',
    '3\n+5',
    '٣+٥',
    '3²',
    '３',
    '\x00',
  ],
  *['3+5 #', 'I give up', '(' * 40 + '3' + ')' * 40, '(' * 100_000, '9' * 81, '*'],
]


@pytest.mark.parametrize('text', GARBAGE)
def test_other_texts_have_no_tree(text):
  assert read(text) is None


@hypothesis.given(strategies.text('0123456789+-*() ', max_size=30) | strategies.text())
def test_reading_never_raises_and_agrees_with_python(text):
  tree = read(text)
  if tree is not None:
    assert value(tree) == eval(text.strip())


def test_steps_are_carried_out_from_the_left():
  tree = tree_of('(7-3)*(2+1)-5')
  steps = []
  while not isinstance(tree, int):
    tree = reduce_once(tree)
    steps.append(write(tree))
  assert steps == ['4*(2+1)-5', '4*3-5', '12-5', '7']


@hypothesis.given(TREES)
def test_a_step_keeps_the_value_and_removes_one_number(tree):
  hypothesis.assume(not isinstance(tree, int))
  reduced = reduce_once(tree)
  assert value(reduced) == value(tree)
  assert len(expressions.numbers(reduced)) == len(expressions.numbers(tree)) - 1


@pytest.mark.parametrize(
  'texts',
  [
    ['2+3', '3+2', '(3)+2'],
    ['2*3*4', '4*(3*2)', '(2*4)*3'],
    ['(3+5)*2', '2*(5+3)'],
    ['9-2-3', '9-3-2', '9-(2+3)', '9-(3+2)'],
    ['9-(2-3)', '9+3-2', '3+9-2', '3-2+9', '3-(2-9)'],
    ['2*3+4*5', '5*4+3*2'],
  ],
)
def test_commuted_and_regrouped_forms_share_a_key(texts):
  assert len({canonical(tree_of(text)) for text in texts}) == 1


def test_different_calculations_have_different_keys():
  texts = [
    '2+3',
    '2*3',
    '2-3',
    '3-2',
    '1+4',
    '5',
    '6',
    '(2+3)*4',
    '2+3*4',
    '2*3+4',
    '2*(3+4)',
    '2*3-4',
    '4-2*3',
    '2*(3-4)',
    '2*(4-3)',
    '2-3-4',
    '2-(3-4)',
    '3*3',
    '3+3',
    '3-3',
  ]
  assert len({canonical(tree_of(text)) for text in texts}) == len(texts)


@hypothesis.given(TREES, strategies.randoms(use_true_random=False))
def test_swapping_sides_of_sums_and_products_keeps_the_key(tree, rng):
  def swapped(tree):
    if isinstance(tree, int):
      return tree
    op, left, right = tree[0], swapped(tree[1]), swapped(tree[2])
    return (op, right, left) if op in '+*' and rng.random() < 0.5 else (op, left, right)

  assert canonical(swapped(tree)) == canonical(tree)


@pytest.mark.parametrize(
  'leaves',
  [(7,), (3, 5), (4, 4), (2, 3, 5), (1, 2, 3), (2, 2, 4), (3, 3, 3), (1, 2, 3, 4)],
)
def test_candidates_reach_what_brute_force_reaches(leaves):
  reached = {eval(text) for text in every_text(leaves) if lowest_step(text) >= 0}
  trees = candidates(leaves)
  assert {value(tree) for tree in trees} == reached
  for tree in trees:
    assert sorted(expressions.numbers(tree)) == list(leaves)
  assert candidates(leaves) == trees


def test_candidates_come_in_systematic_order():
  # 3 and 5 with 2, 3 and 2 with 5, 5 and 2 with 3. What is there already is left out:
  # 5-3+2 is 5+2-3 of the third group in another order, so it is left out there.
  assert [write(tree) for tree in candidates((3, 5, 2))] == [
    *('3+5+2', '3+5-2', '(3+5)*2', '5-3+2', '5-3-2', '(5-3)*2', '3*5+2', '3*5-2'),
    *('3*5*2', '3+2-5', '(3+2)*5', '(3-2)*5', '3*2+5', '3*2-5'),
    *('(5+2)*3', '(5-2)*3', '5*2+3', '5*2-3'),
  ]


@pytest.mark.parametrize('leaves', [(2, 3, 7), (2, 3, 4, 19)])
def test_candidates_are_all_different_calculations_once(leaves):
  # No two parts of these leaves are equal. Texts are the same calculation if they agree
  # with other numbers in place, so far apart that no two polynomials meet by chance.
  places = dict(
    zip(leaves, (10_007, 1_000_003, 100_000_007, 10**10 + 19), strict=False)
  )

  def elsewhere(tree):
    if isinstance(tree, int):
      return places[tree]
    left, right = map(elsewhere, tree[1:])
    return {'+': left + right, '-': left - right, '*': left * right}[tree[0]]

  calculations = {
    elsewhere(tree_of(text)) for text in every_text(leaves) if lowest_step(text) >= 0
  }
  assert sorted(map(elsewhere, candidates(leaves))) == sorted(calculations)
