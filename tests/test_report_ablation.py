"""Tests of the report of an ablation: table, sentences, charts over seeds."""

import math
from pathlib import Path

import numpy as np
import pytest
from examples import evaluation

from r1jax.report import ablation, comparison, words
from r1jax.report.ablation import VariantFigure


def test_cells_hold_the_mean_over_seeds_and_its_t_interval():
  # Mean 80, deviation 10, t(0.975, 2 degrees) = 4.303: 80 +- 4.303 * 10 / sqrt(3).
  assert ablation.cell([70.0, 80.0, 90.0], math.inf) == '80.0 (55.2 to 104.8)'
  assert ablation.cell([70.0, 80.0, 90.0]) == '80.0 (55.2 to 100.0)'  # as a rate ends
  assert ablation.cell([70.0]) == '70.0'
  rows = {'a': [evaluation([1, 3], length=12.34, general=0.25, lang=0.9)]}
  head, line = ablation.table(rows)
  assert line == ['a', '50.0', '90.0', '12.3', '25.0', '50.0']
  assert head[1:4] == ['reasoning, %', 'language, %', 'length, tokens']


@pytest.mark.parametrize(
  ('before', 'after', 'word'),
  [
    # Of 48: differences of 23, 24 and 25, so 50 points with a deviation of 100 / 48.
    # With five quantities t(0.995, 2 degrees) = 9.925: 50 +- 9.925 * 2.083 / sqrt(3);
    # p = 1 - t / sqrt(t^2 + 2) with t = 50 / (2.083 / sqrt(3)) = 41.6.
    (12, (35, 36, 37), 'higher than on, +50.0 points (+38.1 to +61.9), p = 0.00058.'),
    (36, (11, 12, 13), 'lower than on, -50.0 points (-61.9 to -38.1), p = 0.00058.'),
    (
      12,
      (11, 13, 12),
      'not significantly different from on, +0.0 points (-11.9 to +11.9), p = 1.',
    ),
  ],
)
def test_words_about_reasoning_follow_from_the_seeds(before, after, word):
  base = [evaluation([before], k=48) for _ in after]
  mine = [evaluation([count], k=48) for count in after]
  shared, first, *_ = ablation.statements({'on': base, 'off': mine})
  assert first == f'reasoning: off is {word}'
  assert shared == (
    '5 comparisons by seed (3 of each variant), given this parent and these problems, '
    'at a level of 5 % in all, so each at 1 % with a 99 % interval (Bonferroni).'
  )


def test_many_problems_do_not_make_up_for_few_seeds():
  # Each seed's models differ on every problem alike, by -10, +20 and +30 points.
  base = [evaluation([40] * 96, k=100)] * 3
  mine = [evaluation([count] * 96, k=100) for count in (30, 60, 70)]
  _, reasoning, *_ = ablation.statements({'on': base, 'off': mine})
  assert (
    'reasoning: off is not significantly different from on, +13.3 points' in reasoning
  )


def test_without_an_effect_few_pages_find_a_difference():
  # Three runs of each of two variants that are the same, with a deviation of 5.3 points
  # over seeds, as R1-Zero has: a verdict is wrong in 1 % of the cases, any of five on a
  # page in 1 - 0.99^5 = 4.9 %. Comparing means over seeds by problem was wrong in 72 %.
  rng, pages = np.random.default_rng(0), 1000
  reasoning = anything = 0
  for _ in range(pages):
    runs = iter(rng.normal(0.7, 0.053, (6, 5)))
    rows = {
      name: [
        run_of(general, length, lang, preference, solved)
        for solved, length, general, lang, preference in (next(runs) for _ in range(3))
      ]
      for name in ('on', 'off')
    }
    significant = [
      'not significantly different' not in x for x in ablation.statements(rows)[1:]
    ]
    assert len(significant) == 5
    reasoning += significant[0]
    anything += any(significant)
  # Four standard errors above
  assert reasoning / pages < 0.01 + 4 * (0.01 * 0.99 / pages) ** 0.5
  assert anything / pages < 0.049 + 4 * (0.049 * 0.951 / pages) ** 0.5
  assert anything > 0  # the level is used


