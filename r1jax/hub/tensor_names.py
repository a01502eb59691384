"""The names of tensors in a Hugging Face checkpoint, and how each is laid out there.

One table serves reading and writing: a row gives the path of a parameter in our tree,
the name of its tensor in the file, and how to convert one into the other.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from r1jax.model.config import ModelConfig


class TensorRow(NamedTuple):
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


def top_level_rows(config: ModelConfig) -> Iterator[TensorRow]:
  """The tensors that belong to no layer."""
  yield TensorRow(('embedding',), 'model.embed_tokens.weight')
  yield TensorRow(('norm', 'gain'), 'model.norm.weight')
  if not config.tied:
    yield TensorRow(('head',), 'lm_head.weight')


def layer_rows(
  config: ModelConfig, sparse: bool, interleaved: bool
) -> Iterator[TensorRow]:
  """The tensors of a layer; `interleaved` says how RoPE's pairs lie there."""
  name = 'model.layers.{layer}.'
  yield TensorRow(('attention_norm', 'gain'), f'{name}input_layernorm.weight')
  yield TensorRow(('mlp_norm', 'gain'), f'{name}post_attention_layernorm.weight')
  attention = f'{name}self_attn.'
  yield TensorRow(('out',), f'{attention}o_proj.weight', linear=True)
  if config.out_bias:
    yield TensorRow(('out_bias',), f'{attention}o_proj.bias')
  pairs = config.rope_dim if interleaved else 0
  if config.latent.kv_rank:
    yield from _latent_rows(config, attention, pairs)
  else:
    for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
      yield TensorRow((ours,), f'{attention}{theirs}_proj.weight', linear=True)
      if config.qkv_bias:
        yield TensorRow((f'{ours}_bias',), f'{attention}{theirs}_proj.bias')
      if config.qk_norm and ours != 'value':
        yield TensorRow((f'{ours}_norm', 'gain'), f'{attention}{theirs}_norm.weight')
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
    yield TensorRow(('query_down',), f'{name}q_a_proj.weight', linear=True)
    if config.qkv_bias:
      yield TensorRow(('query_down_bias',), f'{name}q_a_proj.bias')
    yield TensorRow(('query_down_norm', 'gain'), f'{name}q_a_layernorm.weight')
    yield TensorRow(('query',), f'{name}q_b_proj.weight', linear=True, pairs=pairs)
  else:
    yield TensorRow(('query',), f'{name}q_proj.weight', linear=True, pairs=pairs)
  down = f'{name}kv_a_proj_with_mqa'
  yield TensorRow(('latent_down',), f'{down}.weight', linear=True, pairs=pairs)
  if config.qkv_bias:
    yield TensorRow(('latent_down_bias',), f'{down}.bias', pairs=pairs)
  yield TensorRow(('latent_norm', 'gain'), f'{name}kv_a_layernorm.weight')
  yield TensorRow(('latent_up',), f'{name}kv_b_proj.weight', linear=True)


def _swiglu_rows(prefix: str, name: str) -> Iterator[TensorRow]:
  for part in ('gate', 'up', 'down'):
    yield TensorRow((f'{prefix}{part}',), f'{name}{part}_proj.weight', linear=True)


def interleaved(raw: Mapping[str, Any]) -> bool:
  """Whether RoPE turns neighbouring channels there, as in DeepSeek's models."""
  return raw['model_type'] == 'deepseek_v2' or (
    raw['model_type'] == 'deepseek_v3' and bool(raw.get('rope_interleave', True))
  )
