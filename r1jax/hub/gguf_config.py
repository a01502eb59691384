"""The config.json of the model in a GGUF file, made from its metadata.

Metadata that this decoder does not compute is refused by its name.
"""

import collections
import math

import gguf
import numpy as np

from r1jax.hub import families, gguf_rope
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.hub.gguf_file import FLOATS, GGUFFile
from r1jax.hub.layer_fields import FULL, NEAR
from r1jax.hub.storage import KINDS
from r1jax.model.config import LATENT_NORM_EPS
from r1jax.plain import JsonDict

EMBEDDING, HEAD = 'token_embd.weight', 'output.weight'
# Families as llama.cpp names them. DeepSeek-V2 and V3 are told apart by their routers.
DEEPSEEK = 'deepseek2'
MODEL_TYPES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen3moe': 'qwen3_moe',
  DEEPSEEK: 'deepseek_v3',
  'smollm3': 'smollm3',
  'olmo2': 'olmo2',
  'phi3': 'phi3',
  'gemma3': 'gemma3_text',
}
ROLES = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}  # theirs last
EVERY = 4  # layers of SmolLM3 of which the last has no RoPE, in llama.cpp
LARGE = 62  # layers of Gemma 3 27B, whose scores llama.cpp scales in their own way
# Fields of a family that are read here, or that change nothing.
_KNOWN = {
  'block_count',
  'context_length',
  'embedding_length',
  'feed_forward_length',
  'vocab_size',
  'tensor_data_layout',
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.value_length',
  'attention.layer_norm_rms_epsilon',
  'rope.freq_base',
  'rope.dimension_count',
  'rope.scale_linear',
  'rope.scaling.type',
  'rope.scaling.factor',
  'rope.scaling.original_context_length',
  'rope.scaling.finetuned',
  'rope.scaling.yarn_beta_fast',
  'rope.scaling.yarn_beta_slow',
}
_WINDOW = 'attention.sliding_window'
_KNOWN_EXPERTS = {
  'expert_count',
  'expert_used_count',
  'expert_shared_count',
  'expert_gating_func',
  'expert_feed_forward_length',
  'expert_weights_scale',
  'expert_weights_norm',
  'leading_dense_block_count',
}
_KNOWN_LATENT = {
  'attention.q_lora_rank',
  'attention.kv_lora_rank',
  'attention.key_length_mla',
  'attention.value_length_mla',
  'rope.scaling.yarn_log_multiplier',
  'expert_group_count',
  'expert_group_used_count',
}
# Further fields, by architecture.
_KNOWN_MORE = {
  'qwen3moe': _KNOWN_EXPERTS,
  DEEPSEEK: _KNOWN_EXPERTS | _KNOWN_LATENT,
  'phi3': {_WINDOW, 'rope.scaling.attn_factor'},
  'gemma3': {_WINDOW, f'{_WINDOW}_pattern', 'rope.freq_base_swa'},
}


def read(file: GGUFFile) -> JsonDict:
  """Returns the config.json of a file's model.

  Raises:
    FamilyError: the family is unknown, or metadata is missing, malformed or asks for
      something that is not implemented; names the file and the field.
  """
  try:
    return _read(file)
  except FamilyError as error:
    raise FamilyError(f'{file.path}: {error}') from error


def _read(file: GGUFFile) -> JsonDict:
  name = file.architecture
  if name not in MODEL_TYPES:
    raise FamilyError(
      f'general.architecture: expected one of {", ".join(MODEL_TYPES)}, got {name!r}'
    )
  _check_known(file)
  fields, model_type = Fields(file.fields), MODEL_TYPES[name]
  layers = fields.positive(f'{name}.block_count')
  for tensor in (EMBEDDING, f'blk.{layers - 1}.attn_output.weight'):
    if tensor not in file.tensors:
      raise FamilyError(f'the tensor {tensor} is missing')
  heads = fields.positive(f'{name}.attention.head_count')
  if name == DEEPSEEK:
    model_type, shape = _latent(fields, heads)
  else:
    shape = _grouped(file, fields, heads, layers)
  return {
    'architectures': [families.FAMILIES[model_type].architecture],
    'model_type': model_type,
    'vocab_size': file.tensors[EMBEDDING].shape[0],
    'hidden_size': fields.positive(f'{name}.embedding_length'),
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'hidden_act': 'silu',
    **shape,
    'intermediate_size': fields.positive(f'{name}.feed_forward_length'),
    'rms_norm_eps': fields.number(f'{name}.attention.layer_norm_rms_epsilon'),
    **gguf_rope.read(file, fields, shape),
    'tie_word_embeddings': HEAD not in file.tensors,
    'dtype': _dtype(file),
    **{
      f'{role}_token_id': fields.whole(f'tokenizer.ggml.{theirs}_token_id')
      for role, theirs in ROLES.items()
      if f'tokenizer.ggml.{theirs}_token_id' in file.fields
    },
  }


def _check_known(file: GGUFFile) -> None:
  """Raises FamilyError for a field that would change what the model computes."""
  name = file.architecture
  known = _KNOWN | _KNOWN_MORE.get(name, set())
  for field, value in file.fields.items():
    family, _, rest = field.partition('.')
    if family == name and rest not in known and np.any(value):
      raise FamilyError(
        f'{field}: expected no such field, got {value!r}; it is not implemented'
      )


