"""GGUF files, read by GGUF's library and computed by transformers."""

import json
import re
from typing import Any

import gguf as library
import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hub import FAMILIES, LLAMA3, MSCALE, YARN, checkpoint, theirs

from r1jax.hub import checkpoint_files, gguf, gguf_vocabulary, tokenizer_files, weights
from r1jax.hub.gguf_vocabulary import Vocabulary
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.storage import WeightsError
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding
from r1jax.text.tokenizer import Tokenizer

VARIATIONS = [
  ('llama', {'num_key_value_heads': 1, 'tie_word_embeddings': True}),
  ('llama', {'num_key_value_heads': 2}),
  ('qwen2', {}),
  ('qwen3', {'head_dim': 128}),  # it takes no other for Qwen3
]


def written(folder, model_type, fields, kind, file, stops=(1,)):
  """A checkpoint of transformers, None if it is there, and our file of it."""
  model = model_type and checkpoint(folder, model_type, fields)
  found = open_checkpoint(folder)
  everywhere = named_sharding(make_mesh(jax.devices()[:1]))
  params = weights.read(found, everywhere)
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  roles = tokenizer_files.bos_id(folder), checkpoint_files.chat_template(folder)
  text = Vocabulary(tokenizer, stops[0], 0, *roles, other_stop_ids=stops[1:])
  gguf.write(file, params, found, text, kind)
  return model


@pytest.mark.parametrize(('model_type', 'fields'), VARIATIONS)
def test_transformers_computes_the_same_from_the_file(model_type, fields, tmp_path):
  model = written(tmp_path / 'model', model_type, fields, 'f32', tmp_path / 'm.gguf')
  opened = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='m.gguf', dtype=torch.float32, attn_implementation='eager'
  )
  tokens = torch.tensor(np.random.default_rng(0).integers(2, 290, size=(2, 30)))
  with torch.no_grad():
    expected, found = model(tokens).logits, opened.eval()(tokens).logits
  torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def fields_of(file):
  """The file's fields and tensors, as its library reads them."""
  reader = library.GGUFReader(file)
  return (
    {name: field.contents() for name, field in reader.fields.items()},
    {tensor.name: tensor for tensor in reader.tensors},
  )


@pytest.mark.parametrize(
  ('rope', 'expected'),
  [
    (YARN, {'type': 'yarn', 'factor': 4.0, 'original_context_length': 64}),
    ({'rope_type': 'linear', 'factor': 3.0}, {'type': 'linear', 'factor': 3.0}),
  ],
)
def test_rope_scaling_is_written(rope, expected, tmp_path):
  written(
    tmp_path / 'm', 'qwen2', {'rope_parameters': rope}, 'f16', tmp_path / 'm.gguf'
  )
  fields, _ = fields_of(tmp_path / 'm.gguf')
  for name, value in expected.items():
    assert fields[f'qwen2.rope.scaling.{name}'] == value


def test_llama_3_has_a_factor_per_frequency(tmp_path):
  fields = {'rope_parameters': LLAMA3}
  model = written(tmp_path / 'm', 'llama', fields, 'f16', tmp_path / 'm.gguf')
  _, tensors = fields_of(tmp_path / 'm.gguf')
  plain = 500.0 ** (-np.arange(0, 8, 2) / 8)
  stretched = model.model.rotary_emb.inv_freq.numpy()
  found = tensors['rope_freqs.weight'].data
  np.testing.assert_allclose(found, plain / stretched, rtol=1e-5)
  assert max(found) == pytest.approx(8)


