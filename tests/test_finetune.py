"""Packing documents into rows, and a loss that turns NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import mesh, sampling
from r1jax.stages import finetune
from r1jax.stages.finetune import Config, pack
from r1jax.stages.run import TrainingError, start


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


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
  model = sampling.Model(
    lambda params, tokens, positions, documents: (tokens, None),
    lambda params, hidden: params['table'][hidden],
    lambda params: lambda *_: (jnp.zeros(0), None),
  )
  table = jnp.zeros((6, 6)).at[5].set(jnp.nan)
  with (
    pytest.raises(
      TrainingError, match=r'loss of base is nan and .* step 3; lower base_optim'
    ),
    start(Experiment(str(tmp_path / 'run')), phases=('base',)) as run,
  ):
    finetune.train(
      run,
      'base',
      {'table': table},
      model=model,
      documents=lambda step, index: [1, 2, 5 if step == 3 else 3, 0],
      config=Config(
        rows_per_step=2,
        row_length=8,
        micro_batches=1,
        checkpoint_every=1,
        log_every=1,
      ),
      optimizer=optax.sgd(0.1),
      mesh=mesh.make(jax.devices()[:1]),
    )
  assert run.checkpoints['base'].step == 2
