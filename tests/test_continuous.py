"""Continuous batching against sampling all outputs at once, and against a schedule."""

import dataclasses
import functools
import heapq
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from r1jax.model import decoder
from r1jax.model.attention import attend_all
from r1jax.model.config import Latent, ModelConfig, Sliding
from r1jax.sampling import continuous, generate, slots
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch, replicate
from r1jax.trees import KV, Head

VOCAB = 7
SMALL = ModelConfig(d_model=16, layers=2, heads=4, kv_heads=2, head_dim=6, d_ff=20)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(VOCAB, size=(16, 5)).astype(np.int32)
PROMPT_MASK = np.arange(5) >= RNG.integers(0, 5, (16, 1))
KEYS = jax.random.split(jax.random.key(0), 16)
MODELS = {
  'one kv head': dataclasses.replace(SMALL, kv_heads=1),
  'two kv heads': SMALL,
  'latent': dataclasses.replace(
    SMALL, kv_heads=4, latent=Latent(kv_rank=8, q_rank=6, rope_dim=2, value_dim=4)
  ),
  'a window': dataclasses.replace(SMALL, sliding=Sliding(6, full=(0,))),
  'bfloat16': dataclasses.replace(SMALL, dtype='bfloat16'),
}


def random_params(config):
  init = functools.partial(decoder.init, config, VOCAB)
  shapes = meta.unbox(jax.eval_shape(init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(np.float32), shapes
  )


def sampler(model, sample=generate.sample, stop_ids=(2,), **settings):
  settings = {'group_size': 4, 'config': SamplingConfig(), **settings}
  temperature = jnp.float32(1)
  return jax.jit(
    functools.partial(
      sample, model=model, stop_ids=stop_ids, temperature=temperature, **settings
    )
  )


def functions(config):
  return DecoderFns(*decoder.functions(config, VOCAB))


@pytest.fixture
def short_blocks(monkeypatch):
  """Blocks of 4 columns and steps of few rows, so that short outputs see all sizes."""
  for module in (slots, continuous):
    monkeypatch.setattr(module, 'BLOCK', 4)
  monkeypatch.setattr(continuous, 'MIN_ROWS', 2)


@pytest.fixture
def sizes(monkeypatch):
  """The sizes of the steps that were taken."""
  seen: list[continuous._Size] = []
  turns = continuous._Decoding.turns

  def noted(self, size, *args):
    jax.debug.callback(lambda: seen.append(size))
    return turns(self, size, *args)

  monkeypatch.setattr(continuous._Decoding, 'turns', noted)
  return seen


@pytest.mark.parametrize('name', MODELS)
def test_slots_change_no_completion(short_blocks, sizes, name):
  config = MODELS[name]
  arrays = random_params(config), KEYS, PROMPTS, PROMPT_MASK
  plain = sampler(functions(config), max_length=40)(*arrays)
  found = sampler(functions(config), continuous.sample, max_length=40, slots=9)(*arrays)
  lengths = np.sort(np.asarray(plain.mask).sum(-1).ravel())
  assert lengths[0] == 1  # the first token ends it
  assert lengths[-1] > 30 > 1.5 * np.median(lengths)
  if name == 'bfloat16':  # sums of another order may round to the next number
    same = np.asarray(found.tokens) == np.asarray(plain.tokens)
    assert same.mean() > 0.9
    np.testing.assert_allclose(found.logp[same], plain.logp[same], atol=0.05)
    return
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  np.testing.assert_array_equal(found.mask, plain.mask)
  np.testing.assert_allclose(found.logp, plain.logp, rtol=1e-5, atol=1e-5)
  jax.effects_barrier()
  # Fewer rows, the newest segment alone, and one or two of the staircases.
  assert len(set(sizes)) >= 4, set(sizes)


@pytest.mark.parametrize('count', [1, 63, 100])
def test_any_number_of_slots_will_do(count):
  arrays = random_params(SMALL), KEYS, PROMPTS, PROMPT_MASK
  plain = sampler(functions(SMALL), max_length=6)(*arrays)
  sample = sampler(functions(SMALL), continuous.sample, max_length=6, slots=count)
  np.testing.assert_array_equal(sample(*arrays).tokens, plain.tokens)


@pytest.mark.parametrize('length', [1, 2])
def test_outputs_may_be_as_short_as_a_token(length):
  arrays = random_params(SMALL), KEYS, PROMPTS, PROMPT_MASK
  plain = sampler(functions(SMALL), max_length=length)(*arrays)
  sample = sampler(functions(SMALL), continuous.sample, max_length=length, slots=5)
  found = sample(*arrays)
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  np.testing.assert_array_equal(found.mask, plain.mask)


def test_all_outputs_may_have_the_maximum_length(short_blocks, sizes):
  arrays = random_params(SMALL), KEYS, PROMPTS, PROMPT_MASK
  settings: dict[str, Any] = {'stop_ids': (), 'max_length': 30}
  plain = sampler(functions(SMALL), **settings)(*arrays)
  found = sampler(functions(SMALL), continuous.sample, slots=9, **settings)(*arrays)
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  assert np.asarray(found.mask).all()
  jax.effects_barrier()
  assert (9, (9, 9, 9, 9)) in sizes


def test_prompts_and_slots_may_be_sharded(short_blocks):
  settings: dict[str, Any] = {'max_length': 40, 'slots': 12, 'shards': 4}
  params = random_params(SMALL)
  plain = sampler(functions(SMALL), max_length=40)(params, KEYS, PROMPTS, PROMPT_MASK)
  mesh = make_mesh(jax.devices()[:4])
  arrays = put_batch(mesh, (KEYS, PROMPTS, PROMPT_MASK))
  sample = sampler(functions(SMALL), continuous.sample, **settings)
  found = sample(replicate(mesh, params), *arrays)
  np.testing.assert_array_equal(found.tokens, plain.tokens)
  np.testing.assert_array_equal(found.mask, plain.mask)
  np.testing.assert_allclose(found.logp, plain.logp, rtol=1e-5, atol=1e-5)


def counting_model(steps):
  """Says the next smaller number; calls `steps` with the tokens of each step."""

  def forward(params, tokens_BT, positions, document, context=()):
    kv = jnp.zeros((1, len(tokens_BT), 1, 1, tokens_BT.shape[1]))
    return tokens_BT, KV(kv, jnp.swapaxes(kv, -1, -2))

  def make_decode(params):
    def decode(token_B, position_B, context, column):
      jax.debug.callback(lambda tokens: steps.append(np.asarray(tokens)), token_B)
      return token_B, context[-1][0]

    return decode

  def logits(params, hidden):
    return 100.0 * jax.nn.one_hot(hidden - 1, 100)

  nothing: Any = None  # unused here
  return DecoderFns(forward, logits, make_decode, nothing, Head(nothing, nothing))


@pytest.mark.parametrize('count', [2, 4, 7])
def test_a_finished_output_makes_room_at_once(count):
  # An output counts down to 0, which ends it; it takes one step for each number.
  lengths = np.random.default_rng(1).geometric(0.1, size=40)
  steps: list[np.ndarray] = []
  sample = sampler(
    counting_model(steps),
    continuous.sample,
    stop_ids=(0,),
    max_length=90,
    group_size=1,
    slots=count,
  )
  prompts = (lengths + 1)[:, None].astype(np.int32)
  mask = np.ones((40, 1), bool)
  found = sample({}, jax.random.split(jax.random.key(0), 40), prompts, mask)
  jax.effects_barrier()
  np.testing.assert_array_equal(np.asarray(found.mask).sum((1, 2)), lengths + 1)
  # Each output begins as soon as one of the slots is free: with less than `IDLE` slots
  # none waits for others to be refilled with it.
  assert count < continuous.IDLE
  free = [0] * count
  for length in lengths:
    heapq.heappush(free, heapq.heappop(free) + length)
  assert len(steps) == max(free)


@pytest.mark.parametrize(('slots', 'group_size', 'at_a_time'), [(8, 2, 4), (3, 4, 1)])
def test_prompts_are_computed_with_no_more_rows_than_slots(
  slots, group_size, at_a_time
):
  seen = []
  model = counting_model([])

  def forward(params, tokens_BT, *rest):
    seen.append(len(tokens_BT))
    return model.forward(params, tokens_BT, *rest)

  sample = sampler(
    model._replace(forward=forward),
    continuous.sample,
    stop_ids=(0,),
    max_length=9,
    group_size=group_size,
    slots=slots,
  )
  prompts = np.arange(1, 9, dtype=np.int32)[:, None]
  keys = jax.random.split(jax.random.key(0), 8)
  found = sample({}, keys, prompts, np.ones((8, 1), bool))
  lengths = np.asarray(found.mask).sum(-1)
  np.testing.assert_array_equal(lengths, np.tile(prompts, group_size))
  assert set(seen) == {at_a_time}


def test_a_segment_of_the_first_rows_has_no_weight_in_others():
  rng = np.random.default_rng(0)
  q, k, v, old_k, old_v = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((4, 1, 4, 3), (4, 2, 3, 5), (4, 2, 5, 3), (2, 2, 3, 6), (2, 2, 6, 3))
  )
  mask, old_mask = (jnp.asarray(rng.random((4, n)) < 0.7) for n in (5, 6))
  both = attend_all(q, [(KV(k, v), mask), (KV(old_k, old_v), old_mask)])
  first = attend_all(
    q[:2], [(KV(k[:2], v[:2]), mask[:2]), (KV(old_k, old_v), old_mask[:2])]
  )
  others = attend_all(q[2:], [(KV(k[2:], v[2:]), mask[2:])])
  np.testing.assert_allclose(both, jnp.concatenate([first, others]), rtol=1e-6)
