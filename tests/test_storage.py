"""Tensors in safetensors files: read by rows, scaled, written and aligned."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hub import BASE, K, changed, everywhere, theirs

from r1jax.hub import safetensors_writer, storage, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.storage import WeightsError


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


@pytest.mark.parametrize('left', [0, 7, 100, -1])
def test_a_truncated_shard_is_named_before_anything_is_read(folder, left):
  file = min(folder.glob('*.safetensors'))
  file.write_bytes(file.read_bytes()[:left])
  with pytest.raises(WeightsError, match=rf'{file.name} is truncated, damaged'):
    open_checkpoint(folder)


def test_a_header_with_a_wrong_length_is_refused(folder):
  file = min(folder.glob('*.safetensors'))
  file.write_bytes(struct.pack('<Q', 2**60) + file.read_bytes()[8:])
  with pytest.raises(WeightsError, match=rf'{file.name} is truncated, damaged'):
    open_checkpoint(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder):
  index = json.loads((folder / storage.INDEX).read_text())
  index['weight_map'][K] = '../elsewhere.safetensors'
  (folder / storage.INDEX).write_text(json.dumps(index))
  with pytest.raises(WeightsError, match='expected file names'):
    open_checkpoint(folder)


def test_pickles_are_never_opened(tmp_path):
  config = transformers.LlamaConfig(**BASE).to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config, default=str))
  (tmp_path / 'pytorch_model.bin').write_bytes(b'cos\nsystem\n')
  with pytest.raises(WeightsError, match=r'_model.bin is a pickle, which is'):
    open_checkpoint(tmp_path)


def test_an_invalid_index_is_named(folder):
  (folder / storage.INDEX).write_text('{"weight_map": {"a": 5}}')
  with pytest.raises(WeightsError, match='expected a weight_map from tensors'):
    open_checkpoint(folder)


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


@pytest.mark.parametrize('shards', ['gone', 'there'])
def test_a_single_file_wins_over_a_stale_index(folder, shards):
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