def test_the_file_describes_the_model_and_its_vocabulary(tmp_path):
  model = written(tmp_path / 'm', 'qwen3', None, 'f16', tmp_path / 'm.gguf')
  fields, tensors = fields_of(tmp_path / 'm.gguf')
  assert fields['general.architecture'] == 'qwen3'
  for name, value in {
    'context_length': 256,
    'embedding_length': 32,
    'block_count': 2,
    'feed_forward_length': 48,
    'attention.head_count': 4,
    'attention.head_count_kv': 2,
    'attention.key_length': 12,
    'vocab_size': 300,
  }.items():
    assert fields[f'qwen3.{name}'] == value
  tokens = fields['tokenizer.ggml.tokens']
  assert len(tokens) == 300
  assert tokens[:2] == ['<|pad|>', '<|eos|>']
  kinds = fields['tokenizer.ggml.token_type']
  assert kinds[:2] == [3, 3]  # control
  assert kinds[tokens.index('<think>')] == 4  # matched in texts, and shown
  assert kinds[-1] == 5  # no token has the last row
  assert fields['tokenizer.ggml.pre'] == 'smollm'
  assert fields['tokenizer.ggml.eos_token_id'] == 1
  assert fields['tokenizer.ggml.add_bos_token'] is False
  assert 'messages' in fields['tokenizer.chat_template']
  types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
  assert types['blk.0.attn_q.weight'] == 'F16'
  assert types['blk.0.attn_norm.weight'] == types['blk.0.attn_q_norm.weight'] == 'F32'
  expected = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
  found = tensors['blk.1.ffn_down.weight'].data
  np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_routers_and_their_biases_are_float32_in_any_type(tmp_path):
  model = written(tmp_path / 'm', 'deepseek_v3', None, 'q8_0', tmp_path / 'm.gguf')
  _, tensors = fields_of(tmp_path / 'm.gguf')
  gate = model.model.layers[1].mlp.gate
  for name, expected in (
    ('ffn_gate_inp.weight', gate.weight),
    ('exp_probs_b.bias', gate.e_score_correction_bias),
  ):
    tensor = tensors[f'blk.1.{name}']
    assert tensor.tensor_type.name == 'F32'
    np.testing.assert_array_equal(tensor.data, expected.detach().numpy())


def test_q8_0_is_off_by_half_a_step_and_leaves_other_rows_f16(tmp_path):
  model = written(tmp_path / 'm', 'llama', {}, 'q8_0', tmp_path / 'm.gguf')
  _, tensors = fields_of(tmp_path / 'm.gguf')
  up = tensors['blk.0.ffn_up.weight']  # rows of 32
  assert up.tensor_type.name == 'Q8_0'
  found = library.dequantize(up.data, up.tensor_type)
  expected = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
  step = np.abs(expected).max(1, keepdims=True) / 127
  # The step itself is a float16: times 127 it is off by another 127 / 2^11 steps.
  assert (np.abs(found - expected) <= (0.5 + 127 / 2**11) * step).all()
  assert tensors['blk.0.ffn_down.weight'].tensor_type.name == 'F16'  # rows of 48


DIGITS = {'type': 'Digits', 'individual_digits': True}
BYTES = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
SPACE = {**BYTES, 'add_prefix_space': True}
ONLY_BYTES = {**BYTES, 'use_regex': False}
REPLACE = {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'b'}
SPLIT, SPLIT_3, TEKKEN = (
  dict(gguf_vocabulary.PRE_TOKENIZERS[name][0])
  for name in ('qwen2', 'llama-bpe', 'tekken')
)
TEKKEN_PARTS = {'type': 'Sequence', 'pretokenizers': [TEKKEN, ONLY_BYTES]}


def around(*before, behind=None):
  """A post_processor of tokenizer.json, by ids of <|pad|> (0) and <|eos|> (1)."""
  names = ['<|pad|>', '<|eos|>']
  single = [*before, None, *([] if behind is None else [behind])]
  return {
    'type': 'TemplateProcessing',
    'single': [
      {'Sequence': {'id': 'A', 'type_id': 0}}
      if n is None
      else {'SpecialToken': {'id': names[n], 'type_id': 0}}
      for n in single
    ],
    'pair': [{'Sequence': {'id': name, 'type_id': 0}} for name in 'AB'],
    'special_tokens': {
      name: {'id': name, 'ids': [n], 'tokens': [name]} for n, name in enumerate(names)
    },
  }


