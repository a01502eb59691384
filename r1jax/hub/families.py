"""Model families of the Hugging Face hub: config.json to `ModelConfig` and back.

A config.json that asks for something this decoder does not compute is refused with the
name of the field. For the names of a family's tensors see `tensor_names`.
"""

import dataclasses
from typing import NamedTuple

from r1jax.hub import config_fields, layer_fields
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.model.config import Experts, Latent, ModelConfig
from r1jax.plain import JsonDict, JsonObject


class Family(NamedTuple):
  """The defaults of transformers for fields that a config.json leaves out."""

  architecture: str
  head_dim: int | None = None  # None: d_model / heads
  norm_eps: float = 1e-6
  theta: float = 10_000.0  # base of RoPE
  tied: bool = False
  window: int | None = None  # of sliding-window attention, in tokens


FAMILIES = {
  'llama': Family('LlamaForCausalLM'),
  'qwen2': Family('Qwen2ForCausalLM'),
  'qwen3': Family('Qwen3ForCausalLM', head_dim=128),
  'qwen3_moe': Family('Qwen3MoeForCausalLM'),
  'deepseek_v2': Family('DeepseekV2ForCausalLM'),
  'deepseek_v3': Family('DeepseekV3ForCausalLM'),
  'mistral': Family('MistralForCausalLM', window=4096),
  'ministral3': Family('Ministral3ForCausalLM', head_dim=128, norm_eps=1e-5),
  'internlm3': Family('InternLM3ForCausalLM', head_dim=128, norm_eps=1e-5),
  'seed_oss': Family('SeedOssForCausalLM', head_dim=128),
  'smollm3': Family('SmolLM3ForCausalLM', theta=2e6, tied=True),
  'olmo2': Family('Olmo2ForCausalLM', norm_eps=1e-5),
  'phi3': Family('Phi3ForCausalLM', norm_eps=1e-5),
  'gemma3_text': Family(
    'Gemma3ForCausalLM', head_dim=256, theta=1e6, tied=True, window=4096
  ),
}


def read_config(raw: JsonObject) -> ModelConfig:
  """Returns the `ModelConfig` that a config.json describes.

  Raises:
    FamilyError: the model type is unknown, or a field is missing, malformed or asks for
      something that is not implemented.
  """
  try:
    return _read_config(raw)
  except FamilyError:
    raise
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise FamilyError(f'a field has the wrong type: {error}') from error


def _read_config(raw: JsonObject) -> ModelConfig:
  kind = raw.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise FamilyError(
      f'model_type: expected one of {", ".join(FAMILIES)}, got {kind!r}'
    )
  family, fields = FAMILIES[kind], Fields(raw)
  vocab_size(raw)
  length = max_positions(raw)
  fields.expect('mlp_bias', False)
  gemma = kind == 'gemma3_text'
  if gemma:
    _check_gemma(fields)
  else:
    fields.expect('hidden_act', 'silu')
  quantized = raw.get('quantization_config')
  if quantized and quantized.get('quant_method') != 'fp8':
    raise FamilyError(
      "quantization_config.quant_method: expected 'fp8' or no quantization, got "
      f'{quantized.get("quant_method")!r}'
    )
  if quantized:
    Fields(quantized).expect('weight_block_size', [128, 128])
  heads = fields.whole('num_attention_heads')
  width = fields.whole('hidden_size')
  latent = _latent(fields) if kind.startswith('deepseek') else Latent()
  if latent.kv_rank:
    head_dim = fields.whole('qk_nope_head_dim') + latent.rope_dim
  else:
    plain = width // heads if 'head_dim' in raw else family.head_dim or width // heads
    head_dim = fields.whole('head_dim', plain)
  if kind == 'ministral3' and not config_fields.scaling(raw).get(
    'llama_4_scaling_beta'
  ):
    raise FamilyError(
      'rope_parameters.llama_4_scaling_beta: expected a number for ministral3, got None'
    )
  qkv_bias, out_bias = _biases(fields, kind)
  theta, rope = layer_fields.rope(raw, family.theta, head_dim)
  return ModelConfig(
    d_model=width,
    layers=fields.whole('num_hidden_layers'),
    heads=heads,
    kv_heads=heads if latent.kv_rank else fields.whole('num_key_value_heads', heads),
    head_dim=head_dim,
    d_ff=fields.whole('intermediate_size'),
    rope_theta=theta,
    rope=rope,
    norm_eps=fields.number('rms_norm_eps', family.norm_eps),
    norms='both' if gemma else 'after' if kind == 'olmo2' else 'before',
    stored_minus_1=gemma,
    activation='gelu_tanh' if gemma else 'silu',
    tied=fields.flag('tie_word_embeddings', family.tied),
    scaled_embedding=gemma,
    qkv_bias=qkv_bias,
    out_bias=out_bias,
    qk_norm=kind.startswith('qwen3') or gemma,
    qk_norm_joint=kind == 'olmo2',
    score_dim=fields.positive('query_pre_attn_scalar', 256) if gemma else 0,
    sliding=layer_fields.sliding(fields, length, family.window),
    latent=latent,
    experts=_experts(fields, kind),
  )


