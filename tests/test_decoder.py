"""The decoder against its papers' equations in numpy, and what must not change it."""

import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.test_util import check_grads

from r1jax.model import attention, block, decoder, linear
from r1jax.model.config import (
  Experts,
  Latent,
  ModelConfig,
  Rope,
  Sliding,
  from_dict,
)
from r1jax.model.linear import Int8, dense
from r1jax.sharding.rules import RULES

SMALL = ModelConfig(
  d_model=16, layers=2, heads=4, kv_heads=2, head_dim=6, d_ff=20, rope_theta=30.0
)
# What differs between layers: windows, RoPE's base, layers without it.
PATTERNED = dataclasses.replace(
  SMALL,
  layers=3,
  rope=Rope('linear', factor=2.0, without=(2,), channels=4),
  sliding=Sliding(window=3, full=(1,), theta=10.0),
  norms='both',
  stored_minus_1=True,
  activation='gelu_tanh',
  scaled_embedding=True,
  qk_norm=True,
)
VOCAB = 13
# float32 through two layers and back, on values of order 1.
CLOSE: Any = {'rtol': 1e-4, 'atol': 1e-5}


def random_params(config):
  """Parameters without a special value, gains too, so that each of them counts."""
  init = functools.partial(decoder.init, config, VOCAB)
  shapes = meta.unbox(jax.eval_shape(init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes
  )


@functools.cache
def compiled(config, query_block):
  assert query_block == attention.QUERY_BLOCK  # unseen by the compiler's own cache
  return jax.jit(decoder.functions(config, VOCAB)[0])


def forward(config, params, tokens, positions=None, document=None, context=()):
  tokens = np.asarray(tokens)
  if positions is None:
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  if document is None:
    document = np.zeros_like(tokens)
  run = compiled(config, attention.QUERY_BLOCK)
  return run(params, tokens, positions, np.asarray(document), list(context))


def numpy_logits(config, params, tokens):
  """Logits [T, V] of one row, in float64, a head at a time."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  later = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)

  def norm(x, gain):  # Zhang & Sennrich 2019, eq. 4
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * gain

  def turn(x):  # RoFormer, eq. 34, on channels i and i + C/2
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
    phase = np.exp(1j * np.arange(len(x))[:, None] * frequency)
    z = (x[:, :half] + 1j * x[:, half:]) * phase
    return np.concatenate([z.real, z.imag], axis=1)

  x = params['embedding'][tokens]
  for layer in range(config.layers):
    block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params['blocks'])
    h = norm(x, block['attention_norm']['gain'])
    for head in range(config.heads):
      group = head // (config.heads // config.kv_heads)  # GQA, Ainslie et al. 2023
      q, k = turn(h @ block['query'][:, head]), turn(h @ block['key'][:, group])
      weights = np.exp(q @ k.T / np.sqrt(config.head_dim) + later)
      weights /= weights.sum(-1, keepdims=True)
      x = x + weights @ (h @ block['value'][:, group]) @ block['out'][head]
    h = norm(x, block['mlp_norm']['gain'])
    gate = h @ block['gate']  # SwiGLU, Shazeer 2020, eq. 6
    x = x + (gate / (1 + np.exp(-gate)) * (h @ block['up'])) @ block['down']
  head = params['embedding'] if config.tied else params['head']
  return norm(x, params['norm']['gain']) @ head.T


@pytest.mark.parametrize(('kv_heads', 'tied'), [(1, True), (2, False), (4, True)])
def test_decoder_equals_the_papers_equations(kv_heads, tied):
  # An eps of 0.1 is seen in the result, unlike 1e-6.
  config = dataclasses.replace(SMALL, tied=tied, kv_heads=kv_heads, norm_eps=0.1)
  params = random_params(config)
  tokens = np.random.default_rng(1).integers(VOCAB, size=(2, 9))
  hidden, _ = forward(config, params, tokens)
  logits = decoder.functions(config, VOCAB)[1](params, hidden)
  for row in range(2):
    expected = numpy_logits(config, params, tokens[row])
    np.testing.assert_allclose(logits[row], expected, **CLOSE)


def test_untied_models_have_a_head_of_their_own():
  assert 'head' not in random_params(SMALL)
  assert 'head' in random_params(dataclasses.replace(SMALL, tied=False))


@pytest.mark.parametrize('config', [SMALL, PATTERNED])
def test_packed_documents_do_not_attend_to_each_other(config):
  params = random_params(config)
  rng = np.random.default_rng(2)
  first, second = rng.integers(VOCAB, size=4), rng.integers(VOCAB, size=3)
  weight = rng.normal(size=(7, config.d_model)).astype(np.float32)

  def packed(params):
    hidden, _ = forward(
      config,
      params,
      [[*first, *second]],
      np.array([[0, 1, 2, 3, 0, 1, 2]]),
      [[3, 3, 3, 3, 1, 1, 1]],
    )
    return jnp.sum(hidden[0] * weight), hidden[0]

  def separate(params):
    rows = [forward(config, params, row[None])[0][0] for row in (first, second)]
    hidden = jnp.concatenate(rows)
    return jnp.sum(hidden * weight), hidden

  gradient, hidden = jax.grad(packed, has_aux=True)(params)
  expected_gradient, expected = jax.grad(separate, has_aux=True)(params)
  np.testing.assert_allclose(hidden, expected, **CLOSE)
  # 1e-4: sums over positions in another order.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    gradient,
    expected_gradient,
  )


def test_left_padding_changes_nothing():
  params = random_params(SMALL)
  tokens = np.random.default_rng(3).integers(VOCAB, size=5)
  plain, _ = forward(SMALL, params, tokens[None])
  for padding in (0, 7):
    padded, _ = forward(
      SMALL,
      params,
      [[padding] * 3 + list(tokens)],
      np.array([[0, 0, 0, 0, 1, 2, 3, 4]]),
      [[0, 0, 0, 1, 1, 1, 1, 1]],
    )
    np.testing.assert_allclose(padded[0, 3:], plain[0], **CLOSE)


@pytest.mark.parametrize('config', [SMALL, PATTERNED])
def test_a_row_continued_from_segments_equals_the_full_row(config):
  params = random_params(config)
  tokens = np.random.default_rng(4).integers(VOCAB, size=(2, 7))
  whole, _ = forward(config, params, tokens)
  segments: list[Any] = []
  for start, stop in ((0, 3), (3, 4), (4, 7)):
    positions = np.broadcast_to(np.arange(start, stop), (2, stop - start))
    part, own = forward(
      config, params, tokens[:, start:stop], positions, context=segments
    )
    np.testing.assert_allclose(part, whole[:, start:stop], **CLOSE)
    segments.append((own, np.ones((1, stop - start), bool)))


@pytest.mark.parametrize('remat', ['none', 'dots'])
@pytest.mark.parametrize(
  'parts',
  [
    {},
    {
      'kv_heads': 4,
      'latent': Latent(8, 8, rope_dim=4, value_dim=6),
      'experts': Experts(4, 2, 16, shared=1, dense_layers=1, scores='sigmoid'),
    },
  ],
)
def test_prompts_and_outputs_in_one_call_equal_two_calls(remat, parts):
  config = dataclasses.replace(SMALL, remat=remat, **parts)
  params = random_params(config)
  forward, _, _, both, _ = decoder.functions(config, VOCAB)
  rng = np.random.default_rng(1)
  mask = np.arange(5)[None] >= np.array([0, 2])[:, None]
  prompts = rng.integers(VOCAB, size=(2, 5)), np.cumsum(mask, 1), -1 * mask
  outputs = (
    rng.integers(VOCAB, size=(4, 6)),
    np.repeat(mask.sum(1), 2)[:, None] + np.arange(6),
    np.ones((4, 6), int),
  )

  def in_turn(params):
    first, kv = forward(params, *prompts)
    return first, forward(params, *outputs, [(kv, mask)])[0]

  def together(params):
    return both(params, prompts, outputs, mask)

  def loss(read, params):
    first, second = read(params)
    return (first**2).mean() + jnp.sin(second).mean()

  (one, other), (found, gradient) = (
    (jax.jit(read)(params), jax.jit(jax.grad(functools.partial(loss, read)))(params))
    for read in (in_turn, together)
  )
  close = functools.partial(np.testing.assert_allclose, **CLOSE)
  jax.tree.map(close, (found, gradient), (one, other))


def test_a_later_token_does_not_alter_earlier_hidden_states():
  params = random_params(SMALL)
  tokens = np.random.default_rng(5).integers(VOCAB, size=(1, 8))
  changed = tokens.copy()
  changed[0, 5] = (tokens[0, 5] + 1) % VOCAB
  before, after = (forward(SMALL, params, row)[0][0] for row in (tokens, changed))
  np.testing.assert_array_equal(before[:5], after[:5])
  assert (np.abs(before[5:] - after[5:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_remat_and_query_blocks_change_nothing(monkeypatch, dtype):
  params = random_params(SMALL)
  small = dataclasses.replace(SMALL, dtype=dtype)
  tokens = np.random.default_rng(6).integers(VOCAB, size=(2, 7))
  weight = np.random.default_rng(7).normal(size=(2, 7, 16)).astype(np.float32)

  def gradient(config):
    def weighted(params):
      hidden, _ = forward(config, params, tokens)
      return jnp.sum(hidden * weight), hidden

    return jax.jit(jax.grad(weighted, has_aux=True))

  plain = gradient(small)(params)
  monkeypatch.setattr(attention, 'QUERY_BLOCK', 3)
  for module in (block, linear):
    monkeypatch.setattr(module, 'SHORT', 4)  # products over fewer are computed again
  variants = [
    gradient(dataclasses.replace(small, remat=name))
    for name in ('none', 'dots', 'full')
  ]
  products = [str(jax.make_jaxpr(f)(params)).count('dot_general') for f in variants]
  # They do compute again: attention's products, then those with weights as well.
  assert products[0] < products[1] < products[2]
  # Slopes up to 10; other blocks of queries round other sums to bfloat16.
  closeness = 1e-4 if dtype == 'float32' else 0.1
  for variant in variants:
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=closeness),
      plain,
      variant(params),
    )


def test_bfloat16_changes_hidden_states_by_its_rounding_and_keeps_the_rest_float32():
  params = random_params(SMALL)
  tokens = np.random.default_rng(10).integers(VOCAB, size=(2, 9))
  config = dataclasses.replace(SMALL, dtype='bfloat16')
  plain, _ = forward(SMALL, params, tokens)
  hidden, own = forward(config, params, tokens)
  assert (hidden.dtype, own.k.dtype, own.v.dtype) == ('float32', 'bfloat16', 'bfloat16')
  # A product rounds to 2^-9; a dozen of them in two layers, on states of mean square 1.
  difference = np.abs(hidden - plain)
  assert 1e-4 < np.sqrt(np.mean(difference**2)) < 12 * 2**-9
  logits = decoder.functions(config, VOCAB)[1]
  assert logits(params, hidden).dtype == np.float32
  slopes = jax.grad(lambda params: jnp.sum(forward(config, params, tokens)[0] ** 3))
  assert {leaf.dtype for leaf in jax.tree.leaves(slopes(params))} == {
    np.dtype('float32')
  }


def test_int8_weights_are_off_by_half_a_step_at_most():
  params = random_params(SMALL)
  small = decoder.quantize(params, SMALL)
  for name in ('query', 'key', 'value', 'out', 'gate', 'up', 'down'):
    w = params['blocks'][name]
    values, scale = small['blocks'][name]
    assert values.dtype == np.int8
    assert values.shape == w.shape
    # Of each layer and output a scale: the largest weight that leads there over 127.
    inputs, _ = decoder.matrices(SMALL)['blocks'][name]
    np.testing.assert_allclose(scale, np.abs(w).max(inputs) / 127, rtol=1e-6)
    wide = np.expand_dims(scale, inputs)
    assert (np.abs(values * wide - w) <= 0.5001 * wide).all()
  np.testing.assert_array_equal(small['embedding'], params['embedding'])
  np.testing.assert_array_equal(small['norm']['gain'], params['norm']['gain'])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_int8_weights_equal_their_dequantized_values(dtype):
  params = random_params(SMALL)
  small = decoder.quantize(params, SMALL)
  config = dataclasses.replace(SMALL, dtype=dtype)

  def wide(leaf, axes):
    return leaf.values * jnp.expand_dims(leaf.scale, axes[0]) if axes else leaf

  restored = jax.tree.map(
    wide,
    small,
    decoder.matrices(SMALL),
    is_leaf=lambda leaf: isinstance(leaf, Int8),
  )
  tokens = np.random.default_rng(11).integers(VOCAB, size=(2, 9))
  expected, _ = forward(config, restored, tokens)
  hidden, _ = forward(config, small, tokens)
  if dtype == 'float32':
    np.testing.assert_allclose(hidden, expected, **CLOSE)
  else:  # the dequantized weights are rounded to 2^-9, int8 values are exact
    np.testing.assert_allclose(hidden, expected, atol=12 * 2**-8)
  assert np.abs(hidden - forward(config, params, tokens)[0]).max() > 1e-3


def test_init_has_the_stated_variances_and_different_layers():
  config = ModelConfig(d_model=64, layers=3, heads=4, kv_heads=2, head_dim=8, d_ff=96)
  init = jax.jit(functools.partial(decoder.init, config, 200))
  params = meta.unbox(init(jax.random.key(1)))
  blocks = params['blocks']
  # 1 / sqrt(fan-in); what is added to the stream is sqrt(2 L) smaller.
  for leaf, deviation in [
    (params['embedding'], 1 / 8),
    (blocks['query'], 1 / 8),
    (blocks['key'], 1 / 8),
    (blocks['value'], 1 / 8),
    (blocks['gate'], 1 / 8),
    (blocks['up'], 1 / 8),
    (blocks['out'], 1 / np.sqrt(32 * 6)),
    (blocks['down'], 1 / np.sqrt(96 * 6)),
  ]:
    # At least 3072 draws: the sample's deviation is off by 1.3 %; 5 of these.
    np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.065)
    assert abs(np.mean(leaf)) < 0.1 * deviation
  for name in ('attention_norm', 'mlp_norm'):
    np.testing.assert_array_equal(blocks[name]['gain'], 1)
  assert abs(
    np.corrcoef(blocks['query'][0].ravel(), blocks['query'][1].ravel())[0, 1]
  ) < (0.1)


@pytest.mark.parametrize('tied', [True, False])
def test_matrices_have_their_inputs_as_rows_and_outputs_as_columns(tied):
  config = dataclasses.replace(SMALL, tied=tied)
  params, found = random_params(config), {}

  def shape(path, leaf, axes):
    sides = axes and [math.prod(leaf.shape[axis] for axis in side) for side in axes]
    found[path[-1].key if sides else jax.tree_util.keystr(path)] = sides

  jax.tree_util.tree_map_with_path(shape, params, decoder.matrices(config))
  # 16 channels, 4 heads and 2 kv heads of 6, 20 in the middle of the SwiGLU.
  assert {name: sides for name, sides in found.items() if sides} == {
    'query': [16, 24],
    'key': [16, 12],
    'value': [16, 12],
    'out': [24, 16],
    'gate': [16, 20],
    'up': [16, 20],
    'down': [20, 16],
  }
  assert len(found) == len(jax.tree.leaves(params))


def test_gradients_of_dense_equal_finite_differences():
  rng = np.random.default_rng(9)
  with jax.enable_x64(True):
    x_BTD, w_DF = jnp.asarray(rng.normal(size=(3, 4, 5))), rng.normal(size=(5, 2))
    check_grads(dense, (x_BTD, jnp.asarray(w_DF)), order=1, modes=['rev'])


def test_every_parameter_axis_is_in_the_mesh_table():
  config = dataclasses.replace(SMALL, tied=False)
  init = functools.partial(decoder.init, config, VOCAB)
  boxed = jax.eval_shape(init, jax.random.key(0))
  boxes = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, 'names'))
  assert len(boxes) == 12
  for box in boxes:
    assert len(box.names) == box.value.ndim
    assert set(box.names) <= set(RULES)
  assert boxed['blocks']['query'].names == ('layers', 'embed', 'heads', 'channel')


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('layers', 0, 'model.layers: expected 1 or more, got 0'),
    ('d_ff', -4, 'model.d_ff: expected 1 or more, got -4'),
    ('kv_heads', 3, 'model.kv_heads: expected a divisor of heads=4, got 3'),
    ('head_dim', 5, 'model.head_dim: expected an even number, got 5'),
    ('remat', False, 'model.remat: expected one of none, dots, full, got False'),
    ('dtype', 'bf16', "model.dtype: .* of float32, bfloat16, float64, got 'bf16'"),
    ('norms', 'none', "model.norms: expected one of before, after, both, got 'none'"),
    ('activation', 'relu', 'model.activation: expected one of silu, gelu_tanh, got'),
    ('score_dim', -1, 'model.score_dim: expected 0 or more, got -1'),
    ('rope', Rope(channels=8), 'model.rope.channels: expected at most head_dim=6'),
    (
      'rope',
      Rope('longrope', original_length=8, divisors=(1.0,)),
      'model.rope.divisors: expected 3 for the pairs of channels .*, got 1',
    ),
  ],
)
def test_impossible_sizes_are_refused(field, value, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **{field: value})


@pytest.mark.parametrize(
  ('group', 'message'),
  [
    (
      lambda: Experts(count=6, groups=4),
      'experts.groups: expected a divisor of count=6, got 4',
    ),
    (
      lambda: Experts(count=8, active=5, groups=4, active_groups=2),
      'experts.active: expected at most 4, the experts of 2 groups, got 5',
    ),
    (
      lambda: Experts(count=8, groups=2, active_groups=3),
      'experts.active_groups: expected at most groups=2, got 3',
    ),
    (
      lambda: from_dict({'experts': {'scores': 'relu'}}),
      "experts.scores: .* sigmoid, got 'relu'",
    ),
    (lambda: Latent(kv_rank=-1), 'latent.kv_rank: expected 0 or more, got -1'),
    (lambda: Latent(rope_dim=3), 'latent.rope_dim: expected an even number, got 3'),
    (
      lambda: from_dict({'rope': {'kind': 'ntk'}}),
      "rope.kind: expected one of plain, .*, got 'ntk'",
    ),
    (lambda: Rope('yarn'), 'rope.original_length: expected 1 or more for yarn, got 0'),
    (lambda: Rope('linear', 0.0), 'rope.factor: expected a finite .*, got 0.0'),
    (
      lambda: dataclasses.replace(SMALL, latent=Latent(kv_rank=4)),
      'latent.rope_dim: expected less than head_dim=6, got 64',
    ),
    (
      lambda: dataclasses.replace(SMALL, latent=Latent(kv_rank=4, rope_dim=2)),
      'kv_heads: expected heads=4 with latent attention, got 2',
    ),
    (
      lambda: dataclasses.replace(SMALL, experts=Experts(count=4, dense_layers=2)),
      'experts.dense_layers: expected less than layers=2, got 2',
    ),
    (lambda: Sliding(-1), 'sliding.window: expected 0 or more .*, got -1'),
    (lambda: Rope(channels=3), 'rope.channels: expected an even number .*, got 3'),
    (
      lambda: dataclasses.replace(
        SMALL, kv_heads=4, latent=Latent(4, rope_dim=2), rope=Rope(without=(0,))
      ),
      r'rope.without: expected none with latent attention, got \(0,\)',
    ),
  ],
)
def test_impossible_groups_are_refused(group, message):
  with pytest.raises(ValueError, match=f'model.{message}'):
    group()


@pytest.mark.parametrize(
  'config',
  [
    dataclasses.replace(SMALL, rope=Rope('linear', 2.0), experts=Experts(4)),
    PATTERNED,
  ],
)
def test_from_dict_inverts_the_json_of_asdict(config):
  fields = json.loads(json.dumps(dataclasses.asdict(config)))
  assert from_dict(fields) == config


KINDS: dict[str, dict[str, Any]] = {
  'dense': {'qkv_bias': True, 'qk_norm': True},
  'tied': {'tied': True},
  'latent': {
    'latent': Latent(kv_rank=8, q_rank=6, rope_dim=4, value_dim=6),
    'kv_heads': 4,
  },
  'experts': {
    'experts': Experts(count=4, active=2, d_ff=12, shared=1, scores='sigmoid')
  },
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_rounded_reference_scores_the_same_bits_in_half_the_memory(kind):
  config = dataclasses.replace(SMALL, dtype='bfloat16', **KINDS[kind])
  params = random_params(config)
  rounded = decoder.as_multiplied(params, config)
  run, _, _, _, head = decoder.functions(config, VOCAB)
  tokens = np.asarray([[3, 1, 4, 1, 5]])
  where = np.arange(5)[None]

  @jax.jit
  def logits(params):
    hidden, _ = run(params, tokens, where, np.ones_like(tokens))
    return head.logits(head.matrix(params), hidden)

  np.testing.assert_array_equal(logits(rounded), logits(params))
  kinds = {
    jax.tree_util.keystr(path, simple=True, separator=' '): leaf.dtype
    for path, leaf in jax.tree_util.tree_leaves_with_path(rounded)
  }
  kept = {name.split()[-1] for name, kind in kinds.items() if kind == np.float32}
  norms = {name for name in kept if name.endswith(('gain', 'bias'))}
  assert kept - norms <= {'embedding', 'router', 'balance'}
  assert kinds['blocks out'] == jnp.uint16  # the bits of bfloat16


def test_a_reference_of_a_float32_model_is_not_rounded():
  params = random_params(SMALL)
  for one, other in zip(
    jax.tree.leaves(decoder.as_multiplied(params, SMALL)),
    jax.tree.leaves(params),
    strict=True,
  ):
    assert one is other
