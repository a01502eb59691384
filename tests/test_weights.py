"""Checkpoints in and out: the same bytes, straight to the devices."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hub import (
  BASE,
  FAMILIES,
  K,
  changed,
  everywhere,
  ours,
  put,
  round_trip,
  same,
  tensors,
  theirs,
)

from r1jax.hub import hf_checkpoint, storage, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.hub.storage import WeightsError
from r1jax.model import decoder


@pytest.mark.parametrize('model_type', FAMILIES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_round_trip_gives_every_tensor_back_bit_for_bit(model_type, dtype, tmp_path):
  model = theirs(model_type, FAMILIES[model_type]).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / 'a', max_shard_size='20KB')
  assert (tmp_path / 'a' / storage.INDEX).exists()
  # bfloat16 fits in float32, and comes back.
  round_trip(tmp_path / 'a', tmp_path / 'b', 'float32', shard_bytes=30_000)
  before, after = tensors(tmp_path / 'a'), tensors(tmp_path / 'b')
  assert before.keys() == after.keys()
  for name, expected in before.items():
    assert after[name].dtype == expected.dtype
    assert after[name].tobytes() == expected.tobytes(), name
  index = json.loads((tmp_path / 'b' / storage.INDEX).read_text())
  for name, file in index['weight_map'].items():
    assert name in safetensors.numpy.load_file(tmp_path / 'b' / file)


def test_transformers_opens_what_was_written(tmp_path):
  model = theirs('qwen2', {'tie_word_embeddings': True})
  model.save_pretrained(tmp_path / 'a')
  config = (tmp_path / 'a/config.json').read_text()
  round_trip(tmp_path / 'a', tmp_path / 'b', files={'config.json': config})
  opened = [
    transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / name, attn_implementation='eager'
    )
    for name in 'ab'
  ]
  before, back = opened
  fields = [one.config.to_dict() | {'_name_or_path': ''} for one in opened]
  assert fields[0] == fields[1]
  tokens = torch.arange(20)[None]
  with torch.no_grad():
    torch.testing.assert_close(
      back(tokens).logits, before(tokens).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize(
  ('model_type', 'shape'),
  [
    ('qwen3_moe', (2, 32, 4, 3)),  # of 12 channels
    ('deepseek_v3', (2, 16, 4, 3)),  # the last 4 of 12 are pairs
    ('qwen2', (2, 32, 4, 2)),
    ('phi3', (2, 32, 4, 2)),  # the first rows of a tensor
  ],
)
def test_leaves_have_the_requested_shardings(model_type, shape, tmp_path):
  theirs(model_type, FAMILIES[model_type]).save_pretrained(tmp_path / 'a')
  checkpoint = open_checkpoint(tmp_path / 'a')
  whole = weights.read(checkpoint, everywhere)
  auto = (jax.sharding.AxisType.Auto,)
  devices = jax.make_mesh((4,), ('x',), axis_types=auto, devices=jax.devices()[:4])

  def cut(leaf):
    """Over the last axis that four devices divide."""
    axes = [n for n, size in enumerate(leaf.shape) if size % 4 == 0 and n]
    spec = ['x' if axes and n == axes[-1] else None for n in range(leaf.ndim)]
    return jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(*spec))

  parts = weights.read(checkpoint, jax.tree.map(cut, whole))
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  shards = parts['blocks']['query'].addressable_shards
  assert {shard.data.shape for shard in shards} == {shape}


@pytest.fixture
def folder(tmp_path):
  theirs('llama', {}).save_pretrained(tmp_path / 'a', max_shard_size='20KB')
  return tmp_path / 'a'


def test_nothing_is_half_written(tmp_path):
  def broken():
    yield 'a', np.zeros(3, np.float32)
    raise RuntimeError('no more')

  with pytest.raises(RuntimeError, match='no more'):
    write_folder(tmp_path / 'out', broken())
  assert not list(tmp_path.iterdir())
  write_folder(tmp_path / 'out', iter([('a', np.zeros(3))]))
  with pytest.raises(WeightsError, match='out already exists'):
    write_folder(tmp_path / 'out', iter([]))


def test_parameters_have_the_decoders_shapes(tmp_path):
  _, params = ours(theirs('deepseek_v3', FAMILIES['deepseek_v3']), tmp_path / 'a')
  config = open_checkpoint(tmp_path / 'a').config
  expected = decoder.shapes(config, BASE['vocab_size'])
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, expected)


def test_the_stored_copy_of_a_tied_embedding_is_updated(tmp_path):
  theirs('llama', {'tie_word_embeddings': True}).save_pretrained(tmp_path / 'a')
  named = tensors(tmp_path / 'a')
  named[hf_checkpoint.HEAD] = named['model.embed_tokens.weight'].copy()
  safetensors.numpy.save_file(named, tmp_path / 'a' / storage.SINGLE)
  checkpoint = open_checkpoint(tmp_path / 'a')
  params = weights.read(checkpoint, everywhere)
  params = {**params, 'embedding': params['embedding'] + 1}
  written = dict(weights.tensors(params, checkpoint))
  np.testing.assert_array_equal(
    written[hf_checkpoint.HEAD], named['model.embed_tokens.weight'] + 1
  )


def test_numbers_too_large_for_float16_are_refused(folder, tmp_path):
  changed(folder, K, lambda x: np.where(x == x.max(), np.float32(-1e5), x))
  checkpoint = open_checkpoint(folder)
  params = weights.read(checkpoint, everywhere)
  named = weights.tensors(params, checkpoint, 'float16')
  with pytest.raises(WeightsError, match=rf'{K}: .* fit float16, got 1e\+05'):
    write_folder(tmp_path / 'out', named)
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_written_files_are_readable_by_all_users(tmp_path):
  write_folder(tmp_path / 'out', iter([('a', np.zeros(3))]))
  assert (tmp_path / 'out' / storage.SINGLE).stat().st_mode & 0o444 == 0o444


BIAS = 'gate.e_score_correction_bias'


MIXED = {
  # As DeepSeek-V3 is published: the routing bias alone is float32.
  'deepseek_v3': lambda name: 'float32' if name.endswith(BIAS) else 'bfloat16',
  'qwen3_moe': lambda name: 'float32' if 'mlp.gate.' in name else 'bfloat16',
  'llama': lambda name: 'float32' if 'norm' in name else 'bfloat16',
  # Types that differ between the layers of one stack.
  'qwen2': lambda name: (
    'float16' if 'embed' in name else 'float32' if 'layers.1' in name else 'bfloat16'
  ),
}


@pytest.mark.parametrize('model_type', MIXED)
def test_each_tensor_keeps_its_type(model_type, tmp_path):
  theirs(model_type, FAMILIES[model_type]).save_pretrained(tmp_path / 'a')
  named = {
    name: (x + 7 if name.endswith(BIAS) else x).astype(MIXED[model_type](name))
    for name, x in tensors(tmp_path / 'a').items()
  }
  put(tmp_path / 'a', named, dtype='bfloat16')
  for n, dtype in enumerate((None, 'float32')):
    round_trip(tmp_path / 'a', tmp_path / f'b{n}', dtype)
    same(named, tensors(tmp_path / f'b{n}'))


@pytest.mark.parametrize('model_type', ['deepseek_v3', 'qwen3_moe'])
def test_routers_stay_float32(model_type, tmp_path):
  model = theirs(model_type, FAMILIES[model_type])
  model.save_pretrained(tmp_path / 'a')
  checkpoint = open_checkpoint(tmp_path / 'a')
  params = weights.read(checkpoint, everywhere, 'bfloat16')
  shapes = decoder.shapes(checkpoint.config, BASE['vocab_size'])
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
    lambda x: (x.shape, x.dtype), decoder.with_dtype(shapes, 'bfloat16')
  )
  kept = {path[-1].key for path, x in jax.tree_util.tree_leaves_with_path(params)
          if x.dtype == np.float32}  # fmt: skip
  assert kept == {'router'} | ({'balance'} if model_type == 'deepseek_v3' else set())
  # Also where another type is asked for.
  write_folder(tmp_path / 'b', weights.tensors(params, checkpoint, 'bfloat16'))
  before = tensors(tmp_path / 'a')
  for name, x in tensors(tmp_path / 'b').items():
    routes = 'mlp.gate.' in name
    assert x.dtype.name == ('float32' if routes else 'bfloat16'), name
    if routes:
      np.testing.assert_array_equal(x, before[name])


def test_int8_weights_of_a_model_with_experts_leave_its_router(tmp_path):
  model, params = ours(theirs('deepseek_v3', FAMILIES['deepseek_v3']), tmp_path / 'a')
  config = open_checkpoint(tmp_path / 'a').config
  tokens = np.arange(20)[None]
  rest = (np.arange(20)[None], np.zeros((1, 20), int))
  whole, _ = model.forward(params, tokens, *rest)
  rounded, _ = model.forward(decoder.quantize(params, config), tokens, *rest)
  # Half a step of 1/127 a weight; hidden states are of order 1.
  assert 0 < np.abs(whole - rounded).mean() < 0.1


def test_unused_tensors_may_have_any_type(folder, tmp_path):
  beside = {
    'masks.ids': np.arange(5),
    'masks.seen': np.array(3, np.int64),
    'masks.flags': np.array([True, False]),
    'masks.double': np.array([1 / 3, np.nan]),
    'masks.packed': np.arange(4, dtype=np.uint8),
    'masks.scales': np.ones(2, ml_dtypes.float8_e5m2),
  }
  write_folder(tmp_path / 'x', iter(beside.items()))
  file = (tmp_path / 'x' / storage.SINGLE).rename(folder / 'more.safetensors')
  index = json.loads((folder / storage.INDEX).read_text())
  index['weight_map'] |= dict.fromkeys(beside, file.name)
  (folder / storage.INDEX).write_text(json.dumps(index))
  round_trip(folder, tmp_path / 'b')
  after = dict(storage.find_tensors(tmp_path / 'b'))
  for name, x in beside.items():
    assert after[name].copy().tobytes() == x.tobytes()
    assert after[name].shape == x.shape
  assert open_checkpoint(folder).digest


@pytest.mark.parametrize('named', ['float64', 'double', 'torch.float64', 'auto'])
def test_a_checkpoint_in_float64_is_computed_in_float32(named, tmp_path):
  theirs('llama', {}).to(torch.float64).save_pretrained(tmp_path / 'a')
  put(tmp_path / 'a', tensors(tmp_path / 'a'), dtype=named)
  params = round_trip(tmp_path / 'a', tmp_path / 'b')
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
  before, after = tensors(tmp_path / 'a'), tensors(tmp_path / 'b')
  assert {x.dtype.name for x in after.values()} == {'float64'}
  np.testing.assert_array_equal(after[K], before[K].astype(np.float32))


def test_experts_without_a_shared_one_keep_its_empty_tensors(tmp_path):
  fields = {**FAMILIES['deepseek_v3'], 'n_shared_experts': 0}
  theirs('deepseek_v3', fields).save_pretrained(tmp_path / 'a')
  round_trip(tmp_path / 'a', tmp_path / 'b')
  same(tensors(tmp_path / 'a'), tensors(tmp_path / 'b'))


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    ('deepseek_v3', {'attention_bias': True}),
    ('deepseek_v3', {'first_k_dense_replace': 3}),
    ('qwen3_moe', {'num_hidden_layers': 4, 'decoder_sparse_step': 2}),
    ('llama', {'attention_bias': True}),
    ('mistral', {'sliding_window': None}),
    ('seed_oss', {'head_dim': 12, 'attention_out_bias': True}),
  ],
)
def test_rare_fields_give_every_tensor_back(model_type, fields, tmp_path):
  fields = {**FAMILIES.get(model_type, {}), **fields}
  theirs(model_type, fields).save_pretrained(tmp_path / 'a')
  round_trip(tmp_path / 'a', tmp_path / 'b')
  same(tensors(tmp_path / 'a'), tensors(tmp_path / 'b'))
