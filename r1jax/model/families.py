"""The families of models on the Hugging Face hub: their configs, and their names.

A family's config.json is read into a `ModelConfig`, or refused with the field that this
decoder does not compute. Its tensors are named by one table, which serves both ways: a
row says where a tensor of the hub lies in our tree, and how it is turned.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from r1jax.model.config import Experts, Latent, ModelConfig, Rope

ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'qwen3_moe': 'Qwen3MoeForCausalLM',
  'deepseek_v2': 'DeepseekV2ForCausalLM',
  'deepseek_v3': 'DeepseekV3ForCausalLM',
}


class FamilyError(ValueError):
  """A config.json that this decoder can't follow; the message names the field."""


# --- config.json -> ModelConfig -------------------------------------------------------


def read_config(raw: Mapping[str, Any]) -> ModelConfig:
  """Returns what a config.json describes.

  Raises:
    FamilyError: an unknown model, a missing field, or one that asks for what isn't
      computed here.
  """
  try:
    return _read_config(raw)
  except FamilyError:
    raise
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise FamilyError(f'a field is not of the kind expected: {error}') from error


def _read_config(raw: Mapping[str, Any]) -> ModelConfig:
  kind = raw.get('model_type')
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    raise FamilyError(
      f'model_type: expected one of {", ".join(ARCHITECTURES)}, got {kind!r}'
    )
  fields = _Fields(raw)
  vocab_size(raw)
  positions(raw)
  fields.expect('hidden_act', 'silu')
  fields.expect('mlp_bias', False)
  fields.expect('use_sliding_window', False)
  fields.expect('partial_rotary_factor', 1.0)
  # Qwen2 has its biases without saying so; elsewhere they would reach the output.
  if kind != 'qwen2':
    fields.expect('attention_bias', False)
  if any(layer != 'full_attention' for layer in raw.get('layer_types') or ()):
    raise FamilyError(
      'layer_types: expected full_attention in all layers, got '
      f'{sorted(set(raw["layer_types"]))}; sliding windows are not computed'
    )
  quantized = raw.get('quantization_config')
  if quantized and quantized.get('quant_method') != 'fp8':
    raise FamilyError(
      "quantization_config.quant_method: expected 'fp8' or no quantization, got "
      f'{quantized.get("quant_method")!r}'
    )
  if quantized:
    _Fields(quantized).expect('weight_block_size', [128, 128])
  heads = fields.whole('num_attention_heads')
  width = fields.whole('hidden_size')
  latent = _latent(fields) if kind.startswith('deepseek') else Latent()
  if latent.kv_rank:
    head_dim = fields.whole('qk_nope_head_dim') + latent.rope_dim
  else:
    head_dim = fields.whole('head_dim', width // heads)
  tied = raw.get('tie_word_embeddings', False)
  if not isinstance(tied, bool):
    raise FamilyError(f'tie_word_embeddings: expected true or false, got {tied!r}')
  return ModelConfig(
    d_model=width,
    layers=fields.whole('num_hidden_layers'),
    heads=heads,
    kv_heads=heads if latent.kv_rank else fields.whole('num_key_value_heads', heads),
    head_dim=head_dim,
    d_ff=fields.whole('intermediate_size'),
    rope_theta=_theta(raw),
    rope=_rope(raw),
    norm_eps=fields.number('rms_norm_eps', 1e-6),
    tied=tied,
    qkv_bias=kind == 'qwen2',
    qk_norm=kind.startswith('qwen3'),
    latent=latent,
    experts=_experts(fields, kind),
  )


def write_config(
  config: ModelConfig, vocab_size: int, max_length: int
) -> dict[str, Any]:
  """Returns the config.json of a model that was made here.

  Raises:
    FamilyError: it has what only checkpoints of the hub have.
  """
  kind = 'qwen2' if config.qkv_bias else 'qwen3' if config.qk_norm else 'llama'
  if config.latent.kv_rank or config.experts.count or config.rope.kind != 'plain':
    raise FamilyError(
      'expected a model with grouped-query attention, a SwiGLU and plain RoPE, as '
      'others can be written only where they came from a checkpoint'
    )
  if config.d_model % config.heads:
    raise FamilyError(
      f'model.d_model: expected a multiple of heads={config.heads}, as transformers '
      f'opens no other, got {config.d_model}'
    )
  raw = {
    'architectures': [ARCHITECTURES[kind]],
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
    'dtype': 'float32',
  }
  read = dataclasses.replace(read_config(raw), remat=config.remat, dtype=config.dtype)
  if read != config:
    raise FamilyError(f'config.json: {config} cannot be said in the words of {kind}')
  return raw


def vocab_size(raw: Mapping[str, Any]) -> int:
  """Returns the rows of the embedding."""
  return _Fields(raw).positive('vocab_size')


def positions(raw: Mapping[str, Any]) -> int:
  """Returns how many positions the model knows."""
  return _Fields(raw).positive('max_position_embeddings')


class _Fields:
  """A config.json whose missing and wrong fields are named."""

  def __init__(self, raw: Mapping[str, Any]):
    self.raw = raw

  def expect(self, name: str, value: Any) -> None:
    if self.raw.get(name, value) != value:
      raise FamilyError(
        f'{name}: expected {value!r}, got {self.raw[name]!r}; anything else is not '
        'computed here'
      )

  def positive(self, name: str) -> int:
    value = self.whole(name)
    if not 0 < value < 2**31:
      raise FamilyError(f'{name}: expected 1 or more, less than 2^31, got {value}')
    return value

  def whole(self, name: str, default: int | None = None) -> int:
    value = self.raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool):
      raise FamilyError(f'{name}: expected a whole number, got {value!r}')
    return value

  def number(self, name: str, default: float) -> float:
    value = self.raw.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
      raise FamilyError(f'{name}: expected a number, got {value!r}')
    return float(value)


