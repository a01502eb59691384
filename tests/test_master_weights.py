import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r1jax import master_weights, optim
from r1jax.optim import OptimConfig
from r1jax.runtime.checkpoint import Checkpoints
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.place import like_params
from r1jax.sharding.rules import named_sharding

PATTERNS = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x3F808000, 0x3F818000, 0x7F7FFFFF]


def test_split_and_join_are_inverse():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 0x7F800000, 10_000, dtype=np.uint32)  # every finite size
  bits = np.concatenate([bits, np.array(PATTERNS, np.uint32)])
  masters = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
  rounded, rest = master_weights.split(jnp.asarray(masters))
  assert (rounded.dtype, rest.dtype) == (jnp.bfloat16, jnp.int16)
  back = np.asarray(master_weights.join(rounded, rest))
  np.testing.assert_array_equal(back.view(np.uint32), masters.view(np.uint32))
  # numpy's rounding to bfloat16 takes halves to the even one, this away from 0.
  halves = masters.view(np.uint32) & 0xFFFF == 0x8000
  nearest = masters.astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(np.asarray(rounded)[~halves], nearest[~halves])
  np.testing.assert_array_equal(
    np.asarray(rounded)[halves].astype(np.float32),
    (masters.view(np.uint32)[halves] + np.uint32(0x8000)).view(np.float32),
  )


def weights(shape=(64, 96), scale=0.02):
  return (scale * jax.random.normal(jax.random.key(0), shape)).astype(jnp.bfloat16)


def chain(masters='float32', rate=1e-6, **settings):
  config = OptimConfig(rate, warmup_steps=0, masters=masters, **settings)
  return optim.make(config, 100)


def random_gradients(count, shape=(64, 96)):
  rng = np.random.default_rng(1)
  return [
    {
      'w': jnp.asarray(rng.normal(size=shape), jnp.float32),
      'zero': jnp.asarray(rng.normal(size=8), jnp.float32),
      'gain': jnp.asarray(rng.normal(size=8), jnp.float32),
    }
    for _ in range(count)
  ]


def start(shape=(64, 96)):
  zeros = jnp.zeros(8, jnp.bfloat16)
  return {'w': weights(shape), 'zero': zeros, 'gain': jnp.ones(8)}


@pytest.mark.parametrize('moments', ['float32', 'bfloat16'])
def test_updates_are_those_of_float32_parameters_to_the_bit(moments):
  rule = chain(weight_decay=0.1, rate=1e-4, moments=moments)
  state = optim.init(start(), rule)
  jax.tree.map(np.testing.assert_array_equal, state.params, start())
  masters = master_weights.masters(state.params, state.opt_state)
  jax.tree.map(  # where it begins is within what the parameter stands for
    lambda x, y: np.testing.assert_array_equal(x.astype(y.dtype), y), masters, start()
  )
  assert np.abs(np.asarray(masters['w']) - np.asarray(start()['w'])).max() > 0
  wide = optim.init(masters, rule)
  update = jax.jit(lambda state, g: optim.apply(state, g, optimizer=rule)[0])
  for grads in random_gradients(20):
    state, wide = update(state, grads), update(wide, grads)
  found = master_weights.masters(state.params, state.opt_state)
  jax.tree.map(np.testing.assert_array_equal, found, wide.params)
  assert state.params['w'].dtype == state.params['zero'].dtype == jnp.bfloat16
  assert state.params['gain'].dtype == jnp.float32
  held = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim}
  assert held == {'int16', moments}


def test_float32_parameters_need_no_masters():
  state = optim.init({'w': jnp.ones((4, 4))}, chain())
  assert {x.dtype.name for x in jax.tree.leaves(state.opt_state)} == {
    'float32',
    'int32',
  }


def test_stochastic_rounding_is_right_on_average():
  low, high = jnp.bfloat16(0.02), jnp.bfloat16(0.0201)
  assert high.view(jnp.uint16) - low.view(jnp.uint16) == 1
  x = jnp.full(40_000, 0.25 * jnp.float32(high) + 0.75 * jnp.float32(low))
  rounded = master_weights.round_stochastically(jax.random.key(0), x)
  between = np.unique(np.asarray(rounded, np.float32))
  np.testing.assert_array_equal(between, [float(low), float(high)])
  # 0.25 +- 4 standard deviations of 40,000 draws
  assert abs(np.mean(np.asarray(rounded == high)) - 0.25) < 4 * (0.1875 / 40_000) ** 0.5
  odd = jnp.array([jnp.inf, -jnp.inf, 0.0, 1.5, jnp.nan], jnp.float32)
  again = master_weights.round_stochastically(jax.random.key(1), odd)
  np.testing.assert_array_equal(again.astype(jnp.float32), odd)


