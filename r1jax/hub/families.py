"""The families of models on the Hugging Face hub: their configs, and their names.

A family's config.json is read into a `ModelConfig`, or refused with the field that this
decoder does not compute. Its tensors are named by one table, which serves both ways: a
row says where a tensor of the hub lies in our tree, and how it is turned.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from r1jax.hub import config_fields
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.model.config import Experts, Latent, ModelConfig


class Family(NamedTuple):
  """What transformers assumes of a family where config.json is silent."""

  architecture: str
  head_dim: int | None = None  # None is width / heads
  norm_eps: float = 1e-6
  window: int | None = None  # tokens that a layer looks back


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
}


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
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise FamilyError(
      f'model_type: expected one of {", ".join(FAMILIES)}, got {kind!r}'
    )
  family, fields = FAMILIES[kind], Fields(raw)
  vocab_size(raw)
  positions(raw)
  fields.expect('hidden_act', 'silu')
  fields.expect('mlp_bias', False)
  fields.expect('partial_rotary_factor', 1.0)
  _check_windows(fields, family)
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
  return ModelConfig(
    d_model=width,
    layers=fields.whole('num_hidden_layers'),
    heads=heads,
    kv_heads=heads if latent.kv_rank else fields.whole('num_key_value_heads', heads),
    head_dim=head_dim,
    d_ff=fields.whole('intermediate_size'),
    rope_theta=config_fields.theta(raw),
    rope=config_fields.rope(raw),
    norm_eps=fields.number('rms_norm_eps', family.norm_eps),
    tied=fields.flag('tie_word_embeddings', False),
    qkv_bias=qkv_bias,
    out_bias=out_bias,
    qk_norm=kind.startswith('qwen3'),
    latent=latent,
    experts=_experts(fields, kind),
  )


def _check_windows(fields: Fields, family: Family) -> None:
  """FamilyError if a layer looks back less far than the model's positions."""
  raw = fields.raw
  fields.expect('use_sliding_window', False)
  if any(layer != 'full_attention' for layer in raw.get('layer_types') or ()):
    raise FamilyError(
      'layer_types: expected full_attention in all layers, got '
      f'{sorted(set(raw["layer_types"]))}; sliding windows are not computed'
    )
  if raw['model_type'] in ('mistral', 'ministral3'):
    window = raw.get('sliding_window', family.window)
    if window is not None and fields.whole('sliding_window', window) < positions(raw):
      raise FamilyError(
        f'sliding_window: expected null, or as many as the {positions(raw)} positions, '
        f'got {window}; sliding windows are not computed'
      )


def _biases(fields: Fields, kind: str) -> tuple[bool, bool]:
  """Whether the products before attention have biases, and the one behind it."""
  if kind == 'qwen2':  # without saying so
    return True, False
  if kind in ('mistral', 'ministral3'):
    fields.expect('attention_bias', False)
    return False, False
  if kind == 'seed_oss':
    before = fields.flag('attention_bias', True)
    return before, fields.flag('attention_out_bias', False)
  name = 'attention_bias'
  if kind == 'internlm3':  # whose own names these are
    fields.expect('bias', False)
    name = name if name in fields.raw else 'qkv_bias'
  both = fields.flag(name, False)
  return both, both


def write_config(
  config: ModelConfig, vocab_size: int, max_length: int
) -> dict[str, Any]:
  """Returns the config.json of a model that was made here.

  Raises:
    FamilyError: it has what only checkpoints of the hub have.
  """
  kind = 'qwen3' if config.qk_norm else 'qwen2' if config.qkv_bias else 'llama'
  if config.out_bias and not config.qk_norm:
    kind = 'llama'
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
    raise FamilyError(f'config.json: {config} cannot be said in the words of {kind}')
  return raw


def rewritten(raw: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
  """Returns a checkpoint's config.json for the weights that are written here.

  They are not quantized, and tied only if they are so in the files. `rope_theta` is at
  the top too, where transformers looks for it when `rope_scaling` is added by hand.
  """
  found = {name: x for name, x in raw.items() if name != 'quantization_config'}
  if not raw.get('rope_theta'):
    found['rope_theta'] = config.rope_theta
  if raw.get('tie_word_embeddings', False) != config.tied:
    found['tie_word_embeddings'] = config.tied
  return found


def vocab_size(raw: Mapping[str, Any]) -> int:
  """Returns the rows of the embedding."""
  return Fields(raw).positive('vocab_size')


def positions(raw: Mapping[str, Any]) -> int:
  """Returns how many positions the model knows.

  `max_position_embeddings` is still the length before RoPE is stretched where model
  cards have that added by hand: `factor` times as many are meant with linear scaling,
  and with YaRN `factor` times the original length. vLLM counts them in the same way.
  """
  found = Fields(raw).positive('max_position_embeddings')
  given = config_fields.scaling(raw)
  kind, factor = given.get('rope_type') or given.get('type'), given.get('factor') or 1
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


_NEW_NAME = 'num_local_experts'  # what transformers 5 calls num_experts


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
  # V2's norm_topk_prob is not read: transformers 5.24 doesn't, and the published models
  # have it false.
  if not second:
    fields.expect('topk_method', 'noaux_tc')
  fields.expect('scoring_func', 'softmax' if second else 'sigmoid')
  grouped = not second or fields.raw.get('topk_method') == 'group_limited_greedy'
  groups, active_groups = (1, 1) if second else (8, 4)  # where none are named
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
  """Qwen3-MoE's: in every so manieth layer, but for some."""
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
  if config.out_bias:
    yield Row(('out_bias',), f'{attention}o_proj.bias')
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
    if config.qkv_bias:
      yield Row(('query_down_bias',), f'{name}q_a_proj.bias')
    yield Row(('query_down_norm', 'gain'), f'{name}q_a_layernorm.weight')
    yield Row(('query',), f'{name}q_b_proj.weight', linear=True, pairs=pairs)
  else:
    yield Row(('query',), f'{name}q_proj.weight', linear=True, pairs=pairs)
  down = f'{name}kv_a_proj_with_mqa'
  yield Row(('latent_down',), f'{down}.weight', linear=True, pairs=pairs)
  if config.qkv_bias:
    yield Row(('latent_down_bias',), f'{down}.bias', pairs=pairs)
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
