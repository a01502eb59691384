"""Tests of the report of budget forcing: sentences, table, chart."""

import pytest

from r1jax.report import budget


def row(budget, thoughts, right, difference, p):
  value = {'mean': right, 'low': right - 0.1, 'high': right + 0.1}
  return {
    'budget': budget,
    'problems': 96,
    'k': 16,
    'pass_at_1': value,
    'tasks': {'equations': value},
    'thoughts': {'mean': thoughts, 'low': 0, 'high': 99},
    'cut': 0.25,
    'right': [],
    'versus_free': {
      'mean': difference,
      'low': difference - 0.05,
      'high': difference + 0.05,
      'p': p,
    },
  }


@pytest.mark.parametrize(
  ('difference', 'p', 'word'),
  [
    (-0.2, 0.001, 'lower than'),
    (0.2, 0.001, 'higher than'),
    (-0.2, 0.04, 'not significantly different from'),  # two budgets share the 5 %
    (-0.2, 0.02, 'lower than'),
  ],
)
def test_words_follow_from_the_numbers(difference, p, word):
  rows = [row(0, 0, 0.4, difference, p), row(9, 5, 0.5, 0, 1), row(None, 20, 0.6, 0, 1)]
  shared, first, second = budget.statements(rows)
  assert shared == (
    '2 comparisons of this one model, by problem, at a level of 5 % in all, so each at '
    '2.5 % with a 97.5 % interval (Bonferroni).'
  )
  assert f'pass@1 with 0 tokens of thinking is {word} without a budget' in first
  assert f'{100 * difference:+.1f} points' in first
  assert 'not significantly different' in second


def test_the_table_and_the_figure_show_the_numbers():
  rows = [row(0, 0.0, 0.4, -0.2, 0.001), row(None, 1234.4, 0.6, 0, 1)]
  head, first, last = budget.table(rows)
  assert head[-1] == 'equations, %'
  assert first == ['0 tokens', '0.0', '25.0', *['40.0 (30.0 to 50.0)'] * 2]
  assert last[:2] == ['unlimited', '1234.4']
  html = budget.curve_figure(rows).svg(880, 360)
  assert '<title>all at 1,234 tokens: 60.0 %</title>' in html
  assert 'step' not in html
