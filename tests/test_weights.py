"""Checkpoints in and out: the same bytes, straight to the devices, and plain errors."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hub import BASE, FAMILIES, ours, theirs

from r1jax.hub import families, hf_checkpoint, safetensors_writer, storage, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.hub.storage import WeightsError
from r1jax.model import decoder
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding


def tensors(folder):
  """Every tensor of a checkpoint, by name, as the library reads it."""
  found: dict[str, np.ndarray] = {}
  for file in folder.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


everywhere = named_sharding(make_mesh(jax.devices()[:1]))


def round_trip(source, target, dtype=None, **settings):
  checkpoint = open_checkpoint(source)
  params = weights.read(checkpoint, everywhere, dtype)
  named = weights.tensors(params, checkpoint)
  write_folder(target, named, **settings)
  return params


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
  ],
)
def test_leaves_lie_where_they_are_asked_to(model_type, shape, tmp_path):
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


def test_fp8_blocks_are_read_times_their_scales(tmp_path):
  # 160 by 300: blocks of 128, the last ones not full.
  rng = np.random.default_rng(0)
  values = rng.normal(size=(160, 300)).astype(ml_dtypes.float8_e4m3fn)
  scales = rng.uniform(0.5, 2, (2, 3)).astype(np.float32)
  named = {'w': values, 'w_scale_inv': scales}
  safetensors.numpy.save_file(named, tmp_path / storage.SINGLE)
  found = storage.read_as(
    dict(storage.find_tensors(tmp_path)), 'w', np.dtype(np.float32)
  )
  for row, column in [(0, 0), (127, 128), (128, 127), (159, 299), (130, 260)]:
    scale = scales[row // 128, column // 128]
    assert found[row, column] == np.float32(values[row, column]) * scale
  # Rows that begin and end within a block.
  for rows in (range(100, 140), range(130, 160), range(5, 6)):
    some = storage.read_as(
      dict(storage.find_tensors(tmp_path)), 'w', np.dtype(np.float32), rows
    )
    np.testing.assert_array_equal(some, found[rows.start : rows.stop])


@pytest.fixture
def folder(tmp_path):
  theirs('llama', {}).save_pretrained(tmp_path / 'a', max_shard_size='20KB')
  return tmp_path / 'a'


def changed(folder, name, change):
  """The checkpoint with another tensor in a place."""
  placed = json.loads((folder / storage.INDEX).read_text())['weight_map'][name]
  named = safetensors.numpy.load_file(folder / placed)
  named[name] = change(named[name])
  safetensors.numpy.save_file(named, folder / placed)


K = 'model.layers.1.self_attn.k_proj.weight'


def test_a_missing_shard_is_named(folder):
  file = sorted(folder.glob('*.safetensors'))[1]
  file.unlink()
  with pytest.raises(WeightsError, match=rf'{file.name}, which .* is missing'):
    open_checkpoint(folder)


@pytest.mark.parametrize('left', [0, 7, 100, -1])
def test_a_shard_that_is_cut_off_is_named_before_anything_is_read(folder, left):
  file = min(folder.glob('*.safetensors'))
  file.write_bytes(file.read_bytes()[:left])
  with pytest.raises(WeightsError, match=rf'{file.name} is truncated, damaged'):
    open_checkpoint(folder)


def test_a_header_that_lies_about_its_length_is_refused(folder):
  file = min(folder.glob('*.safetensors'))
  file.write_bytes(struct.pack('<Q', 2**60) + file.read_bytes()[8:])
  with pytest.raises(WeightsError, match=rf'{file.name} is truncated, damaged'):
    open_checkpoint(folder)


def test_a_tensor_of_another_shape_is_named(folder):
  changed(folder, K, lambda x: x[:, :-1].copy())
  message = r'k_proj.weight: expected the shape \(16, 32\) .*, found \(16, 31\)'
  with pytest.raises(WeightsError, match=message):
    open_checkpoint(folder)


def test_a_tensor_of_another_type_is_named(folder):
  changed(folder, K, lambda x: x.astype(np.int32))
  with pytest.raises(WeightsError, match=r'k_proj.*expected one of F32.*I32'):
    open_checkpoint(folder)


def test_fp8_without_its_scales_is_refused(folder):
  changed(folder, K, lambda x: x.astype(ml_dtypes.float8_e4m3fn))
  with pytest.raises(WeightsError, match=r'scales .*_scale_inv .*found none'):
    open_checkpoint(folder)


def test_a_missing_tensor_is_named(folder):
  config = json.loads((folder / 'config.json').read_text())
  config['num_hidden_layers'] = 3
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(WeightsError, match=r'model\.layers\.2\..* is missing'):
    open_checkpoint(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder):
  index = json.loads((folder / storage.INDEX).read_text())
  index['weight_map'][K] = '../elsewhere.safetensors'
  (folder / storage.INDEX).write_text(json.dumps(index))
  with pytest.raises(WeightsError, match='expected file names'):
    open_checkpoint(folder)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'config.json does not exist'),
    ('{', 'config.json cannot be read'),
    ('[1]', 'config.json: expected an object, got a list'),
    ('int8', "config.json: dtype: expected one of float32, .*, got 'int8'"),
  ],
)
def test_a_bad_config_is_named(folder, content, message):
  if content == 'int8':
    raw = json.loads((folder / 'config.json').read_text())
    content = json.dumps({**raw, 'dtype': 'int8'})
  (folder / 'config.json').unlink()
  if content is not None:
    (folder / 'config.json').write_text(content)
  with pytest.raises(WeightsError, match=message):
    open_checkpoint(folder)


def test_pickles_are_never_opened(tmp_path):
  config = transformers.LlamaConfig(**BASE).to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config, default=str))
  (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n')
  with pytest.raises(WeightsError, match=r'_model.bin is a pickle, which is'):
    open_checkpoint(tmp_path)


def test_a_folder_that_is_not_there_or_a_file_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  for name, what in (('nothing', 'does not exist'), ('file', 'is a file')):
    with pytest.raises(WeightsError, match=f'which {what}'):
      open_checkpoint(tmp_path / name)


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


def test_parameters_have_the_shapes_of_the_decoders_own(tmp_path):
  _, params = ours(theirs('deepseek_v3', FAMILIES['deepseek_v3']), tmp_path / 'a')
  config = open_checkpoint(tmp_path / 'a').config
  expected = decoder.shapes(config, BASE['vocab_size'])
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, expected)


def test_a_head_that_is_stored_beside_a_tied_embedding_follows_it(tmp_path):
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


def test_a_tensor_of_a_layer_that_would_be_left_out_is_named(folder):
  name = 'model.layers.1.self_attn.q_proj.bias'
  file = min(folder.glob('*.safetensors'))
  named = {**safetensors.numpy.load_file(file), name: np.zeros(32, np.float32)}
  safetensors.numpy.save_file(named, file)
  with pytest.raises(WeightsError, match=rf'{name}: expected no such tensor'):
    open_checkpoint(folder)


def test_numbers_that_float16_does_not_hold_are_refused(folder, tmp_path):
  changed(folder, K, lambda x: np.where(x == x.max(), np.float32(-1e5), x))
  checkpoint = open_checkpoint(folder)
  params = weights.read(checkpoint, everywhere)
  named = weights.tensors(params, checkpoint, 'float16')
  with pytest.raises(WeightsError, match=rf'{K}: .* fit float16, got 1e\+05'):
    write_folder(tmp_path / 'out', named)
  assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_what_is_written_may_be_read_by_others(tmp_path):
  write_folder(tmp_path / 'out', iter([('a', np.zeros(3))]))
  assert (tmp_path / 'out' / storage.SINGLE).stat().st_mode & 0o444 == 0o444


def test_a_checkpoint_with_other_numbers_has_another_digest(folder):
  before = open_checkpoint(folder).digest
  assert open_checkpoint(folder).digest == before
  changed(folder, K, lambda x: x + 1)
  assert open_checkpoint(folder).digest != before


def test_an_index_that_is_none_is_named(folder):
  (folder / storage.INDEX).write_text('{"weight_map": {"a": 5}}')
  with pytest.raises(WeightsError, match='expected a weight_map from tensors'):
    open_checkpoint(folder)


def put(folder, named, **fields):
  """Another set of tensors in a checkpoint of one file; fields of its config."""
  safetensors.numpy.save_file(named, folder / storage.SINGLE)
  raw = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(raw | fields))


def same(before, after):
  assert before.keys() == after.keys()
  for name, expected in before.items():
    assert after[name].dtype == expected.dtype, name
    assert after[name].shape == expected.shape, name
    assert after[name].tobytes() == expected.tobytes(), name


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
def test_each_tensor_is_written_in_the_type_that_it_has(model_type, tmp_path):
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
def test_routers_stay_float32_whatever_the_others_are(model_type, tmp_path):
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


def test_tensors_that_nothing_uses_may_be_of_any_type(folder, tmp_path):
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


@pytest.mark.parametrize(
  ('dtype', 'value'),
  [
    ('float32', np.nan),
    ('bfloat16', np.inf),
    ('float16', -np.inf),
    ('float8_e4m3fn', np.nan),
    ('float32', -np.nan),
  ],
)
@pytest.mark.parametrize('held', ['float32', 'bfloat16'])
def test_numbers_that_are_not_finite_are_named(folder, dtype, value, held):
  def spoil(x):
    x = x.astype(dtype)
    x[5, 3] = value
    return x

  changed(folder, K, spoil)
  placed = json.loads((folder / storage.INDEX).read_text())['weight_map']
  file = folder / placed[K]
  if dtype.startswith('float8'):
    named = safetensors.torch.load_file(file)
    named[K + storage.SCALES] = torch.ones(1, 1)
    safetensors.torch.save_file(named, file)
  checkpoint = open_checkpoint(folder)
  message = rf'{file.name}: {K}: expected finite .*, found NaN or infinity in row 5'
  with pytest.raises(WeightsError, match=message):
    weights.read(checkpoint, everywhere, held)


@pytest.mark.parametrize('tied', [True, False])
def test_a_base_model_is_read_by_the_names_that_it_has(tied, tmp_path):
  reference = theirs('qwen2', {'tie_word_embeddings': tied})
  reference.model.save_pretrained(tmp_path / 'a')
  named = tensors(tmp_path / 'a')
  assert 'norm.weight' in named
  if not tied:
    with pytest.raises(WeightsError, match=r'lm_head\.weight is missing'):
      open_checkpoint(tmp_path / 'a')
    named['output.weight'] = reference.lm_head.weight.detach().numpy()
    put(tmp_path / 'a', named)
    with pytest.raises(WeightsError, match=r'output.weight has that shape'):
      open_checkpoint(tmp_path / 'a')
    return
  params = round_trip(tmp_path / 'a', tmp_path / 'b')
  same(named, tensors(tmp_path / 'b'))
  _, expected = ours(reference, tmp_path / 'c')
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_of_a_tied_matrix_the_heads_name_may_be_left(tmp_path):
  _, expected = ours(theirs('llama', {'tie_word_embeddings': True}), tmp_path / 'a')
  named = tensors(tmp_path / 'a')
  named[hf_checkpoint.HEAD] = named.pop(hf_checkpoint.EMBEDDING)
  put(tmp_path / 'a', named)
  params = round_trip(tmp_path / 'a', tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  same(named, tensors(tmp_path / 'b'))


def test_a_head_of_its_own_counts_though_the_config_says_tied(tmp_path):
  # As transformers does, which then does not tie them.
  theirs('llama', {}).save_pretrained(tmp_path / 'a')
  put(tmp_path / 'a', tensors(tmp_path / 'a'), tie_word_embeddings=True)
  opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'a')
  head = opened.lm_head.weight.detach().numpy()
  assert not np.array_equal(head, opened.model.embed_tokens.weight.detach().numpy())
  checkpoint = open_checkpoint(tmp_path / 'a')
  params = round_trip(tmp_path / 'a', tmp_path / 'b')
  np.testing.assert_array_equal(params['head'], head)
  same(tensors(tmp_path / 'a'), tensors(tmp_path / 'b'))
  written = families.update_config(checkpoint.raw, checkpoint.config)
  assert written['tie_word_embeddings'] is False


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
def test_rarer_fields_give_every_tensor_back(model_type, fields, tmp_path):
  fields = {**FAMILIES.get(model_type, {}), **fields}
  theirs(model_type, fields).save_pretrained(tmp_path / 'a')
  round_trip(tmp_path / 'a', tmp_path / 'b')
  same(tensors(tmp_path / 'a'), tensors(tmp_path / 'b'))


@pytest.mark.parametrize('shards', ['gone', 'there'])
def test_a_single_file_comes_before_an_index_that_was_left_behind(folder, shards):
  old = {file: file.read_bytes() for file in folder.glob('*.safetensors')}
  model = theirs('llama', {})
  with torch.no_grad():
    model.model.embed_tokens.weight.add_(1)
  model.save_pretrained(folder)  # removes the shards and leaves the index
  assert (folder / storage.INDEX).exists()
  for file, content in old.items() if shards == 'there' else ():
    file.write_bytes(content)
  if shards == 'there':
    with pytest.warns(UserWarning, match='has both model.safetensors and the shards'):
      checkpoint = open_checkpoint(folder)
  else:
    checkpoint = open_checkpoint(folder)
  opened = transformers.AutoModelForCausalLM.from_pretrained(folder)
  expected = opened.model.embed_tokens.weight.detach().numpy()
  params = weights.read(checkpoint, everywhere)
  np.testing.assert_array_equal(params['embedding'], expected)


def test_a_file_is_written_a_tensor_at_a_time_and_aligned(tmp_path):
  given = {
    'a': np.arange(3, dtype=ml_dtypes.bfloat16),  # an odd number of two bytes each
    'b': np.arange(5, dtype=np.float32).reshape(5, 1),
    'c': np.array(7, np.float32),
    'd': np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T,
  }
  shard = safetensors_writer._Shard(tmp_path / 'x.safetensors')
  for name, array in given.items():
    shard.add(name, array)
  shard.close()
  assert [file.name for file in tmp_path.iterdir()] == ['x.safetensors']
  found = safetensors.torch.load_file(tmp_path / 'x.safetensors')
  assert found.keys() == given.keys()
  for name, array in given.items():
    assert tuple(found[name].shape) == array.shape
    np.testing.assert_array_equal(found[name].float(), array.astype(np.float32))
  for _, stored in storage.read_header(tmp_path / 'x.safetensors'):
    assert stored.start % storage.DTYPES[stored.kind].itemsize == 0