def _scaling(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """The parameters of RoPE, which older files split in two fields."""
  return raw.get('rope_parameters') or raw.get('rope_scaling') or {}


def _theta(raw: Mapping[str, Any]) -> float:
  return float(_scaling(raw).get('rope_theta') or raw.get('rope_theta') or 10_000.0)


def _rope(raw: Mapping[str, Any]) -> Rope:
  given = _scaling(raw)
  kind = given.get('rope_type') or given.get('type') or 'default'
  known = ('default', 'linear', 'llama3', 'yarn')
  if kind not in known:
    raise FamilyError(
      f'rope_parameters.rope_type: expected one of {", ".join(known)}, got {kind!r}'
    )
  if kind == 'default':
    return Rope()
  fields = _Fields(given)
  if kind == 'linear':
    return Rope('linear', factor=fields.number('factor', math.nan))
  length = int(
    given.get('original_max_position_embeddings') or raw['max_position_embeddings']
  )
  if kind == 'llama3':
    return Rope(
      'llama3',
      factor=fields.number('factor', math.nan),
      original_length=length,
      low_freq_factor=fields.number('low_freq_factor', math.nan),
      high_freq_factor=fields.number('high_freq_factor', math.nan),
    )
  fields.expect('truncate', True)
  if not given.get('factor') and not given.get('original_max_position_embeddings'):
    raise FamilyError('rope_parameters.factor: expected a number, got None')
  factor = given.get('factor') or raw['max_position_embeddings'] / length

  def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

  all_dims = given.get('mscale_all_dim') or 0.0
  amplitude = given.get('attention_factor')
  if amplitude is None:
    amplitude = mscale(1)
    if given.get('mscale') and all_dims:
      amplitude = mscale(given['mscale']) / mscale(all_dims)
  latent = 'kv_lora_rank' in raw
  return Rope(
    'yarn',
    factor=float(factor),
    original_length=length,
    beta_fast=float(given.get('beta_fast') or 32),
    beta_slow=float(given.get('beta_slow') or 1),
    amplitude=float(amplitude),
    score_factor=mscale(all_dims) ** 2 if latent and all_dims else 1.0,
  )


def _latent(fields: _Fields) -> Latent:
  return Latent(
    kv_rank=fields.whole('kv_lora_rank'),
    q_rank=fields.whole('q_lora_rank', 0),
    rope_dim=fields.whole('qk_rope_head_dim'),
    value_dim=fields.whole('v_head_dim'),
  )


_NEW_NAME = 'num_local_experts'  # what transformers 5 calls num_experts


def _experts(fields: _Fields, kind: str) -> Experts:
  raw = fields.raw
  if kind == 'qwen3_moe':
    fields.expect('decoder_sparse_step', 1)
    fields.expect('mlp_only_layers', [])
    return Experts(
      count=fields.whole('num_experts' if 'num_experts' in raw else _NEW_NAME),
      active=fields.whole('num_experts_per_tok'),
      d_ff=fields.whole('moe_intermediate_size'),
      normalised=bool(raw.get('norm_topk_prob', False)),
    )
  if not kind.startswith('deepseek') or not raw.get('n_routed_experts'):
    return Experts()
  fields.expect('moe_layer_freq', 1)
  second = kind == 'deepseek_v2'
  if second:
    fields.expect('norm_topk_prob', False)
  else:
    fields.expect('topk_method', 'noaux_tc')
  fields.expect('scoring_func', 'softmax' if second else 'sigmoid')
  grouped = not second or raw.get('topk_method') == 'group_limited_greedy'
  return Experts(
    count=fields.whole('n_routed_experts'),
    active=fields.whole('num_experts_per_tok'),
    d_ff=fields.whole('moe_intermediate_size'),
    shared=fields.whole('n_shared_experts', 0),
    dense_layers=fields.whole('first_k_dense_replace', 0),
    scores='softmax' if second else 'sigmoid',
    groups=fields.whole('n_group', 1) if grouped else 1,
    active_groups=fields.whole('topk_group', 1) if grouped else 1,
    normalised=bool(not second and raw.get('norm_topk_prob', True)),
    scale=fields.number('routed_scaling_factor', 1.0),
  )


# --- Tensors: one table, both ways ----------------------------------------------------


class Row(NamedTuple):
  """A tensor of the hub, and where it lies here."""

  ours: tuple[str, ...]  # path in a stack of layers, or in the tree
  theirs: str  # name, with {layer} and {expert}
  linear: bool = False  # [out, in] there, (in, out) here
  pairs: int = 0  # last channels, which RoPE turns as (2i, 2i + 1) there

  @property
  def inputs(self) -> int:
    """How many of our axes, the first ones, are inputs of a product: columns there."""
    return 0 if not self.linear else 2 if self.ours[-1] == 'out' else 1

  def turn(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns their tensor, or some of its rows, as ours; a view where it can be."""
    x = (x.T if self.linear else x).reshape(shape)
    if not self.pairs:
      return x
    rest, pairs = np.split(x, [shape[-1] - self.pairs], axis=-1)
    halves = pairs.reshape(*shape[:-1], -1, 2).swapaxes(-1, -2)
    return np.concatenate([rest, halves.reshape(pairs.shape)], axis=-1)

  def turn_back(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns our array as theirs."""
    if self.pairs:
      rest, halves = np.split(x, [x.shape[-1] - self.pairs], axis=-1)
      pairs = halves.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)
      x = np.concatenate([rest, pairs.reshape(halves.shape)], axis=-1)
    return transposed(x.reshape(shape[::-1])) if self.linear else x.reshape(shape)


STRIP = 64  # rows that are transposed at a time: twice as fast as all at once


def transposed(x: np.ndarray) -> np.ndarray:
  """Returns a matrix as another one whose rows are its columns."""
  out = np.empty(x.shape[::-1], x.dtype)
  for first in range(0, len(x), STRIP):
    out[:, first : first + STRIP] = x[first : first + STRIP].T
  return out


def outside(config: ModelConfig) -> Iterator[Row]:
  """The tensors that belong to no layer."""
  yield Row(('embedding',), 'model.embed_tokens.weight')
  yield Row(('norm', 'gain'), 'model.norm.weight')
  if not config.tied:
    yield Row(('head',), 'lm_head.weight')


def layer(config: ModelConfig, sparse: bool, interleaved: bool) -> Iterator[Row]:
  """The tensors of a layer; `interleaved` says how RoPE's pairs lie there."""
  name = 'model.layers.{layer}.'
  yield Row(('attention_norm', 'gain'), f'{name}input_layernorm.weight')
  yield Row(('mlp_norm', 'gain'), f'{name}post_attention_layernorm.weight')
  attention = f'{name}self_attn.'
  yield Row(('out',), f'{attention}o_proj.weight', linear=True)
  pairs = config.rope_dim if interleaved else 0
  if config.latent.kv_rank:
    yield from _latent_rows(config, attention, pairs)
  else:
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      yield Row((ours,), f'{attention}{theirs}_proj.weight', linear=True)
      if config.qkv_bias:
        yield Row((f'{ours}_bias',), f'{attention}{theirs}_proj.bias')
      if config.qk_norm and ours != 'value':
        yield Row((f'{ours}_norm', 'gain'), f'{attention}{theirs}_norm.weight')
  mlp = f'{name}mlp.'
  if not sparse:
    yield from _swiglu_rows('', mlp)
    return
  yield Row(('router',), f'{mlp}gate.weight', linear=True)
  if config.experts.scores == 'sigmoid':
    yield Row(('balance',), f'{mlp}gate.e_score_correction_bias')
  yield from _swiglu_rows('expert_', f'{mlp}experts.{{expert}}.')
  if config.experts.shared:
    yield from _swiglu_rows('shared_', f'{mlp}shared_experts.')


def _latent_rows(config: ModelConfig, name: str, pairs: int) -> Iterator[Row]:
  if config.latent.q_rank:
    yield Row(('query_down',), f'{name}q_a_proj.weight', linear=True)
    yield Row(('query_down_norm', 'gain'), f'{name}q_a_layernorm.weight')
    yield Row(('query',), f'{name}q_b_proj.weight', linear=True, pairs=pairs)
  else:
    yield Row(('query',), f'{name}q_proj.weight', linear=True, pairs=pairs)
  down = f'{name}kv_a_proj_with_mqa.weight'
  yield Row(('latent_down',), down, linear=True, pairs=pairs)
  yield Row(('latent_norm', 'gain'), f'{name}kv_a_layernorm.weight')
  yield Row(('latent_up',), f'{name}kv_b_proj.weight', linear=True)


def _swiglu_rows(prefix: str, name: str) -> Iterator[Row]:
  for part in ('gate', 'up', 'down'):
    yield Row((f'{prefix}{part}',), f'{name}{part}_proj.weight', linear=True)


def interleaved(raw: Mapping[str, Any]) -> bool:
  """Whether RoPE turns neighbouring channels there, as in DeepSeek's models."""
  return raw['model_type'] == 'deepseek_v2' or (
    raw['model_type'] == 'deepseek_v3' and bool(raw.get('rope_interleave', True))
  )
