"""GGUF files as checkpoints: what is read is what was written, or is refused."""

import dataclasses
import struct

import gguf as library
import jax
import numpy as np
import pytest
import torch
import transformers
from gguf_files import make
from hub import (
  DEEPSEEK,
  GEMMA3,
  GROUPS,
  LLAMA3,
  LONGROPE,
  MSCALE,
  OLMO2,
  PHI3,
  QWEN3_MOE,
  SMOLLM3,
  YARN,
  everywhere,
)
from test_gguf import fields_of, written

from r1jax.hub import families, gguf_config, gguf_file, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model import decoder
from r1jax.sampling.decoder_api import DecoderFns

LINEAR = {'rope_type': 'linear', 'factor': 2.0}
MLA_YARN = {**MSCALE, 'mscale': 1.0}  # like mscale_all_dim
LONG_PHI = {'rope_parameters': LONGROPE, 'original_max_position_embeddings': 128}
GEMMA = {**GEMMA3, 'query_pre_attn_scalar': 12}
# transformers takes no other width and order of windows from a file of Gemma 3.
WIDE = {
  **GEMMA3,
  'head_dim': 256,
  'query_pre_attn_scalar': 256,
  'num_hidden_layers': 6,
  'layer_types': None,
}
STRETCHED = {
  'full_attention': {**LINEAR, 'rope_theta': 500.0},
  'sliding_attention': {'rope_type': 'default', 'rope_theta': 300.0},
}
LITE = {**DEEPSEEK, 'q_lora_rank': None, 'num_hidden_layers': 27}
VARIATIONS = {
  'one-kv-head-tied': (
    'llama',
    {'num_key_value_heads': 1, 'tie_word_embeddings': True},
  ),
  'llama3-rope': ('llama', {'rope_parameters': LLAMA3}),
  'biases': ('llama', {'attention_bias': True}),
  'qwen2': ('qwen2', {}),
  'yarn': ('qwen2', {'rope_parameters': YARN}),
  'linear-rope': ('qwen2', {'rope_parameters': LINEAR}),
  'qwen3': ('qwen3', None),
  'qwen3-moe': ('qwen3_moe', {**QWEN3_MOE, 'norm_topk_prob': True}),
  'deepseek-v2': ('deepseek_v2', DEEPSEEK),
  'deepseek-v2-lite': ('deepseek_v2', LITE),
  'deepseek-v3': ('deepseek_v3', {**DEEPSEEK, **GROUPS}),
  'yarn-mla': ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'rope_parameters': MLA_YARN}),
  'smollm3': ('smollm3', SMOLLM3),  # one layer of five without RoPE
  'smollm3-yarn': ('smollm3', {**SMOLLM3, 'rope_parameters': YARN}),
  'olmo2': ('olmo2', OLMO2),
  'phi3': ('phi3', PHI3),
  'phi3-long': ('phi3', {**PHI3, **LONG_PHI, 'tie_word_embeddings': True}),
  'gemma3': ('gemma3_text', {**GEMMA, 'rope_parameters': STRETCHED}),
  'gemma3-six': ('gemma3_text', {**GEMMA, 'layer_types': None, 'num_hidden_layers': 7}),
}


def leaves(folder, dtype=None):
  """The parameters of a checkpoint, by path."""
  params = weights.read(open_checkpoint(folder), everywhere, dtype)
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def same_but_for_rope(found, expected):
  """The config, and what the stretched frequencies are computed from."""
  assert dataclasses.replace(found, rope=expected.rope) == expected
  assert found.rope.kind == expected.rope.kind
  for field in dataclasses.fields(found.rope)[1:]:
    given = getattr(found.rope, field.name)
    # GGUF's metadata are float32.
    assert given == pytest.approx(getattr(expected.rope, field.name), rel=1e-6), field


@pytest.mark.parametrize('name', VARIATIONS)
def test_a_model_that_was_written_is_read_bit_for_bit(name, tmp_path):
  written(tmp_path / 'm', *VARIATIONS[name], 'f32', tmp_path / 'm.gguf')
  before, after = (open_checkpoint(tmp_path / x) for x in ('m', 'm.gguf'))
  same_but_for_rope(after.config, before.config)
  assert families.max_positions(after.raw) == families.max_positions(before.raw)
  expected, found = leaves(tmp_path / 'm'), leaves(tmp_path / 'm.gguf')
  assert found.keys() == expected.keys()
  for path, leaf in expected.items():
    # Gains of Gemma are 1 more in the file, which rounds them in float32.
    rounding = 2**-23 if before.config.stored_minus_1 and 'gain' in path else 0
    np.testing.assert_allclose(found[path], leaf, 0, rounding, err_msg=path)


