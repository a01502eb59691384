"""Divergences against scipy in float64; the loss by hand and against all logits."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import rel_entr, softmax

from r1jax import distill, optim, sft
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.sampling import logprob
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
# Sums of a few float32 numbers near 1.
TOLERANCE = 1e-6
both_divergences = pytest.mark.parametrize('name', distill.DIVERGENCES)


def expected(name, teacher, student):
  """The divergence [...] in float64."""
  p, q = softmax(np.float64(teacher), axis=-1), softmax(np.float64(student), axis=-1)
  return {'forward_kl': rel_entr(p, q), 'reverse_kl': rel_entr(q, p)}[name].sum(-1)


def differences(function, x, size=1e-5):
  """Central differences of the function's sum: its gradient at x, in float64."""
  slope = np.zeros(x.shape)
  for index in np.ndindex(x.shape):
    move = np.zeros(x.shape)
    move[index] = size
    slope[index] = (function(x + move) - function(x - move)).sum() / (2 * size)
  return slope


@pytest.fixture
def pair():
  """Logits of teacher and student, [2, 5, VOCAB]."""
  rng = np.random.default_rng(0)
  return rng.normal(0, 2, (2, 2, 5, VOCAB)).astype(np.float32)


def test_divergences_by_hand():
  # Teacher 3/4 1/4, student 1/2 1/2; the logits need not be normalised.
  teacher, student = jnp.log(jnp.array([3.0, 1.0])), jnp.array([5.0, 5.0])
  forward = 3 / 4 * math.log(3 / 2) - 1 / 4 * math.log(2)
  reverse = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
  np.testing.assert_allclose(
    distill.forward_kl(teacher, student), forward, atol=TOLERANCE
  )
  np.testing.assert_allclose(
    distill.reverse_kl(teacher, student), reverse, atol=TOLERANCE
  )


@both_divergences
def test_divergences_are_scipys(name, pair):
  got = distill.DIVERGENCES[name](*pair)
  assert got.dtype == jnp.float32
  # Of several nats.
  np.testing.assert_allclose(got, expected(name, *pair), rtol=1e-5, atol=TOLERANCE)


@both_divergences
def test_equal_models_have_no_divergence_and_no_gradient(name, pair):
  logits, _ = pair
  divergence = distill.DIVERGENCES[name]
  np.testing.assert_array_equal(divergence(logits, logits), np.zeros((2, 5)))
  slope = jax.grad(lambda student: divergence(logits, student).sum())(logits)
  np.testing.assert_allclose(slope, np.zeros(slope.shape), atol=TOLERANCE)


def test_gradient_of_forward_kl_is_student_minus_teacher(pair):
  teacher, student = pair
  got = jax.grad(lambda x: distill.forward_kl(teacher, x).sum())(student)
  wanted = softmax(np.float64(student), axis=-1) - softmax(np.float64(teacher), axis=-1)
  np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


@both_divergences
def test_gradients_are_the_differences_of_scipys(name, pair):
  teacher, student = pair
  divergence = distill.DIVERGENCES[name]
  got = jax.grad(lambda x: divergence(teacher, x).sum())(student)
  wanted = differences(lambda x: expected(name, teacher, x), np.float64(student))
  # Of several nats.
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=TOLERANCE)


@both_divergences
def test_the_teacher_gets_no_gradient(name, pair):
  teacher, student = pair
  divergence = distill.DIVERGENCES[name]
  slope = jax.grad(lambda x: divergence(x, student).sum())(teacher)
  np.testing.assert_array_equal(slope, np.zeros(slope.shape))


