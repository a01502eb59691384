"""config.json of published models, and as many parameters as their files have."""

import math
from typing import Any

import jax
import pytest

from r1jax.hub import families
from r1jax.model import decoder

# Their fields, without those that say nothing of the network.
SMOLLM3_3B: dict[str, Any] = {
  'model_type': 'smollm3',
  'hidden_size': 2048,
  'intermediate_size': 11_008,
  'layer_types': ['full_attention'] * 36,
  'max_position_embeddings': 65_536,
  'no_rope_layers': [1, 1, 1, 0] * 9,
  'num_attention_heads': 16,
  'num_hidden_layers': 36,
  'num_key_value_heads': 4,
  'rope_theta': 5e6,
  'sliding_window': None,
  'use_sliding_window': False,
  'vocab_size': 128_256,
}
OLMO2_1B: dict[str, Any] = {
  'model_type': 'olmo2',
  'hidden_size': 2048,
  'intermediate_size': 8192,
  'max_position_embeddings': 4096,
  'num_attention_heads': 16,
  'num_hidden_layers': 16,
  'num_key_value_heads': 16,
  'rms_norm_eps': 1e-6,
  'rope_theta': 500_000,
  'vocab_size': 100_352,
}
PHI3_MINI: dict[str, Any] = {
  'model_type': 'phi3',
  'hidden_size': 3072,
  'intermediate_size': 8192,
  'max_position_embeddings': 4096,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 32,
  'original_max_position_embeddings': 4096,
  'rope_scaling': None,
  'sliding_window': 2047,
  'vocab_size': 32_064,
}
PHI4: dict[str, Any] = {
  **PHI3_MINI,
  'hidden_size': 5120,
  'intermediate_size': 17_920,
  'max_position_embeddings': 16_384,
  'num_attention_heads': 40,
  'num_hidden_layers': 40,
  'num_key_value_heads': 10,
  'original_max_position_embeddings': 16_384,
  'rope_theta': 250_000,
  'sliding_window': None,
  'vocab_size': 100_352,
}
PHI4_MINI: dict[str, Any] = {
  **PHI3_MINI,
  'max_position_embeddings': 131_072,
  'num_attention_heads': 24,
  'num_key_value_heads': 8,
  'partial_rotary_factor': 0.75,
  # The published numbers differ from 1.
  'rope_scaling': {
    'type': 'longrope',
    'long_factor': [1.0] * 48,
    'short_factor': [1.0] * 48,
  },
  'sliding_window': 262_144,
  'tie_word_embeddings': True,
  'vocab_size': 200_064,
}
GEMMA3_1B: dict[str, Any] = {
  'model_type': 'gemma3_text',
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 1152,
  'intermediate_size': 6912,
  'max_position_embeddings': 32_768,
  'num_attention_heads': 4,
  'num_hidden_layers': 26,
  'num_key_value_heads': 1,
  'query_pre_attn_scalar': 256,
  'rope_local_base_freq': 10_000,
  'rope_scaling': None,
  'rope_theta': 1_000_000,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'vocab_size': 262_144,
}
MISTRAL_7B: dict[str, Any] = {
  'model_type': 'mistral',
  'hidden_size': 4096,
  'intermediate_size': 14_336,
  'max_position_embeddings': 32_768,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-5,
  'rope_theta': 10_000,
  'sliding_window': 4096,
  'vocab_size': 32_000,
}


# Parameters by the hub's pages; positions; layers with a window, and its tokens.
@pytest.mark.parametrize(
  ('raw', 'parameters', 'positions', 'windows'),
  [
    (SMOLLM3_3B, 3_075_098_624, 65_536, (0, 0)),
    (OLMO2_1B, 1_484_916_736, 4096, (0, 0)),
    (PHI3_MINI, 3_821_079_552, 4096, (32, 2047)),
    (PHI4, 14_659_507_200, 16_384, (0, 0)),
    (PHI4_MINI, 3_836_021_760, 4096, (0, 0)),
    (GEMMA3_1B, 999_885_952, 32_768, (22, 512)),
    (MISTRAL_7B, 7_241_732_096, 32_768, (32, 4096)),
  ],
  ids=lambda x: x['model_type'] if isinstance(x, dict) else '',
)
def test_published_models_have_their_size(raw, parameters, positions, windows):
  config = families.read_config(raw)
  shapes = decoder.shapes(config, raw['vocab_size'])
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == parameters
  assert families.max_positions(raw) == positions
  assert (sum(map(bool, config.windows)), max(config.windows)) == windows


def test_smollm3_turns_three_layers_of_four():
  rope = families.read_config(SMOLLM3_3B).rope
  assert rope.without == (3, 7, 11, 15, 19, 23, 27, 31, 35)


def test_phi4_mini_turns_three_quarters_of_its_channels():
  rope = families.read_config(PHI4_MINI).rope
  assert rope.channels == 96  # of 128
  # LongRoPE, eq. 8: sqrt(1 + ln(131072 / 4096) / ln 4096)
  assert rope.amplitude == pytest.approx((17 / 12) ** 0.5)
