import itertools
import math

import numpy as np
import pytest
import scipy.stats

from r1jax import statistics


@pytest.mark.parametrize(
  ('n', 'c', 'k'), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (5, 2, 4), (6, 6, 3), (7, 3, 7)]
)
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n, c, k):
  draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
  expected = sum(any(draw) for draw in draws) / len(draws)
  # 1e-12: products of at most seven float64 factors
  assert statistics.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_takes_an_entry_a_problem():
  # k=2: 1 - C(2,2)/C(4,2) = 5/6; no right sample; 1 - C(1,2)/... = 1
  chance = statistics.pass_at_k(n=[4, 4, 4], c=[2, 0, 3], k=2)
  np.testing.assert_allclose(chance, [5 / 6, 0.0, 1.0], atol=1e-12)


def test_pass_at_1_is_the_share_of_right_samples():
  np.testing.assert_allclose(
    statistics.pass_at_k(16, np.arange(17), 1), np.arange(17) / 16
  )


def test_pass_at_k_survives_counts_whose_factorials_overflow():
  # C(9999, 5000) / C(10000, 5000) = 5000 / 10000
  assert statistics.pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(
  ('n', 'c', 'k', 'message'),
  [
    (4, 5, 1, 'c: expected between 0 and n'),
    (4, -1, 1, 'c: expected between 0 and n'),
    (4, 1, 5, 'k: expected at most n = 4 samples, got 5'),
    ([8, 4], 1, 5, 'k: expected at most n = 4 samples, got 5'),
    (4, 1, 0, 'k: expected at least 1 sample, got 0'),
    (4, 0.5, 1, 'expected integer counts'),
  ],
)
def test_pass_at_k_refuses_impossible_counts(n, c, k, message):
  with pytest.raises(ValueError, match=message):
    statistics.pass_at_k(n, c, k)


@pytest.mark.parametrize(
  ('votes', 'winner'),
  [
    (['a', 'b', 'b'], 'b'),
    (['b', 'a', 'a', 'b'], 'b'),
    ([None, 'a', None, 'b', 'a', None, None], 'a'),
    ([None, None], None),
    ([], None),
    ([(1, 2), (1, 2), 'x'], (1, 2)),
    ([0, 0, 1], 0),
  ],
)
def test_consensus_is_the_most_frequent_vote_and_the_first_of_a_tie(votes, winner):
  assert statistics.consensus(votes) == winner


def test_bootstrap_of_two_problems_reaches_both():
  # Means of two draws from {0, 1}: 0 and 1 with probability 1/4 each, above 2.5 %.
  assert statistics.bootstrap([0.0, 1.0], seed=0) == (0.5, 0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_for_many_problems():
  values = np.arange(400) % 10 < 3  # 120 of 400 are right
  interval = statistics.bootstrap(values, seed=1)
  half = 1.96 * math.sqrt(0.3 * 0.7 / 400)
  assert interval.mean == pytest.approx(0.3)
  # 0.003: the resampled mean moves in steps of 1/400
  assert interval.low == pytest.approx(0.3 - half, abs=0.003)
  assert interval.high == pytest.approx(0.3 + half, abs=0.003)


def test_bootstrap_draws_problems_and_not_samples():
  right_PG = np.repeat([[1.0], [0.0], [1.0], [0.0]], 100, axis=1)
  # Hundred copies of an answer are no more than one: 4 problems, not 400 samples.
  assert statistics.bootstrap(right_PG, seed=3) == statistics.bootstrap(
    [1.0, 0.0, 1.0, 0.0], seed=3
  )


def test_bootstrap_is_reproducible_and_narrower_with_less_confidence():
  values = np.arange(50.0)
  wide = statistics.bootstrap(values, seed=4)
  assert statistics.bootstrap(values, seed=4) == wide
  narrow = statistics.bootstrap(values, seed=4, confidence=0.5)
  assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ([], r'got shape \(0,\)'),
    (3.0, r'got shape \(\)'),
    ([1.0, math.nan], 'got NaN or infinity'),
    ([[1.0, 2.0], [1.0]], 'as many samples for every problem'),
  ],
)
def test_bootstrap_refuses_what_is_no_table_of_numbers(values, message):
  with pytest.raises(ValueError, match=message):
    statistics.bootstrap(values, seed=0)


@pytest.mark.parametrize('confidence', [0.0, 1.0, 95])
def test_confidence_is_a_share(confidence):
  with pytest.raises(ValueError, match='confidence: expected between 0 and 1'):
    statistics.bootstrap([0.0, 1.0], seed=0, confidence=confidence)
  with pytest.raises(ValueError, match='confidence: expected between 0 and 1'):
    statistics.seeds_interval([0.0, 1.0], confidence=confidence)


@pytest.mark.parametrize(
  ('difference', 'p'),
  [
    # Of 8 sign patterns only +++ and --- reach a sum of 3.
    ([1.0, 1.0, 1.0], 2 / 8),
    # Sums of 16 patterns: +-4 twice, +-2 eight times, 0 six times; observed 2.
    ([1.0, 1.0, 1.0, -1.0], 10 / 16),
    # The same in tenths, whose sums float64 rounds to 0.2 or a little above.
    ([0.1, 0.1, 0.1, -0.1], 10 / 16),
    ([0.0, 0.0], 1.0),
  ],
)
def test_paired_tries_every_sign_pattern_of_few_problems(difference, p):
  before = np.zeros(len(difference))
  result = statistics.paired(before, before + difference, seed=0)
  assert result.p == p
  assert result.difference.mean == pytest.approx(np.mean(difference))


