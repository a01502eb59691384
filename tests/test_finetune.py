"""Packing documents into rows."""

import numpy as np
import pytest

from r1jax.stages.finetune import Config, pack


def test_documents_go_whole_into_the_first_row_with_room():
  documents = [[5, 6, 7], [8, 9], [1] * 9, [2, 3], [4, 4, 4]]
  batch = pack(lambda index: documents[index], rows=2, length=4)
  # 5 6 7 leaves one place, so 8 9 goes below; nine tokens are left out; 2 3 fits
  # behind 8 9; 4 4 4 fits nowhere and ends the batch.
  np.testing.assert_array_equal(batch.tokens, [[5, 6, 7, 0], [8, 9, 2, 3]])
  np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 0], [0, 1, 0, 1]])
  np.testing.assert_array_equal(batch.documents, [[1, 1, 1, 0], [2, 2, 4, 4]])
  np.testing.assert_array_equal(batch.weights, [[0, 1, 1, 0], [0, 1, 0, 1]])


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