@pytest.mark.parametrize('masters', ['float32', 'stochastic'])
def test_random_bits_depend_on_the_seed(masters):
  config = OptimConfig(1e-5, warmup_steps=0, masters=masters)
  (grads,) = random_gradients(1)

  def after(seed):
    rule = optim.make(config, 100, seed=seed)
    state, _ = optim.apply(optim.init(start(), rule), grads, optimizer=rule)
    return np.asarray(state.params['w'])

  first, again, other = after(7), after(7), after(8)
  np.testing.assert_array_equal(first, again)
  # A quarter of them moves, and not the same ones.
  assert (first != np.asarray(start()['w'])).mean() > 0.2
  assert (first != other).mean() > 0.2


@pytest.mark.parametrize('masters', ['float32', 'stochastic'])
def test_sharded_parameters_are_rounded_as_on_one_device(masters):
  rule = chain(masters)
  update = jax.jit(lambda state, g: optim.apply(state, g, optimizer=rule)[0])
  sharded = make_mesh(config=MeshConfig(fsdp=4, tensor=2))
  ends = []
  for place in (make_mesh(jax.devices()[:1]), sharded):
    where = {'w': ('embed', 'mlp'), 'zero': (None,), 'gain': (None,)}
    shardings = {name: named_sharding(place, *axes) for name, axes in where.items()}
    params = {name: jax.device_put(x, shardings[name]) for name, x in start().items()}
    state = like_params(place, optim.init(params, rule), params)
    for x in jax.tree.leaves(state):
      if x.shape == (64, 96):
        assert x.sharding == shardings['w']
    for grads in random_gradients(3):
      state = update(
        state, {n: jax.device_put(g, shardings[n]) for n, g in grads.items()}
      )
    ends.append(jax.device_get(state))
  # The norm that gradients are clipped by is summed in another order, so a step may
  # differ in its last bit, and where rounding stands on an edge a number with it.
  same = np.asarray(ends[0].params['w']) == np.asarray(ends[1].params['w'])
  assert same.mean() > 0.999
  assert (np.asarray(start()['w']) != np.asarray(ends[0].params['w'])).mean() > 0.01


def test_a_checkpoint_resumes_to_the_same_bits(tmp_path):
  rule = chain()
  update = jax.jit(lambda state, g: optim.apply(state, g, optimizer=rule)[0])
  state = optim.init(start(), rule)
  first, *rest = random_gradients(4)
  state = update(state, first)
  saved = Checkpoints(tmp_path / 'a')
  saved.save(1, state, {})
  saved.wait()
  like = jax.eval_shape(lambda: optim.init(start(), rule))
  found, _ = Checkpoints(tmp_path / 'a').resume(like)
  for grads in rest:
    state, found = update(state, grads), update(found, grads)
  jax.tree.map(np.testing.assert_array_equal, state, found)


@pytest.mark.parametrize('parts', [8, 512])
def test_gradients_of_bfloat16_parameters_are_summed_in_float32(parts):
  rows = (np.random.default_rng(0).normal(size=(parts, 1, 500)) + 0.3) / parts
  rows = rows.astype(np.float32)

  def loss(params, part):
    return jnp.sum(params['w'].astype(jnp.float32) * part[0]), {}

  params = {'w': jnp.ones(500, jnp.bfloat16)}
  grads, _ = jax.jit(functools.partial(optim.gradients, loss=loss))(params, rows)
  expected = rows.astype(np.float64).sum((0, 1))
  assert grads['w'].dtype == jnp.float32
  # A part's gradient is itself a bfloat16, rounded by up to 2^-9; these errors average.
  error = np.linalg.norm(grads['w'] - expected) / np.linalg.norm(expected)
  assert error < 2**-9


