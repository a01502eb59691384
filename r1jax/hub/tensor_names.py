"""Names and layouts of the tensors in a Hugging Face checkpoint.

One table serves reading and writing. Each row has the path of a parameter in our tree,
the name of its tensor on the hub, and the conversion between the two layouts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from r1jax.model.config import ModelConfig
from r1jax.plain import JsonObject


class Part(NamedTuple):
  """Consecutive rows of a tensor that several parameters share."""

  first: int  # row
  total: int  # rows of the tensor


class TensorRow(NamedTuple):
  """A parameter of a layer, or of no layer, and its tensor on the hub."""

  path: tuple[str, ...]  # in the tree of a layer's parameters, or of all parameters
  name: str  # of the tensor, with {layer} and {expert}
  linear: bool = False  # a matrix: [out, in] on the hub, [in, out] here
  interleaved: int = 0  # last channels that RoPE rotates in pairs (2i, 2i + 1) there
  part: Part | None = None  # None: it is the whole tensor

  @property
  def inputs(self) -> int:
    """The number of leading axes of our matrix that are inputs; 0 for no matrix."""
    return 0 if not self.linear else 2 if self.path[-1] == 'out' else 1

  def from_hub(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor of the hub, or some of its rows, in our layout.

    A view where that is possible. `shape` is that of the result.
    """
    x = (x.T if self.linear else x).reshape(shape)
    if not self.interleaved:
      return x
    rest, pairs = np.split(x, [shape[-1] - self.interleaved], axis=-1)
    halves = pairs.reshape(*shape[:-1], -1, 2).swapaxes(-1, -2)
    return np.concatenate([rest, halves.reshape(pairs.shape)], axis=-1)

  def to_hub(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns our array in the layout of the hub; `shape` is that of the result."""
    if self.interleaved:
      rest, halves = np.split(x, [x.shape[-1] - self.interleaved], axis=-1)
      pairs = halves.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)
      x = np.concatenate([rest, pairs.reshape(halves.shape)], axis=-1)
    return transpose(x.reshape(shape[::-1])) if self.linear else x.reshape(shape)


STRIP = 64  # rows transposed at a time: twice as fast as the whole matrix


def transpose(x: np.ndarray) -> np.ndarray:
  """Returns the transposed matrix, contiguous in memory."""
  out = np.empty(x.shape[::-1], x.dtype)
  for first in range(0, len(x), STRIP):
    out[:, first : first + STRIP] = x[first : first + STRIP].T
  return out


def top_level_rows(config: ModelConfig) -> Iterator[TensorRow]:
  """Yields the rows of embedding, final norm and head."""
  yield TensorRow(('embedding',), 'model.embed_tokens.weight')
  yield TensorRow(('norm', 'gain'), 'model.norm.weight')
  if not config.tied:
    yield TensorRow(('head',), 'lm_head.weight')


# Norms of a layer by `ModelConfig.norms`, and their names on the hub.
NORMS = {
  'before': {
    'attention_norm': 'input_layernorm',
    'mlp_norm': 'post_attention_layernorm',
  },
  'after': {
    'attention_post_norm': 'post_attention_layernorm',
    'mlp_post_norm': 'post_feedforward_layernorm',
  },
  'both': {
    'attention_norm': 'input_layernorm',
    'attention_post_norm': 'post_attention_layernorm',
    'mlp_norm': 'pre_feedforward_layernorm',
    'mlp_post_norm': 'post_feedforward_layernorm',
  },
}


def layer_rows(
  config: ModelConfig, sparse: bool, raw: JsonObject
) -> Iterator[TensorRow]:
  """Yields the rows of one layer.

  Args:
    config: of the model.
    sparse: whether the layer has experts.
    raw: the config.json.
  """
  name = 'model.layers.{layer}.'
  for ours, hub in NORMS[config.norms].items():
    yield TensorRow((ours, 'gain'), f'{name}{hub}.weight')
  attention = f'{name}self_attn.'
  yield TensorRow(('out',), f'{attention}o_proj.weight', linear=True)
  if config.out_bias:
    yield TensorRow(('out_bias',), f'{attention}o_proj.bias')
  channels = config.rope_dim if interleaved(raw) else 0
  if raw['model_type'] == 'phi3':
    yield from _fused_rows(config, name)
    return
  if config.latent.kv_rank:
    yield from _latent_rows(config, attention, channels)
  else:
    for ours, hub in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      yield TensorRow((ours,), f'{attention}{hub}_proj.weight', linear=True)
      if config.qkv_bias:
        yield TensorRow((f'{ours}_bias',), f'{attention}{hub}_proj.bias')
      if (config.qk_norm or config.qk_norm_joint) and ours != 'value':
        yield TensorRow((f'{ours}_norm', 'gain'), f'{attention}{hub}_norm.weight')
  mlp = f'{name}mlp.'
  if not sparse:
    yield from _swiglu_rows('', mlp)
    return
  yield TensorRow(('router',), f'{mlp}gate.weight', linear=True)
  if config.experts.scores == 'sigmoid':
    yield TensorRow(('balance',), f'{mlp}gate.e_score_correction_bias')
  yield from _swiglu_rows('expert_', f'{mlp}experts.{{expert}}.')
  if config.experts.shared:
    yield from _swiglu_rows('shared_', f'{mlp}shared_experts.')


def _latent_rows(config: ModelConfig, name: str, pairs: int) -> Iterator[TensorRow]:
  if config.latent.q_rank:
    yield TensorRow(('query_down',), f'{name}q_a_proj.weight', True)
    if config.qkv_bias:
      yield TensorRow(('query_down_bias',), f'{name}q_a_proj.bias')
    yield TensorRow(('query_down_norm', 'gain'), f'{name}q_a_layernorm.weight')
    yield TensorRow(
      ('query',), f'{name}q_b_proj.weight', linear=True, interleaved=pairs
    )
  else:
    yield TensorRow(('query',), f'{name}q_proj.weight', linear=True, interleaved=pairs)
  down = f'{name}kv_a_proj_with_mqa'
  yield TensorRow(('latent_down',), f'{down}.weight', True, pairs)
  if config.qkv_bias:
    yield TensorRow(('latent_down_bias',), f'{down}.bias', interleaved=pairs)
  yield TensorRow(('latent_norm', 'gain'), f'{name}kv_a_layernorm.weight')
  yield TensorRow(('latent_up',), f'{name}kv_b_proj.weight', True)


def _fused_rows(c: ModelConfig, name: str) -> Iterator[TensorRow]:
  """Yields the rows of Phi, which has one tensor for several matrices."""
  queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
  fused: dict[str, dict[str, int]] = {
    'self_attn.qkv_proj': {'query': queries, 'key': keys, 'value': keys},
    'mlp.gate_up_proj': {'gate': c.d_ff, 'up': c.d_ff},
  }
  for tensor, sizes in fused.items():
    first, total = 0, sum(sizes.values())
    for ours, size in sizes.items():
      part = Part(first, total)
      yield TensorRow((ours,), f'{name}{tensor}.weight', linear=True, part=part)
      first += size
  yield TensorRow(('down',), f'{name}mlp.down_proj.weight', linear=True)


def _swiglu_rows(prefix: str, name: str) -> Iterator[TensorRow]:
  for part in ('gate', 'up', 'down'):
    yield TensorRow((f'{prefix}{part}',), f'{name}{part}_proj.weight', linear=True)


def interleaved(raw: JsonObject) -> bool:
  """Returns whether the checkpoint's RoPE rotates neighbouring channels (DeepSeek)."""
  return raw['model_type'] == 'deepseek_v2' or (
    raw['model_type'] == 'deepseek_v3' and bool(raw.get('rope_interleave', True))
  )
