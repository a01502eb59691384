"""Samples against softmax, decoding against the full forward pass, scores of both."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy import stats

from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.sampling import cache, generate, sampler
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import (
  SamplingConfig,
  draw_logits,
  inverse_cdf,
  sample_token,
)
from r1jax.sampling.score import score_tokens
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import put_batch, replicate
from r1jax.trees import KV, Head

VOCAB = 7
SMALL = ModelConfig(d_model=16, layers=2, heads=4, kv_heads=2, head_dim=6, d_ff=20)
MODEL = DecoderFns(*decoder.functions(SMALL, VOCAB))
# Lengths 5, 2 and 3 behind their padding.
PROMPTS = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 6, 2], [0, 0, 3, 3, 1]], np.int32)
PROMPT_MASK = np.arange(5) >= np.array([[0], [3], [2]])
# Log-probs in float32 after two layers: equal to five digits.
CLOSE: Any = {'rtol': 1e-5, 'atol': 1e-5}
# Once in ten thousand fixed seeds a right sampler is below this.
UNLIKELY = 1e-4


def random_params(config):
  init = functools.partial(decoder.init, config, VOCAB)
  shapes = meta.unbox(jax.eval_shape(init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(np.float32), shapes
  )


@pytest.fixture(scope='module')
def params():
  return random_params(SMALL)


@functools.cache
def compiled_sample(cache_block, **settings):
  assert cache_block == cache.CACHE_BLOCK  # unseen by the compiler's own cache
  return jax.jit(functools.partial(generate.sample, **settings))


def sample(
  params,
  seed=0,
  prompts=PROMPTS,
  prompt_mask=PROMPT_MASK,
  temperature=None,
  **settings,
):
  settings = {
    'model': MODEL,
    'config': SamplingConfig(),
    'group_size': 4,
    'max_length': 11,
    'stop_ids': (),
    **settings,
  }
  run = compiled_sample(cache.CACHE_BLOCK, **settings)
  keys = jax.random.split(jax.random.key(seed), len(prompts))
  return jax.device_get(
    run(params, keys, prompts, prompt_mask, temperature=temperature)
  )


@jax.jit
def compiled_score(params, prompts, prompt_mask, tokens, temperature):
  return score_tokens(
    params, prompts, prompt_mask, tokens, model=MODEL, temperature=temperature
  )


def score(params, tokens, prompts=PROMPTS, prompt_mask=PROMPT_MASK, temperature=1.0):
  return compiled_score(params, prompts, prompt_mask, tokens, temperature)


@jax.jit
def compiled_forward(params, tokens_BT):
  positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
  hidden, _ = MODEL.forward(params, tokens_BT, positions, jnp.zeros_like(tokens_BT))
  return MODEL.logits(params, hidden)


def full_forward(params, row):
  """Logits [T, V] of a whole row: no segments, no cache, no padding on the left."""
  # What follows has no influence; with one length there is one compilation.
  return compiled_forward(params, np.pad(row, (0, 16 - len(row)))[None])[0, : len(row)]


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_tokens(length, group_size=2):
  shape = (len(PROMPTS), group_size, length)
  return np.random.default_rng(1).integers(VOCAB, size=shape).astype(np.int32)


@pytest.mark.parametrize('temperature', [1.0, 0.7])
@pytest.mark.parametrize('length', [1, 6])
def test_score_is_the_log_softmax_of_the_full_forward_pass(params, length, temperature):
  tokens = random_tokens(length)
  logp, entropy = score(params, tokens, temperature=temperature)
  assert logp.shape == entropy.shape == tokens.shape
  for p, g in np.ndindex(tokens.shape[:2]):
    prompt = PROMPTS[p][PROMPT_MASK[p]]
    row = np.concatenate([prompt, tokens[p, g]])
    logits = full_forward(params, row)[len(prompt) - 1 : -1]
    expected = log_softmax(logits / temperature)
    np.testing.assert_allclose(
      logp[p, g], expected[np.arange(length), tokens[p, g]], **CLOSE
    )
    np.testing.assert_allclose(
      entropy[p, g], -(np.exp(expected) * expected).sum(-1), **CLOSE
    )


def test_score_accepts_numpy_arrays(params):
  tokens = random_tokens(6, group_size=1)
  # Two outputs of three tokens in a row.
  offsets = np.broadcast_to(np.arange(6) % 3, tokens.shape).astype(np.int32)
  documents = np.broadcast_to(np.arange(6) // 3 + 1, tokens.shape).astype(np.int32)
  arrays: Any = PROMPTS, PROMPT_MASK, tokens, offsets, documents
  packed, _ = score_tokens(params, *arrays, model=MODEL)
  alone, _ = score(params, tokens.reshape(len(PROMPTS), 2, 3))
  np.testing.assert_allclose(packed.reshape(alone.shape), alone, **CLOSE)


def test_a_shared_prompt_equals_a_repeated_one_in_values_and_gradients(params):
  tokens = random_tokens(6, group_size=3)
  weight = np.random.default_rng(2).normal(size=(2, *tokens.shape)).astype(np.float32)

  def shared(params):
    logp, entropy = score(params, tokens)
    return jnp.sum(weight[0] * logp + weight[1] * entropy), (logp, entropy)

  def repeated(params):
    prompts, mask = (np.repeat(x, 3, axis=0) for x in (PROMPTS, PROMPT_MASK))
    logp, entropy = score(params, tokens.reshape(9, 1, 6), prompts, mask)
    logp, entropy = logp.reshape(3, 3, 6), entropy.reshape(3, 3, 6)
    return jnp.sum(weight[0] * logp + weight[1] * entropy), (logp, entropy)

  gradient, values = jax.grad(shared, has_aux=True)(params)
  expected_gradient, expected = jax.grad(repeated, has_aux=True)(params)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), values, expected)
  # 1e-4: sums over rows in another order.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    gradient,
    expected_gradient,
  )


@pytest.mark.parametrize('length', [5, 11])
def test_decode_matches_forward(params, monkeypatch, length):
  # The last token is not read: 5 fills one block, 11 fills two and a half.
  monkeypatch.setattr(cache, 'CACHE_BLOCK', 4)
  for temperature in (1.0, 0.7):
    drawn = sample(
      params, max_length=length, stop_ids=(5,), temperature=jnp.float32(temperature)
    )
    assert drawn.mask.sum(-1).max() == length
    logp, _ = score(params, drawn.tokens, temperature=temperature)
    np.testing.assert_allclose(drawn.logp, np.where(drawn.mask, logp, 0), **CLOSE)


def test_greedy_is_the_argmax_of_a_full_forward_pass_at_every_step(params):
  drawn = sample(params, temperature=jnp.float32(0))
  for p in range(len(PROMPTS)):
    row = list(PROMPTS[p][PROMPT_MASK[p]])
    start = len(row)
    while len(row) < start + 11:
      row.append(int(np.argmax(full_forward(params, row)[-1])))
    for g in range(4):
      assert drawn.tokens[p, g].tolist() == row[start:]
  assert (drawn.logp == 0).all()  # it is certain


def test_pairs_of_tokens_have_the_frequencies_of_the_softmax(params):
  group_size = 4000
  drawn = sample(params, group_size=group_size, max_length=2)
  for p in range(len(PROMPTS)):
    prompt = PROMPTS[p][PROMPT_MASK[p]]
    rows = [full_forward(params, [*prompt, token]) for token in range(VOCAB)]
    logp = log_softmax(np.stack(rows))
    joint = np.exp(logp[0, -2][:, None] + logp[:, -1])
    counts = np.zeros((VOCAB, VOCAB))
    np.add.at(counts, (drawn.tokens[p, :, 0], drawn.tokens[p, :, 1]), 1)
    assert chi_square(counts.ravel(), joint.ravel()) > UNLIKELY


def chi_square(counts, probability):
  """The p-value of counts; outcomes rarer than five draws are counted as one."""
  expected = probability * counts.sum()
  assert counts[probability == 0].sum() == 0
  rare = expected < 5
  counts, expected = (np.array([*x[~rare], x[rare].sum()]) for x in (counts, expected))
  kept = expected > 0
  return stats.chisquare(counts[kept], expected[kept]).pvalue


def truncated(logits, temperature, top_k, top_p):
  """Probabilities [V] after temperature, top-k and top-p, token by token."""
  probability = np.exp(log_softmax(logits / temperature))
  order = np.argsort(-probability, kind='stable')
  kept = order[: top_k or None]
  probability = probability / probability[kept].sum()
  nucleus, total = [], 0.0
  for token in kept:
    if total < top_p:
      nucleus.append(token)
    total += probability[token]
  result = np.zeros_like(probability)
  result[nucleus] = probability[nucleus] / probability[nucleus].sum()
  return result


LOGITS = np.array([0.3, 2.0, -1.0, 1.1, 0.0, 1.9, -3.0, 0.9], np.float32)
TRUNCATIONS = [
  (0.7, 0, 1.0),
  (1.5, 3, 1.0),
  (1.0, 50, 1.0),
  (2.0, 0, 0.9),
  (0.7, 0, 1e-6),
  (1.3, 5, 0.8),
]


@pytest.mark.parametrize(('temperature', 'top_k', 'top_p'), TRUNCATIONS)
def test_draws_have_the_frequencies_of_the_truncated_softmax(temperature, top_k, top_p):
  config = SamplingConfig(temperature, top_k, top_p)
  rows = jnp.broadcast_to(LOGITS, (8000, len(LOGITS)))
  draw = jax.jit(functools.partial(sample_token, config=config))
  uniform = jax.random.uniform(jax.random.key(3), (8000,))
  token, logp = draw(uniform, rows, temperature=jnp.float32(temperature))
  expected = truncated(LOGITS.astype(float), temperature, top_k, top_p)
  np.testing.assert_allclose(logp, np.log(expected[token]), **CLOSE)
  counts = np.bincount(token, minlength=len(LOGITS))
  if np.count_nonzero(expected) == 1:
    assert (token == np.argmax(LOGITS)).all()
  else:
    assert chi_square(counts, expected) > UNLIKELY


ALMOST_1 = np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize(
  ('uniform', 'expected'),
  [(0.0, 0), (0.24, 0), (0.25, 2), (0.74, 2), (0.75, 3), (ALMOST_1, 3)],
)
def test_inverse_cdf_by_hand(uniform, expected):
  # Shares 1/4, 0, 1/2, 1/4, 0; a place without a share is never taken.
  weights = jnp.array([1.0, 0.0, 2.0, 1.0, 0.0])
  assert inverse_cdf(jnp.float32(uniform), weights) == expected


def test_inverse_cdf_over_many_blocks():
  weights = np.random.default_rng(0).random((50, 1000)).astype(np.float32) ** 8
  weights[:, ::3] = 0
  weights[:, 700:] = 0  # the last blocks are empty
  uniform = np.linspace(0, ALMOST_1, 50, dtype=np.float32)
  got = inverse_cdf(jnp.asarray(uniform), jnp.asarray(weights))
  total = np.cumsum(weights.astype(float), axis=1)
  target = uniform * total[:, -1]
  rows = np.arange(50)
  assert (weights[rows, got] > 0).all()
  # float32 sums of numbers up to 100, so the place may be wrong by that much at an edge
  assert (total[rows, got] > target - 1e-4).all()
  assert (total[rows, got] - weights[rows, got] < target + 1e-4).all()


@pytest.fixture(params=['sort', 'search'])
def top_p_by(request, monkeypatch):
  """Top-p by sorting, or by the search that a CPU makes with a large vocabulary."""
  monkeypatch.setattr(sampler, 'MANY', 1 if request.param == 'search' else 10**9)


@pytest.mark.parametrize(('temperature', 'top_k', 'top_p'), TRUNCATIONS)
def test_truncation_row_by_row(top_p_by, temperature, top_k, top_p):
  logits = np.random.default_rng(4).normal(0, 2, (3, 5, 9)).astype(np.float32)
  kept = draw_logits(jnp.asarray(logits), jnp.float32(temperature), top_k, top_p)
  for index in np.ndindex(3, 5):
    np.testing.assert_allclose(
      jax.nn.softmax(kept[index]),
      truncated(logits[index].astype(float), temperature, top_k, top_p),
      **CLOSE,
    )


def test_ties_at_the_cut_are_kept(top_p_by):
  logits = np.log(np.array([0.4, 0.2, 0.2, 0.2], np.float32))
  for settings in ({'top_k': 2}, {'top_p': 0.5}):
    assert np.isfinite(
      draw_logits(jnp.asarray(logits), jnp.float32(1), **settings)
    ).all()


def test_the_nucleus_is_the_smallest_set_of_the_total_probability(top_p_by):
  logits = jnp.log(jnp.array([0.25, 0.5, 0.25]))
  # 1/2 is reached by the first token alone.
  kept = draw_logits(logits, jnp.float32(1), top_p=0.5)
  assert np.isfinite(kept).tolist() == [False, True, False]


def test_a_completion_ends_after_its_first_stop_token(params, monkeypatch):
  free = sample(params)
  assert free.mask.all()
  monkeypatch.setattr(cache, 'CACHE_BLOCK', 4)
  stopped = sample(params, stop_ids=(2, 4))
  lengths = set()
  for p, g in np.ndindex(3, 4):
    tokens = free.tokens[p, g].tolist()
    length = next((t + 1 for t in range(11) if tokens[t] in (2, 4)), 11)
    lengths.add(length)
    assert stopped.mask[p, g].tolist() == [t < length for t in range(11)]
    assert stopped.tokens[p, g].tolist() == tokens[:length] + [0] * (11 - length)
    np.testing.assert_allclose(
      stopped.logp[p, g], np.where(stopped.mask[p, g], free.logp[p, g], 0), **CLOSE
    )
  assert len(lengths) > 3


@pytest.mark.parametrize('kind', ['bfloat16', 'int8', 'int8 bfloat16'])
def test_scores_agree_with_a_sampler_of_lower_precision(params, kind):
  config = dataclasses.replace(SMALL, dtype='bfloat16') if 'bfloat16' in kind else SMALL
  model = DecoderFns(*decoder.functions(config, VOCAB))
  sampler = decoder.quantize(params, config) if 'int8' in kind else params
  drawn = sample(sampler, model=model)
  score = jax.jit(functools.partial(score_tokens, model=model))
  same, _ = score(sampler, PROMPTS, PROMPT_MASK, drawn.tokens)
  # Of the same weights: bfloat16 rounds to 2^-9, in sums of another order.
  closeness = 0.05 if 'bfloat16' in kind else 1e-4
  np.testing.assert_allclose(drawn.logp, same, atol=closeness)
  if 'int8' in kind:
    other, _ = score(params, PROMPTS, PROMPT_MASK, drawn.tokens)
    drift = np.abs(drawn.logp - other).mean()
    assert 1e-3 < drift < 0.1, drift


# With one kv head the cache has another shape; see `attention.write`.
@pytest.mark.parametrize(
  ('kv_heads', 'dtype'), [(1, 'float32'), (2, 'float32'), (2, 'bfloat16')]
)
def test_compaction_changes_no_completion(monkeypatch, kv_heads, dtype):
  monkeypatch.setattr(cache, 'CACHE_BLOCK', 4)
  monkeypatch.setattr(generate, 'MIN_ROWS', 1)
  config = dataclasses.replace(SMALL, kv_heads=kv_heads, dtype=dtype)
  model = DecoderFns(*decoder.functions(config, VOCAB))
  plain, moved = (
    sample(
      random_params(config),
      model=model,
      stop_ids=(2,),
      max_length=24,
      compact=compact,
    )
    for compact in (False, True)
  )
  # 12 rows, then 4, then 1: lengths differ so that all of it is run, and the last one
  # goes on beyond half of the columns.
  lengths = np.sort(plain.mask.sum(-1).ravel())
  assert lengths[-5] < lengths[-2] < lengths[-1], lengths
  assert lengths[-1] > 14
  if dtype == 'bfloat16':  # sums of another order may round to the next number
    same = moved.tokens == plain.tokens
    assert same.mean() > 0.9
    np.testing.assert_allclose(moved.logp[same], plain.logp[same], atol=0.05)
    return
  np.testing.assert_array_equal(moved.tokens, plain.tokens)
  np.testing.assert_array_equal(moved.mask, plain.mask)
  np.testing.assert_allclose(moved.logp, plain.logp, **CLOSE)


def counting_model(seen):
  """Says the next number after the token it reads; calls `seen` at each reading."""

  def forward(params, tokens_BT, positions, document, context=()):
    jax.debug.callback(lambda tokens: seen.append(tokens.shape[1]), tokens_BT)
    k = jnp.zeros((1, len(tokens_BT), 1, 1, tokens_BT.shape[1]))
    return tokens_BT, KV(k, jnp.swapaxes(k, -1, -2))

  def logits(params, hidden):
    return 100.0 * jax.nn.one_hot((hidden + 1) % 10, 10)

  def make_decode(params):
    def decode(token_B, position_B, context, column):
      hidden, _ = forward(params, token_B[:, None], None, None)
      return hidden[:, 0], context[-1][0]

    return decode

  nothing: Any = None  # unused here
  return DecoderFns(forward, logits, make_decode, nothing, Head(nothing, nothing))


def test_the_loop_ends_with_the_last_completion():
  seen: list[int] = []
  drawn = sample(
    {},
    prompts=np.array([[0, 3], [8, 7]], np.int32),
    prompt_mask=np.array([[False, True], [True, True]]),
    group_size=2,
    model=counting_model(seen),
    max_length=6,
    stop_ids=(6, 9),
  )
  jax.effects_barrier()
  for g in range(2):
    assert drawn.tokens[:, g].tolist() == [[4, 5, 6, 0, 0, 0], [8, 9, 0, 0, 0, 0]]
    assert drawn.mask[:, g].tolist() == [
      [True] * 3 + [False] * 3,
      [True] * 2 + [False] * 4,
    ]
  # The prompts once, then 4 and 5; 6 ends the last one unread.
  assert seen == [2, 1, 1]


@pytest.mark.parametrize('block', [1, 3])
def test_completions_without_a_stop_have_the_maximum_length(monkeypatch, block):
  monkeypatch.setattr(cache, 'CACHE_BLOCK', block)
  prompts = np.array([[1, 3]], np.int32)
  for length in (1, 4):
    drawn = sample(
      {},
      prompts=prompts,
      prompt_mask=np.ones((1, 2), bool),
      model=counting_model([]),
      max_length=length,
      group_size=1,
    )
    assert drawn.tokens.tolist() == [[[4, 5, 6, 7][:length]]]
    assert drawn.mask.tolist() == [[[True] * length]]


def test_sharded_prompts_get_the_same_samples(params):
  prompts = np.concatenate([PROMPTS, PROMPTS[:1]])
  prompt_mask = np.concatenate([PROMPT_MASK, PROMPT_MASK[:1]])
  keys = jax.random.split(jax.random.key(0), 4)

  def run(devices):
    place = make_mesh(devices)
    arrays = put_batch(place, (keys, prompts, prompt_mask))
    settings = {'group_size': 4, 'max_length': 11, 'stop_ids': (2,), 'compact': False}
    drawn = compiled_sample(
      cache.CACHE_BLOCK, model=MODEL, config=SamplingConfig(), **settings
    )(replicate(place, params), *arrays, temperature=None)
    assert drawn.tokens.sharding.device_set == set(devices)
    return jax.device_get(drawn)

  one, four = run(jax.devices()[:1]), run(jax.devices()[:4])
  np.testing.assert_array_equal(four.tokens, one.tokens)
  np.testing.assert_array_equal(four.mask, one.mask)
  np.testing.assert_allclose(four.logp, one.logp, **CLOSE)


def test_padding_of_prompts_changes_nothing(params):
  drawn = sample(params)
  padded = np.pad(PROMPTS, ((0, 0), (4, 0)), constant_values=6)
  mask = np.pad(PROMPT_MASK, ((0, 0), (4, 0)))
  again = sample(params, prompts=padded, prompt_mask=mask)
  np.testing.assert_array_equal(again.tokens, drawn.tokens)
  np.testing.assert_allclose(again.logp, drawn.logp, **CLOSE)


def test_everything_random_comes_from_the_key(params):
  first, same, other = (sample(params, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.tokens, same.tokens)
  np.testing.assert_array_equal(first.logp, same.logp)
  assert (first.tokens != other.tokens).any(-1).all()


def test_tokens_of_a_completion_are_drawn_independently():
  # Four tokens of probability 1/4 at every position, whatever came before.
  model = counting_model([])._replace(
    logits=lambda params, hidden: jnp.zeros((len(hidden), 4))
  )
  drawn = sample({}, model=model, group_size=400, max_length=4)
  rows = drawn.tokens.reshape(-1, 4)
  for i, j in itertools.combinations(range(4), 2):
    counts = np.bincount(4 * rows[:, i] + rows[:, j], minlength=16)
    assert chi_square(counts, np.full(16, 1 / 16)) > UNLIKELY


def test_samples_do_not_depend_on_the_other_prompts(params):
  together = sample(params)
  keys = jax.random.split(jax.random.key(0), len(PROMPTS))
  run = compiled_sample(
    cache.CACHE_BLOCK,
    model=MODEL,
    config=SamplingConfig(),
    group_size=4,
    max_length=11,
    stop_ids=(),
  )
  for p in range(len(PROMPTS)):
    only = slice(p, p + 1)
    alone = run(params, keys[only], PROMPTS[only], PROMPT_MASK[only], temperature=None)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[p])


def test_samples_of_a_group_differ(params):
  for group in sample(params).tokens:
    assert len({tuple(row) for row in group.tolist()}) == 4


def test_a_given_temperature_overrides_the_configured_one(params):
  expected = sample(params, config=SamplingConfig(0.5))
  drawn = sample(params, config=SamplingConfig(1.0), temperature=jnp.float32(0.5))
  jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    (
      'temperature',
      -0.1,
      'temperature: expected a finite number of 0 or more, got -0.1',
    ),
    (
      'temperature',
      float('nan'),
      'temperature: expected a finite number of 0 or more, got nan',
    ),
    ('top_k', -1, r'top_k: expected 0 \(all tokens\) or more, got -1'),
    ('top_p', 0.0, 'top_p: expected more than 0, at most 1, got 0.0'),
    ('top_p', 1.5, 'top_p: expected more than 0, at most 1, got 1.5'),
    ('top_p', float('nan'), 'top_p: expected more than 0, at most 1, got nan'),
  ],
)
def test_impossible_settings_are_refused(field, value, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    dataclasses.replace(SamplingConfig(), **{field: value})
