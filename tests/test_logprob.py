"""Log-probs of tokens against float64 softmax; chunks against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import optim
from r1jax.sampling import blockwise, logprob
from r1jax.trees import Head

B, T, D, V = 3, 11, 5, 7
HEAD = Head(matrix=lambda params: params, logits=lambda rows, x: x @ rows.T)


@pytest.fixture
def given():
  rng = np.random.default_rng(0)
  hidden_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
  head_VD = rng.normal(size=(V, D)).astype(np.float32)
  return hidden_BTD, head_VD, rng.integers(0, V, (B, T)).astype(np.int32)


def chunk_of(monkeypatch, tokens):
  monkeypatch.setattr(logprob, 'CHUNK_LOGITS', tokens * V)
  monkeypatch.setattr(logprob, 'CHUNK_TOKENS', 1)


def score(hidden_BTD, head_VD, tokens_BT):
  return logprob.hidden_logp(hidden_BTD, tokens_BT, head_VD, head=HEAD)


def expected(hidden_BTD, head_VD, tokens_BT):
  logits = hidden_BTD.astype(np.float64) @ head_VD.T.astype(np.float64)
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  chosen = np.take_along_axis(logp, tokens_BT[..., None], axis=-1)[..., 0]
  return chosen, -(np.exp(logp) * logp).sum(-1)


# One position at a time, some with a rest, and more than there are.
@pytest.mark.parametrize('tokens', [1, 6, 12, 1000])
def test_chunks_are_the_softmax_of_all_logits(monkeypatch, given, tokens):
  chunk_of(monkeypatch, tokens)
  for got, wanted in zip(score(*given), expected(*given), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('tokens', [1, 6, 12, 1000])
def test_gradients_through_chunks_are_onehot_minus_probability(
  monkeypatch, given, tokens
):
  hidden_BTD, head_VD, tokens_BT = given
  chunk_of(monkeypatch, tokens)
  weight_BT = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)

  def loss(hidden_BTD, head_VD):
    return jnp.sum(weight_BT * score(hidden_BTD, head_VD, tokens_BT)[0])

  got_hidden, got_head = jax.grad(loss, argnums=(0, 1))(hidden_BTD, head_VD)
  logits = hidden_BTD.astype(np.float64) @ head_VD.T
  probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  # d log p(token) / d logits = one-hot(token) - p
  slope = weight_BT[..., None] * (np.eye(V)[tokens_BT] - probability)
  np.testing.assert_allclose(got_hidden, slope @ head_VD, rtol=1e-4, atol=1e-5)
  wanted_head = np.einsum('btv,btd->vd', slope, hidden_BTD)
  np.testing.assert_allclose(got_head, wanted_head, rtol=1e-4, atol=1e-5)


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


def test_no_array_holds_the_logits_of_all_positions(monkeypatch, given):
  hidden_BTD, head_VD, tokens_BT = given

  def loss(hidden_BTD, head_VD):
    return score(hidden_BTD, head_VD, tokens_BT)[0].sum()

  def largest():
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden_BTD, head_VD)
    found = [shape for shape in shapes_in(program.jaxpr) if shape[-1:] == (V,)]
    return max(int(np.prod(shape)) for shape in found)

  chunk_of(monkeypatch, 1000)
  assert largest() == B * T * V
  chunk_of(monkeypatch, 6)
  assert largest() == 6 * V


@pytest.fixture(params=[(2, 5), (3, 33), (1, 1)])
def blocks(request, monkeypatch):
  """A few tokens of the vocabulary at a time, for some positions; both have a rest."""
  monkeypatch.setattr(blockwise, 'BLOCK', request.param[0])
  monkeypatch.setattr(blockwise, 'POSITIONS', request.param[1])
  monkeypatch.setattr(logprob, 'in_chunks', None)  # the other way is not taken


@pytest.mark.usefixtures('blocks')
def test_blocks_of_the_vocabulary_are_the_softmax_of_all_logits(given):
  for got, wanted in zip(score(*given), expected(*given), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def weighted(hidden_BTD, head_VD, tokens_BT, temperature=0.7):
  """A sum of log-probs and entropies with random weights, of softmax by JAX."""
  weight = jax.random.normal(jax.random.key(1), (2, B, T))
  logp = jax.nn.log_softmax(hidden_BTD @ head_VD.T / temperature)
  chosen = jnp.take_along_axis(logp, tokens_BT[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  return jnp.sum(weight * jnp.stack([chosen, entropy]))


def blockwise_weighted(hidden_BTD, head_VD, tokens_BT, temperature=0.7):
  weight = jax.random.normal(jax.random.key(1), (2, B, T))
  found = logprob.hidden_logp(
    hidden_BTD, tokens_BT, head_VD, head=HEAD, temperature=temperature
  )
  return jnp.sum(weight * jnp.stack(found))


@pytest.mark.usefixtures('blocks')
def test_gradients_through_blocks_are_those_of_jax(given):
  got = jax.jit(jax.grad(blockwise_weighted, argnums=(0, 1)))(*given)
  for one, wanted in zip(got, jax.grad(weighted, argnums=(0, 1))(*given), strict=True):
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('blocks')
def test_blocks_add_the_gradient_of_the_head_to_its_sum(given):
  hidden_BTD, head_VD, tokens_BT = given
  wanted = jax.grad(weighted, argnums=1)(*given)

  def loss(params, part):
    return blockwise_weighted(hidden_BTD, params, part), {}

  parts = jnp.stack([tokens_BT, tokens_BT])
  got, _ = optim.gradients(head_VD, parts, loss=loss, in_place=True)
  np.testing.assert_allclose(got, 2 * wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('blocks')
def test_a_token_that_cannot_be_drawn_has_no_weight_in_any_block(given):
  hidden_BTD, head_VD, tokens_BT = given
  tokens_BT = np.where(tokens_BT == 3, 2, tokens_BT)

  def logits(rows, x):
    return HEAD.logits(rows[:, :-1], x) + rows[None, :, -1]

  masked = Head(HEAD.matrix, logits)
  bias = np.where(np.arange(V) == 3, -np.inf, 0.0)[:, None].astype(np.float32)

  def loss(hidden_BTD):
    head = np.concatenate([head_VD, bias], axis=1)
    found = logprob.hidden_logp(hidden_BTD, jnp.asarray(tokens_BT), head, head=masked)
    return jnp.sum(jnp.stack(found))

  def wanted(hidden_BTD):
    left = np.delete(head_VD, 3, axis=0)
    logp = jax.nn.log_softmax(hidden_BTD @ left.T)
    places = tokens_BT - (tokens_BT > 3)
    chosen = jnp.take_along_axis(logp, places[..., None], axis=-1)
    return jnp.sum(chosen) - jnp.sum(jnp.exp(logp) * logp)

  for got, expected in zip(
    jax.value_and_grad(loss)(hidden_BTD),
    jax.value_and_grad(wanted)(hidden_BTD),
    strict=True,
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_no_array_holds_more_logits_than_a_block_for_some_positions(monkeypatch, given):
  hidden_BTD, head_VD, tokens_BT = given
  monkeypatch.setattr(blockwise, 'BLOCK', 3)
  monkeypatch.setattr(blockwise, 'POSITIONS', 4)

  def loss(hidden_BTD, head_VD):
    return score(hidden_BTD, head_VD, tokens_BT)[0].sum()

  program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden_BTD, head_VD)
  found = set(shapes_in(program.jaxpr))
  assert (4, 3) in found
  assert not [shape for shape in found if shape[-1:] == (V,)]
