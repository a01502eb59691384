import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from r1jax import optim
from r1jax.model import config as config_lib
from r1jax.model import decoder
from r1jax.optim import OptimConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch
from r1jax.sharding.rules import named_sharding


def follow(config, gradients, start, total_steps=10):
  """Parameters after each update along the given gradients."""
  config = dataclasses.replace(config, eps=1e-9)  # too small for numbers by hand
  optimizer = optim.make(config, total_steps)
  state = optim.init(start, optimizer)
  update = jax.jit(
    lambda state, gradient: optim.update(
      state,
      optim.split_micro_batches(gradient, 1),
      # a loss that is linear in the parameters has the gradient it is given
      loss=lambda params, part: (
        sum((jnp.sum(params[k][None] * part[k]) for k in params), jnp.float32(0)),
        {},
      ),
      optimizer=optimizer,
    )
  )
  path = []
  for gradient in gradients:
    # with a leading axis, of the batch's one row
    row = {
      name: jnp.asarray(value, jnp.float32)[None] for name, value in gradient.items()
    }
    state, metrics = update(state, row)
    path.append((jax.device_get(state.params), metrics))
  assert state.step == len(gradients)
  return path


def rates(config, updates, total_steps=10):
  """Steps under a constant gradient of 1: Adam's is then the learning rate."""
  start = {'x': jnp.zeros(1)}
  path = follow(config, updates * [{'x': [1.0]}], start, total_steps)
  return -np.diff([0.0] + [params['x'][0] for params, _ in path])


def test_warm_up_rises_to_a_constant_rate():
  config = OptimConfig(learning_rate=0.8, warmup_steps=3)
  # 0.8 * 1/4, 2/4, 3/4, then the peak; 1e-6: float32
  expected = [0.2, 0.4, 0.6, 0.8, 0.8]
  np.testing.assert_allclose(rates(config, 5), expected, atol=1e-6)


def test_no_warm_up_starts_at_the_peak():
  config = OptimConfig(learning_rate=0.8, warmup_steps=0)
  np.testing.assert_allclose(rates(config, 2), [0.8, 0.8], atol=1e-6)


def test_cosine_falls_to_its_final_share():
  config = OptimConfig(
    learning_rate=1.0, warmup_steps=2, schedule='cosine', final_share=0.1
  )
  # 1/3, 2/3, then 0.1 + 0.9 (1 + cos(pi t / 4)) / 2 for t = 0 1 2 3 4, and no lower
  fall = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
  expected = [1 / 3, 2 / 3, *fall, 0.1]
  np.testing.assert_allclose(rates(config, 8, total_steps=6), expected, atol=2e-6)


def test_long_gradients_are_scaled_to_the_largest_norm():
  # (30, 40) has norm 50 and becomes (0.6, 0.8); then (0.6, 0.8) itself: to Adam a
  # constant gradient, whose steps are the learning rate. Unclipped, the second is not.
  config = OptimConfig(learning_rate=0.1, warmup_steps=0, max_grad_norm=1.0)
  gradients = [{'x': [30.0], 'y': [40.0]}, {'x': [0.6], 'y': [0.8]}]
  path = follow(config, gradients, {'x': jnp.zeros(1), 'y': jnp.zeros(1)})
  for (params, metrics), steps, norm in zip(path, (1, 2), (50.0, 1.0), strict=True):
    np.testing.assert_allclose(params['x'], [-0.1 * steps], atol=1e-6)
    np.testing.assert_allclose(params['y'], [-0.1 * steps], atol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-6)


def test_short_gradients_are_not_scaled():
  # Gradients 0.5 then 1, weighted as in `test_adam_by_hand`: m = (0.25 / 2 + 0.5) /
  # 0.75 = 5/6, v = (0.1875 / 4 + 0.25) / 0.4375. Scaled up to norm 1, both were 1.
  config = OptimConfig(
    learning_rate=1.0, warmup_steps=0, b1=0.5, b2=0.75, max_grad_norm=1.0
  )
  path = follow(config, [{'x': [0.5]}, {'x': [1.0]}], {'x': jnp.zeros(1)})
  second = (5 / 6) / math.sqrt((0.1875 * 0.25 + 0.25) / 0.4375)
  np.testing.assert_allclose(path[1][0]['x'], [-1 - second], rtol=1e-6)