@both_divergences
def test_a_token_impossible_for_both_changes_nothing(name, pair):
  teacher, student = pair
  divergence = distill.DIVERGENCES[name]
  longer = np.pad(pair, [(0, 0)] * 3 + [(0, 1)], constant_values=-np.inf)
  both = jax.value_and_grad(lambda x, y: divergence(y, x).sum())
  value, slope = both(longer[1], longer[0])
  value_without, slope_without = both(student, teacher)
  # float32 sums of one term more
  np.testing.assert_allclose(value, value_without, rtol=1e-6)
  np.testing.assert_allclose(slope[..., :-1], slope_without, atol=TOLERANCE)
  np.testing.assert_array_equal(slope[..., -1], np.zeros((2, 5)))


def test_a_token_impossible_for_one_is_infinitely_far():
  whole, part = jnp.array([0.0, 0.0]), jnp.array([0.0, -jnp.inf])
  assert distill.forward_kl(whole, part) == math.inf
  assert distill.reverse_kl(part, whole) == math.inf
  # log(1 / (1/2)) of the token that both can say
  np.testing.assert_allclose(distill.forward_kl(part, whole), math.log(2))
  np.testing.assert_allclose(distill.reverse_kl(whole, part), math.log(2))


def test_agreement_compares_the_most_likely_tokens():
  teacher = jnp.array([[1.0, 3, 2], [1, 3, 2], [4, 0, 0]])
  student = jnp.array([[0.0, 9, 8], [0, 8, 9], [1, -5, 0]])
  assert distill.agreement(teacher, student).tolist() == [True, False, True]


def forward(params, tokens, positions, documents):
  """Hands the tokens on; `logits` makes a bigram of them."""
  del params, positions, documents
  return tokens, None


def logits(params, hidden):
  return params['table'][hidden]


BIGRAM = Head(lambda params: params['table'], lambda table, hidden: table[hidden])


BIGRAMS: dict[str, Any] = {
  'forward': forward,
  'logits': logits,
  'teacher_forward': forward,
  'teacher_logits': logits,
}


def table(seed=3):
  return {'table': jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))}


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


def make_step(name='forward_kl', functions=BIGRAMS, parts=1):
  return jax.jit(
    functools.partial(
      distill.step,
      **functions,
      divergence=distill.DIVERGENCES[name],
      optimizer=SGD,
      micro_batches=parts,
    ),
    compiler_options=QUICK,
  )


def close(got, expected, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected
  )


def test_loss_by_hand():
  # The teacher continues 0 with 3/4 1/4, 1 with 1/2 1/2; the student with 1/2 1/2
  # and 1/4 3/4.
  teacher = {'table': jnp.log(jnp.array([[3.0, 1], [1, 1]]))}
  student = {'table': jnp.log(jnp.array([[1.0, 1], [1, 3]]))}
  batch = batch_of(
    tokens=[[0, 0, 1, 1], [1, 1, 0, 0]],
    weights=[[9, 1, 1, 3], [9, 2, 0, 0]],  # the 9s are of tokens that nothing predicts
  )
  loss, metrics = distill.loss(
    student,
    batch,
    teacher_params=teacher,
    **BIGRAMS,
    divergence=distill.forward_kl,
    total=jnp.float32(10),
  )
  after_0 = 3 / 4 * math.log(3 / 2) - 1 / 4 * math.log(2)
  after_1 = 1 / 2 * math.log(2) + 1 / 2 * math.log(2 / 3)
  # Weights 1 1 of what follows 0, then 3 and 2 of what follows 1.
  np.testing.assert_allclose(loss, (2 * after_0 + 5 * after_1) / 10, atol=TOLERANCE)
  # The tokens: 0 and 1 after 0, then 1 and 1 after 1.
  nats = (2 * math.log(2) + 5 * math.log(4 / 3)) / 10
  np.testing.assert_allclose(metrics['cross_entropy'], nats, rtol=1e-6)
  # One model has a tie each time, and the other's first is among its firsts.
  np.testing.assert_allclose(metrics['agreement'], 7 / 10, rtol=1e-6)


