import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import optim, sft
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch, put_boxed
from r1jax.sharding.rules import named_sharding
from r1jax.trees import Head

VOCAB = 7
# Not Adam, which divides by the gradient's size and so would hide a wrong one.
SGD = optax.sgd(0.5)
# A program that runs once takes longer to optimize than to run.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


def forward(params, tokens, positions, documents):
  """Hands the tokens on; `BIGRAM` makes logits of them."""
  del params, positions, documents
  return tokens, None


BIGRAM = Head(lambda params: params['table'], lambda table, hidden: table[hidden])


def batch_of(tokens, weights):
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  documents = jnp.ones_like(tokens)
  return sft.Batch(tokens, positions, documents, jnp.asarray(weights, jnp.float32))


def random_batch(rows, length, seed=0):
  """Rows of tokens whose weights differ, and differ in sum from row to row."""
  rng = np.random.default_rng(seed)
  weights = rng.uniform(size=(rows, length)) * rng.integers(0, 3, size=(rows, length))
  return batch_of(rng.integers(VOCAB, size=(rows, length)), weights)


def make_step(forward=forward, head=BIGRAM, parts=1):
  return jax.jit(
    functools.partial(
      sft.step, forward=forward, head=head, optimizer=SGD, micro_batches=parts
    ),
    compiler_options=QUICK,
  )


def table():
  return {'table': jax.random.normal(jax.random.key(3), (VOCAB, VOCAB))}


def close(got, expected, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected
  )


def test_cross_entropy_by_hand():
  # After token 0 the next is 0 1 2 with 1/2 1/4 1/4, after 1 with 1/8 1/8 3/4.
  params = {'table': jnp.log(jnp.array([[4.0, 2, 2], [1, 1, 6], [5, 5, 5]]) / 8)}
  batch = batch_of(
    tokens=[[0, 0, 1, 2], [1, 0, 1, 2]],
    weights=[[9, 1, 1, 3], [9, 2, 0, 0]],  # the 9s are of tokens that nothing predicts
  )
  loss, _ = sft.cross_entropy(
    params, batch, forward=forward, head=BIGRAM, total=jnp.float32(10)
  )
  # ln 2 + ln 4 + 3 ln 4/3 of the first row, 2 ln 8 of the second
  expected = (math.log(2) + math.log(4) + 3 * math.log(4 / 3) + 2 * math.log(8)) / 10
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_model_gets_positions_and_documents():
  seen: list[list[list[int]]] = []

  def record(params, *arrays):
    seen.extend(np.asarray(array).tolist() for array in arrays)
    return forward(params, *arrays)

  batch = batch_of(tokens=[[3, 4, 5, 6]], weights=[[0, 1, 0, 1]])
  batch.positions = jnp.array([[0, 1, 0, 1]])
  batch.documents = jnp.array([[1, 1, 2, 2]])
  sft.cross_entropy(table(), batch, forward=record, head=BIGRAM, total=jnp.float32(2))
  # all but the last token, which predicts nothing
  assert seen == [[[3, 4, 5]], [[0, 1, 0]], [[1, 1, 2]]]


def test_step_follows_softmax_minus_one_hot():
  params = table()
  batch = random_batch(rows=3, length=5)
  tokens, weights = np.asarray(batch.tokens), np.asarray(batch.weights)[:, 1:]
  before, target = tokens[:, :-1], tokens[:, 1:]
  odds = np.exp(params['table'])
  policy = odds / odds.sum(-1, keepdims=True)
  slope = np.zeros((VOCAB, VOCAB))
  np.add.at(
    slope, before, weights[..., None] * (policy[before] - np.eye(VOCAB)[target])
  )
  slope /= weights.sum()
  state, metrics = make_step()(optim.init(params, SGD), batch)
  assert state.step == 1
  # 1e-6: float32 near 1
  close(state.params['table'], params['table'] - 0.5 * slope, atol=1e-6)
  nats = -np.sum(weights * np.log(policy[before, target])) / weights.sum()
  np.testing.assert_allclose(metrics['loss'], nats, rtol=1e-6)


def test_step_is_the_same_for_any_micro_batches():
  batch = random_batch(rows=4, length=5)
  state = optim.init(table(), SGD)
  one, two, four = (make_step(parts=parts)(state, batch) for parts in (1, 2, 4))
  # float32 sums of 16 terms in another order
  close(two, one, rtol=1e-5, atol=1e-6)
  close(four, one, rtol=1e-5, atol=1e-6)


def test_tokens_without_weight_teach_nothing():
  batch = batch_of([[0, 1, 2, 3]], [[0, 1, 0, 0]])
  other = batch_of([[0, 1, 5, 6]], [[0, 1, 0, 0]])
  state, step = optim.init(table(), SGD), make_step()
  jax.tree.map(np.testing.assert_array_equal, step(state, batch), step(state, other))


def test_a_batch_without_weight_changes_nothing():
  before = table()
  batch = batch_of([[0, 1, 2]], [[5, 0, 0]])  # first tokens are never predicted
  state, metrics = make_step()(optim.init(before, SGD), batch)
  np.testing.assert_array_equal(state.params['table'], before['table'])
  assert metrics['loss'] == 0


def random_boxed(config):
  """Parameters of a decoder, drawn without compiling its own `init`."""
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(
    lambda key: decoder.init(config, VOCAB, key), jax.random.key(0)
  )
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), boxed
  )


@pytest.fixture(scope='module')
def tiny():
  config = ModelConfig(d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, d_ff=32)
  model = DecoderFns(*decoder.functions(config, VOCAB))
  return random_boxed(config), model.forward, model.head


def test_packed_documents_train_like_separate_ones(tiny):
  boxed, forward, head = tiny
  params = put_boxed(make_mesh(jax.devices()[:1]), boxed)
  first, second = [1, 2, 3, 4], [5, 6, 1]
  packed = sft.Batch(
    tokens=jnp.array([first + second + [0], 8 * [0]]),
    positions=jnp.array([[0, 1, 2, 3, 0, 1, 2, 0], 8 * [0]]),
    documents=jnp.array([[1, 1, 1, 1, 2, 2, 2, 0], 8 * [0]]),
    weights=jnp.array([[0.0, 1, 1, 1, 0, 1, 1, 0], 8 * [0]]),
  )
  separate = sft.Batch(
    tokens=jnp.array([first + 4 * [0], second + 5 * [0]]),
    positions=jnp.array([[0, 1, 2, 3, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0]]),
    documents=jnp.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
    weights=jnp.array([[0.0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]),
  )
  state, step = optim.init(params, SGD), make_step(forward, head)
  # float32 through two layers
  close(step(state, packed), step(state, separate), rtol=1e-5, atol=1e-6)


def test_sharded_step_matches_single_device(tiny):
  boxed, forward, head = tiny
  step = make_step(forward, head, parts=2)
  batch = random_batch(rows=8, length=6)

  def run(devices):
    place = make_mesh(devices)
    state = jax.device_put(
      optim.init(put_boxed(place, boxed), SGD), named_sharding(place)
    )
    rows = put_batch(place, batch)
    shards = {shard.data.shape for shard in rows.tokens.addressable_shards}
    assert shards == {(8 // len(devices), 6)}
    with jax.transfer_guard('disallow'):
      return jax.device_get(step(state, rows))

  one, metrics_one = run(jax.devices()[:1])
  four, metrics_four = run(jax.devices()[:4])
  # float32 sums over 8 rows in another order
  close(four.params, one.params, atol=1e-6)
  close(metrics_four, metrics_one, rtol=1e-5)