def _check_gemma(fields: Fields) -> None:
  """Raises FamilyError for what Gemma 3 could ask for and no published model does."""
  fields.expect('hidden_activation', 'gelu_pytorch_tanh')
  fields.expect('attn_logit_softcapping', None)
  fields.expect('final_logit_softcapping', None)
  if fields.flag('use_bidirectional_attention', False):
    raise FamilyError('use_bidirectional_attention: expected false, got true')


def _biases(fields: Fields, kind: str) -> tuple[bool, bool]:
  """Returns whether query, key and value have biases, and whether the output has."""
  if kind == 'qwen2':  # always, without a field for it
    return True, False
  if kind in ('mistral', 'ministral3', 'phi3'):
    fields.expect('attention_bias', False)
    return False, False
  if kind == 'seed_oss':
    before = fields.flag('attention_bias', True)
    return before, fields.flag('attention_out_bias', False)
  name = 'attention_bias'
  if kind == 'internlm3':  # it has its own names for both
    fields.expect('bias', False)
    name = name if name in fields.raw else 'qkv_bias'
  both = fields.flag(name, False)
  return both, both


def write_config(config: ModelConfig, vocab_size: int, max_length: int) -> JsonObject:
  """Returns the config.json of a model that was trained from random weights here.

  Raises:
    FamilyError: transformers has no family for this model, or the model has latent
      attention, experts or stretched RoPE.
  """
  kind = 'qwen3' if config.qk_norm else 'qwen2' if config.qkv_bias else 'llama'
  if config.out_bias and not config.qk_norm:
    kind = 'llama'
  if config.latent.kv_rank or config.experts.count or config.rope.kind != 'plain':
    raise FamilyError(
      'expected a model with grouped-query attention, a SwiGLU and plain RoPE; other '
      'models can be exported only if they were loaded from a checkpoint'
    )
  if config.d_model % config.heads:
    raise FamilyError(
      f'model.d_model: expected a multiple of heads={config.heads}, since '
      f'transformers opens no other, got {config.d_model}'
    )
  raw = {
    'architectures': [FAMILIES[kind].architecture],
    'model_type': kind,
    'vocab_size': vocab_size,
    'hidden_size': config.d_model,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.d_ff,
    'hidden_act': 'silu',
    'max_position_embeddings': max_length,
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_theta},
    'tie_word_embeddings': config.tied,
    'attention_bias': config.out_bias,
    'dtype': 'float32',
  }
  read = dataclasses.replace(read_config(raw), remat=config.remat, dtype=config.dtype)
  if read != config:
    raise FamilyError(f'this model has no equivalent {kind} config.json: {config}')
  return raw


def update_config(raw: JsonObject, config: ModelConfig) -> JsonDict:
  """Returns a checkpoint's config.json, changed to describe the exported weights.

  Exported weights are not quantized, and embeddings are tied only if they are tied in
  the files. `rope_theta` is repeated at the top level, where transformers looks for it
  when a user adds `rope_scaling` by hand.
  """
  found = {name: x for name, x in raw.items() if name != 'quantization_config'}
  if not raw.get('rope_theta'):
    found['rope_theta'] = config.rope_theta
  if raw.get('tie_word_embeddings', FAMILIES[raw['model_type']].tied) != config.tied:
    found['tie_word_embeddings'] = config.tied
  return found