def test_both_models_get_positions_and_documents():
  seen: list[list[list[int]]] = []

  def record(params, *arrays):
    seen.append([np.asarray(array).tolist() for array in arrays])
    return forward(params, *arrays)

  batch = batch_of(tokens=[[3, 4, 5, 6]], weights=[[0, 1, 0, 1]])
  batch.positions = jnp.array([[0, 1, 0, 1]])
  batch.documents = jnp.array([[1, 1, 2, 2]])
  distill.loss(
    table(),
    batch,
    teacher_params=table(4),
    **BIGRAMS | {'forward': record, 'teacher_forward': record},
    divergence=distill.forward_kl,
    total=jnp.float32(2),
  )
  # all but the last token, which predicts nothing
  assert seen == 2 * [[[[3, 4, 5]], [[0, 1, 0]], [[1, 1, 2]]]]


def test_different_vocabularies_are_refused():
  larger = {'table': jnp.zeros((VOCAB, VOCAB + 1))}
  with pytest.raises(ValueError, match='vocabulary of 7 tokens, got 8'):
    distill.loss(
      table(),
      random_batch(rows=2, length=3),
      teacher_params=larger,
      **BIGRAMS,
      divergence=distill.forward_kl,
      total=jnp.float32(1),
    )


@both_divergences
def test_step_follows_the_differences_of_scipys(name):
  student, teacher = table(), table(4)
  batch = random_batch(rows=3, length=5)
  before, weights = np.asarray(batch.tokens)[:, :-1], np.asarray(batch.weights)[:, 1:]

  def mean(x):
    nats = expected(name, np.asarray(teacher['table'])[before], x[before])
    return np.sum(weights * nats) / weights.sum()

  at = np.float64(student['table'])
  state, metrics = make_step(name)(
    optim.init(student, SGD), batch, teacher_params=teacher
  )
  assert state.step == 1
  close(state.params['table'], at - 0.5 * differences(mean, at), atol=TOLERANCE)
  np.testing.assert_allclose(metrics['loss'], mean(at), rtol=1e-5)


@both_divergences
def test_step_is_the_same_for_any_micro_batches(name):
  batch = random_batch(rows=4, length=5)
  state, teacher = optim.init(table(), SGD), table(4)
  one, two, four = (
    make_step(name, parts=parts)(state, batch, teacher_params=teacher)
    for parts in (1, 2, 4)
  )
  # float32 sums of 16 terms in another order
  close(two, one, rtol=1e-5, atol=TOLERANCE)
  close(four, one, rtol=1e-5, atol=TOLERANCE)


def test_positions_without_weight_teach_nothing():
  batch = batch_of([[0, 1, 2, 3]], [[0, 1, 0, 0]])
  other = batch_of([[0, 1, 5, 6]], [[0, 1, 0, 0]])
  state, step = optim.init(table(), SGD), make_step()
  jax.tree.map(
    np.testing.assert_array_equal,
    step(state, batch, teacher_params=table(4)),
    step(state, other, teacher_params=table(4)),
  )


def test_a_batch_without_weight_changes_nothing():
  student = table()
  batch = batch_of([[0, 1, 2]], [[5, 0, 0]])  # first tokens are never predicted
  state, metrics = make_step()(optim.init(student, SGD), batch, teacher_params=table(4))
  np.testing.assert_array_equal(state.params['table'], student['table'])
  assert metrics['loss'] == 0


def test_a_certain_teacher_equals_cross_entropy():
  # Each token is followed by the next number, on which the teacher bets e^30 to 1: what
  # its entropy adds to the divergence is 7 * 31 * e^-30, or 2e-11 nats.
  start = np.random.default_rng(0).integers(VOCAB, size=(4, 1))
  batch = random_batch(rows=4, length=6)
  batch.tokens = jnp.asarray((start + np.arange(6)) % VOCAB, jnp.int32)
  teacher = {'table': jnp.asarray(30 * np.roll(np.eye(VOCAB), 1, axis=1), jnp.float32)}
  state = optim.init(table(), SGD)
  got, metrics = make_step()(state, batch, teacher_params=teacher)
  supervised = functools.partial(
    sft.step, forward=forward, head=BIGRAM, optimizer=SGD, micro_batches=1
  )
  wanted, nats = jax.jit(supervised)(state, batch)
  close(got, wanted, atol=TOLERANCE)
  np.testing.assert_allclose(metrics['loss'], nats['loss'], rtol=1e-6)
  np.testing.assert_allclose(metrics['cross_entropy'], nats['loss'], rtol=1e-6)