def changed(tokenizer, name, part):
  """A field of tokenizer.json with this change; a list is a Sequence."""
  if name == 'added_tokens':
    return [token | part for token in tokenizer[name]]
  if isinstance(part, list):
    plural = {'pre_tokenizer': 'pretokenizers', 'normalizer': 'normalizers'}[name]
    return {'type': 'Sequence', plural: part}
  return {**tokenizer['model'], **part} if name == 'model' else part


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model': {'type': 'Unigram'}}, "expected a BPE model for GGUF, got 'Unigram'"),
    ({'pre_tokenizer': {'type': 'Metaspace'}}, 'expected the pre_tokenizer of gpt-2'),
    (
      {'pre_tokenizer': BYTES | {'add_prefix_space': True}},
      'add_prefix_space false for',
    ),
    (
      {'pre_tokenizer': [DIGITS, BYTES | {'add_prefix_space': True}]},
      'add_prefix_space',
    ),
    ({'pre_tokenizer': BYTES | {'use_regex': False}}, 'the pre_tokenizer of gpt-2'),
    ({'pre_tokenizer': [DIGITS, BYTES | {'use_regex': False}]}, 'the pre_tokenizer of'),
    (
      {'pre_tokenizer': [DIGITS | {'individual_digits': False}, BYTES]},
      'the pre_token',
    ),
    ({'pre_tokenizer': [SPLIT, BYTES]}, 'the pre_tokenizer of gpt-2'),
    ({'pre_tokenizer': [SPLIT | {'invert': True}, ONLY_BYTES]}, 'the pre_tokenizer of'),
    ({'pre_tokenizer': [SPLIT | {'behavior': 'Removed'}, ONLY_BYTES]}, 'the pre_token'),
    (
      {'normalizer': {'type': 'Lowercase'}},
      'normalizer: .*not normalize, got Lowercase',
    ),
    ({'normalizer': {'type': 'NFKC'}}, 'normalizer: .*not normalize, got NFKC'),
    ({'normalizer': {'type': 'NFD'}}, 'normalizer: .*not normalize, got NFD'),
    ({'normalizer': {'type': 'Prepend', 'prepend': 'x'}}, 'not normalize, got Prepend'),
    ({'normalizer': [{'type': 'NFC'}, REPLACE]}, 'not normalize, got Replace$'),
    ({'model': {'dropout': 0.1}}, 'model.dropout: expected none for GGUF, got 0.1'),
    (
      {'model': {'end_of_word_suffix': '</w>'}},
      'model.end_of_word_suffix: expect',
    ),
    ({'model': {'ignore_merges': True, 'merges': []}}, 'ignore_merges: expected False'),
    (
      {'model': {'merges': []}, 'pre_tokenizer': [TEKKEN, ONLY_BYTES]},
      'ignore_merges: expected True for GGUF with .* tekken, got',
    ),
    ({'added_tokens': {'rstrip': True}}, "rstrip false for GGUF, .* for '<.pad.>'"),
    ({'added_tokens': {'single_word': True}}, 'expected single_word false for GGUF'),
    ({'post_processor': around(0, 1)}, r'post_processor: .* got \[0, 1\] and \[\]'),
    ({'post_processor': around(behind=0)}, r'post_processor: .* got \[\] and \[0\]'),
  ],
)
def test_unsupported_tokenizers_are_refused_and_nothing_is_written(
  tmp_path, change, message
):
  checkpoint(tmp_path / 'm', 'llama', {})
  found = open_checkpoint(tmp_path / 'm')
  tokenizer = json.loads((tmp_path / 'm/tokenizer.json').read_text())
  for name, part in change.items():
    tokenizer[name] = changed(tokenizer, name, part)
  text = Vocabulary(tokenizer, 1, 0)
  with pytest.raises(WeightsError, match=message):
    gguf.write(tmp_path / 'm.gguf', {}, found, text, 'f16')
  assert [path.name for path in tmp_path.iterdir()] == ['m']


@pytest.mark.parametrize(('whole', 'name'), [(True, 'llama-bpe'), (False, 'dbrx')])
@pytest.mark.parametrize('kept', [{}, {'behavior': 'Removed', 'invert': True}])
def test_the_name_of_a_pattern_says_whether_words_are_looked_up(whole, name, kept):
  parts = {'type': 'Sequence', 'pretokenizers': [SPLIT_3 | kept, ONLY_BYTES]}
  tokenizer = {**Tokenizer.train(['so'], 264).content, 'pre_tokenizer': parts}
  tokenizer['model'] = {**tokenizer['model'], 'ignore_merges': whole}
  assert gguf_vocabulary.check(Vocabulary(tokenizer, 1, 0)) == name


