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
from hub import DEEPSEEK, GROUPS, LLAMA3, MSCALE, QWEN3_MOE, YARN, everywhere
from test_gguf import fields_of, written

from r1jax.hub import families, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model import decoder
from r1jax.sampling.decoder_api import DecoderFns

LINEAR = {'rope_type': 'linear', 'factor': 2.0}
MLA_YARN = {**MSCALE, 'mscale': 1.0}  # like mscale_all_dim
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
    np.testing.assert_array_equal(found[path], leaf, path)


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
  np.testing.assert_allclose(fns.logits(params, hidden), expected, rtol=0, atol=2e-5)


def test_a_file_keeps_its_own_types(tmp_path):
  written(tmp_path / 'm', 'llama', {}, 'f16', tmp_path / 'm.gguf')
  expected, found = leaves(tmp_path / 'm'), leaves(tmp_path / 'm.gguf')
  assert found["['norm']['gain']"].dtype == np.float32
  for path, leaf in found.items():
    assert leaf.dtype == (np.float32 if 'gain' in path else np.float16), path
    np.testing.assert_array_equal(leaf, expected[path].astype(leaf.dtype))
  assert open_checkpoint(tmp_path / 'm.gguf').dtype == 'float16'


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
