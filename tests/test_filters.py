"""Faults of an output, alone and together."""

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.rewards import filters
from r1jax.tasks import Problem, arithmetic, instructions

SUM = arithmetic.problem(25, '+', 12)
POLISH = instructions.translate('in Polish', 3, 4)
LINE_BY_LINE = instructions.count(3, 5, 'line by line')


def output(think='so\n25+10=35\n35+2=37', summary='', answer='37'):
  return f'<think>{think}</think>\n{summary}\n<answer>{answer}</answer>'


@pytest.mark.parametrize(
  ('problem', 'text', 'faults'),
  [
    (SUM, output(), []),
    (SUM, output(summary='I use 25+12=37'), []),
    (SUM, output(think=''), []),
    (SUM, '37', ['form']),
    (SUM, output() + ' so', ['form']),
    (SUM, '', ['form']),
    (SUM, output(answer='36'), ['wrong']),
    (SUM, output(answer=''), ['wrong']),
    (SUM, output(think='więc\n25+12=37'), ['language']),
    (SUM, output(summary='biorę 25+12=37'), ['language']),
    (SUM, output(think='hence 25+12=37'), ['language']),  # a word of no list
    (SUM, output(think=f'so\n{"+1" * 80}'), []),  # 160 characters
    (SUM, output(think=f'so\n{"+1" * 80}+'), ['paragraph']),
    (SUM, output(think='```\n25+12=37\n'), ['code']),
    (SUM, output(think='25+10=35\n35+2=37\n 25+10=35'), ['repetition']),
    (SUM, output(think='so\n\n25+10=35\n\n35+2=37'), []),
    (SUM, output(think='so\n37', answer='37'), []),  # the answer was thought before
    (
      SUM,
      output(think=f'więc\nwięc\n```{"+1" * 80}', answer='1'),
      ['wrong', 'language', 'paragraph', 'code', 'repetition'],
    ),
    (POLISH, output(think='więc', answer='siedem'), []),
    (POLISH, output(think='so', answer='siedem'), ['language']),
    (POLISH, output(think='więc', answer='seven'), ['wrong', 'language']),
    (LINE_BY_LINE, output(think='so', answer='3\n4\n5'), []),
  ],
)
def test_all_faults_are_named(problem, text, faults):
  assert filters.faults(problem, text) == faults


def test_repetition_in_an_answer_is_no_fault():
  problem = Problem('1', 'instructions', '', {'kind': 'sort', 'items': [3, 3, 3]})
  assert filters.faults(problem, output(think='so', answer='3 3 3')) == []


TEXTS = strategies.text() | strategies.text().map(
  lambda inside: f'<think>{inside}</think><answer>{inside}</answer>'
)


@hypothesis.given(TEXTS, strategies.sampled_from([SUM, POLISH, LINE_BY_LINE]))
def test_any_text_has_known_faults_in_their_order(text, problem):
  found = filters.faults(problem, text)
  assert found == [name for name in filters.FAULTS if name in found]