def test_what_is_removed_may_be_all_but_the_words():
  part: Any = gguf_vocabulary.PRE_TOKENIZERS['qwen2'][0]
  pattern = tokenizers.Regex(part['pattern']['Regex'])
  text = "12345 don't DON'T  stop\r\n\n(3+5)*2=16, zażółć 日本語 \u0301\u200b"
  ours, others = (
    tokenizers.pre_tokenizers.Split(pattern, behavior, invert).pre_tokenize_str(text)
    for behavior, invert in (('isolated', False), ('removed', True))
  )
  assert ours == others


@pytest.mark.parametrize(
  ('model_type', 'fields', 'message'),
  [
    ('qwen3_moe', {'norm_topk_prob': False}, 'norm_topk_prob: expected true for GGUF'),
    ('deepseek_v2', {}, "topk_method: expected 'greedy' for GGUF, got 'group_limited"),
    ('deepseek_v2', {'topk_method': 'greedy', 'q_lora_rank': None}, 'q_lora_rank: exp'),
    ('deepseek_v3', {'rope_interleave': False}, 'rope_interleave: expected true for'),
    ('deepseek_v3', {'rope_parameters': MSCALE}, 'mscale like mscale_all_dim, got the'),
    ('qwen2', {'rope_parameters': {**YARN, 'attention_factor': 2.0}}, 'expected atten'),
    ('qwen3', {'attention_bias': True}, 'attention_bias: expected false for GGUF'),
    ('deepseek_v3', {'n_shared_experts': 0}, 'n_shared_experts, .* for GGUF, got none'),
    ('deepseek_v3', {'rms_norm_eps': 1e-5}, 'rms_norm_eps: expected 1e-06 for GGUF'),
    (
      'qwen3_moe',
      {'norm_topk_prob': True, 'num_hidden_layers': 3, 'mlp_only_layers': [1]},
      'mlp_only_layers: expected experts in all layers',
    ),
    (
      'mistral',
      {'sliding_window': 20},
      'sliding_window: expected null for GGUF, .* 20',
    ),
    ('phi3', {'sliding_window': 20}, 'no windows for phi3, got 20'),
    ('smollm3', {'no_rope_layer_interval': 2}, 'no_rope_layers: .* got 1, 3 of 5'),
    ('gemma3_text', {}, 'query_pre_attn_scalar: expected 12 for GGUF, got 20'),
    (
      'gemma3_text',
      {
        'query_pre_attn_scalar': 12,
        'layer_types': ['full_attention'] + ['sliding_attention'] * 3,
      },
      'layer_types: .* every n-th layer for GGUF, got it in 0 of 4',
    ),
    ('seed_oss', {'head_dim': 8}, "model_type: expected one of llama, .*'seed_oss'"),
  ],
)
def test_models_that_llama_cpp_computes_differently_are_refused(
  model_type, fields, message, tmp_path
):
  fields = {**FAMILIES.get(model_type, {}), **fields}
  theirs(model_type, fields).save_pretrained(tmp_path / 'm')
  found = open_checkpoint(tmp_path / 'm')
  with pytest.raises(WeightsError, match=message):
    gguf.write(tmp_path / 'm.gguf', {}, found, Vocabulary({}, 1, 0), 'f16')
  assert not (tmp_path / 'm.gguf').exists()


ROBERTA = {
  'cls': ['<|pad|>', 0],
  'sep': ['<|eos|>', 1],
  'trim_offsets': True,
  'add_prefix_space': False,
}


