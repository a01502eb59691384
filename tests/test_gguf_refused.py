"""GGUF files that cannot be read, each named in one sentence."""

import struct

import numpy as np
import pytest
from gguf_files import WIDTH, make
from hub import everywhere

from r1jax.hub import weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.storage import WeightsError

NARROW = np.zeros((WIDTH, WIDTH // 2), np.float32)


def refused(file, message):
  """The file is refused with this message, which names it and is one line."""
  with pytest.raises(ValueError, match=message) as error:
    open_checkpoint(file)
  assert str(file) in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'llama.context_length': None},
      'llama.context_length: expected a whole number, g',
    ),
    ({'llama.block_count': 0}, 'llama.block_count: expected 1 or more'),
    ({'llama.block_count': 2}, 'the tensor blk.1.attn_output.weight is missing'),
    (
      {'llama.block_count': 10**9},
      'the tensor blk.999999999.attn_output.weight is miss',
    ),
    ({'llama.block_count': 'one'}, "block_count: expected a whole number, got 'one'"),
    (
      {'llama.attention.layer_norm_rms_epsilon': None},
      'epsilon: expected a number, got',
    ),
    ({'llama.attention.head_count_kv': [2, 2]}, 'head_count_kv: expected a whole num'),
    ({'llama.attention.value_length': 32}, 'value_length: expected 64, got 32'),
    ({'llama.rope.dimension_count': 32}, 'dimension_count: expected 64, got 32'),
    (
      {'llama.rope.scaling.type': 'longrope'},
      "one of none, linear, yarn, got 'longrope'",
    ),
    (
      {'llama.rope.scaling.type': 'yarn'},
      'scaling.factor: expected a number, got None',
    ),
    ({'llama.rope.scaling.attn_factor': 2.0}, 'attn_factor: expected no such field'),
    ({'llama.expert_count': 8}, 'llama.expert_count: expected no such field, got 8'),
    ({'llama.attention.sliding_window': 9}, 'sliding_window: expected no such field'),
    ({'general.alignment': 0}, 'damaged: .*general.alignment: expected 1 or more byt'),
    ({'split.count': 3}, 'model in one file, got one of 3 parts; merge them'),
  ],
)
def test_metadata_that_are_missing_or_not_computed_are_named(fields, message, tmp_path):
  refused(make(tmp_path / 'm.gguf', 'F16', fields), message)


def test_fields_that_ask_for_nothing_are_read(tmp_path):
  fields = {'llama.expert_count': 0, 'llama.attention.clamp_kqv': 0.0}
  open_checkpoint(make(tmp_path / 'm.gguf', 'F16', fields))


@pytest.mark.parametrize(
  ('tensors', 'message'),
  [
    ({'blk.0.ffn_up.weight': NARROW}, 'blk.0.ffn_up.weight: expected the shape'),
    (
      {'blk.0.attn_q.weight': NARROW[:7]},
      r'attn_q.weight: expected .* found \(7, 128\)',
    ),
    ({'token_embd.weight': None}, 'the tensor token_embd.weight is missing'),
    ({'output_norm.weight': None}, 'the tensor output_norm.weight is missing'),
    ({'blk.0.attn_sinks.weight': NARROW[0]}, 'attn_sinks.weight: expected no such ten'),
    ({'blk.0.attn_q.bias': NARROW[:2].ravel()}, 'blk.0.attn_output.bias is missing'),
    ({'rope_freqs.weight': np.arange(1, 33, dtype=np.float32)}, 'divisors of Llama 3'),
    ({'blk.0.ffn_up.weight': NARROW.astype(np.int32)}, 'ffn_up.weight: .*types .* I32'),
  ],
)
def test_tensors_that_are_missing_or_wrong_are_named(tensors, message, tmp_path):
  refused(make(tmp_path / 'm.gguf', 'F16', tensors=tensors), message)


PHI = {
  'phi3.context_length': 64,
  'phi3.embedding_length': WIDTH,
  'phi3.feed_forward_length': WIDTH,
  'phi3.block_count': 1,
  'phi3.attention.head_count': 4,
  'phi3.attention.layer_norm_rms_epsilon': 1e-6,
}


@pytest.mark.parametrize(
  ('fields', 'tensors', 'message'),
  [
    ({'rope.dimension_count': 66}, {}, 'dimension_count: expected an even number up t'),
    ({'rope.scaling.attn_factor': 2.0}, {}, 'attn_factor: expected 1.0, got 2.0'),
    ({'rope.scaling.type': 'yarn'}, {}, "none, linear, longrope, got 'yarn'"),
    ({'rope.scaling.factor': 2.0}, {}, 'scaling.factor: expected 1 for phi3, got 2.0'),
    ({'rope.scaling.type': 'longrope'}, {}, 'factors_short.weight is missing'),
    (
      {},
      {'rope_factors_short.weight': np.ones(32, np.float32)},
      'rope_factors_long.weight is missing',
    ),
    (
      {},
      {f'rope_factors_{x}.weight': np.ones(7, np.float32) for x in ('short', 'long')},
      'divisors: expected 32 .* got 7',
    ),
  ],
)
def test_what_phi_does_not_compute_is_named(fields, tensors, message, tmp_path):
  fields = {**PHI, **{f'phi3.{name}': value for name, value in fields.items()}}
  refused(make(tmp_path / 'm.gguf', 'F16', fields, tensors, 0, 'phi3'), message)


