"""Answers in mathematical notation: pairs that a person calls equal, or different."""

import concurrent.futures
import time

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.tasks import mathematics
from r1jax.tasks.mathematics import equal

# Truths, and answers that are right.
SAME = {
  '10000': ('10{,}000', '10,000', '10\\,000', '10,\\!000', '10, 000', '\\$10,000'),
  '1234567': ('1{,}234{,}567', '1,\\! 234,\\! 567', '1,234,567 people'),
  '33': (
    '033',
    '33.',
    '33.0',
    '\\boxed{33}',
    '$33$',
    '\\(33\\)',
    'x = 33',
    '33^\\circ',
  ),
  '073': ('73',),
  '27.0': ('27', '\\frac{54}{2}', '27\\text{ miles}', '27 miles'),
  '5': (
    '5 \\text{ square\nunits}',
    '5\\text{ cm}^2',
    '5 cm^2',
    '5cm',
    '5 sq. ft',
    '\\$5.00',
    '5 dollars',
  ),
  '60^\\circ': ('60', '60^{\\circ}', '60\\text{ degrees}', '60°'),
  '\\frac{270}7\\text{ degrees}': ('\\frac{270}{7}', '270/7'),
  '50\\%': ('50%', '50 \\%', '50 percent', '50\\text{ percent}', '0.5', '\\frac12'),
  '0.5': ('50\\%', '.5', '1/2', '\\tfrac{1}{2}', '\\frac 12'),
  '33\\frac13\\%': ('33\\frac{1}{3}\\%', '\\frac13'),
  '15\\frac{39}{40}': ('\\frac{639}{40}', '15 39/40', '15.975'),
  '\\frac\\pi 4': ('\\frac{\\pi}{4}', '\\pi/4', '0.25\\pi'),
  '-3\\frac{1}{2}': ('-3 1/2', '-3.5'),
  '2ab': ('ab + ba',),
  '2\\sqrt{3}': ('\\sqrt{12}', '\\frac{6}{\\sqrt{3}}'),
  '1\\pm\\sqrt{5}': ('1+\\sqrt{5}, 1-\\sqrt5',),
  'y = 2x + 3': ('y=3+2x',),
  'x=5': ('5',),
  '1,-2': ('-2, 1', '\\{1, -2\\}', '1 \\text{ and } -2'),
  '(-1, 2)': ('\\left(-1,2\\right)', '\\text{(-1, 2)}'),
  '1<x<2': ('(1,2)',),
  '(-\\infty,1]\\cup[10,\\infty)': ('\\left(-\\infty,1\\right] \\cup [10,+\\infty)',),
  '\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}': ('\\begin{bmatrix}1\\\\2\\end{bmatrix}',),
  '4:30\\text{ p.m.}': ('4:30', '4:30 pm', '04:30'),
  '05\\!:\\!00': ('5:00',),
  '52_8': ('52_{8}', '52'),
  '\\text{Evelyn}': ('Evelyn', 'evelyn.', '\\textbf{Evelyn}'),
  '\\text{(C)}': ('C', '(C)', '\\textbf{(C)}', 'c'),
}
DIFFERENT = {
  '': ('', '\\boxed{}', '0'),
  '\\boxed{}': ('', '\\boxed{}'),
  '5': ('', '-5', '5\\%', '50\\%', '55', '5, 6', 'five'),
  '50\\%': ('50', '5\\%'),
  '50': ('50\\%',),
  '12': ('1,2', '120', '\\boxed{12}, \\boxed{13}'),
  '(1,2)': ('(2,1)', '[1,2]', '\\{1,2\\}', '(1,2,3)'),
  '52_8': ('52_7', '42_8'),
  '4:30': ('2:15', '4:31'),
  '4:30\\text{ a.m.}': ('4:30 p.m.',),
  '\\text{even}': ('neve', 'odd'),  # letters are no factors
  '(C)': ('(D)', 'CD'),
  '2ab': ('2', '2ac'),  # letters are no unit
  '3\\sin x': ('3',),
  'x+1': ('x-1', 'y+1'),
  '\\begin{pmatrix} 7 \\\\ -2 \\end{pmatrix}': (
    '\\begin{pmatrix} 0 \\\\ 0 \\end{pmatrix}',
    '\\begin{pmatrix} 7 & -2 \\end{pmatrix}',
  ),
  '100000': ('1e5',),  # math-verify reads 1 times e times 5
}


@pytest.mark.parametrize('truth', SAME)
def test_answers_that_a_person_calls_equal_are_right(truth):
  assert [one for one in (truth, *SAME[truth]) if not equal(one, truth)] == []


@pytest.mark.parametrize('truth', DIFFERENT)
def test_other_answers_are_wrong(truth):
  assert [one for one in DIFFERENT[truth] if equal(one, truth)] == []