@pytest.mark.parametrize(
  'kind',
  [
    *('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q2_K', 'Q3_K'),
    *('Q4_K', 'Q5_K', 'Q6_K', 'IQ1_M', 'IQ1_S', 'IQ2_S', 'IQ2_XS', 'IQ2_XXS', 'IQ3_S'),
    *('IQ3_XXS', 'IQ4_NL', 'IQ4_XS', 'MXFP4', 'TQ1_0'),
  ],
)
def test_every_type_is_read_as_its_library_reads_it(kind, tmp_path):
  make(tmp_path / 'm.gguf', kind)
  _, stored = fields_of(tmp_path / 'm.gguf')
  expected = {
    name: library.dequantize(tensor.data, tensor.tensor_type)
    for name, tensor in stored.items()
  }
  found = open_checkpoint(tmp_path / 'm.gguf').tensors
  for ours, theirs in (
    ('embed_tokens', 'token_embd'),
    ('layers.0.mlp.gate_proj', 'blk.0.ffn_gate'),
    ('layers.0.mlp.down_proj', 'blk.0.ffn_down'),
  ):
    np.testing.assert_array_equal(
      found[f'model.{ours}.weight'].read(), expected[f'{theirs}.weight']
    )
  # Row 2i + j of a head there is row i + j C/2 here.
  rows = np.arange(64).reshape(32, 2).T.ravel()
  keys = expected['blk.0.attn_k.weight'].reshape(2, 64, 256)[:, rows].reshape(128, 256)
  key = found['model.layers.0.self_attn.k_proj.weight']
  np.testing.assert_array_equal(key.read(), keys)
  np.testing.assert_array_equal(key.read(range(7, 90)), keys[7:90])


@pytest.mark.parametrize(
  ('model_type', 'fields', 'kind'),
  [
    ('llama', {'num_key_value_heads': 2}, 'q8_0'),
    ('qwen2', {}, 'f16'),
    ('qwen3', {'head_dim': 128}, 'q8_0'),  # transformers takes no other for Qwen3
    ('gemma3_text', WIDE, 'f16'),
    ('phi3', PHI3, 'f16'),
  ],
)
def test_logits_are_those_of_transformers_from_the_same_file(
  model_type, fields, kind, tmp_path
):
  written(tmp_path / 'm', model_type, fields, kind, tmp_path / 'm.gguf')
  opened = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='m.gguf', dtype=torch.float32, attn_implementation='eager'
  )
  found = open_checkpoint(tmp_path / 'm.gguf')
  params = weights.read(found, everywhere, 'float32')
  fns = DecoderFns(*decoder.functions(found.config, found.vocab_size))
  tokens = np.random.default_rng(0).integers(2, 290, size=(2, 30))
  positions = np.broadcast_to(np.arange(30), tokens.shape)
  hidden, _ = fns.forward(params, tokens, positions, np.zeros_like(tokens))
  with torch.no_grad():
    expected = opened.eval()(torch.tensor(tokens)).logits.numpy()
  # Six layers with heads of 256 channels round more often than two with 8.
  atol = 5e-5 if model_type == 'gemma3_text' else 2e-5
  np.testing.assert_allclose(fns.logits(params, hidden), expected, rtol=0, atol=atol)


def test_a_file_keeps_its_own_types(tmp_path):
  written(tmp_path / 'm', 'llama', {}, 'f16', tmp_path / 'm.gguf')
  expected, found = leaves(tmp_path / 'm'), leaves(tmp_path / 'm.gguf')
  assert found["['norm']['gain']"].dtype == np.float32
  for path, leaf in found.items():
    assert leaf.dtype == (np.float32 if 'gain' in path else np.float16), path
    np.testing.assert_array_equal(leaf, expected[path].astype(leaf.dtype))
  assert open_checkpoint(tmp_path / 'm.gguf').dtype == 'float16'


def test_phi_is_read_as_llama_cpp_writes_it(tmp_path):
  """Its converter names no kind of RoPE, and writes windows that llama.cpp leaves out.

  Fields of Phi-4-mini, but for sizes. 48 of 64 channels turn: 24 divisors.
  """
  fields = {
    'phi3.context_length': 131072,
    'phi3.rope.scaling.original_context_length': 4096,
    'phi3.embedding_length': 256,
    'phi3.feed_forward_length': 256,
    'phi3.block_count': 1,
    'phi3.attention.head_count': 4,
    'phi3.attention.head_count_kv': 2,
    'phi3.attention.layer_norm_rms_epsilon': 1e-5,
    'phi3.rope.dimension_count': 48,
    'phi3.rope.freq_base': 10_000.0,
    'phi3.attention.sliding_window': 2047,
    'phi3.rope.scaling.attn_factor': 1.19,
  }
  tensors = {
    'rope_factors_short.weight': np.linspace(1, 2, 24, dtype=np.float32),
    'rope_factors_long.weight': np.linspace(3, 4, 24, dtype=np.float32),
  }
  file = make(tmp_path / 'm.gguf', 'F16', fields, tensors, architecture='phi3')
  raw = gguf_config.read(gguf_file.read(file))
  config = families.read_config(raw)
  assert families.max_positions(raw) == 4096
  assert (config.sliding.window, config.sliding.full) == (2047, ())
  assert (config.rope.kind, config.rope.channels) == ('longrope', 48)
  assert config.rope.divisors == pytest.approx(np.linspace(1, 2, 24))
  assert config.rope.amplitude == pytest.approx(1.19)
  assert raw['rope_parameters']['long_factor'][0] == 3
  opened = transformers.Phi3Config(**raw).to_dict()
  assert opened['rope_parameters']['partial_rotary_factor'] == 0.75
  assert opened['original_max_position_embeddings'] == 4096