def _grouped(file: GGUFFile, fields: Fields, heads: int, layers: int) -> JsonDict:
  """Returns the attention and experts of a model without latent attention."""
  name = file.architecture
  width = fields.positive(f'{name}.embedding_length')
  channels = fields.positive(f'{name}.attention.key_length', width // heads)
  fields.expect(f'{name}.attention.value_length', channels)
  if name != 'phi3':
    fields.expect(f'{name}.rope.dimension_count', channels)
  shape: JsonDict = {
    'num_key_value_heads': fields.whole(f'{name}.attention.head_count_kv', heads),
    'head_dim': channels,
  }
  if name == 'qwen3moe':
    shape |= _qwen_experts(fields)
  if name == 'llama':
    shape['attention_bias'] = 'blk.0.attn_q.bias' in file.tensors
  if name == 'smollm3':
    shape['no_rope_layer_interval'] = EVERY
  if name == 'phi3':  # llama.cpp reads its window, and does without
    shape['sliding_window'] = fields.whole(f'phi3.{_WINDOW}', 0) or None
  if name == 'gemma3':
    shape |= _gemma(fields, layers, width // heads if layers == LARGE else channels)
  return shape


def _latent(fields: Fields, heads: int) -> tuple[str, JsonDict]:
  """Returns the family of a DeepSeek model, and its attention and experts."""
  within = f'{DEEPSEEK}.attention'
  rank = fields.positive(f'{within}.kv_lora_rank')
  rotated = fields.positive(f'{DEEPSEEK}.rope.dimension_count')
  fields.expect(f'{within}.head_count_kv', 1)
  fields.expect(f'{within}.key_length', rank + rotated)
  fields.expect(f'{within}.value_length', rank)
  # For all norms in llama.cpp; here, as in the published models, of those of latents.
  fields.expect(f'{within}.layer_norm_rms_epsilon', LATENT_NORM_EPS)
  softmax, sigmoid = (gguf.ExpertGatingFuncType[x] for x in ('SOFTMAX', 'SIGMOID'))
  scores = fields.whole(f'{DEEPSEEK}.expert_gating_func', softmax)
  if scores not in (softmax, sigmoid):
    raise FamilyError(
      f'{DEEPSEEK}.expert_gating_func: expected {softmax} or {sigmoid}, got {scores}'
    )
  if scores == softmax:
    fields.expect(f'{DEEPSEEK}.expert_weights_norm', False)
    fields.expect(f'{DEEPSEEK}.expert_group_count', 1)
    routing: JsonDict = {'topk_method': 'greedy', 'scoring_func': 'softmax'}
  else:
    routing = {
      'topk_method': 'noaux_tc',
      'scoring_func': 'sigmoid',
      'norm_topk_prob': fields.flag(f'{DEEPSEEK}.expert_weights_norm', False),
      'n_group': fields.whole(f'{DEEPSEEK}.expert_group_count', 1),
      'topk_group': fields.whole(f'{DEEPSEEK}.expert_group_used_count', 1),
      'rope_interleave': True,
    }
  return ('deepseek_v2' if scores == softmax else 'deepseek_v3'), {
    'num_key_value_heads': heads,
    'kv_lora_rank': rank,
    'q_lora_rank': fields.whole(f'{within}.q_lora_rank', 0) or None,
    'qk_rope_head_dim': rotated,
    'qk_nope_head_dim': fields.positive(f'{within}.key_length_mla') - rotated,
    'v_head_dim': fields.positive(f'{within}.value_length_mla'),
    'attention_bias': False,
    'n_routed_experts': fields.positive(f'{DEEPSEEK}.expert_count'),
    'num_experts_per_tok': fields.positive(f'{DEEPSEEK}.expert_used_count'),
    'moe_intermediate_size': fields.positive(f'{DEEPSEEK}.expert_feed_forward_length'),
    'n_shared_experts': fields.whole(f'{DEEPSEEK}.expert_shared_count', 0),
    'first_k_dense_replace': fields.whole(f'{DEEPSEEK}.leading_dense_block_count', 0),
    'routed_scaling_factor': fields.number(f'{DEEPSEEK}.expert_weights_scale', 1.0),
    'moe_layer_freq': 1,
    **routing,
  }


def _qwen_experts(fields: Fields) -> JsonDict:
  for field, value in {
    'expert_gating_func': int(gguf.ExpertGatingFuncType.SOFTMAX),
    'expert_weights_scale': 1.0,
    'expert_weights_norm': True,
    'expert_shared_count': 0,
    'leading_dense_block_count': 0,
  }.items():
    fields.expect(f'qwen3moe.{field}', value)
  return {
    'num_experts': fields.positive('qwen3moe.expert_count'),
    'num_experts_per_tok': fields.positive('qwen3moe.expert_used_count'),
    'moe_intermediate_size': fields.positive('qwen3moe.expert_feed_forward_length'),
    'norm_topk_prob': True,  # llama.cpp does so in all models of this family
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  }


def _gemma(fields: Fields, layers: int, score_dim: int) -> JsonDict:
  """Returns the windows and the scale of scores; every n-th layer has no window."""
  window = fields.whole(f'gemma3.{_WINDOW}', 0)
  every = fields.positive(f'gemma3.{_WINDOW}_pattern', 6)
  near = NEAR if window else FULL
  return {
    'query_pre_attn_scalar': score_dim,
    'sliding_window': window or None,
    'layer_types': [near if (n + 1) % every else FULL for n in range(layers)],
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
  }


def _dtype(file: GGUFFile) -> str:
  """Returns the type of most numbers; float32 if they are quantized."""
  sizes: collections.Counter[str] = collections.Counter()
  for tensor in file.tensors.values():
    sizes[tensor.type.name] += math.prod(tensor.shape)
  most = sizes.most_common(1)[0][0]
  names = {kind: name for name, kind in KINDS.items()}
  return names[most] if most in FLOATS else 'float32'