# Rows 138, 184, 225, 231 and 317 of OlympiadBench: truth, unit and tolerance.
KM_H = ('$\\frac{600}{7}$', 'km/h', 0.0)
PERCENT = ('4.2', '%', '1e-1')
WITH_UNITS = {
  ('45', 'minute', 0.0): ('45', '45 minutes', '45 \\mathrm{~min}', '45 minute'),
  ('$\\frac{41}{12}$', 'km', 0.0): ('\\frac{41}{12}\\,\\mathrm{km}', '\\frac{41}{12}'),
  ('$166$', '$cm^2$', 0.0): ('166 \\mathrm{~cm}^{2}', '166 cm^2', '$166$ cm$^2$'),
  KM_H: (
    '\\frac{600}{7}',
    '600/7 km/h',
    '\\boxed{\\frac{600}{7} \\text{ km/h}}',
    '\\frac{600}{7} \\mathrm{~km} / \\mathrm{h}',
    '\\frac{600}{7} km per hour',
  ),
  PERCENT: (
    '4.2',
    '4.2\\%',
    '4.2 percent',
    '4.1',
    '4.3',
    'r = 4.15',
    '\\approx 4.25\\%',
  ),
}
WRONG_WITH_UNITS = {
  ('90', '^{\\circ}', 0.0): ('90s', '9^\\circ'),
  KM_H: (
    '600',
    '\\frac{600}{7}h',
    '\\frac{6}{7} km/h',
    'km/h',
    '85.7 km/h',
    '7/600 km/h',
  ),
  PERCENT: (
    *('4', '4.09', '4.31', '42\\%', '420\\%', '0.042', '-4.2', '%', '4.2\\%\\%'),
    *('4.2, 4.3', '[4.1, 4.3]', '\\{4.2\\}^2', '4.2x', '9999999999^{9999999999}'),
  ),
}


@pytest.mark.parametrize('truth', WITH_UNITS)
def test_an_answer_may_have_the_unit_of_the_truth_and_differ_by_its_tolerance(truth):
  gold, unit, tolerance = truth
  right = (gold, *WITH_UNITS[truth])
  found = [equal(one, gold, unit=unit, tolerance=tolerance) for one in right]
  assert [one for one, same in zip(right, found, strict=True) if not same] == []


@pytest.mark.parametrize('truth', WRONG_WITH_UNITS)
def test_other_numbers_with_a_unit_or_beyond_the_tolerance_are_wrong(truth):
  gold, unit, tolerance = truth
  wrong = WRONG_WITH_UNITS[truth]
  found = [equal(one, gold, unit=unit, tolerance=tolerance) for one in wrong]
  assert [one for one, same in zip(wrong, found, strict=True) if same] == []


@pytest.mark.parametrize(
  ('answer', 'truth', 'tolerance', 'right'),
  [
    # The scoring examples of OlympiadBench's authors.
    ('0.6054', '\\cos ^{10}(\\frac{\\pi}{10})', '1e-4', True),
    ('7.1 \\cdot 10^{35}', '7 \\times 10^{35}', 1e34, True),
    ('7.1 \\cdot 10^{35}', '7 \\times 10^{35}', 1e33, False),
    ('0.001, 7.1 \\cdot 10^{35}', '7 \\times 10^{35}, 0.002', [1e34, 1e-3], True),
    ('0.002, 5.234', '0.003, 5.233', 1e-3, True),
    # Its rule by hand: each value of the truth has its own tolerance, and one partner.
    ('0.001, 7.1 \\cdot 10^{35}', '7 \\times 10^{35}, 0.002', '1e33, 1e-3', False),
    ('0.001, 7.1 \\cdot 10^{35}', '7 \\times 10^{35}, 0.002', '1e34, 1e-4', False),
    ('5.234, 5.233', '0.003, 5.233', 1e-3, False),
    ('5.2325, 9', '5.233, 5.232', 1e-3, False),
    ('0.002', '0.003, 5.233', 1e-3, False),
    ('0.002, 5.234, 5.234', '0.003, 5.233', 1e-3, False),
    ('5.232, 5.232', '5.233, 5.232', 0, False),
    ('7', '8', 1, True),
    ('7', '9', 1, False),
  ],
)
def test_a_tolerance_is_the_largest_difference(answer, truth, tolerance, right):
  assert equal(answer, truth, tolerance=tolerance) == right


def test_a_tolerance_for_each_value_is_one_number_for_each():
  with pytest.raises(ValueError, match=r'each of 2 values, got \(1.0, 2.0, 3.0\)'):
    equal('1, 2', '1, 2', tolerance='1, 2, 3')


def test_the_last_of_neighbouring_boxes_counts():
  # math-verify would make one set of boxes that stand close together.
  assert equal('\\boxed{1}\n\nWait, that is wrong.\n\n\\boxed{2}', '2')
  assert not equal('\\boxed{2} or \\boxed{1}', '2')


@hypothesis.given(
  strategies.text(max_size=60) | strategies.text('\\{}[]()^_,.%$:+-*/=<>19xfrac boxed')
)
@hypothesis.settings(max_examples=150)
def test_no_answer_raises(answer):
  assert equal(answer, '\\frac{1}{7}') in (True, False)
  mathematics.answer_key(answer)


@pytest.mark.parametrize(
  'answer', ['10^{10^{10}}', '9999999999^{9999999999}', '{' * 10**5, '\\boxed{' * 10**5]
)
def test_a_huge_answer_takes_no_longer_than_its_limits(answer):
  began = time.process_time()
  assert not equal(answer, '7')
  # Of the processor: parsing twice and comparing once, and as much again to spare.
  assert time.process_time() - began < 6 * mathematics.SECONDS


def test_it_works_in_a_thread_where_no_alarm_can_be_set():
  with concurrent.futures.ThreadPoolExecutor() as threads:
    assert threads.submit(equal, '\\sqrt{12}', '2\\sqrt{3}').result()


def test_answers_that_read_the_same_vote_together():
  key = mathematics.answer_key
  assert key('\\boxed{1{,}000}') == key('1000 apples') == 1000
  assert key('(C)') == key('\\text{C}')
  assert key('x + 1') == key('x+1') != key('x+2')
  assert key(' ') is key('\\boxed{}') is None