@pytest.mark.parametrize(
  ('processor', 'bos', 'adds'),
  [
    (around(), 5, (False, False)),
    (around(behind=1), 5, (False, True)),
    (around(0, behind=1), None, (True, True)),
    (around(0), 0, (True, False)),
    ({'type': 'RobertaProcessing', **ROBERTA}, 0, (True, True)),
    ({'type': 'Sequence', 'processors': [BYTES, around(0)]}, None, (True, False)),
    (None, None, (False, False)),
  ],
)
def test_tokens_around_texts_are_written(processor, bos, adds, tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {})
  found = open_checkpoint(tmp_path / 'm')
  params = weights.read(found, named_sharding(make_mesh(jax.devices()[:1])))
  tokenizer = json.loads((tmp_path / 'm/tokenizer.json').read_text())
  text = Vocabulary({**tokenizer, 'post_processor': processor}, 1, 0, bos)
  gguf.write(tmp_path / 'm.gguf', params, found, text, 'f16')
  fields, _ = fields_of(tmp_path / 'm.gguf')
  said = [fields[f'tokenizer.ggml.add_{name}_token'] for name in ('bos', 'eos')]
  assert tuple(said) == adds
  # The role is named even where the token is not put before texts.
  expected = 0 if adds[0] else bos
  assert fields.get('tokenizer.ggml.bos_token_id') == expected


def test_special_tags_are_visible(tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {})
  found = open_checkpoint(tmp_path / 'm')
  params = weights.read(found, named_sharding(make_mesh(jax.devices()[:1])))
  tokenizer = json.loads((tmp_path / 'm/tokenizer.json').read_text())
  tokenizer['added_tokens'] = [x | {'special': True} for x in tokenizer['added_tokens']]
  text = Vocabulary(tokenizer, 1, 0, shown=('<think>', '</think>'))
  gguf.write(tmp_path / 'm.gguf', params, found, text, 'f16')
  fields, _ = fields_of(tmp_path / 'm.gguf')
  kinds = dict(
    zip(
      fields['tokenizer.ggml.tokens'], fields['tokenizer.ggml.token_type'], strict=True
    )
  )
  tokens = ('<|eos|>', '<answer>', '<think>', '</think>')
  assert [kinds[token] for token in tokens] == [3, 3, 4, 4]  # control, user-defined


def test_a_template_that_writes_bos_needs_one(tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {}, chat='{{ bos_token }}')
  with pytest.raises(WeightsError, match='expected one without bos_token'):
    written(tmp_path / 'm', None, None, 'f16', tmp_path / 'm.gguf')
  assert not (tmp_path / 'm.gguf').exists()


@pytest.mark.parametrize(
  ('change', 'chat', 'remark'),
  [
    ({}, 'x', None),
    ({'normalizer': {'type': 'NFC'}}, 'x', 'composes characters first .NFC., and lla'),
    ({'pre_tokenizer': TEKKEN_PARTS}, 'x', 'capital letters of all alphabets, and ll'),
    ({'post_processor': around(behind=1)}, 'x', 'ends each text with EOS, and llama'),
    ({'post_processor': around(0)}, 'x', 'it before conversations too, although the'),
    ({'post_processor': around(0)}, '{{ bos_token }}', None),
    ({'post_processor': around(0)}, '<|pad|>{{ messages }}', None),
    ({'post_processor': around(0)}, None, None),
  ],
)
def test_texts_that_llama_cpp_reads_differently_get_a_warning(change, chat, remark):
  tokenizer = Tokenizer.train(['so'], 264).content
  found = gguf_vocabulary.remarks(Vocabulary({**tokenizer, **change}, 1, 0, 0, chat))
  assert len(found) == (remark is not None)
  assert remark is None or re.search(remark, found[0])


def test_stop_tokens_without_a_field_get_a_warning():
  tokenizer = Tokenizer.train(['so'], 264).content
  assert (
    gguf_vocabulary.remarks(Vocabulary(tokenizer, 1, 0, other_stop_ids=(7, 8))) == []
  )
  (found,) = gguf_vocabulary.remarks(
    Vocabulary(tokenizer, 1, 0, other_stop_ids=(7, 8, 9, 12))
  )
  assert 'has room for 3 tokens that end outputs' in found
  assert 'at the tokens 9, 12, pass them as stop sequences' in found


def test_an_existing_file_is_kept(tmp_path):
  checkpoint(tmp_path / 'm')
  found = open_checkpoint(tmp_path / 'm')
  (tmp_path / 'm.gguf').touch()
  with pytest.raises(WeightsError, match=r'm.gguf already exists'):
    gguf.write(tmp_path / 'm.gguf', {}, found, Vocabulary({}, 1, 0), 'f16')
  assert (tmp_path / 'm.gguf').stat().st_size == 0
