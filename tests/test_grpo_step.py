"""One update of a policy: invariances that hold for every algorithm and any model."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax import algorithms, optim, packing, update
from r1jax.grpo import GRPOConfig, objective
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.score import score_tokens
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch, put_boxed
from r1jax.sharding.rules import named_sharding

VOCAB = 7
# Not Adam, which divides by the gradient's size and so would hide a wrong one.
SGD = optax.sgd(0.5)
# A program that runs once takes longer to optimize than to run.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


def bigram(
  params, prompts, prompt_mask, tokens, offsets=None, documents=None, *, temperature
):
  """Scores as `score_tokens` does, where a token depends on the one before."""
  if offsets is None:
    offsets = jnp.broadcast_to(jnp.arange(tokens.shape[-1])[None, None], tokens.shape)
  before = jnp.roll(tokens, 1, axis=-1)
  before = jnp.where(offsets == 0, prompts[:, -1, None, None], before)
  logp = jax.nn.log_softmax(params['table'] / temperature)[before]
  entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
  return jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0], entropy


class Outputs(NamedTuple):
  """The arguments of `packing.pack`, and the outputs' lengths [P, G]."""

  lengths: Any
  prompts: Any
  prompt_mask: Any
  tokens: Any
  old_logp: Any
  ref_logp: Any
  advantage: Any
  sampler_logp: Any = None

  @property
  def mask(self):
    return np.arange(self.tokens.shape[-1]) < self.lengths[..., None]

  def packed(self, rows=4):
    """Returns the rollout in micro-batches, and the number of micro-batches in use."""
    layout = packing.plan(self.lengths, self.tokens.shape[-1], rows, 2)
    fields = self._asdict()
    del fields['lengths']
    rollout = packing.pack(layout, **fields)
    return jax.tree.map(jnp.asarray, rollout), jnp.int32(layout.count)


def random_outputs(prompts, group_size, length, seed=0):
  """Random tokens of ragged outputs, with log-probs that no policy gave them."""
  rng = np.random.default_rng(seed)
  shape = (prompts, group_size, length)
  real = rng.integers(1, 4, size=(prompts, 1))
  old_logp, ref_logp = rng.normal(-2, 0.5, (2, *shape)).astype(np.float32)
  return Outputs(
    lengths=rng.integers(1, length + 1, size=(prompts, group_size)),
    prompts=rng.integers(VOCAB, size=(prompts, 3)).astype(np.int32),
    prompt_mask=np.arange(3) >= 3 - real,
    tokens=rng.integers(VOCAB, size=shape).astype(np.int32),
    old_logp=old_logp,
    ref_logp=ref_logp,
    advantage=rng.normal(size=shape[:2]).astype(np.float32),
  )


def make_step(config=algorithms.PRESETS['grpo'], optimizer=SGD, score=bigram):
  return jax.jit(
    functools.partial(update.step, score=score, optimizer=optimizer, config=config),
    compiler_options=QUICK,
  )


def table(seed=3):
  return {'table': jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))}


def close(got, expected, **tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected
  )