def vocab_size(raw: JsonObject) -> int:
  """Returns the number of rows of the embedding."""
  return Fields(raw).positive('vocab_size')


def max_positions(raw: JsonObject) -> int:
  """Returns the longest sequence that the model supports, in tokens.

  Where a model card tells users to add `rope_scaling` by hand,
  `max_position_embeddings` is the length before stretching. With linear scaling the
  model then supports `factor` times that length, with YaRN `factor` times the original
  length. vLLM counts positions in the same way. Gemma 3's length is the stretched one.
  With LongRoPE only the original length is implemented.
  """
  found = Fields(raw).positive('max_position_embeddings')
  if raw['model_type'] == 'gemma3_text':
    return found
  given = config_fields.scaling(raw)
  kind, factor = given.get('rope_type') or given.get('type'), given.get('factor') or 1
  if raw['model_type'] == 'phi3' and kind in layer_fields.LONGROPE:
    return min(found, config_fields.original_length(raw))
  if kind == 'linear':
    return int(found * factor)
  if kind == 'yarn':
    return max(found, int(config_fields.original_length(raw) * factor))
  return found


def _latent(fields: Fields) -> Latent:
  return Latent(
    kv_rank=fields.whole('kv_lora_rank'),
    q_rank=fields.whole('q_lora_rank', 0),
    rope_dim=fields.whole('qk_rope_head_dim'),
    value_dim=fields.whole('v_head_dim'),
  )


_NEW_NAME = 'num_local_experts'  # transformers 5's name for num_experts


def _experts(fields: Fields, kind: str) -> Experts:
  if kind == 'qwen3_moe':
    return _qwen_experts(fields)
  if not kind.startswith('deepseek') or not fields.whole('n_routed_experts', 0):
    return Experts()
  first, layers = 'first_k_dense_replace', fields.whole('num_hidden_layers')
  if fields.whole(first, 0) >= layers:
    return Experts()
  fields.expect('moe_layer_freq', 1)
  second = kind == 'deepseek_v2'
  # norm_topk_prob of V2 is not read: transformers 5.24 ignores it as well, and it is
  # false in the published models.
  if not second:
    fields.expect('topk_method', 'noaux_tc')
  fields.expect('scoring_func', 'softmax' if second else 'sigmoid')
  grouped = not second or fields.raw.get('topk_method') == 'group_limited_greedy'
  groups, active_groups = (1, 1) if second else (8, 4)  # the defaults
  return Experts(
    count=fields.whole('n_routed_experts'),
    active=fields.whole('num_experts_per_tok'),
    d_ff=fields.whole('moe_intermediate_size'),
    shared=fields.whole('n_shared_experts', 0),
    dense_layers=fields.whole(first, 0),
    scores='softmax' if second else 'sigmoid',
    groups=fields.whole('n_group', groups) if grouped else 1,
    active_groups=fields.whole('topk_group', active_groups) if grouped else 1,
    normalised=not second and fields.flag('norm_topk_prob', True),
    scale=fields.number('routed_scaling_factor', 1.0 if second else 2.5),
  )


def _qwen_experts(fields: Fields) -> Experts:
  """Returns the experts of Qwen3-MoE: in every `decoder_sparse_step`-th layer."""
  count = fields.whole('num_experts' if 'num_experts' in fields.raw else _NEW_NAME)
  layers = range(fields.whole('num_hidden_layers'))
  step = fields.whole('decoder_sparse_step', 1)
  without = fields.raw.get('mlp_only_layers') or []
  dense = tuple(n for n in layers if n in without or (n + 1) % step)
  if not count or len(dense) == len(layers):
    return Experts()
  first = next(n for n in layers if n not in dense)
  return Experts(
    count=count,
    active=fields.whole('num_experts_per_tok'),
    d_ff=fields.whole('moe_intermediate_size'),
    dense_layers=first,
    dense=dense[first:],
    normalised=fields.flag('norm_topk_prob', False),
  )