@pytest.mark.parametrize(
  ('architecture', 'field', 'value', 'message'),
  [
    ('gemma3', 'rope.scaling.type', 'yarn', "one of none, linear, got 'yarn'"),
    ('gemma3', 'final_logit_softcapping', 30.0, 'softcapping: expected no such field'),
    ('gemma3', 'attention.sliding_window_pattern', 0, 'pattern: expected 1 or more'),
    ('olmo2', 'attention.sliding_window', 9, 'sliding_window: expected no such field'),
    ('smollm3', 'rope.dimension_count', 32, 'dimension_count: expected 64, got 32'),
  ],
)
def test_what_newer_families_do_not_compute_is_named(
  architecture, field, value, message, tmp_path
):
  fields = {name.replace('phi3', architecture): given for name, given in PHI.items()}
  fields[f'{architecture}.{field}'] = value
  refused(make(tmp_path / 'm.gguf', 'F16', fields, None, 0, architecture), message)


DEEPSEEK = {
  'deepseek2.context_length': 64,
  'deepseek2.embedding_length': WIDTH,
  'deepseek2.block_count': 1,
  'deepseek2.feed_forward_length': WIDTH,
  'deepseek2.attention.head_count': 4,
  'deepseek2.attention.head_count_kv': 1,
  'deepseek2.attention.layer_norm_rms_epsilon': 1e-6,
  'deepseek2.attention.kv_lora_rank': 32,
  'deepseek2.attention.key_length': 48,
  'deepseek2.attention.value_length': 32,
  'deepseek2.attention.key_length_mla': 40,
  'deepseek2.attention.value_length_mla': 24,
  'deepseek2.rope.dimension_count': 16,
  'deepseek2.expert_count': 4,
  'deepseek2.expert_used_count': 2,
  'deepseek2.expert_feed_forward_length': WIDTH,
}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'the tensor blk.0.attn_kv_a_mqa.weight is missing'),  # nothing else
    ({'attention.layer_norm_rms_epsilon': 1e-5}, 'epsilon: expected 1e-06, got 1e-05'),
    ({'attention.key_length_mla': None}, 'key_length_mla: expected a whole number'),
    ({'attention.head_count_kv': 4}, 'head_count_kv: expected 1, got 4'),
    ({'expert_gating_func': 3}, 'expert_gating_func: expected 1 or 2, got 3'),
    ({'expert_group_count': 8}, 'expert_group_count: expected 1, got 8'),
    ({'expert_weights_norm': True}, 'expert_weights_norm: expected False, got True'),
    ({'expert_count': 0}, 'expert_count: expected 1 or more'),
    (
      {'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4.0},
      'yarn_log_multiplier: expected a number, got None',
    ),
  ],
)
def test_metadata_of_latent_attention_are_named(fields, message, tmp_path):
  changes = {f'deepseek2.{name}': value for name, value in fields.items()}
  file = tmp_path / 'm.gguf'
  make(file, fields={**DEEPSEEK, **changes}, architecture='deepseek2')
  refused(file, message)


def test_other_families_are_named(tmp_path):
  file = make(tmp_path / 'm.gguf', architecture='gemma2')
  refused(file, "general.architecture: expected one of llama, .* got 'gemma2'")


def test_a_part_of_a_model_is_named_by_its_name(tmp_path):
  file = make(tmp_path / 'm.gguf', 'F16').rename(tmp_path / 'm-00001-of-00002.gguf')
  refused(file, 'model in one file, got one of 2 parts')


def test_a_file_that_was_cut_off_anywhere_is_named(tmp_path):
  content = make(tmp_path / 'm.gguf', 'Q8_0').read_bytes()
  cut = tmp_path / 'cut.gguf'
  for size in (*range(5, 900, 7), len(content) // 2, len(content) - 1):
    cut.write_bytes(content[:size])
    refused(cut, 'truncated')


def test_damaged_lengths_are_named(tmp_path):
  content = bytearray(make(tmp_path / 'm.gguf', 'Q8_0').read_bytes())
  for at in (8, 16, 24):  # of tensors, of fields, of the first name
    damaged = content[:at] + struct.pack('<Q', 2**60) + content[at + 8 :]
    (tmp_path / 'damaged.gguf').write_bytes(damaged)
    refused(tmp_path / 'damaged.gguf', 'truncated or damaged')


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    (b'{"a": 1}', 'expected a GGUF file, or a folder with config.json'),
    (b'', 'expected a GGUF file, or a folder with config.json'),
    (b'GGUF' + struct.pack('<I', 1), 'expected GGUF of version 2 or 3, got version 1'),
    (b'GGUF' + struct.pack('>I', 3), 'of version 2 or 3, got a big-endian file'),
  ],
)
def test_other_files_are_named(start, message, tmp_path):
  (tmp_path / 'm.gguf').write_bytes(start)
  refused(tmp_path / 'm.gguf', message)


def test_a_file_that_is_not_there_is_named(tmp_path):
  refused(tmp_path / 'm.gguf', 'or a GGUF file, got .*m.gguf, which does not exist')


def test_numbers_that_are_not_finite_are_named_by_tensor_and_row(tmp_path):
  data = np.zeros((WIDTH, WIDTH), np.float32)
  data[200, 3] = np.nan
  file = make(tmp_path / 'm.gguf', 'F32', tensors={'blk.0.ffn_up.weight': data})
  with pytest.raises(WeightsError, match=r'm.gguf: blk.0.ffn_up.weight: .* row 200'):
    weights.read(open_checkpoint(file), everywhere)
