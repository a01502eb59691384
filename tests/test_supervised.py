"""Rows of documents and examples; the loop of supervised training."""

import collections
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import sft
from r1jax.runtime.checkpoint import Checkpoints
from r1jax.runtime.errors import TrainingError
from r1jax.runtime.run import start
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import supervised
from r1jax.stages.examples import Epochs, Example, pack
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.trees import Head


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
    ({'steps': 0}, '^steps: expected 1 or more, got 0'),
    (
      {'rows_per_step': 6, 'micro_batches': 4},
      'divisor of rows_per_step = 6, got 4',
    ),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    PretrainConfig(**fields)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'epochs': 0}, '^epochs: expected 1 or more, got 0'),
    ({'rows_per_step': 5}, '^micro_batches: expected a divisor of rows_per_step = 5'),
  ],
)
def test_impossible_settings_of_sft_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    SFTConfig(**fields)


LENGTHS = np.random.default_rng(0).integers(2, 12, size=(40, 2))  # prompt, output
# The token says whose it is, so that rows can be taken apart again.
EXAMPLES = [
  Example([100 + n] * prompt, [200 + n] * output)
  for n, (prompt, output) in enumerate(LENGTHS.tolist())
]
SETTINGS = SFTConfig(epochs=3, rows_per_step=4, row_length=32, micro_batches=1)


def taken_apart(epochs: Epochs) -> list[tuple[Example, np.ndarray, np.ndarray]]:
  """All examples in the rows, with the weights and positions of their tokens."""
  found = []
  for step in range(1, epochs.steps + 1):
    batch: Any = epochs.batch(step)
    for row in range(SETTINGS.rows_per_step):
      for owner in range(1, batch.documents[row].max() + 1):
        (places,) = np.nonzero(batch.documents[row] == owner)
        assert np.ptp(places) == len(places) - 1  # side by side
        ids = batch.tokens[row, places].tolist()
        prompt = [token for token in ids if token < 200]
        example = Example(prompt, ids[len(prompt) :])
        weights = batch.weights[row, places]
        found.append((example, weights, batch.positions[row, places]))
  return found


def test_an_epoch_has_every_example_once_and_whole():
  found = [example for example, *_ in taken_apart(Epochs(EXAMPLES, SETTINGS, seed=0))]
  assert len(found) == 3 * len(EXAMPLES)
  epochs = [found[n : n + len(EXAMPLES)] for n in range(0, len(found), len(EXAMPLES))]
  # A row holds examples of one epoch alone, so the epochs stand one after the other.
  assert [sorted(epoch) for epoch in epochs] == [sorted(EXAMPLES)] * 3
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_only_outputs_are_learned_and_positions_begin_anew():
  for example, weights, positions in taken_apart(Epochs(EXAMPLES, SETTINGS, seed=0)):
    prompt, output = map(len, example)
    np.testing.assert_array_equal(weights, [0] * prompt + [1] * output)
    np.testing.assert_array_equal(positions, np.arange(prompt + output))


def test_without_a_prompt_the_first_token_is_not_learned():
  # There is nothing before it to predict it from.
  settings = dataclasses.replace(SETTINGS, epochs=1)
  batch = Epochs([Example([], [7, 8, 9])], settings, seed=0).batch(1)
  np.testing.assert_array_equal(batch.weights[0, :4], [0, 1, 1, 0])


def test_what_no_example_fills_is_padding():
  epochs = Epochs(EXAMPLES, SETTINGS, seed=0)
  for step in range(1, epochs.steps + 1):
    batch: Any = epochs.batch(step)
    empty = batch.documents == 0
    for field in (batch.tokens, batch.positions, batch.weights):
      assert not field[empty].any()


def test_rows_are_nearly_full_and_all_tokens_are_counted():
  settings = dataclasses.replace(SETTINGS, row_length=64)
  epochs = Epochs(EXAMPLES, settings, seed=0)
  assert epochs.tokens == 3 * LENGTHS.sum()
  used = [epochs.batch(step).documents for step in range(1, epochs.steps + 1)]
  rows = np.concatenate(used).astype(bool)
  rows = rows[rows.any(1)]
  # First fit leaves at most one row of an epoch less than half full.
  assert (rows.mean(1) < 0.5).sum() <= 3
  assert rows.mean() > 0.8
  assert rows.sum() == epochs.tokens


def test_the_same_seed_gives_the_same_batches_and_another_seed_others():
  def orders(seed):
    return [example for example, *_ in taken_apart(Epochs(EXAMPLES, SETTINGS, seed))]

  assert orders(0) == orders(0)
  assert collections.Counter(map(str, orders(0))) == collections.Counter(
    map(str, orders(1))
  )
  assert orders(0) != orders(1)