def run_of(general, length, lang, preference, solved):
  """A row of the stage table with these means."""
  row = evaluation(
    [1], length=length, general=general, lang=lang, preference=preference
  )
  row['reasoning']['pass_at_1'] = {'mean': solved}
  return row


@pytest.mark.parametrize(
  ('lengths', 'word'),
  [
    # Differences 9, 10, 11: 10 +- 9.925 / sqrt(3).
    ((99, 110, 121), 'higher than on, +10.0 tokens (+4.3 to +15.7)'),
    ((81, 90, 99), 'lower than on, -10.0 tokens (-15.7 to -4.3)'),
    # Differences -10, 0, 10: 0 +- 9.925 * 10 / sqrt(3)
    (
      (80, 100, 120),
      'not significantly different from on, +0.0 tokens (-57.3 to +57.3)',
    ),
  ],
)
def test_words_about_length_follow_from_the_seeds(lengths, word):
  base = [evaluation([2], length=length) for length in (90, 100, 110)]
  mine = [evaluation([2], length=length) for length in lengths]
  sentences = ablation.statements({'on': base, 'off': mine})
  assert any(x.startswith(f'length: off is {word}, p = ') for x in sentences)


def test_variants_share_the_level():
  # Differences 9, 10, 11: t = 10 sqrt(3), p = 1 - t / sqrt(t^2 + 2) = 0.0033, which is
  # below 0.05 / 5 and 0.05 / 15, and above 0.05 / 20 = 0.0025.
  base = [evaluation([2], length=length) for length in (90, 100, 110)]
  mine = [evaluation([2], length=length) for length in (99, 110, 121)]
  for others, significant in ((1, True), (3, True), (4, False)):
    rows = {'on': base, **{f'x{n}': mine for n in range(others)}}
    sentences = [x for x in ablation.statements(rows) if x.startswith('length')]
    assert len(sentences) == others
    assert all(('higher' in x) == significant for x in sentences)


def test_models_of_one_seed_are_compared_by_problem():
  # Five problems, all better: 2 of 32 patterns of signs, p = 0.0625; six: 0.03125.
  base, mine = evaluation([2] * 6), evaluation([4] * 6, length=1.0)
  shared, alone = ablation.statements({'on': [base], 'off': [mine]})
  assert shared == (
    '1 comparison of single models, by problem, which say nothing about other seeds, '
    'at a level of 5 % in all.'
  )
  assert alone == (
    'reasoning: the model of off is higher than the model of on, +50.0 points '
    '(+50.0 to +50.0), p = 0.031.'
  )
  _, first, second = ablation.statements({'on': [base], 'off': [mine], 'x': [mine]})
  assert (
    'the model of off is not significantly different' in first
  )  # 0.03125 is above 0.025
  assert 'the model of x is not significantly different' in second


def test_one_variant_is_compared_with_nothing():
  assert ablation.statements({'on': [evaluation([2])] * 3}) == []


def test_curves_are_means_over_seeds_at_steps_that_all_have():
  by_run = {'a': [(0, 0.2), (2, 0.4), (4, 0.9)], 'b': [(0, 0.4), (2, 0.8)]}
  figure = VariantFigure('T', 'C', lambda path: by_run.get(path.name, []), share=True)
  paths = {'on': [Path('a'), Path('b')], 'off': [Path('nothing')]}
  (drawn,) = ablation.curve_figures([figure], paths)
  svg = drawn.svg(880, 320)
  assert '<title>on at step 0: 30.0 %</title>' in svg
  assert '<title>on at step 2: 60.0 %</title>' in svg
  assert 'step 4:' not in svg
  assert '>off<' not in svg
  assert ablation.curve_figures([figure], {'off': [Path('nothing')]}) == []


def test_text_is_escaped_and_tables_are_aligned():
  table = [['<', 'n'], ['v', '1']]
  found = comparison.compare('a<b', 'x & y', table, ['1 < 2'], [], '')
  assert 'a&lt;b' in found.html
  assert 'x &amp; y' in found.html
  assert '1 &lt; 2' in found.html
  assert '<th>&lt;</th>' in found.html
  assert found.lines == ['<  n', 'v  1', '1 < 2']
  assert words.aligned([['a', 'bb'], ['ccc', 'd']]) == ['a    bb', 'ccc   d']
