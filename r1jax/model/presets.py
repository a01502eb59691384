"""Published models by name, with the sizes of their config.json.

A preset has no weights; those come from a folder (see `r1jax.hub.weights`). A `Preset`
also has the rows of the embedding, which may exceed the tokenizer's vocabulary.
"""

import math
from typing import Any, NamedTuple

from r1jax.model.config import Experts, Latent, ModelConfig, Rope


class Preset(NamedTuple):
  """A published model without its weights."""

  config: ModelConfig
  vocab_size: int


def _qwen2_5(layers: int, width: int, d_ff: int, heads: int, kv: int, **rest: Any):
  # Up to 3B embedding and head are tied; from 7B on the vocabulary is padded more.
  small = layers == 36 or width < 2048
  config = ModelConfig(
    d_model=width,
    layers=layers,
    heads=heads,
    kv_heads=kv,
    head_dim=width // heads,
    d_ff=d_ff,
    tied=small,
    qkv_bias=True,
    **{'rope_theta': 1e6, **rest},
  )
  return Preset(config, 151_936 if small else 152_064)


def _qwen3(layers: int, width: int, d_ff: int, heads: int, kv: int, tied: bool):
  config = ModelConfig(
    d_model=width,
    layers=layers,
    heads=heads,
    kv_heads=kv,
    head_dim=128,
    d_ff=d_ff,
    rope_theta=1e6,
    tied=tied,
    qk_norm=True,
  )
  return Preset(config, 151_936)


def _llama3(
  layers: int, width: int, d_ff: int, heads: int, head: int, stretched: float
) -> Preset:
  rope = Rope('llama3', factor=stretched, original_length=8192)
  config = ModelConfig(
    d_model=width,
    layers=layers,
    heads=heads,
    kv_heads=8,
    head_dim=head,
    d_ff=d_ff,
    rope_theta=500_000.0,
    rope=rope,
    norm_eps=1e-5,
    tied=width <= 3072,
  )
  return Preset(config, 128_256)


_MSCALE = 0.1 * math.log(40) + 1
DEEPSEEK_V3 = ModelConfig(
  d_model=7168,
  layers=61,
  heads=128,
  kv_heads=128,
  head_dim=192,
  d_ff=18_432,
  rope=Rope('yarn', factor=40, original_length=4096, score_factor=_MSCALE**2),
  tied=False,
  latent=Latent(kv_rank=512, q_rank=1536, rope_dim=64, value_dim=128),
  experts=Experts(
    count=256,
    active=8,
    d_ff=2048,
    shared=1,
    dense_layers=3,
    scores='sigmoid',
    groups=8,
    active_groups=4,
    scale=2.5,
  ),
)

PRESETS: dict[str, Preset] = {
  'Qwen2.5-0.5B': _qwen2_5(24, 896, 4864, 14, 2),
  'Qwen2.5-1.5B': _qwen2_5(28, 1536, 8960, 12, 2),
  'Qwen2.5-3B': _qwen2_5(36, 2048, 11_008, 16, 2),
  'Qwen2.5-7B': _qwen2_5(28, 3584, 18_944, 28, 4),
  'Qwen2.5-14B': _qwen2_5(48, 5120, 13_824, 40, 8, norm_eps=1e-5),
  'Qwen2.5-32B': _qwen2_5(64, 5120, 27_648, 40, 8, norm_eps=1e-5),
  'Qwen2.5-72B': _qwen2_5(80, 8192, 29_568, 64, 8, norm_eps=1e-5),
  # The math models have a RoPE base 100 times smaller.
  'Qwen2.5-Math-1.5B': _qwen2_5(28, 1536, 8960, 12, 2, rope_theta=1e4),
  'Qwen2.5-Math-7B': _qwen2_5(28, 3584, 18_944, 28, 4, rope_theta=1e4),
  'Qwen2.5-Math-72B': _qwen2_5(80, 8192, 29_568, 64, 8, rope_theta=1e4, norm_eps=1e-5),
  'Qwen3-0.6B': _qwen3(28, 1024, 3072, 16, 8, tied=True),
  'Qwen3-1.7B': _qwen3(28, 2048, 6144, 16, 8, tied=True),
  'Qwen3-4B': _qwen3(36, 2560, 9728, 32, 8, tied=True),
  'Qwen3-8B': _qwen3(36, 4096, 12_288, 32, 8, tied=False),
  'Qwen3-14B': _qwen3(40, 5120, 17_408, 40, 8, tied=False),
  'Qwen3-32B': _qwen3(64, 5120, 25_600, 64, 8, tied=False),
  'Qwen3-30B-A3B': Preset(
    ModelConfig(
      d_model=2048,
      layers=48,
      heads=32,
      kv_heads=4,
      head_dim=128,
      d_ff=6144,
      rope_theta=1e6,
      tied=False,
      qk_norm=True,
      experts=Experts(count=128, active=8, d_ff=768),
    ),
    151_936,
  ),
  'Llama-3.2-1B': _llama3(16, 2048, 8192, 32, 64, stretched=32),
  'Llama-3.2-3B': _llama3(28, 3072, 8192, 24, 128, stretched=32),
  'Llama-3.1-8B': _llama3(32, 4096, 14_336, 32, 128, stretched=8),
  'Llama-3.1-70B': _llama3(80, 8192, 28_672, 64, 128, stretched=8),
  'Llama-3.3-70B-Instruct': _llama3(80, 8192, 28_672, 64, 128, stretched=8),
  'DeepSeek-V3-Base': Preset(DEEPSEEK_V3, 129_280),
  'DeepSeek-R1': Preset(DEEPSEEK_V3, 129_280),
}
