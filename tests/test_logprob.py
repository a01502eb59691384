"""Log-probs of tokens against float64 softmax; chunks against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.sampling import logprob

B, T, D, V = 3, 11, 5, 7


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
  return logprob.hidden_logp(hidden_BTD, tokens_BT, lambda x: x @ head_VD.T)


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