@pytest.mark.parametrize(
  ('layers', 'score_dim'),
  [(26, 128), (62, 64)],  # of 1B and of 27B, whose scores have width / heads
)
def test_gemma_is_read_as_llama_cpp_writes_it(layers, score_dim, tmp_path):
  """Its converter writes neither the order of windows nor their base of RoPE."""
  fields = {
    'gemma3.context_length': 32768,
    'gemma3.embedding_length': 256,
    'gemma3.feed_forward_length': 256,
    'gemma3.block_count': layers,
    'gemma3.attention.head_count': 4,
    'gemma3.attention.head_count_kv': 1,
    'gemma3.attention.key_length': 128,
    'gemma3.attention.value_length': 128,
    'gemma3.attention.layer_norm_rms_epsilon': 1e-6,
    'gemma3.attention.sliding_window': 512,
    'gemma3.rope.freq_base': 1e6,
    'gemma3.rope.scaling.type': 'linear',
    'gemma3.rope.scaling.factor': 8.0,
  }
  last = {f'blk.{layers - 1}.attn_output.weight': np.zeros((256, 512), np.float16)}
  file = make(tmp_path / 'm.gguf', 'F16', fields, last, architecture='gemma3')
  raw = gguf_config.read(gguf_file.read(file))
  config = families.read_config(raw)
  assert (config.sliding.window, config.sliding.theta) == (512, 10_000)
  assert config.sliding.full == tuple(range(5, layers, 6))
  assert config.score_dim == score_dim
  assert (config.rope_theta, config.rope.factor) == (1e6, 8)
  assert families.max_positions(raw) == 32768
  opened = transformers.Gemma3TextConfig(**raw).to_dict()
  assert opened['layer_types'][4:7] == [
    'sliding_attention',
    'full_attention',
    'sliding_attention',
  ]
  assert opened['rope_parameters']['full_attention']['factor'] == 8


def test_gemma_without_windows_attends_to_all_keys_in_all_layers(tmp_path):
  fields = {
    'gemma3.context_length': 64,
    'gemma3.embedding_length': 256,
    'gemma3.feed_forward_length': 256,
    'gemma3.block_count': 1,
    'gemma3.attention.head_count': 4,
    'gemma3.attention.layer_norm_rms_epsilon': 1e-6,
  }
  file = make(tmp_path / 'm.gguf', 'F16', fields, architecture='gemma3')
  config = families.read_config(gguf_config.read(gguf_file.read(file)))
  assert config.sliding.full == (0,)


def test_the_digest_tells_files_apart(tmp_path):
  for n, seed in enumerate((0, 0, 1)):
    make(tmp_path / f'{n}.gguf', 'Q4_K', seed=seed)
  first, again, other = (
    open_checkpoint(tmp_path / f'{n}.gguf').digest for n in range(3)
  )
  assert first == again != other


def test_version_2_is_read(tmp_path):
  make(tmp_path / 'm.gguf', 'F16')
  expected = leaves(tmp_path / 'm.gguf')
  content = bytearray((tmp_path / 'm.gguf').read_bytes())
  content[4:8] = struct.pack('<I', 2)  # nothing else differs
  (tmp_path / 'two.gguf').write_bytes(content)
  found = leaves(tmp_path / 'two.gguf')
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)


def test_frequencies_of_llama_3_are_read_with_its_own_bounds(tmp_path):
  """Of Llama 3.1: factor 8 over 8,192 positions, theta 500,000, heads of 128."""
  plain = 500_000.0 ** (-np.arange(0, 128, 2) / 128)
  turns = 8192 * plain / (2 * np.pi)
  kept = np.clip((turns - 1) / (4 - 1), 0, 1)
  divisors = 1 / (kept + (1 - kept) / 8)
  fields = {
    'llama.rope.freq_base': 500_000.0,
    **{f'llama.attention.{name}_length': 128 for name in ('key', 'value')},
    'llama.attention.head_count': 2,
    'llama.attention.head_count_kv': 1,
  }
  tensors = {'rope_freqs.weight': divisors.astype(np.float32)}
  found = open_checkpoint(make(tmp_path / 'm.gguf', 'F16', fields, tensors)).config.rope
  assert found.kind == 'llama3'
  assert (found.factor, found.original_length) == (8, 8192)
  assert (found.low_freq_factor, found.high_freq_factor) == (1, 4)