@pytest.mark.parametrize('name', algorithms.PRESETS)
def test_a_step_does_not_depend_on_the_micro_batches(name):
  outputs = random_outputs(prompts=4, group_size=3, length=5)
  tokens = outputs.lengths.sum(1).tolist()
  assert len(set(tokens)) > 1, 'parts of equal size would hide a wrong total'
  state, step = optim.init(table(), SGD), make_step(algorithms.PRESETS[name])
  packed = [outputs.packed(rows) for rows in (8, 4, 2)]
  assert [int(count) for _, count in packed] == [1, 2, 4]
  one, two, four = (step(state, *batch, jnp.float32(0.7)) for batch in packed)
  assert np.any(np.abs(one[0].params['table'] - state.params['table']) > 1e-5)
  # float32 sums in another order: 60 terms near 1
  close(two, one, rtol=2e-5, atol=2e-6)
  close(four, one, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('constant', [True, False])
def test_the_entropy_bonus_is_the_slope_of_the_mean_entropy(constant):
  outputs = random_outputs(prompts=4, group_size=3, length=5)
  batch, count = outputs.packed(4)
  params, temperature = table(), jnp.float32(0.7)
  config = algorithms.PRESETS['dapo']
  with_bonus = dataclasses.replace(config, entropy_coef=0.3) if constant else config

  @functools.partial(jax.jit, compiler_options=QUICK, static_argnames='config')
  def slope(coef, config):
    return update.gradients(
      params, batch, count, temperature, coef, score=bigram, config=config
    )

  plain, _ = slope(None, config)
  got, metrics = slope(None if constant else jnp.float32(0.3), with_bonus)

  def mean_entropy(params):
    prompts = jnp.asarray(outputs.prompts)
    rest = jnp.asarray(outputs.prompt_mask), jnp.asarray(outputs.tokens)
    _, entropy = bigram(params, prompts, *rest, temperature=temperature)
    return jnp.sum(entropy * outputs.mask) / outputs.mask.sum()

  mean, bonus = jax.value_and_grad(mean_entropy)(params)
  np.testing.assert_allclose(metrics['entropy'], mean, rtol=1e-5)
  close(got, jax.tree.map(lambda x, y: x - 0.3 * y, plain, bonus), atol=2e-6)


@pytest.mark.parametrize('sampled_by_another', [False, True])
def test_a_step_follows_the_gradient_of_the_objective(sampled_by_another):
  # With a real model. Outputs share rows: one must not attend to another.
  config = GRPOConfig(kl_coef=0.3)
  outputs = random_outputs(prompts=3, group_size=4, length=6)
  if sampled_by_another:
    noise = np.random.default_rng(1).normal(0, 0.5, outputs.old_logp.shape)
    sampler_logp = (outputs.old_logp + noise).astype(np.float32)
    outputs = outputs._replace(sampler_logp=sampler_logp)
  params = jax.tree.map(lambda box: box.value, random_boxed(MODEL), is_leaf=is_box)
  score = functools.partial(
    score_tokens, model=DecoderFns(*decoder.functions(MODEL, VOCAB))
  )
  temperature = jnp.float32(0.7)

  def loss(params):
    logp, _ = score(
      params,
      outputs.prompts,
      outputs.prompt_mask,
      outputs.tokens,
      temperature=temperature,
    )
    return objective(
      logp,
      outputs.advantage,
      outputs.mask,
      old_logp=outputs.old_logp,
      ref_logp=outputs.ref_logp,
      sampler_logp=outputs.sampler_logp,
      config=config,
    )[0]

  value, slope = jax.jit(jax.value_and_grad(loss))(params)
  state, metrics = make_step(config, score=score)(
    optim.init(params, SGD), *outputs.packed(), temperature
  )
  assert state.step == 1
  # float32 sums in another order; the gradient's entries are up to 1
  close(
    state.params,
    jax.tree.map(lambda x, dx: x - 0.5 * dx, params, slope),
    atol=1e-6,
  )
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
  norm = np.sqrt(sum(np.sum(np.square(dx)) for dx in jax.tree.leaves(slope)))
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)


def test_entropy_is_the_mean_over_tokens():
  # Probabilities 1/4, 3/4 after token 0 and 1/2, 1/2 after token 1, at temperature 1.
  params = {'table': jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))}
  outputs = Outputs(
    lengths=np.array([[3, 1]]),
    prompts=np.array([[0]]),
    prompt_mask=np.array([[True]]),
    tokens=np.array([[[1, 0, 0], [0, 1, 1]]]),
    old_logp=np.zeros((1, 2, 3)),
    ref_logp=None,
    advantage=np.array([[1.0, -1]]),
  )
  _, metrics = make_step()(optim.init(params, SGD), *outputs.packed(), jnp.float32(1))
  # The four tokens stand after 0, 1, 0 and 0.
  after_0, after_1 = 0.25 * np.log(4) + 0.75 * np.log(4 / 3), np.log(2)
  np.testing.assert_allclose(metrics['entropy'], (3 * after_0 + after_1) / 4, rtol=1e-6)
  assert 'kl' not in metrics