def test_adam_by_hand():
  # Gradients 1 then 0. m = b1 (1 - b1) / (1 - b1^2) = 0.25 / 0.75 = 1/3,
  # v = b2 (1 - b2) / (1 - b2^2) = 0.1875 / 0.4375 = 3/7.
  config = OptimConfig(learning_rate=1.0, warmup_steps=0, b1=0.5, b2=0.75)
  path = follow(config, [{'x': [1.0]}, {'x': [0.0]}], {'x': jnp.zeros(1)})
  second = (1 / 3) / math.sqrt(3 / 7)
  np.testing.assert_allclose(path[1][0]['x'], [-1 - second], rtol=1e-6)


def test_a_gradient_below_eps_makes_no_full_step():
  # 1e-9 / (1e-9 + 1e-6), where a gradient of any other size moves by 1.
  config = OptimConfig(learning_rate=1.0, warmup_steps=0, eps=1e-6)
  optimizer = optim.make(config, 10)
  grads = {'x': jnp.array([1e-9])}
  updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
  np.testing.assert_allclose(updates['x'], [-1e-3], rtol=2e-3)


def test_weight_decay_is_decoupled():
  # no gradient: 2 - 0.1 * 0.5 * 2
  config = OptimConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
  path = follow(config, [{'x': [[0.0]]}], {'x': jnp.full((1, 1), 2.0)})
  np.testing.assert_allclose(path[0][0]['x'], [[1.9]], rtol=1e-6)


DECAYING = {
  *('query', 'key', 'value', 'out', 'gate', 'up', 'down', 'router', 'query_down'),
  *('latent_down', 'latent_up', 'expert_gate', 'expert_up', 'expert_down'),
  *('shared_gate', 'shared_up', 'shared_down', 'a', 'b'),
}


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('muon', [0.0, 0.1])
def test_only_weight_matrices_decay(known, muon):
  latent = config_lib.Latent(kv_rank=16, q_rank=16, rope_dim=8, value_dim=16)
  experts = config_lib.Experts(count=4, active=2, d_ff=16, shared=1, scores='sigmoid')
  model = config_lib.ModelConfig(
    d_model=32, layers=3, heads=2, kv_heads=2, head_dim=16, d_ff=32, tied=False,
    qkv_bias=True, qk_norm=True,
  )  # fmt: skip
  routed = dataclasses.replace(
    model, latent=latent, experts=experts, qkv_bias=False, qk_norm=False, head_dim=24
  )
  if muon and not known:
    return  # refused
  config = OptimConfig(
    learning_rate=0.1, warmup_steps=0, weight_decay=0.5, muon_learning_rate=muon
  )
  for one in (model, routed):
    params = jax.tree.map(lambda x: jnp.ones(x.shape), decoder.shapes(one, 40))
    if not known:
      params['adapters'] = {'a': jnp.ones((3, 32, 2)), 'b': jnp.ones((3, 2, 2, 16))}
    optimizer = optim.make(config, 10, decoder.matrices(one) if known else None)

    def decayed(params, optimizer=optimizer):
      still = jax.tree.map(jnp.zeros_like, params)
      state, _ = optim.apply(optim.init(params, optimizer), still, optimizer=optimizer)
      return state.params

    # One program compiles sooner than an operation after the other.
    for path, x in jax.tree_util.tree_leaves_with_path(jax.jit(decayed)(params)):
      expected = 0.95 if path[-1].key in DECAYING else 1.0
      np.testing.assert_allclose(x, expected, rtol=1e-6, err_msg=str(path))


def test_moments_are_computed_in_float32_and_kept_in_bfloat16():
  config = OptimConfig(
    learning_rate=0.1, warmup_steps=0, max_grad_norm=1e9, moments='bfloat16'
  )
  slopes = np.array([0.3, 1.1, -0.7, 0.013], np.float32)
  path = follow(config, [{'x': [slope]} for slope in slopes], {'x': jnp.zeros(1)})
  x, mean, square = 0.0, ml_dtypes.bfloat16(0), ml_dtypes.bfloat16(0)
  for step, slope in enumerate(slopes, 1):
    exact_mean = 0.9 * float(mean) + 0.1 * slope
    exact_square = 0.99 * float(square) + 0.01 * slope**2
    x -= 0.1 * (exact_mean / (1 - 0.9**step)) / (exact_square / (1 - 0.99**step)) ** 0.5
    np.testing.assert_allclose(path[step - 1][0]['x'], [x], rtol=1e-5)
    mean, square = ml_dtypes.bfloat16(exact_mean), ml_dtypes.bfloat16(exact_square)
  optimizer = optim.make(config, 1)
  before = optim.init({'x': jnp.zeros(3)}, optimizer)
  after, _ = optim.apply(before, {'x': jnp.ones(3)}, optimizer=optimizer)
  for state in (before, after):
    kinds = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert kinds == {'bfloat16'}
    assert state.params['x'].dtype == jnp.float32


