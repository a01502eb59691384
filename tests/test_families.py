"""Families of the hub: the same weights give the logits that transformers computes.

transformers makes the checkpoints, small and random, and computes every expected
number; our own code reads them.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hub import (
  BASE,
  DEEPSEEK,
  FAMILIES,
  GEMMA3,
  GROUPS,
  LLAMA3,
  LLAMA4,
  LONGROPE,
  MSCALE,
  OLMO2,
  PHI3,
  QWEN3,
  QWEN3_MOE,
  SMOLLM3,
  V2_GROUPS,
  VOCAB,
  YARN,
  ours,
  read,
  theirs,
)
from transformers.models.gemma3 import modeling_gemma3 as gemma3

from r1jax.hub import config_fields, families, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model.config import ModelConfig, Sliding
from r1jax.model.decode_weights import embedding_scale
from r1jax.sampling import generate
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens

# Logits are of order 3: the sums of two layers, in another order (float32).
CLOSE = 2e-5
BIASED = {'attention_bias': True, 'rms_norm_eps': 0.1}
LONG_PHI = {'original_max_position_embeddings': 128}
SHORT = {'original_max_position_embeddings': 16}
VARIATIONS = [
  ('llama', {'num_key_value_heads': 1, 'tie_word_embeddings': True}),
  ('llama', {'num_key_value_heads': 4, 'head_dim': 10}),
  ('llama', {'rope_parameters': {'rope_type': 'linear', 'factor': 3.0}}),
  ('llama', {'rope_parameters': LLAMA3}),
  ('qwen2', {'tie_word_embeddings': True, 'rope_parameters': YARN}),
  ('qwen3', {**QWEN3, 'tie_word_embeddings': True, 'rms_norm_eps': 0.01}),
  ('qwen3_moe', {**QWEN3_MOE, 'norm_topk_prob': True, 'num_experts_per_tok': 3}),
  ('deepseek_v2', {**DEEPSEEK, 'q_lora_rank': None, 'routed_scaling_factor': 3.0}),
  ('deepseek_v2', {**DEEPSEEK, **V2_GROUPS, 'rope_parameters': MSCALE}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'norm_topk_prob': False}),
  ('deepseek_v3', {**DEEPSEEK, 'n_group': 1, 'topk_group': 1, 'n_shared_experts': 1}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'rope_parameters': MSCALE}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'rope_interleave': False}),
  # The norms within latent attention have an epsilon of their own.
  ('deepseek_v2', {**DEEPSEEK, **V2_GROUPS, 'rms_norm_eps': 0.01}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'rms_norm_eps': 0.01}),
  # transformers does not read V2's norm_topk_prob.
  ('deepseek_v2', {**DEEPSEEK, **V2_GROUPS, 'norm_topk_prob': True}),
  ('llama', {'attention_bias': True}),
  ('qwen3', {**QWEN3, 'attention_bias': True}),
  ('qwen3_moe', {**QWEN3_MOE, 'attention_bias': True}),
  ('deepseek_v2', {**DEEPSEEK, 'attention_bias': True, 'q_lora_rank': None}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'attention_bias': True}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'n_shared_experts': 0}),
  ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'first_k_dense_replace': 3}),
  ('qwen3_moe', {**QWEN3_MOE, 'num_hidden_layers': 4, 'decoder_sparse_step': 2}),
  ('qwen3_moe', {**QWEN3_MOE, 'num_hidden_layers': 4, 'mlp_only_layers': [0, 2]}),
  ('qwen3_moe', {**QWEN3_MOE, 'mlp_only_layers': [0, 1]}),
  ('mistral', {'sliding_window': None}),
  ('mistral', {'sliding_window': 256, 'head_dim': 10}),
  ('ministral3', {'head_dim': 8, 'rope_parameters': LLAMA4}),
  ('internlm3', {'head_dim': 8}),
  ('internlm3', {'head_dim': 12, 'rms_norm_eps': 0.01}),
  ('seed_oss', {'head_dim': 12}),
  ('seed_oss', {'head_dim': 8, 'attention_out_bias': True, 'attention_bias': False}),
  ('smollm3', {**SMOLLM3, 'no_rope_layers': [1, 0, 1, 1, 0], 'rope_parameters': YARN}),
  ('smollm3', {**SMOLLM3, 'no_rope_layer_interval': 2, 'attention_bias': True}),
  ('olmo2', {**OLMO2, 'head_dim': 10, 'attention_bias': True}),
  ('phi3', {**PHI3, 'rope_parameters': LONGROPE, **LONG_PHI}),
  ('phi3', {**PHI3, 'sliding_window': 20, 'num_key_value_heads': 1}),
  ('mistral', {'sliding_window': 20}),
  ('ministral3', {'head_dim': 8, 'rope_parameters': LLAMA4, 'sliding_window': 30}),
  ('gemma3_text', {**GEMMA3, 'layer_types': None, 'num_hidden_layers': 7}),
  (
    'gemma3_text',
    {
      **GEMMA3,
      'attention_bias': True,
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 3.0, 'rope_theta': 500.0},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
      },
    },
  ),
]


def compare(model, params, reference):
  """Logits of 100 tokens, beyond the length that RoPE is stretched from."""
  tokens = np.random.default_rng(1).integers(VOCAB, size=(2, 100))
  positions = np.broadcast_to(np.arange(100), tokens.shape)
  hidden, _ = jax.jit(model.forward)(params, tokens, positions, np.zeros_like(tokens))
  with torch.no_grad():
    expected = reference(torch.tensor(tokens)).logits.numpy()
  assert np.abs(expected).max() > 1
  np.testing.assert_allclose(model.logits(params, hidden), expected, atol=CLOSE)


@pytest.mark.parametrize(
  ('model_type', 'fields'), [*FAMILIES.items(), *VARIATIONS], ids=lambda x: str(x)[:60]
)
def test_logits_are_those_of_transformers(model_type, fields, tmp_path):
  reference = theirs(model_type, fields)
  model, params = ours(reference, tmp_path / 'model')
  compare(model, params, reference)


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    *FAMILIES.items(),
    (
      'deepseek_v3',
      {**DEEPSEEK, **GROUPS, 'attention_bias': True, 'rms_norm_eps': 0.1},
    ),
    ('llama', {'attention_bias': True}),
    ('qwen3_moe', {**QWEN3_MOE, 'num_hidden_layers': 4, 'decoder_sparse_step': 2}),
    ('ministral3', {'head_dim': 8, 'rope_parameters': {**LLAMA4, **SHORT}}),
    ('mistral', {'sliding_window': 20}),
    ('phi3', {**PHI3, 'rope_parameters': LONGROPE, **LONG_PHI}),
  ],
  ids=lambda x: str(x)[:60],
)
def test_greedy_continuations_are_those_of_transformers(model_type, fields, tmp_path):
  reference = theirs(model_type, fields)
  model, params = ours(reference, tmp_path / 'model')
  rng = np.random.default_rng(2)
  prompts = [rng.integers(VOCAB, size=length) for length in (9, 4)]
  tokens, mask = np.zeros((2, 9), int), np.zeros((2, 9), bool)
  for row, prompt in enumerate(prompts):
    tokens[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, True
  said = generate.sample(
    params,
    jax.random.split(jax.random.key(0), 2),
    jnp.asarray(tokens),
    jnp.asarray(mask),
    model=model,
    config=SamplingConfig(temperature=0),
    group_size=1,
    max_length=64,
    stop_ids=(),
  )
  for row, prompt in enumerate(prompts):
    # One by one, so that padding has nothing to change there.
    expected = reference.generate(
      torch.tensor(prompt[None]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      max_new_tokens=64,
      do_sample=False,
    )
    np.testing.assert_array_equal(said.tokens[row, 0], expected[0, len(prompt) :])


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    ('smollm3', SMOLLM3),
    ('olmo2', OLMO2),
    ('phi3', {**PHI3, 'rope_parameters': LONGROPE, **LONG_PHI}),
    ('mistral', {'sliding_window': 5}),
    ('gemma3_text', {**GEMMA3, 'sliding_window': 5}),
  ],
)
def test_gradients_are_those_of_transformers(model_type, fields, tmp_path):
  # Of the sum of the tokens' log-probs, through a prompt that two outputs share.
  reference = theirs(model_type, fields)
  model, params = ours(reference, tmp_path / 'm')
  rng = np.random.default_rng(4)
  prompt, outputs = rng.integers(VOCAB, size=9), rng.integers(VOCAB, size=(2, 12))
  tokens = jnp.asarray(outputs, jnp.int32).reshape(1, 1, 24)

  @jax.jit
  def ours_of(params):
    # Both outputs in one row, behind a prompt with padding.
    padded, mask = jnp.asarray([[0, 0, *prompt]]), jnp.arange(11)[None] > 1
    offsets = jnp.tile(jnp.arange(12), 2)[None, None]
    documents = jnp.repeat(jnp.array([1, 2]), 12)[None, None]
    logp, _ = score_tokens(
      params, padded, mask, tokens, offsets, documents, model=model
    )
    return logp.sum()

  total = torch.zeros(())
  for output in outputs:
    row = torch.tensor([[*prompt, *output]])
    logp = torch.log_softmax(reference(row).logits[0, 8:-1], -1)
    total += logp.gather(1, row[0, 9:, None]).sum()
  total.backward()
  value, gradient = jax.value_and_grad(ours_of)(params)
  assert float(value) == pytest.approx(total.item(), rel=1e-5)
  found = dict(weights.tensors(gradient, open_checkpoint(tmp_path / 'm')))
  expected = dict(reference.named_parameters())
  assert found.keys() == expected.keys()
  for name, parameter in expected.items():
    scale = parameter.grad.abs().max()
    # Sums over 42 positions in float32.
    np.testing.assert_allclose(found[name], parameter.grad, atol=1e-4 * float(scale))


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    ('deepseek_v3', FAMILIES['deepseek_v3']),
    ('gemma3_text', {**GEMMA3, 'sliding_window': 5}),
  ],
)
def test_sampled_and_scored_log_probs_agree(model_type, fields, tmp_path):
  # Of latent attention, sampling attends to the compressed cache, scoring opens it.
  model, params = ours(theirs(model_type, fields), tmp_path / 'm')
  prompts = jnp.asarray(np.random.default_rng(3).integers(VOCAB, size=(2, 7)))
  mask = jnp.ones(prompts.shape, bool).at[0, :3].set(False)
  said = generate.sample(
    params,
    jax.random.split(jax.random.key(1), 2),
    prompts,
    mask,
    model=model,
    config=SamplingConfig(),
    group_size=3,
    max_length=40,
    stop_ids=(),
  )
  scored, _ = score_tokens(params, prompts, mask, said.tokens, model=model)
  np.testing.assert_allclose(said.logp, scored, atol=1e-4)


def test_the_cache_of_latent_attention_is_the_latent_and_one_key(tmp_path):
  model, params = ours(theirs('deepseek_v3', FAMILIES['deepseek_v3']), tmp_path / 'm')
  tokens = np.zeros((2, 5), int)
  _, own = model.forward(params, tokens, tokens, tokens)
  # 8 of the latent and 4 of the shared key, a layer and position; no values beside.
  assert own.k.shape == (3, 2, 1, 12, 5)
  assert own.v is None


GEMMA: dict[str, Any] = {'model_type': 'gemma3_text'}
CONFIG = {
  'model_type': 'llama',
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 48,
  'vocab_size': 10,
  'max_position_embeddings': 64,
}


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'model_type': 'gpt2'}, "model_type: expected one of llama, .*, got 'gpt2'"),
    ({'hidden_size': None}, 'hidden_size: expected a whole number, got None'),
    ({'num_hidden_layers': '2'}, "num_hidden_layers: expected a whole .*, got '2'"),
    ({'num_key_value_heads': 3}, 'kv_heads: expected a divisor of heads=4, got 3'),
    ({'hidden_act': 'gelu'}, "hidden_act: expected 'silu', got 'gelu'"),
    ({'attention_bias': 'yes'}, "attention_bias: expected true or false, got 'yes'"),
    ({'model_type': 'mistral', 'sliding_window': 0}, 'sliding_window: .* 1 or more'),
    ({'model_type': 'smollm3', 'no_rope_layers': [1]}, r'for 2 layers, got \[1\]'),
    ({'model_type': 'phi3', 'partial_rotary_factor': 0.1}, 'partial_rotary_factor: ex'),
    ({'model_type': 'phi3', 'rope_scaling': {'type': 'linear'}}, "phi3, got 'linear'"),
    ({'model_type': 'phi3', 'rope_scaling': {'type': 'su'}}, 'short_factor: .* list'),
    (
      {
        'model_type': 'phi3',
        'rope_scaling': {'type': 'su', 'short_factor': [1.0], 'long_factor': [1.0]},
      },
      'rope.divisors: expected 4 .*, got 1',
    ),
    (GEMMA | {'hidden_activation': 'silu'}, "expected 'gelu_pytorch_tanh', got 'silu'"),
    (GEMMA | {'final_logit_softcapping': 30.0}, 'final_logit_softcapping: .* got 30.0'),
    (GEMMA | {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping: .* got 50.0'),
    (GEMMA | {'use_bidirectional_attention': True}, 'use_bidirectional_attention: exp'),
    (GEMMA | {'layer_types': ['chunked'] * 2}, 'layer_types: .* for 2 layers, got'),
    (GEMMA | {'rope_parameters': {'rope_theta': 5}}, 'rope_parameters.rope_theta: exp'),
    (
      GEMMA | {'rope_parameters': {'sliding_attention': {'rope_type': 'linear'}}},
      "sliding_attention.rope_type: expected 'default', got 'linear'",
    ),
    ({'model_type': 'ministral3'}, 'llama_4_scaling_beta: expected a number for'),
    ({'model_type': 'internlm3', 'bias': True}, 'bias: expected False, got True'),
    ({'rope_scaling': {'full_attention': {}}}, r'rope_parameters.full_attention: exp'),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor: exp'),
    ({'use_sliding_window': True}, 'use_sliding_window: expected False, got True'),
    ({'layer_types': ['sliding_attention'] * 2}, 'for gemma3_text alone'),
    ({'rope_scaling': {'type': 'dynamic'}}, "rope_type: .*, got 'dynamic'"),
    ({'rope_scaling': {'type': 'linear'}}, 'factor: expected a finite number above 0'),
    ({'quantization_config': {'quant_method': 'gptq'}}, "'fp8' or no .*, got 'gptq'"),
    ({'model_type': 'deepseek_v3'}, 'kv_lora_rank: expected a whole number, got None'),
    ({'model_type': ['llama']}, r"model_type: expected one of .*, got \['llama'\]"),
    ({'head_dim': '8'}, "head_dim: expected a whole number, got '8'"),
    ({'num_key_value_heads': [2]}, r'num_key_value_heads: expected .*, got \[2\]'),
    ({'tie_word_embeddings': 'no'}, "tie_word_embeddings: expected true .*, got 'no'"),
    ({'vocab_size': 0}, 'vocab_size: expected 1 or more .*, got 0'),
    ({'max_position_embeddings': None}, 'max_position_embeddings: .* number, got None'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor: expected 1.0, got 0.5'),
    ({'rope_parameters': 'yarn'}, 'a field has the wrong type: '),
    ({'rope_theta': 'x'}, 'a field has the wrong type: .*x'),
    ({'layer_types': 3}, 'a field has the wrong type: '),
    ({'rope_scaling': {'type': 'yarn'}}, 'factor: expected a number, got None'),
  ],
)
def test_unsupported_configs_are_refused(changed, message):
  with pytest.raises(config_fields.FamilyError, match=message):
    families.read_config({**CONFIG, **changed})


def test_rope_parameters_of_older_files_are_read():
  new = {'rope_parameters': {'rope_theta': 7.0, 'rope_type': 'linear', 'factor': 2.0}}
  old = {'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', 'factor': 2.0}}
  found = [families.read_config(json.loads(json.dumps(CONFIG | x))) for x in (new, old)]
  assert found[0] == found[1]
  assert (found[0].rope_theta, found[0].rope.factor) == (7.0, 2.0)


def test_gemma_fields_of_older_files_are_read():
  # As they are in the published files of 1B and 4B.
  old = {
    'rope_theta': 1e6,
    'rope_local_base_freq': 1e4,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    'sliding_window': 16,
    'sliding_window_pattern': 2,
    'query_pre_attn_scalar': 168,
  }
  raw = {**CONFIG, **GEMMA, **old, 'num_hidden_layers': 4}
  found = families.read_config(raw)
  assert found.sliding == Sliding(16, full=(1, 3), theta=1e4)
  assert (found.rope_theta, found.rope.kind, found.rope.factor) == (1e6, 'linear', 8.0)
  assert (found.score_dim, found.head_dim, found.tied) == (168, 256, True)
  assert families.max_positions(raw) == 64  # stretched already


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_scale_of_embeddings_is_rounded_as_in_transformers(dtype):
  kind, ones = gemma3.Gemma3TextScaledWordEmbedding, torch.zeros(1, dtype=torch.long)
  theirs = kind(1, 1152, 0, embed_scale=1152**0.5).to(getattr(torch, dtype))
  torch.nn.init.ones_(theirs.weight)
  config = ModelConfig(d_model=1152, scaled_embedding=True)
  assert embedding_scale(config, dtype) == theirs(ones)[0, 0].item()  # 34 in bfloat16


def test_a_window_of_all_positions_is_none():
  raw = {**CONFIG, 'model_type': 'mistral'}
  assert families.read_config({**raw, 'sliding_window': 64}).sliding.window == 0
  assert families.read_config({**raw, 'sliding_window': None}).sliding.window == 0
  assert families.read_config({**raw, 'sliding_window': 63}).sliding.window == 63


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    ('smollm3', SMOLLM3),
    ('olmo2', OLMO2),
    ('phi3', {**PHI3, 'rope_parameters': LONGROPE, **LONG_PHI}),
    ('mistral', {'sliding_window': 20}),
    ('gemma3_text', GEMMA3),
  ],
)
def test_transformers_reads_the_same_from_the_config_that_is_written(
  model_type, fields
):
  kind = transformers.CONFIG_MAPPING[model_type]
  raw = json.loads(kind(**{**BASE, **fields}).to_json_string(use_diff=True))
  written = families.update_config(raw, families.read_config(raw))
  before, after = kind.from_dict(raw), kind.from_dict(written)
  for name in ('rope_parameters', 'tie_word_embeddings', 'sliding_window'):
    assert getattr(after, name, None) == getattr(before, name, None)
  assert families.read_config(written) == families.read_config(raw)


def test_longrope_ends_at_the_original_length():
  scaling = {'type': 'longrope', 'short_factor': [1.0] * 4, 'long_factor': [2.0] * 4}
  raw = {**CONFIG, 'model_type': 'phi3', 'original_max_position_embeddings': 16}
  raw['rope_scaling'] = scaling
  assert families.max_positions(raw) == 16
  # LongRoPE, eq. 8: sqrt(1 + ln(64 / 16) / ln 16)
  assert families.read_config(raw).rope.amplitude == pytest.approx(1.5**0.5)


LONG = {'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 64}


@pytest.mark.parametrize(
  'scaling', [LONG, {'rope_type': 'linear', 'factor': 4.0}], ids=['yarn', 'linear']
)
@pytest.mark.parametrize('where', ['at the top', 'in rope_scaling', 'in what we write'])
def test_rope_scaling_comes_before_rope_parameters(scaling, where, tmp_path):
  base = {'max_position_embeddings': 64, 'rope_parameters': {'rope_theta': 500.0}}
  reference = theirs('qwen2', base)
  reference.save_pretrained(tmp_path / 'm')
  file = tmp_path / 'm' / 'config.json'
  raw = json.loads(file.read_text())
  if where == 'in what we write':
    raw = families.update_config(raw, families.read_config(raw))
  # As model cards say to: transformers has no theta then, but for one that is at the
  # top or in `rope_scaling` itself.
  theta = {'rope_theta': 500.0}
  raw |= theta if where == 'at the top' else {}
  raw['rope_scaling'] = {**scaling, **(theta if where == 'in rope_scaling' else {})}
  file.write_text(json.dumps(raw))
  opened = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'm', attn_implementation='eager'
  )
  assert opened.config.rope_parameters['rope_theta'] == 500.0
  model, params = read(tmp_path / 'm')
  compare(model, params, opened)


def test_rope_scaling_without_theta_keeps_the_models_theta():
  # transformers 5.24 falls back to 10,000, with which it was not trained.
  raw = {**CONFIG, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}}
  found = families.read_config({**raw, 'rope_scaling': LONG})
  assert found.rope_theta == 1e6
  assert (found.rope.kind, found.rope.factor) == ('yarn', 4.0)


@pytest.mark.parametrize(
  ('scaling', 'positions'),
  [
    ({}, 64),
    (LONG, 256),  # as it is added by hand: 4 times the length
    ({'rope_type': 'yarn', 'factor': 4.0}, 256),
    ({**LONG, 'original_max_position_embeddings': 16}, 64),  # 4 times it already
    ({**LONG, 'factor': 6.0, 'original_max_position_embeddings': 16}, 96),
    ({**LONG, 'original_max_position_embeddings': 8}, 64),
    ({'type': 'linear', 'factor': 4.0}, 256),  # as vLLM counts them, too
    ({**LONG, 'type': 'llama3'}, 64),
  ],
)
def test_stretched_rope_has_more_positions(scaling, positions):
  assert families.max_positions({**CONFIG, 'rope_scaling': scaling}) == positions


@pytest.mark.parametrize(
  ('config', 'family'),
  [
    ({'out_bias': True, 'qkv_bias': True}, 'llama'),
    ({'out_bias': True, 'qkv_bias': True, 'qk_norm': True}, 'qwen3'),
    ({'qkv_bias': True}, 'qwen2'),
  ],
)
def test_models_trained_here_get_a_matching_family(config, family):
  made = ModelConfig(**config)
  raw = families.write_config(made, 100, 64)
  assert raw['model_type'] == family
  assert families.read_config(raw) == made
