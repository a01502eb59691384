"""What a finite number of samples says: pass@k, consensus, intervals, comparisons.

In the order of an evaluation: from the samples of a problem to a score (`pass_at_k`,
`consensus`), from the scores of all problems to an interval (`bootstrap`), from two
models to a difference (`paired`), from runs with several seeds to a mean
(`seeds_interval`) and a difference (`seeds_paired`). Numbers in, numbers out; it knows
neither text nor models.

Two questions must not be mixed up. `bootstrap` and `paired` draw problems: they say
what given models do on problems like these. `seeds_interval` and `seeds_paired` take a
run as the unit: they say what a way of training does. Runs of one setting differ by
several points, so two models may well differ where two settings do not.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

Vote = TypeVar('Vote', bound=Hashable)

RESAMPLES = 10_000  # the error of a 95 % limit is then below 1 % of the interval
BLOCK = 100  # resamples drawn at once; bounds memory with thousands of problems


class Interval(NamedTuple):
  """A mean and the confidence interval around it."""

  mean: float
  low: float
  high: float


class Paired(NamedTuple):
  """How much `after` differs from `before`, and how surprising that is without effect.

  Fields:
    difference: the mean of `after - before`, with its interval.
    p: two-sided p-value: of the sign-flip permutation test over problems (`paired`), or
      of the t-test over seeds (`seeds_paired`).
  """

  difference: Interval
  p: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
  """Chance that at least one of k samples is right, when c of n drawn ones were.

  1 - C(n-c, k) / C(n, k): unbiased, unlike 1 - (1 - c/n)^k (Chen et al. 2021, eq. 1).
  `n` and `c` broadcast against each other, one entry a problem. Raises ValueError
  unless 0 <= c <= n and 1 <= k <= n.
  """
  n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
  if not (np.issubdtype(n.dtype, np.integer) and np.issubdtype(c.dtype, np.integer)):
    raise ValueError(f'n and c: expected integer counts, got {n.dtype} and {c.dtype}')
  if np.any((c < 0) | (c > n)):
    raise ValueError('c: expected between 0 and n right samples for every problem')
  if k < 1:
    raise ValueError(f'k: expected at least 1 sample, got {k}')
  if np.any(n < k):
    raise ValueError(f'k: expected at most n = {n.min()} samples, got {k}')
  # The quotient of binomials as k factors (n-c-j)/(n-j): no factorial overflows.
  draw = np.arange(k)
  wrong = np.maximum((n - c)[..., None] - draw, 0)
  return 1.0 - np.prod(wrong / (n[..., None] - draw), axis=-1)


def consensus(votes: Sequence[Vote | None]) -> Vote | None:
  """The most frequent vote, or None when nobody voted.

  None is an abstention (an output without an answer). Among equally frequent votes
  the one that appeared first wins.
  """
  counts = Counter(vote for vote in votes if vote is not None)
  return max(counts, key=counts.__getitem__, default=None)


def bootstrap(
  values_by_problem: ArrayLike,
  seed: int,
  confidence: float = 0.95,
  groups: Sequence[Hashable] | None = None,
) -> Interval:
  """Mean over problems with its percentile bootstrap interval.

  `values_by_problem` is [problems], or [problems, samples]: a row then counts as its
  mean. Whole problems are drawn with replacement, because samples of one problem are
  not independent; with `groups`, the name of each problem's group, whole groups are, as
  problems about the same numbers are not either (the cluster bootstrap). Values that
  are all equal give an interval of width zero, which says that these problems do not
  differ, not that others would not.
  """
  values = _by_problem('values_by_problem', values_by_problem)
  _check_confidence(confidence)
  sums, counts = _grouped(values, groups)
  rng = np.random.default_rng(seed)
  means = []
  for _ in range(RESAMPLES // BLOCK):
    drawn = rng.integers(len(sums), size=(BLOCK, len(sums)))
    means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
  tail = (1.0 - confidence) / 2
  low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
  return Interval(float(values.mean()), float(low), float(high))


def paired(
  before: ArrayLike,
  after: ArrayLike,
  seed: int,
  confidence: float = 0.95,
  groups: Sequence[Hashable] | None = None,
) -> Paired:
  """Difference `after - before` of two given models on the same problems, and its p.

  Both arguments are as in `bootstrap`, row for row about the same problem; the numbers
  of samples may differ. Without an effect each problem's difference (or that of each of
  the `groups`) is as likely to have the other sign: p is the share of sign patterns
  whose mean is at least as far from zero as the observed one. All patterns are tried
  when they are few, else a random selection that counts the observed pattern as one of
  its own, so p is never 0.
  """
  a, b = _by_problem('before', before), _by_problem('after', after)
  if len(a) != len(b):
    raise ValueError(
      f'before and after: expected the same problems, got {len(a)} and {len(b)} of them'
    )
  difference = b - a
  interval = bootstrap(difference, seed, confidence, groups)
  difference, _ = _grouped(difference, groups)
  # Rounding must not turn a pattern as extreme as the observed one into a lesser one.
  observed = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()
  if 2 ** len(difference) <= RESAMPLES:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(difference))))
    return Paired(interval, float(np.mean(np.abs(signs @ difference) >= observed)))
  rng = np.random.default_rng(seed)
  extreme = 0
  for _ in range(RESAMPLES // BLOCK):
    signs = rng.choice((-1, 1), size=(BLOCK, len(difference)))
    extreme += int(np.sum(np.abs(signs @ difference) >= observed))
  return Paired(interval, (1 + extreme) / (1 + RESAMPLES))


def seeds_interval(
  values: ArrayLike,
  confidence: float = 0.95,
  bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
  """Mean over runs that differ in their seed alone, with Student's t-interval.

  It is cut to `bounds`, what a value can be at all: 0 and 1 for a rate. With few runs
  whose rates are near an end it is a rough interval all the same.
  """
  from scipy import special  # here: half a second to import

  values = np.asarray(values, dtype=np.float64)
  _check_confidence(confidence)
  if values.ndim != 1 or len(values) < 2:
    raise ValueError(f'values: expected one for each of 2 or more seeds, got {values}')
  _check_finite('values', values)
  quantile = special.stdtrit(len(values) - 1, (1.0 + confidence) / 2)
  half = quantile * values.std(ddof=1) / np.sqrt(len(values))
  mean = float(values.mean())
  low, high = bounds
  return Interval(mean, max(low, float(mean - half)), min(high, float(mean + half)))


def seeds_paired(
  before: ArrayLike, after: ArrayLike, confidence: float = 0.95
) -> Paired:
  """Difference `after - before` of two settings, run with the same seeds each.

  Both have one value a seed. The difference is taken seed by seed, with Student's
  t-interval and t-test: with n seeds it must be several times its standard error (4.3
  with 3, at 5 %). What all runs share, such as a parent or the problems, stays given.
  A difference that is rounding alone counts as 0.
  """
  from scipy import special  # here: half a second to import

  a, b = (np.asarray(values, dtype=np.float64) for values in (before, after))
  if a.shape != b.shape:
    raise ValueError(
      f'before and after: expected the same seeds, got shapes {a.shape} and {b.shape}'
    )
  difference = np.where(np.isclose(a, b, rtol=1e-12, atol=0), 0.0, b - a)
  interval = seeds_interval(difference, confidence)
  error = difference.std(ddof=1) / np.sqrt(len(difference))
  if not error:  # all seeds differ by the same
    return Paired(interval, 0.0 if interval.mean else 1.0)
  t = abs(interval.mean) / error
  return Paired(interval, float(2 * special.stdtr(len(difference) - 1, -t)))


def widened(interval: Interval, confidence: float, of: float = 0.95) -> Interval:
  """An interval of confidence `of` at another one, as if its mean were normal.

  Distances from the mean to the limits scale with the normal quantile; for intervals
  whose values are no longer at hand.
  """
  from scipy import special  # here: half a second to import

  _check_confidence(confidence)
  _check_confidence(of)
  scale = float(special.ndtri((1 + confidence) / 2) / special.ndtri((1 + of) / 2))
  mean, low, high = interval
  return Interval(mean, mean - scale * (mean - low), mean + scale * (high - mean))


def _grouped(
  values: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
  """The sum of the values of each group and their number; each its own by default."""
  if groups is None:
    return values, np.ones(len(values))
  if len(groups) != len(values):
    raise ValueError(
      f'groups: expected one for each of {len(values)} problems, got {len(groups)}'
    )
  number = {name: n for n, name in enumerate(dict.fromkeys(groups))}
  places = [number[name] for name in groups]
  return np.bincount(places, values), np.bincount(places).astype(np.float64)


def _by_problem(name: str, values: ArrayLike) -> np.ndarray:
  """One finite float64 for each of at least one problem."""
  try:
    array = np.asarray(values, dtype=np.float64)
  except ValueError as error:  # ragged rows, or not numbers
    raise ValueError(
      f'{name}: expected numbers, and as many samples for every problem: {error}'
    ) from error
  if array.ndim not in (1, 2) or array.size == 0:
    raise ValueError(
      f'{name}: expected [problems] or [problems, samples], got shape {array.shape}'
    )
  _check_finite(name, array)
  return array if array.ndim == 1 else array.mean(axis=1)


def _check_finite(name: str, values: np.ndarray) -> None:
  if not np.isfinite(values).all():
    raise ValueError(f'{name}: expected finite numbers, got NaN or infinity')


def _check_confidence(confidence: float) -> None:
  if not 0.0 < confidence < 1.0:
    raise ValueError(f'confidence: expected between 0 and 1, got {confidence}')