@pytest.mark.parametrize('b2', [0.95, optim.MAX_BFLOAT16_DECAY])
def test_bfloat16_moments_decay_without_a_gradient(b2):
  # Every number of a bfloat16's 128 between two powers of 2, times b2, is rounded to a
  # lower one; with a larger b2 the lowest of them would stand still.
  fractions = np.arange(128, 256).astype(ml_dtypes.bfloat16)
  assert (np.multiply(fractions.astype(np.float32), np.float32(b2)).astype(
    ml_dtypes.bfloat16) < fractions).all()  # fmt: skip
  stuck = np.float32(128) * np.float32(1 - 2**-9.5)
  assert stuck.astype(ml_dtypes.bfloat16) == 128


RATE = (
  r'rl_optim.learning_rate: expected a step that changes at least 50% of the weights '
  r'in {}, got {}, which changes {}% and is rounded away in the others; {}'
)


@pytest.mark.parametrize(
  ('dtype', 'rate', 'masters', 'message'),
  [
    # 2 % of N(0, 0.02) are below 2^-11, where half the distance to the next bfloat16
    # is at most 2^-20 = 9.5e-7.
    ('bfloat16', 1e-6, 'none', RATE.format('bfloat16', '1e-06', r'[12]\.\d', 'set')),
    ('bfloat16', 1e-5, 'none', RATE.format('bfloat16', '1e-05', r'\d+\.\d', 'set')),
    ('bfloat16', 1e-4, 'none', None),  # 88 % are below 2^-5
    ('bfloat16', 1e-6, 'float32', None),
    ('bfloat16', 1e-6, 'stochastic', None),
    ('bfloat16', 0.0, 'none', None),  # nothing is to move
    ('float32', 1e-6, 'none', None),
    ('float32', 1e-11, 'float32', RATE.format('float32', '1e-11', r'\d\.\d', 'raise')),
  ],
)
def test_a_learning_rate_that_is_rounded_away_is_refused(dtype, rate, masters, message):
  weights = 0.02 * jax.random.normal(jax.random.key(0), (200, 200))
  params = {'w': weights.astype(dtype), 'gain': jnp.ones(4)}
  config = OptimConfig(learning_rate=rate, masters=masters)
  if message is None:
    optim.check_learning_rate(params, config, 'rl_optim')
    return
  with pytest.raises(ValueError, match=message):
    optim.check_learning_rate(params, config, 'rl_optim')


@pytest.mark.parametrize(
  ('rate', 'muon', 'moves'),
  [
    # An update of Muon moves a weight by 1e-4 / sqrt(400) = 5e-6, so as 1e-5 above.
    (1e-6, 1e-4, False),
    (1e-6, 2e-3, True),  # by 1e-4, which moves 88 % of the matrix
    (0.0, 2e-3, True),  # what has a rate of 0 is not meant to move
  ],
)
def test_muons_step_size_is_that_of_the_whole_matrix(rate, muon, moves):
  weights = 0.02 * jax.random.normal(jax.random.key(0), (2, 400, 100))
  params = {'w': weights.astype('bfloat16'), 'embedding': jnp.ones((300, 100))}
  matrices = {'w': ((1,), (2,)), 'embedding': None}
  config = OptimConfig(rate, muon, warmup_steps=0, masters='none')
  gradient = jax.random.normal(jax.random.key(1), weights.shape)
  rule = optim.make(config, 10, matrices)
  grads = {'w': gradient, 'embedding': jnp.zeros((300, 100))}
  updates, _ = rule.update(grads, rule.init(params), params)
  # Newton-Schulz leaves singular values between about 0.7 and 1.2.
  size = float(jnp.sqrt(jnp.mean(jnp.square(updates['w']))))
  assert 0.7 < size / (muon / 20) < 1.2
  if moves:
    optim.check_learning_rate(params, config, 'rl_optim', matrices)
    return
  with pytest.raises(ValueError, match=r'got 1e-06 and rl_optim.muon_learning_rate'):
    optim.check_learning_rate(params, config, 'rl_optim', matrices)


