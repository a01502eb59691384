"""Packing documents into rows."""

import numpy as np
import pytest

from r1jax.stages.finetune import Config, pack


def test_rows_are_filled_and_the_last_document_of_a_row_is_cut():
  documents = [[5, 6, 7], [8, 9], [1] * 9, [2], [3], [4, 4, 4]]
  batch = pack(lambda index: documents[index], rows=3, length=4)
  # 9 does not fit behind 5 6 7 8; the nine tokens fill a row; of 4 4 4 two fit.
  np.testing.assert_array_equal(
    batch.tokens, [[5, 6, 7, 8], [1, 1, 1, 1], [2, 3, 4, 4]]
  )
  np.testing.assert_array_equal(
    batch.positions, [[0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 0, 1]]
  )
  np.testing.assert_array_equal(
    batch.documents, [[1, 1, 1, 2], [3, 3, 3, 3], [4, 5, 6, 6]]
  )
  np.testing.assert_array_equal(
    batch.weights, [[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]]
  )


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'steps': 0}, 'base.steps: expected 1 or more, got 0'),
    ({'rows_per_step': 6, 'micro_batches': 4}, 'divisor of rows_per_step=6, got 4'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    Config(**fields)