def test_paired_agrees_with_the_sign_test_for_many_problems():
  # Differences of one size make the test a sign test, which is exact by the binomial.
  after = np.array([1.0] * 15 + [-1.0] * 5)
  exact = scipy.stats.binomtest(15, 20).pvalue  # 0.0414
  # 0.008: four standard errors of a share of 0.0414 in 10,000 draws
  assert statistics.paired(np.zeros(20), after, seed=5).p == pytest.approx(
    exact, abs=0.008
  )


def test_paired_never_claims_certainty():
  result = statistics.paired(np.zeros(100), np.ones(100), seed=0)
  assert result.p == 1 / 10_001
  assert result.difference == (1.0, 1.0, 1.0)


def test_paired_compares_means_of_samples_and_has_a_direction():
  before = [[0.0, 0.0], [1.0, 0.0]]
  after = [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
  assert statistics.paired(before, after, seed=0).difference.mean == 0.5
  assert statistics.paired(after, before, seed=0).difference.mean == -0.5


def test_paired_refuses_different_problems():
  with pytest.raises(ValueError, match='expected the same problems, got 2 and 3'):
    statistics.paired([1, 2], [1, 2, 3], seed=0)


def test_seeds_interval_is_students():
  # Mean 2, deviation 1, standard error 1/sqrt(3); t with 2 degrees of freedom: 4.3027.
  mean, low, high = statistics.seeds_interval([1.0, 2.0, 3.0])
  half = 4.3027 / math.sqrt(3)
  # 1e-4: the table's last digit
  assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-4)


def test_seeds_interval_ends_where_values_do():
  # 0.9 +- 4.3027 * 0.1 / sqrt(3)
  _, low, high = statistics.seeds_interval([0.8, 0.9, 1.0], bounds=(0, 1))
  assert (low, high) == pytest.approx((0.9 - 0.24842, 1.0), abs=1e-5)


@pytest.mark.parametrize('values', [[0.7], [], 0.7, [[0.7, 0.8]]])
def test_seeds_interval_needs_two_seeds(values):
  with pytest.raises(ValueError, match='expected one for each of 2 or more seeds'):
    statistics.seeds_interval(values)


def test_seeds_interval_refuses_a_seed_that_failed():
  with pytest.raises(ValueError, match='values: expected finite numbers'):
    statistics.seeds_interval([0.7, math.nan])


def test_seeds_paired_is_students_paired_t_test():
  before, after = [0.71, 0.75, 0.69, 0.80], [0.74, 0.74, 0.75, 0.86]
  test = scipy.stats.ttest_rel(after, before)
  interval = test.confidence_interval(0.99)
  found = statistics.seeds_paired(before, after, 0.99)
  assert found.p == pytest.approx(test.pvalue)
  assert found.difference == pytest.approx((0.035, interval.low, interval.high))
  assert statistics.seeds_paired(after, before).difference.mean < 0


def test_seeds_that_all_differ_by_the_same():
  assert statistics.seeds_paired([1, 2], [1, 2]) == ((0, 0, 0), 1)
  assert statistics.seeds_paired([1, 2], [3, 4]) == ((2, 2, 2), 0)
  # 0.1 + 0.2 is 0.30000000000000004.
  assert statistics.seeds_paired([0.3, 0.3], 2 * [0.1 + 0.2]) == ((0, 0, 0), 1)
  with pytest.raises(ValueError, match='expected the same seeds, got'):
    statistics.seeds_paired([1, 2], [1, 2, 3])


def test_an_interval_is_widened_as_that_of_a_normal_mean():
  # 1.96 and 2.576 standard errors
  found = statistics.widened(statistics.Interval(5.0, 5 - 1.96, 5 + 2 * 1.96), 0.99)
  assert found == pytest.approx((5.0, 5 - 2.576, 5 + 2 * 2.576), abs=1e-3)
  same = statistics.Interval(0.5, 0.4, 0.7)
  assert statistics.widened(same, 0.95) == pytest.approx(same)


def test_bootstrap_draws_whole_groups():
  # Hundred problems that are alike are no more than one.
  values = np.repeat([1.0, 0.0, 1.0, 0.0], 100)
  groups = np.repeat(['a', 'b', 'c', 'd'], 100).tolist()
  found = statistics.bootstrap(values, seed=3, groups=groups)
  assert found == statistics.bootstrap([1.0, 0.0, 1.0, 0.0], seed=3)
  alone = statistics.bootstrap(values, seed=3, groups=range(400))
  assert alone == statistics.bootstrap(values, seed=3)
  # Of groups of 3 and 1 each drawn twice has a chance of 1/4, and together the mean of
  # all four problems is drawn.
  found = statistics.bootstrap([1, 1, 1, 0], seed=0, groups='aaab')
  assert found == (0.75, 0.0, 1.0)
  with pytest.raises(ValueError, match='groups: expected one for each of 2 problems'):
    statistics.bootstrap([1, 0], seed=0, groups='a')


def test_paired_flips_the_signs_of_whole_groups():
  # Three groups, all better: 2 of 8 patterns, however many problems each has.
  before, groups = np.zeros(7), 'aaabbcc'
  found = statistics.paired(before, before + 1, 0, groups=groups)
  assert found.p == 2 / 8
  assert found.difference == (1, 1, 1)