def test_learning_rate_0_leaves_the_parameters():
  config = OptimConfig(learning_rate=0.0, weight_decay=0.5)
  path = follow(config, 2 * [{'x': [3.0]}], {'x': jnp.full(1, 2.0)})
  np.testing.assert_array_equal(path[1][0]['x'], [2.0])


SGD = optax.sgd(0.1)
ROWS = np.array([1.0, 2, 4, 8, 16, 32, 64, 128], np.float32)


def squares(params, part):
  """A part's share of the mean of (x - row)^2 / 2, and of the mean of rows."""
  value = jnp.sum(jnp.square(params['x'] - part['row'])) / 2 / len(ROWS)
  return value, {'mean': jnp.sum(part['row']) / len(ROWS)}


def update(state, batch, micro_batches, count=None):
  parts = optim.split_micro_batches(batch, micro_batches)
  grads, metrics = optim.gradients(state.params, parts, loss=squares, count=count)
  state, more = optim.apply(state, grads, optimizer=SGD)
  return state, metrics | more


@pytest.mark.parametrize('micro_batches', [1, 2, 4, 8])
def test_micro_batches_add_up(micro_batches):
  state = optim.init({'x': jnp.float32(1)}, SGD)
  state, metrics = jax.jit(update, static_argnums=2)(
    state, {'row': ROWS, 'absent': None}, micro_batches
  )
  # mean 255/8 = 31.875, so the slope at 1 is -30.875; squares of 0 1 3 7 15 31 63 127
  loss = (0 + 1 + 9 + 49 + 225 + 961 + 3969 + 16129) / 16
  expected = {
    'loss': loss, 'mean': 31.875, 'grad_norm': 30.875, 'update_size': 3.0875
  }  # fmt: skip
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-6)
  np.testing.assert_allclose(state.params['x'], 1 + 0.1 * 30.875, rtol=1e-6)
  assert state.step == 1


def test_only_the_first_micro_batches_are_computed():
  # Cut strided: the first 2 of 4 parts are rows 1, 16 and 2, 32.
  state = optim.init({'x': jnp.float32(1)}, SGD)
  state, metrics = jax.jit(update, static_argnums=2)(
    state, {'row': ROWS}, 4, jnp.int32(2)
  )
  np.testing.assert_allclose(metrics['mean'], (1 + 16 + 2 + 32) / 8, rtol=1e-6)
  slope = (4 * 1 - (1 + 16 + 2 + 32)) / 8
  np.testing.assert_allclose(state.params['x'], 1 - 0.1 * slope, rtol=1e-6)


def test_micro_batches_leave_rows_on_their_devices():
  place = make_mesh(jax.devices()[:4])
  state = jax.device_put(optim.init({'x': jnp.float32(1)}, SGD), named_sharding(place))
  batch = put_batch(place, {'row': jnp.asarray(ROWS)})
  lowered = jax.jit(update, static_argnums=2).lower(state, batch, 2)
  program = lowered.compile().as_text()
  assert program is not None
  for exchange in ('all-gather', 'all-to-all', 'collective-permute'):
    assert exchange not in program
  # of gradients and metrics
  assert 'all-reduce' in program


def test_muon_orthogonalises_the_given_matrices():
  rng = np.random.default_rng(0)
  grads = {
    'stack': rng.normal(size=(2, 6, 2, 3)).astype(
      np.float32
    ),  # two matrices 6 x (2, 3)
    'table': rng.normal(size=(6, 6)).astype(np.float32),
  }
  config = OptimConfig(
    learning_rate=0.5, muon_learning_rate=0.1, warmup_steps=0, max_grad_norm=1e9
  )
  chain = optim.make(config, 10, {'stack': ((1,), (2, 3)), 'table': None})
  params = jax.tree.map(jnp.zeros_like, grads)
  updates, _ = chain.update(grads, chain.init(params), params)
  for update, grad in zip(updates['stack'], grads['stack'], strict=True):
    left, _, right = np.linalg.svd(grad.reshape(6, 6))
    # Newton-Schulz brings singular values near 1, between about 0.7 and 1.2.
    spread = np.diag(left.T @ -np.reshape(update, (6, 6)) @ right.T)
    assert (np.abs(spread / 0.1) > 0.5).all()
    assert (np.abs(spread / 0.1) < 1.5).all()
  # Adam's first step is the sign times the learning rate; with Nesterov's look ahead
  # the mean gradient (0.1 g) counts 0.9 / (1 - 0.9^2) and the gradient itself 1.
  step = 0.5 * (0.9 * 0.1 / 0.19 + 1)
  np.testing.assert_allclose(
    updates['table'], -step * np.sign(grads['table']), rtol=1e-3
  )