@both_divergences
def test_the_student_becomes_the_teacher(name):
  teacher = table(4)
  # Every token once before the last column.
  batch = batch_of([[0, 1, 2, 3, 0], [4, 5, 6, 0, 0]], np.ones((2, 5)))
  optimizer = optax.adam(0.1)
  learn = jax.jit(
    functools.partial(
      distill.step,
      teacher_params=teacher,
      **BIGRAMS,
      divergence=distill.DIVERGENCES[name],
      optimizer=optimizer,
      micro_batches=1,
    )
  )
  state = optim.init(table(), optimizer)
  for _ in range(150):
    state, metrics = learn(state, batch)
  close(
    softmax(state.params['table'], axis=-1),
    softmax(teacher['table'], axis=-1),
    atol=0.01,
  )
  assert metrics['agreement'] == 1


def random_params(config, seed):
  """Parameters of a decoder, drawn without compiling its own `init`."""
  rng = np.random.default_rng(seed)
  boxed = jax.eval_shape(
    lambda key: decoder.init(config, VOCAB, key), jax.random.key(0)
  )
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), boxed
  )


@pytest.fixture(scope='module')
def decoders():
  """Boxed parameters of student and teacher, and their functions."""
  small = ModelConfig(d_model=16, layers=1, heads=2, kv_heads=1, head_dim=8, d_ff=32)
  large = ModelConfig(d_model=24, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=48)
  forward, logits, *_ = decoder.functions(small, VOCAB)
  teacher_forward, teacher_logits, *_ = decoder.functions(large, VOCAB)
  functions = {
    'forward': forward,
    'logits': logits,
    'teacher_forward': teacher_forward,
    'teacher_logits': teacher_logits,
  }
  return random_params(small, 0), random_params(large, 1), functions


def put(boxed):
  return put_boxed(make_mesh(jax.devices()[:1]), boxed)


def chunk_of(monkeypatch, tokens):
  """Both models' logits count."""
  monkeypatch.setattr(logprob, 'CHUNK_LOGITS', tokens * 2 * VOCAB)
  monkeypatch.setattr(logprob, 'CHUNK_TOKENS', 1)


