"""The config.json of the model in a GGUF file, made from its metadata.

Metadata that this decoder does not compute is refused by its name.
"""

import collections
import math
from typing import Any

import gguf
import numpy as np

from r1jax.hub import families
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.hub.gguf_file import FLOATS, GGUFFile
from r1jax.hub.storage import KINDS
from r1jax.model.config import LATENT_NORM_EPS
from r1jax.plain import JsonDict

EMBEDDING, HEAD, FREQUENCIES = 'token_embd.weight', 'output.weight', 'rope_freqs.weight'
# Families as llama.cpp names them. DeepSeek-V2 and V3 are told apart by their routers.
DEEPSEEK = 'deepseek2'
MODEL_TYPES = {
  'llama': 'llama',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
  'qwen3moe': 'qwen3_moe',
  DEEPSEEK: 'deepseek_v3',
}
ROLES = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding', 'unk': 'unknown'}  # theirs last
_LOW, _HIGH = 1.0, 4.0  # of Llama 3: wavelengths between original length / these
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
  for tensor in (EMBEDDING, f'blk.{layers - 1}.attn_norm.weight'):
    if tensor not in file.tensors:
      raise FamilyError(f'the tensor {tensor} is missing')
  heads = fields.positive(f'{name}.attention.head_count')
  width = fields.positive(f'{name}.embedding_length')
  if name == DEEPSEEK:
    model_type, shape = _latent(fields, heads)
  else:
    channels = fields.whole(f'{name}.attention.key_length', width // heads)
    fields.expect(f'{name}.attention.value_length', channels)
    fields.expect(f'{name}.rope.dimension_count', channels)
    shape = {
      'num_key_value_heads': fields.whole(f'{name}.attention.head_count_kv', heads),
      'head_dim': channels,
    }
  if name == 'qwen3moe':
    shape |= _qwen_experts(fields)
  if name == 'llama':
    shape['attention_bias'] = 'blk.0.attn_q.bias' in file.tensors
  length, rope = _rope(file, fields, width // heads)
  return {
    'architectures': [families.FAMILIES[model_type].architecture],
    'model_type': model_type,
    'vocab_size': file.tensors[EMBEDDING].shape[0],
    'hidden_size': width,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    **shape,
    'intermediate_size': fields.positive(f'{name}.feed_forward_length'),
    'hidden_act': 'silu',
    'max_position_embeddings': length,
    'rms_norm_eps': _number(fields, f'{name}.attention.layer_norm_rms_epsilon'),
    'rope_theta': rope['rope_theta'],
    'rope_parameters': rope,
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
  known = _KNOWN
  if name in ('qwen3moe', DEEPSEEK):
    known = known | _KNOWN_EXPERTS
  if name == DEEPSEEK:
    known = known | _KNOWN_LATENT
  for field, value in file.fields.items():
    family, _, rest = field.partition('.')
    if family == name and rest not in known and np.any(value):
      raise FamilyError(
        f'{field}: expected no such field, got {value!r}; it is not implemented'
      )


def _number(fields: Fields, name: str) -> float:
  """Returns a number that must be there."""
  if name not in fields.raw:
    raise FamilyError(f'{name}: expected a number, got none')
  return fields.number(name, math.nan)


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


def _rope(file: GGUFFile, fields: Fields, channels: int) -> tuple[int, JsonDict]:
  """Returns the positions before linear scaling, and the parameters of RoPE."""
  name = file.architecture
  length = fields.positive(f'{name}.context_length')
  found: dict[str, Any] = {
    'rope_type': 'default',
    'rope_theta': fields.number(f'{name}.rope.freq_base', 10_000.0),
  }
  kind = file.fields.get(f'{name}.rope.scaling.type', 'linear')  # as in llama.cpp
  factor = fields.number(
    f'{name}.rope.scaling.factor', fields.number(f'{name}.rope.scale_linear', 1.0)
  )
  if kind not in ('none', 'linear', 'yarn'):
    raise FamilyError(
      f'{name}.rope.scaling.type: expected none, linear or yarn, got {kind!r}'
    )
  if FREQUENCIES in file.tensors and name == 'llama':
    if kind == 'yarn' or factor not in (0, 1):
      raise FamilyError(
        f'{name}.rope.scaling.type: expected none beside {FREQUENCIES}, got {kind!r}'
      )
    return length, {**found, **_llama3(file, found['rope_theta'])}
  if kind == 'linear' and factor not in (0, 1):
    return int(length / factor), {**found, 'rope_type': 'linear', 'factor': factor}
  if kind == 'yarn':
    found |= _yarn(fields, name, length)
  return length, found


def _yarn(fields: Fields, name: str, length: int) -> JsonDict:
  within = f'{name}.rope.scaling'
  found: JsonDict = {
    'rope_type': 'yarn',
    'factor': _number(fields, f'{within}.factor'),
    'original_max_position_embeddings': fields.whole(
      f'{within}.original_context_length', length
    ),
    'beta_fast': fields.number(f'{within}.yarn_beta_fast', 32.0),
    'beta_slow': fields.number(f'{within}.yarn_beta_slow', 1.0),
  }
  if name == DEEPSEEK:  # both are the same in the published models
    scale = round(10 * _number(fields, f'{within}.yarn_log_multiplier'), 6)
    found |= {'mscale': scale, 'mscale_all_dim': scale}
  return found


def _llama3(file: GGUFFile, theta: float) -> JsonDict:
  """Returns the scaling of Llama 3 with these divisors of the frequencies.

  They say no more about it: with twice the original length and twice both bounds they
  would be the same. The bounds are those of all published models.
  """
  divisors = file.tensors[FREQUENCIES].read().astype(np.float64)
  if np.allclose(divisors, 1):
    return {}
  plain = theta ** (-np.arange(len(divisors)) / len(divisors))
  factor = float(f'{divisors.max():.6g}')
  kept = np.clip((1 / divisors - 1 / factor) / (1 - 1 / factor), 0, 1)
  # The slowest one that is not fully stretched: turns - low = kept * (high - low).
  (partly,) = np.nonzero(kept > 1e-4)
  last = partly[-1] if len(partly) else 0
  turns = _LOW + kept[last] * (_HIGH - _LOW)
  original = round(turns * 2 * math.pi / plain[last])
  again = np.clip((original * plain / (2 * math.pi) - _LOW) / (_HIGH - _LOW), 0, 1)
  expected = 1 / (again + (1 - again) / factor)
  if not np.allclose(divisors, expected, rtol=1e-3):
    raise FamilyError(
      f'{FREQUENCIES}: expected the divisors of Llama 3, {expected.round(4).tolist()}, '
      f'got {divisors.round(4).tolist()}'
    )
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': _LOW,
    'high_freq_factor': _HIGH,
    'original_max_position_embeddings': original,
  }


def _dtype(file: GGUFFile) -> str:
  """Returns the type of most numbers; float32 if they are quantized."""
  sizes: collections.Counter[str] = collections.Counter()
  for tensor in file.tensors.values():
    sizes[tensor.type.name] += math.prod(tensor.shape)
  most = sizes.most_common(1)[0][0]
  names = {kind: name for name, kind in KINDS.items()}
  return names[most] if most in FLOATS else 'float32'