def muon(settings, gradients, start=0.0):
  """Updates of a matrix and of a table, which stays with AdamW, for each gradient."""
  config = OptimConfig(
    learning_rate=0.5, muon_learning_rate=0.1, max_grad_norm=1e9, **settings
  )
  chain = optim.make(config, 10, {'matrix': ((0,), (1,)), 'table': None})
  params = {name: jnp.full((2, 2), start) for name in ('matrix', 'table')}
  state, path = chain.init(params), []
  for gradient in gradients:
    grads = dict.fromkeys(params, jnp.asarray(gradient, jnp.float32))
    updates, state = chain.update(grads, state, params)
    path.append(updates)
  return path


def test_muon_warms_up_both_of_its_rates():
  gradient = [[3.0, 1.0], [-2.0, 1.0]]
  (peak,) = muon({'warmup_steps': 0}, [gradient])
  (first,) = muon({'warmup_steps': 3}, [gradient])
  for name in ('matrix', 'table'):
    np.testing.assert_allclose(first[name], peak[name] / 4, rtol=1e-5)


def test_muon_decays_only_matrices():
  # no gradient: rate * 0.5 * 2
  settings = {'warmup_steps': 0, 'weight_decay': 0.5}
  (decay,) = muon(settings, [np.zeros((2, 2))], start=2.0)
  np.testing.assert_allclose(decay['matrix'], np.full((2, 2), -0.1), rtol=1e-6)
  np.testing.assert_allclose(decay['table'], np.zeros((2, 2)))


def test_muon_gives_adam_its_decay_rates():
  # Gradients 1 then 0, as in `test_adam_by_hand`, with Nesterov's look ahead:
  # m = b1 * b1 (1 - b1) / (1 - b1^3) = 0.125 / 0.875 = 1/7, v = 3/7.
  settings = {'warmup_steps': 0, 'b1': 0.5, 'b2': 0.75}
  _, second = muon(settings, [np.ones((2, 2)), np.zeros((2, 2))])
  expected = np.full((2, 2), -0.5 * (1 / 7) / math.sqrt(3 / 7))
  np.testing.assert_allclose(second['table'], expected, rtol=1e-5)


def test_muon_without_matrices_is_refused():
  with pytest.raises(ValueError, match='muon_learning_rate: expected 0 where'):
    optim.make(OptimConfig(muon_learning_rate=0.1), 10)


def test_micro_batches_that_do_not_divide_are_refused():
  state = optim.init({'x': jnp.float32(1)}, SGD)
  with pytest.raises(ValueError, match=r'micro_batches: .* batch size 8, got 3'):
    update(state, {'row': ROWS}, 3)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'learning_rate': -1e-4},
      'learning_rate: expected a finite number of 0 or more, got -0.0001',
    ),
    (
      {'weight_decay': math.nan},
      'weight_decay: expected a finite number of 0 or more, got nan',
    ),
    (
      {'muon_learning_rate': math.inf},
      'muon_learning_rate: expected a finite number of 0 or more, got inf',
    ),
    ({'final_share': 2.0}, 'final_share: expected 0 to 1, got 2.0'),
    ({'eps': 0.0}, 'eps: expected above 0, got 0.0'),
    ({'b1': 1.5}, 'b1: expected at least 0, less than 1, got 1.5'),
    ({'max_grad_norm': 0.0}, 'max_grad_norm: expected above 0, got 0.0'),
    ({'max_grad_norm': math.nan}, 'max_grad_norm: expected above 0, got nan'),
    ({'warmup_steps': -1}, 'warmup_steps: expected 0 or more, got -1'),
    (
      {'masters': 'bfloat16'},
      "masters: expected one of float32, stochastic, none, got 'bfloat16'",
    ),
    (
      {'moments': 'bfloat16', 'b2': 0.999},
      'b2: expected at most 0.99609375 with moments bfloat16, which rounds smaller '
      'changes of a mean away, got 0.999; lower it, or set moments to float32',
    ),
  ],
)
def test_impossible_settings_are_refused(settings, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 - compared whole, below
    OptimConfig(**settings)
  assert str(error.value) == message
