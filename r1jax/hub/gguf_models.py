"""The architectures of GGUF, and the models that llama.cpp would compute otherwise."""

import math

import gguf

from r1jax.hub import tensor_names
from r1jax.hub.gguf_config import EVERY, LARGE
from r1jax.hub.hf_checkpoint import HFCheckpoint
from r1jax.hub.storage import WeightsError
from r1jax.model.config import LATENT_NORM_EPS, ModelConfig

ARCHITECTURES = {
  'llama': gguf.MODEL_ARCH.LLAMA,
  'mistral': gguf.MODEL_ARCH.LLAMA,
  'internlm3': gguf.MODEL_ARCH.LLAMA,
  'qwen2': gguf.MODEL_ARCH.QWEN2,
  'qwen3': gguf.MODEL_ARCH.QWEN3,
  'qwen3_moe': gguf.MODEL_ARCH.QWEN3MOE,
  'deepseek_v2': gguf.MODEL_ARCH.DEEPSEEK2,
  'deepseek_v3': gguf.MODEL_ARCH.DEEPSEEK2,
  'smollm3': gguf.MODEL_ARCH.SMOLLM3,
  'olmo2': gguf.MODEL_ARCH.OLMO2,
  'phi3': gguf.MODEL_ARCH.PHI3,
  'gemma3_text': gguf.MODEL_ARCH.GEMMA3,
}
LITE = 27  # layers of DeepSeek-V2-Lite


def check(like: HFCheckpoint) -> None:
  """Raises WeightsError if llama.cpp would compute something else than the model."""
  c, e, kind = like.config, like.config.experts, like.raw['model_type']
  if kind not in ARCHITECTURES:
    raise WeightsError(
      f'model_type: expected one of {", ".join(ARCHITECTURES)} for GGUF, got {kind!r}'
    )
  _check_layers(c, kind)
  _check_pattern(c, kind)
  plain = 1 + 0.1 * math.log(c.rope.factor) if c.rope.factor > 1 else 1.0
  expected = 1.0 if c.rope.score_factor != 1 else plain
  if c.rope.kind == 'yarn' and not math.isclose(c.rope.amplitude, expected):
    raise WeightsError(
      f'rope_parameters: expected attention_factor {expected:.6g} for GGUF, and mscale '
      f'like mscale_all_dim, got the factor {c.rope.amplitude:.6g}'
    )
  if kind == 'qwen3_moe' and not e.normalised:
    raise WeightsError('norm_topk_prob: expected true for GGUF, got false')
  if e.groups > 1 and e.scores == 'softmax':
    raise WeightsError(
      f"topk_method: expected 'greedy' for GGUF, got {like.raw.get('topk_method')!r}"
    )
  if c.latent.kv_rank and not tensor_names.interleaved(like.raw):
    raise WeightsError('rope_interleave: expected true for GGUF, got false')
  if c.latent.kv_rank and not c.latent.q_rank and c.layers != LITE:
    raise WeightsError(
      f'q_lora_rank: expected one for GGUF, since llama.cpp omits it only for the '
      f'{LITE} layers of DeepSeek-V2-Lite, got none and {c.layers} layers'
    )


def _check_layers(c: ModelConfig, kind: str) -> None:
  """Raises WeightsError for layers with experts, biases or norms that GGUF lacks."""
  e, is_llama = c.experts, ARCHITECTURES[kind] == gguf.MODEL_ARCH.LLAMA
  if not is_llama and (c.out_bias or (c.qkv_bias and kind != 'qwen2')):
    raise WeightsError('attention_bias: expected false for GGUF, got true')
  if kind == 'qwen3_moe' and (not e.count or e.dense_layers or e.dense):
    raise WeightsError(
      'decoder_sparse_step, mlp_only_layers: expected experts in all layers for GGUF'
    )
  if kind.startswith('deepseek') and not (e.count and e.shared):
    raise WeightsError(
      'n_routed_experts, n_shared_experts, first_k_dense_replace: expected layers with '
      'routed and shared experts for GGUF, got none'
    )
  if c.latent.kv_rank and c.norm_eps != LATENT_NORM_EPS:
    raise WeightsError(
      f'rms_norm_eps: expected {LATENT_NORM_EPS} for GGUF, which has one epsilon for '
      f'all norms, and latent attention uses that one, got {c.norm_eps}'
    )


def _check_pattern(c: ModelConfig, kind: str) -> None:
  """Raises WeightsError for windows, RoPE or scores that llama.cpp fixes otherwise."""
  if kind == 'gemma3_text':
    expected = c.d_model // c.heads if c.layers == LARGE else c.head_dim
    if c.score_dim != expected:
      raise WeightsError(
        f'query_pre_attn_scalar: expected {expected} for GGUF, got {c.score_dim}'
      )
    if not period(c):
      raise WeightsError(
        f'layer_types: expected full_attention in every n-th layer for GGUF, got it in '
        f'{", ".join(map(str, c.sliding.full)) or "none"} of {c.layers}'
      )
  elif c.sliding.window:
    raise WeightsError(
      'sliding_window: expected null for GGUF, since llama.cpp has no windows for '
      f'{kind}, got {c.sliding.window}'
    )
  if kind == 'smollm3' and c.rope.without != tuple(range(EVERY - 1, c.layers, EVERY)):
    raise WeightsError(
      f'no_rope_layers: expected every {EVERY}th layer for GGUF, got '
      f'{", ".join(map(str, c.rope.without)) or "none"} of {c.layers}'
    )


def period(c: ModelConfig) -> int:
  """Returns n if every n-th layer attends to all keys, 0 for another order."""
  full = c.sliding.full
  if not full or full != tuple(range(full[0], c.layers, full[0] + 1)):
    return 0
  return full[0] + 1