def test_values_beyond_the_mask_do_not_change_an_update():
  outputs = random_outputs(prompts=2, group_size=2, length=4)
  state, step = optim.init(table(), SGD), make_step(GRPOConfig(kl_coef=0.3))
  clean = step(state, *outputs.packed(), jnp.float32(1))
  for garbage in (jnp.nan, jnp.inf, -jnp.inf):
    beyond = outputs._replace(
      old_logp=np.where(outputs.mask, outputs.old_logp, garbage),
      ref_logp=np.where(outputs.mask, outputs.ref_logp, garbage),
      tokens=np.where(outputs.mask, outputs.tokens, 0),
    )
    rollout, count = beyond.packed()
    # and on the padding of the rows
    rollout.old_logp = jnp.where(rollout.documents > 0, rollout.old_logp, garbage)
    dirty = step(state, rollout, count, jnp.float32(1))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_learning_rate_0_leaves_the_policy_unchanged():
  optimizer = optim.make(OptimConfig(learning_rate=0.0), total_steps=2)
  outputs = random_outputs(prompts=2, group_size=2, length=4)
  temperature = jnp.float32(0.7)
  before = table()
  logp, _ = bigram(
    before,
    outputs.prompts,
    outputs.prompt_mask,
    outputs.tokens,
    temperature=temperature,
  )
  logp = np.asarray(logp)
  rollout, count = outputs._replace(old_logp=logp, ref_logp=logp).packed()
  state, step = optim.init(before, optimizer), make_step(optimizer=optimizer)
  for _ in range(2):
    state, metrics = step(state, rollout, count, temperature)
    np.testing.assert_array_equal(state.params['table'], before['table'])
    # 1e-6: the same log-probs, compiled separately and together with the loss
    np.testing.assert_allclose(metrics['ratio'], 1, atol=1e-6)
    np.testing.assert_allclose(metrics['drift'], 0, atol=1e-6)
    np.testing.assert_allclose(metrics['kl'], 0, atol=1e-6)
    assert metrics['clip_up'] == metrics['clip_down'] == 0
    assert metrics['grad_norm'] > 0
  assert state.step == 2


MODEL = ModelConfig(d_model=16, layers=2, heads=2, kv_heads=1, head_dim=8, d_ff=32)


def is_box(leaf):
  return hasattr(leaf, 'names')


def random_boxed(config):
  """Parameters of a decoder, drawn without compiling its own `init`."""
  rng = np.random.default_rng(0)
  boxed = jax.eval_shape(
    lambda key: decoder.init(config, VOCAB, key), jax.random.key(0)
  )
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), boxed
  )


def test_a_sharded_step_matches_a_single_device():
  boxed = random_boxed(MODEL)
  model = DecoderFns(*decoder.functions(MODEL, VOCAB))
  step = make_step(
    algorithms.PRESETS['grpo'],
    score=functools.partial(score_tokens, model=model),
  )
  rollout, count = random_outputs(prompts=8, group_size=2, length=6).packed(rows=8)
  assert count == 2

  def run(devices):
    place = make_mesh(devices)
    everywhere = named_sharding(place)
    state = jax.device_put(optim.init(put_boxed(place, boxed), SGD), everywhere)
    batch = put_batch(place, rollout, axis=1)
    numbers = jax.device_put((count, jnp.float32(0.7)), everywhere)
    shards = {shard.data.shape for shard in batch.tokens.addressable_shards}
    assert shards == {(2, 4 // len(devices), 2, 6)}
    with jax.transfer_guard('disallow'):
      after, metrics = step(state, batch, *numbers)
    for leaf in jax.tree.leaves(after.params):
      assert leaf.sharding.device_set == set(devices)
    return state, after, metrics

  before, one, metrics_one = run(jax.devices()[:1])
  _, four, metrics_four = run(jax.devices()[:4])
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), one.params, before.params)
  assert min(jax.tree.leaves(moved)) > 1e-4
  # float32 sums over 8 prompts in another order; a step moves parameters by up to 0.1
  close(jax.device_get(four.params), jax.device_get(one.params), atol=1e-6)
  close(metrics_four, metrics_one, rtol=1e-5)
