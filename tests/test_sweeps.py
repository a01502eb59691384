"""The distribution of lengths of the sweeps, against scipy's."""

import numpy as np
from scipy import stats

from scripts import sweeps


def test_lengths_drawn_by_the_hazard_are_log_normal():
  said = np.arange(1, 641, dtype=np.float32)
  survival = np.cumprod(1 - np.asarray(sweeps.hazard(said), np.float64))
  expected = stats.lognorm(s=np.log(10) / 2.326, scale=64)
  # The hazard is taken at the end of a token's interval: off by less than 0.01.
  np.testing.assert_allclose(survival, expected.sf(said), atol=0.01)
  assert abs(expected.ppf(0.99) / 640 - 1) < 0.01