@pytest.mark.parametrize(
  ('examples', 'expected'),
  [
    ([], 'examples: expected at least one to learn from, got none'),
    (
      [Example([1] * 20, [2] * 5), Example([1] * 20, [2] * 13)],
      'sft.row_length: expected at least 33, the tokens of the longest example, got 32',
    ),
  ],
)
def test_examples_that_cannot_be_learned_are_refused(examples, expected):
  with pytest.raises(ValueError, match=expected):
    Epochs(examples, SETTINGS, seed=0)


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def learn(
  workdir, batch, params, config, constants=(), steps=4, phase='base', field=''
):
  """What `train` makes of a model that has a table of logits for each token."""

  def step(state, rows, *constants, **how):
    scale = constants[0] if constants else 1.0
    return sft.step(
      state,
      rows,
      forward=lambda params, tokens, *_: (tokens, None),
      head=Head(
        lambda params: scale * params['table'], lambda table, hidden: table[hidden]
      ),
      **how,
    )

  with start(Experiment(str(workdir)), phases=(phase,)) as run:
    params = supervised.train(
      run,
      phase,
      params,
      step=step,
      batch=batch,
      steps=steps,
      config=config,
      optimizer=optax.sgd(0.1),
      mesh=make_mesh(jax.devices()[:1]),
      optim_field=field,
      constants=constants,
    )
  return params, run


CONFIG = PretrainConfig(
  rows_per_step=2, row_length=8, micro_batches=1, checkpoint_every=1, log_every=1
)


def test_twice_the_rows_are_one_update_of_twice_the_micro_batches(
  tmp_path, monkeypatch
):
  rng = np.random.default_rng(0)
  examples = [Example([1], rng.integers(2, 6, 7).tolist()) for _ in range(4)]
  seen, parts = [], []
  step = sft.step

  def recorded(*args, **settings):
    parts.append(settings['micro_batches'])
    return step(*args, **settings)

  monkeypatch.setattr(sft, 'step', recorded)

  def learned(name, **fields):
    config = SFTConfig(**{'epochs': 1, 'row_length': 8, 'log_every': 100, **fields})
    epochs = Epochs(examples, config, seed=0)
    params = {'table': jnp.zeros((6, 6))}
    after, _ = learn(
      tmp_path / name, lambda *_: epochs.whole(), params, config, steps=1, phase='sft'
    )
    (line,) = map(json.loads, (tmp_path / name / 'metrics.jsonl').open())
    seen.append((line['step'], line['tokens'], line['loss']))
    return after['table']

  narrow = learned('narrow', rows_per_step=2, micro_batches=2)
  whole = learned('whole', rows_per_step=4, micro_batches=1)
  assert parts == [4, 1]  # four rows: twice 2, and once 4 in one part
  # sums in another order
  np.testing.assert_allclose(narrow, whole, rtol=1e-5, atol=1e-7)
  # The last step is logged, with the tokens of its rows: 4 prompts of 1, outputs of 7.
  assert [one[:2] for one in seen] == [(1, 32)] * 2


def documents(step, params, last=3):
  del params
  return pack(lambda index: [1, 2, last, 0], 2, 8)


@pytest.mark.parametrize(
  ('phase', 'config', 'field'),
  [
    ('base', CONFIG, 'base.optim'),
    (
      'answers',
      SFTConfig(rows_per_step=2, micro_batches=1, checkpoint_every=1),
      'sft.optim',
    ),
  ],
)
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
  tmp_path, phase, config, field
):
  table = jnp.zeros((6, 6)).at[5].set(jnp.nan)

  def batch(step, params):
    return documents(step, params, last=5 if step == 3 else 3)

  expected = rf'loss of {phase} is nan and .* step 3; lower {field}.learning_rate'
  with pytest.raises(TrainingError, match=expected):
    learn(tmp_path / 'run', batch, {'table': table}, config, phase=phase, field=field)
  assert Checkpoints(tmp_path / 'run' / 'checkpoints' / phase).step == 2


def test_each_batch_is_made_with_the_parameters_of_its_step(tmp_path):
  # On-policy distillation samples from them.
  seen = []

  def batch(step, params):
    seen.append((step, np.array(params['table'])))
    return documents(step, params)

  start_from = {'table': jnp.zeros((6, 6))}
  params, _ = learn(tmp_path / 'run', batch, start_from, CONFIG)
  assert [step for step, _ in seen] == [1, 2, 3, 4]
  np.testing.assert_array_equal(seen[0][1], 0)
  # Of 1, 2, 3, 0 the row of 1 learns 2: an sgd step of rate 0.1 takes a gradient
  # (1/6 - 1) x 1/3 off, as a third of the targets follows a 1.
  assert seen[1][1][1, 2] == pytest.approx(0.1 * 5 / 6 / 3, rel=1e-5)
  assert not np.array_equal(seen[3][1], params['table'])
  np.testing.assert_array_equal(start_from['table'], 0)  # what it started from


def test_constants_reach_the_step(tmp_path):
  params = {'table': jnp.zeros((6, 6))}
  once, _ = learn(tmp_path / 'a', documents, params, CONFIG, (jnp.float32(1),), 1)
  twice, _ = learn(tmp_path / 'b', documents, params, CONFIG, (jnp.float32(2),), 1)
  # d/dtable of f(2 x table) at 0 is twice that of f(table).
  np.testing.assert_allclose(twice['table'], 2 * once['table'], rtol=1e-6)
