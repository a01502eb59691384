"""Checkpoints are opened, or refused with the file or tensor at fault."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import transformers
from hub import K, changed, ours, put, round_trip, same, tensors, theirs

from r1jax.hub import families, hf_checkpoint
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.storage import WeightsError


@pytest.fixture
def folder(tmp_path):
  theirs('llama', {}).save_pretrained(tmp_path / 'a', max_shard_size='20KB')
  return tmp_path / 'a'


def test_a_missing_shard_is_named(folder):
  file = sorted(folder.glob('*.safetensors'))[1]
  file.unlink()
  with pytest.raises(WeightsError, match=rf'{file.name}, which .* is missing'):
    open_checkpoint(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder):
  changed(folder, K, lambda x: x[:, :-1].copy())
  message = r'k_proj.weight: expected the shape \(16, 32\) .*, found \(16, 31\)'
  with pytest.raises(WeightsError, match=message):
    open_checkpoint(folder)


def test_a_tensor_of_the_wrong_type_is_named(folder):
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


def test_a_missing_folder_or_a_file_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  for name, what in (('nothing', 'which does not'), ('file', 'expected a GGUF file')):
    with pytest.raises(WeightsError, match=what):
      open_checkpoint(tmp_path / name)


def test_a_tensor_that_the_model_would_ignore_is_named(folder):
  name = 'model.layers.1.self_attn.q_proj.bias'
  file = min(folder.glob('*.safetensors'))
  named = {**safetensors.numpy.load_file(file), name: np.zeros(32, np.float32)}
  safetensors.numpy.save_file(named, file)
  with pytest.raises(WeightsError, match=rf'{name}: expected no such tensor'):
    open_checkpoint(folder)


def test_the_digest_depends_on_the_numbers(folder):
  before = open_checkpoint(folder).digest
  assert open_checkpoint(folder).digest == before
  changed(folder, K, lambda x: x + 1)
  assert open_checkpoint(folder).digest != before


@pytest.mark.parametrize('tied', [True, False])
def test_names_without_the_model_prefix_are_read(tied, tmp_path):
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


def test_a_tied_matrix_may_have_only_the_heads_name(tmp_path):
  _, expected = ours(theirs('llama', {'tie_word_embeddings': True}), tmp_path / 'a')
  named = tensors(tmp_path / 'a')
  named[hf_checkpoint.HEAD] = named.pop(hf_checkpoint.EMBEDDING)
  put(tmp_path / 'a', named)
  params = round_trip(tmp_path / 'a', tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  same(named, tensors(tmp_path / 'b'))


def test_a_separate_head_wins_over_a_tied_config(tmp_path):
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