# One position at a time, some with a rest, and more than there are.
@both_divergences
@pytest.mark.parametrize('tokens', [1, 6, 12, 1000])
def test_chunks_equal_all_positions_at_once(monkeypatch, decoders, name, tokens):
  student, teacher, functions = (*map(put, decoders[:2]), decoders[2])
  batch = random_batch(rows=3, length=12)
  inputs = [x[:, :-1] for x in (batch.tokens, batch.positions, batch.documents)]
  weights_BT = batch.weights[:, 1:]

  def whole(params):
    hidden_BTD, _ = functions['forward'](params, *inputs)
    teacher_BTD, _ = functions['teacher_forward'](teacher, *inputs)
    student_BTV = functions['logits'](params, hidden_BTD)
    teacher_BTV = functions['teacher_logits'](teacher, teacher_BTD)
    nats_BT = distill.DIVERGENCES[name](teacher_BTV, student_BTV)
    return jnp.sum(weights_BT * nats_BT) / 5, (teacher_BTV, student_BTV)

  def chunked(params):
    return distill.loss(
      params,
      batch,
      teacher_params=teacher,
      **functions,
      divergence=distill.DIVERGENCES[name],
      total=jnp.float32(5),
    )

  chunk_of(monkeypatch, tokens)
  (got, metrics), slope = jax.jit(
    jax.value_and_grad(chunked, has_aux=True), compiler_options=QUICK
  )(student)
  (_, (teacher_BTV, student_BTV)), wanted = jax.jit(
    jax.value_and_grad(whole, has_aux=True), compiler_options=QUICK
  )(student)
  # float32 through two layers, summed in another order
  close(slope, wanted, rtol=1e-4, atol=1e-5)
  nats_BT = expected(name, teacher_BTV, student_BTV)
  np.testing.assert_allclose(got, np.sum(weights_BT * nats_BT) / 5, rtol=1e-5)
  same_BT = teacher_BTV.argmax(-1) == student_BTV.argmax(-1)
  np.testing.assert_allclose(
    metrics['agreement'], np.sum(weights_BT * same_BT) / 5, rtol=1e-6
  )
  logp_BTV = np.log(softmax(np.float64(student_BTV), axis=-1))
  targets_BT1 = np.asarray(batch.tokens)[:, 1:, None]
  logp_BT = np.take_along_axis(logp_BTV, targets_BT1, axis=-1)[..., 0]
  np.testing.assert_allclose(
    metrics['cross_entropy'], -np.sum(weights_BT * logp_BT) / 5, rtol=1e-5
  )


def shapes_in(jaxpr):
  """The shapes of all values in a program and in the programs inside it."""
  for equation in jaxpr.eqns:
    yield from (var.aval.shape for var in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, 'eqns')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from shapes_in(inner)


@both_divergences
def test_no_array_holds_the_logits_of_all_positions(monkeypatch, name):
  batch = random_batch(rows=3, length=12)

  def largest():
    program = jax.make_jaxpr(
      functools.partial(
        distill.step,
        **BIGRAMS,
        divergence=distill.DIVERGENCES[name],
        optimizer=SGD,
        micro_batches=1,
      )
    )(optim.init(table(), SGD), batch, teacher_params=table(4))
    found = [shape for shape in shapes_in(program.jaxpr) if shape[-1:] == (VOCAB,)]
    # The table itself has as many values as 7 positions.
    return max(math.prod(shape) for shape in found if shape != (VOCAB, VOCAB))

  chunk_of(monkeypatch, 1000)
  assert largest() == 3 * 11 * VOCAB
  chunk_of(monkeypatch, 6)
  assert largest() == 6 * VOCAB


def test_packed_documents_are_distilled_like_separate_ones(decoders):
  student, teacher, functions = (*map(put, decoders[:2]), decoders[2])
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
  state, step = optim.init(student, SGD), make_step('reverse_kl', functions)
  # float32 through two layers
  close(
    step(state, packed, teacher_params=teacher),
    step(state, separate, teacher_params=teacher),
    rtol=1e-5,
    atol=TOLERANCE,
  )


def test_sharded_step_matches_single_device(decoders):
  student, teacher, functions = decoders
  step = make_step('reverse_kl', functions, parts=2)
  batch = random_batch(rows=8, length=6)

  def run(devices):
    place = make_mesh(devices)
    state = jax.device_put(
      optim.init(put_boxed(place, student), SGD), named_sharding(place)
    )
    frozen = put_boxed(place, teacher)
    rows = put_batch(place, batch)
    shards = {shard.data.shape for shard in rows.tokens.addressable_shards}
    assert shards == {(8 // len(devices), 6)}
    with jax.transfer_guard('disallow'):
      return jax.device_get(step(state, rows, teacher_params=frozen))

  one, metrics_one = run(jax.devices()[:1])
  four, metrics_four = run(jax.devices()[:4])
  # float32 sums over 8 rows in another order
  close(four.params, one.params, atol=TOLERANCE)
  close(metrics_four, metrics_one, rtol=1e-5)
