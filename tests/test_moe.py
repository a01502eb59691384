"""Experts against a dense reference: every expert on every token, weighted or by 0."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import optim
from r1jax.model.config import Experts
from r1jax.model.linear import Int8
from r1jax.model.moe import mixture_of_experts, route
from r1jax.optim import OptimConfig
from r1jax.planner import costs
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import named_sharding

PLAIN = Experts(count=6, active=2, d_ff=5)
V3 = Experts(
  count=8,
  active=3,
  d_ff=5,
  shared=2,
  scores='sigmoid',
  groups=4,
  active_groups=2,
  scale=2.5,
)
CONFIGS = [
  PLAIN,
  dataclasses.replace(PLAIN, normalised=False, scale=0.7),
  dataclasses.replace(PLAIN, count=8, groups=4, active_groups=2, active=3),
  V3,
  dataclasses.replace(V3, normalised=False, shared=0),
]


PARTS = ('gate', 'up', 'down')


def random_weights(config, width=4):
  rng = np.random.default_rng(0)
  inner, shared = (width, config.d_ff), config.shared * config.d_ff
  shapes = {
    'router': (width, config.count),
    'expert_gate': (config.count, *inner),
    'expert_up': (config.count, *inner),
    'expert_down': (config.count, config.d_ff, width),
    'shared_gate': (width, shared),
    'shared_up': (width, shared),
    'shared_down': (shared, width),
    'balance': (config.count,),
  }
  return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def dense(x, w, c):
  """A token at a time, every expert, float64."""
  score = np.exp(x @ w['router'])
  score = score / score.sum() if c.scores == 'softmax' else score / (1 + score)
  wanted = score + (w['balance'] if c.scores == 'sigmoid' else 0)
  groups = np.sort(wanted.reshape(c.groups, -1))[
    :, -1 if c.scores == 'softmax' else -2 :
  ]
  closed = np.argsort(groups.sum(1))[: c.groups - c.active_groups]
  wanted.reshape(c.groups, -1)[closed] = -np.inf
  weight = np.where(np.argsort(np.argsort(wanted)) >= c.count - c.active, score, 0)
  weight *= c.scale / (weight.sum() if c.normalised else 1)
  ways = list(zip(*(w[f'expert_{part}'] for part in PARTS), strict=True))
  if c.shared:
    ways.append(tuple(w[f'shared_{part}'] for part in PARTS))
    weight = np.append(weight, 1)
  out = 0
  for (gate, up, down), share in zip(ways, weight, strict=True):
    hidden = x @ gate
    out = out + share * ((hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down)
  return out


def ours(x, weights, config):
  if config.scores == 'softmax':
    weights = {name: w for name, w in weights.items() if name != 'balance'}
  return mixture_of_experts(jnp.asarray(x), weights, config, 'float32')


@pytest.mark.parametrize('config', CONFIGS)
def test_experts_are_the_dense_sum_in_values_and_gradients(config):
  weights = random_weights(config)
  rng = np.random.default_rng(1)
  x, out = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 7, 4))

  def expected(x, weights):
    rows = [dense(row, weights, config) for row in x.reshape(-1, 4)]
    return np.reshape(rows, x.shape)

  single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (x, weights))
  np.testing.assert_allclose(
    ours(single[0], single[1], config), expected(x, weights), atol=1e-4
  )

  slope_x, slopes = jax.grad(
    lambda x, weights: jnp.sum(ours(x, weights, config) * out), argnums=(0, 1)
  )(*single)
  # Central differences of the reference in float64, along a random direction of each.
  for name in ('x', *weights):
    if name == 'balance':  # gets the load instead; see below
      continue
    base = x if name == 'x' else weights[name]
    direction = rng.normal(size=base.shape)

    def at(step, name=name, base=base, direction=direction):
      moved = base + step * direction
      if name == 'x':
        return np.sum(expected(moved, weights) * out)
      return np.sum(expected(x, {**weights, name: moved}) * out)

    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    found = np.sum(np.asarray(slope_x if name == 'x' else slopes[name]) * direction)
    np.testing.assert_allclose(found, slope, rtol=2e-3, atol=2e-3, err_msg=name)


def test_no_token_is_dropped_when_all_choose_the_same_experts():
  config = dataclasses.replace(PLAIN, active=1)
  weights = random_weights(config)
  weights['router'] = np.zeros((4, 6))
  weights['router'][:, 3] = 100.0
  x = np.abs(np.random.default_rng(2).normal(size=(1, 50, 4)))
  rows = [dense(row, weights, config) for row in x[0]]
  single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (x, weights))
  np.testing.assert_allclose(ours(single[0], single[1], config)[0], rows, atol=1e-4)


def test_a_float64_model_routes_in_float64():
  rng = np.random.default_rng(1)
  x, router = rng.normal(size=(5, 4)), rng.normal(size=(4, 6))
  with jax.enable_x64(True):
    chosen, weight = route(jnp.asarray(x), jnp.asarray(router), None, PLAIN)
  score = np.exp(x @ router)
  expected = np.take_along_axis(score, np.asarray(chosen), axis=1)
  # Weights of the chosen sum to 1, so the sum of all scores cancels.
  expected /= expected.sum(1, keepdims=True)
  np.testing.assert_allclose(weight, expected, rtol=1e-13)


def test_a_bias_selects_experts_but_does_not_weight_them():
  x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
  router = random_weights(V3)['router'].astype(np.float32)
  config = dataclasses.replace(V3, groups=1, active_groups=1, active=2)
  bias = np.zeros(8, np.float32)
  bias[[1, 6]] = 10
  chosen, weight = route(jnp.asarray(x), jnp.asarray(router), jnp.asarray(bias), config)
  assert {frozenset(row) for row in chosen.tolist()} == {frozenset({1, 6})}
  score = 1 / (1 + np.exp(-x @ router))
  expected = np.take_along_axis(score, np.asarray(chosen), 1)
  expected *= 2.5 / expected.sum(1, keepdims=True)
  np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_a_bias_moves_against_the_load():
  weights = jax.tree.map(jnp.float32, random_weights(V3))
  x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 30, 4)), jnp.float32)

  def loss(params, part):
    value = jnp.sum(ours(part, {**weights, **params}, V3) ** 2)
    return value, {}

  def chosen(balance):
    rows = x.reshape(-1, 4)
    found, _ = route(rows, weights['router'], balance, V3)
    return np.bincount(np.ravel(found), minlength=8)

  balance = weights['balance'] * 0.1
  slope = jax.grad(lambda params: loss(params, x)[0])({'balance': balance})
  np.testing.assert_array_equal(slope['balance'], chosen(balance))
  # Of two micro-batches the loads are added; nothing else moves the bias.
  optimizer = optim.make(OptimConfig(weight_decay=0.1, balance_rate=0.05), 100)
  step = jax.jit(functools.partial(optim.update, loss=loss, optimizer=optimizer))
  state = optim.init({'balance': balance}, optimizer)
  before = chosen(balance)
  for n in range(30):
    last, (state, metrics) = state.params['balance'], step(state, x[:, None])
    load = chosen(last)
    np.testing.assert_allclose(
      state.params['balance'] - last, 0.05 * np.sign(load.mean() - load), atol=1e-6
    )
    np.testing.assert_allclose(metrics['expert_load'], load.max() / load.mean())
    assert metrics['grad_norm'] == 0, n
  after = chosen(state.params['balance'])
  assert after.std() < 0.5 * before.std()
  assert after.sum() == before.sum() == 2 * 30 * 3


def test_uncounted_tokens_are_not_in_the_load():
  weights = jax.tree.map(jnp.float32, random_weights(V3))
  x = jnp.asarray(np.random.default_rng(6).normal(size=(2, 7, 4)), jnp.float32)
  counted = jnp.asarray(np.random.default_rng(7).random((2, 7)) < 0.5)

  def loss(balance):
    found = mixture_of_experts(
      x, {**weights, 'balance': balance}, V3, 'float32', counted
    )
    return jnp.sum(found**2)

  chosen, _ = route(x, weights['router'], weights['balance'], V3)
  expected = np.bincount(np.ravel(chosen[counted]), minlength=8)
  found = jax.grad(loss)(weights['balance'])
  np.testing.assert_array_equal(found, expected)
  assert 0 < expected.sum() < 2 * 7 * 3


def test_int8_experts_equal_their_dequantized_values():
  weights = jax.tree.map(jnp.float32, random_weights(V3))
  wide, small = dict(weights), dict(weights)
  for name in ('expert_gate', 'expert_up', 'expert_down'):
    scale = jnp.abs(weights[name]).max(1) / 127
    values = jnp.round(weights[name] / scale[:, None]).astype(jnp.int8)
    small[name], wide[name] = Int8(values, scale), values * scale[:, None]
  x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 9, 4)), jnp.float32)
  np.testing.assert_allclose(ours(x, small, V3), ours(x, wide, V3), atol=1e-4)


def test_channel_shards_are_summed_after_the_scatter():
  config = Experts(count=8, active=3, d_ff=6)
  weights = jax.tree.map(jnp.float32, random_weights(config))
  place = make_mesh(config=MeshConfig(expert=4, tensor=2))

  def total(x_BTD):
    return mixture_of_experts(x_BTD, weights, config, 'float32').sum()

  rows = jax.ShapeDtypeStruct((4, 5, 4), jnp.float32)
  program = (
    jax.jit(
      on_mesh(place, jax.grad(total)),
      in_shardings=(named_sharding(place, 'prompt', None, None),),
    )
    .lower(rows)
    .compile()
  )
  text = program.as_text()
  assert text is not None
  sent = costs.program_costs(text).sent
  # Backward, the gradients of 5 tokens of 4 channels and of their 3 experts' weights;
  # a device sends half of each and the sum of that.
  assert sent['all-reduce', 2, 'links'] == 4 * (5 * 4 + 5 * 3)