@pytest.mark.parametrize('masters', ['float32', 'stochastic'])
def test_a_parameter_may_have_more_weights_than_an_int32_counts(masters):
  # DeepSeek-V3's experts are 58 x 256 x 7168 x 2048 in one array.
  params = {'w': jax.ShapeDtypeStruct((58, 256, 7168, 2048), jnp.bfloat16)}
  rule = chain(masters)
  state = jax.eval_shape(lambda x: optim.init(x, rule), params)
  grads = {'w': params['w'].update(dtype=jnp.float32)}
  after, metrics = jax.eval_shape(
    lambda state, grads: optim.apply(state, grads, optimizer=rule), state, grads
  )
  assert after.params['w'].shape == params['w'].shape
  assert metrics['update_size'].shape == ()
  share = jax.eval_shape(lambda x: master_weights.moving_share(x, {'w': 1e-6}), params)
  assert share.dtype == jnp.float32


def test_moving_share_counts_weights_that_change_when_rounded_to_nearest():
  # Below 2^-11 = 4.9e-4 the next bfloat16 is 2^-19 = 1.9e-6 away or less, so a step of
  # 1e-6 is more than half of that: erf(0.0244 / sqrt 2) = 2 % of N(0, 0.02).
  params = {'w': weights((512, 512))}
  for kind, share in ((jnp.bfloat16, 0.0195), (jnp.float32, 1.0)):
    tree = jax.tree.map(lambda x, kind=kind: x.astype(kind), params)
    found = jax.jit(master_weights.moving_share)(tree, {'w': 1e-6})
    assert abs(found - share) < 0.002, kind


ROWS, WIDTH, TOKENS = 64, 256, 512


def logp(params, part):
  """Log-probs of tokens under a policy that reads one token through one layer."""
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  hidden = jnp.tanh(wide['embedding'][part['before']] @ wide['layer'])
  chosen = jax.nn.log_softmax(hidden @ wide['out'])
  return jnp.take_along_axis(chosen, part['token'][:, None], axis=1)[:, 0]


@functools.cache
def learned(dtype, masters, rate):
  """The change of all weights after 20 updates of a policy gradient, and what it gains.

  Of the parameters and of their masters. The gain is the sum of advantage times change
  of log-prob, over the tokens.
  """
  rng = np.random.default_rng(0)
  shapes = {'embedding': (ROWS, WIDTH), 'layer': (WIDTH, WIDTH), 'out': (WIDTH, ROWS)}
  before = {  # rounded to bfloat16 as checkpoints are, whatever they are kept in
    name: jnp.asarray(rng.normal(size=shape) * 0.06, jnp.bfloat16).astype(dtype)
    for name, shape in shapes.items()
  }
  batch = {
    'before': rng.integers(0, ROWS, TOKENS),
    'token': rng.integers(0, ROWS, TOKENS),
    'advantage': rng.normal(size=TOKENS).astype(np.float32),
  }

  def loss(params, part):
    return -jnp.sum(part['advantage'] * logp(params, part)) / TOKENS, {}

  rule = chain(masters, rate)
  step = jax.jit(functools.partial(optim.update, loss=loss, optimizer=rule))
  state = optim.init(before, rule)
  first = master_weights.masters(before, state.opt_state)
  for _ in range(20):
    state, _ = step(state, optim.split_micro_batches(batch, 4))
  last = master_weights.masters(state.params, state.opt_state)

  def change(after, before):
    return np.concatenate(
      [np.ravel(np.float32(after[name]) - np.float32(before[name])) for name in shapes]
    )

  moved = logp(state.params, batch) - logp(before, batch)
  gain = float(np.sum(batch['advantage'] * np.asarray(moved)))
  return change(state.params, before), change(last, first), gain


@pytest.mark.parametrize('rate', [1e-6, 3e-6])
def test_bfloat16_parameters_learn_as_float32_ones_do(rate):
  expected, _, expected_gain = learned('float32', 'float32', rate)
  for masters in ('float32', 'stochastic', 'none'):
    moved, of_masters, gain = learned('bfloat16', masters, rate)
    along = moved @ expected / (expected @ expected)
    print(f'rate {rate:g}, masters {masters}: {along:.3f} of the way of float32')
    print(f'  gain {gain / expected_gain:.3f} of that of float32, {expected_gain:.3f}')
    if masters == 'none':
      assert along < 0.1
      assert gain < 0.1 * expected_gain
      continue
    assert along == pytest.approx(1, abs=0.05)
    assert gain == pytest.approx(expected_gain, rel=0.05)
    if masters == 'float32':
      size = np.linalg.norm(of_masters) / np.linalg.norm(expected)
      assert size == pytest.approx(1, abs=0.05)
