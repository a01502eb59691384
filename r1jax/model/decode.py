"""The decoder's layers for one token a row, with activations as columns [D, B].

The same equations as in `decoder`, in the order of memory that few columns want: a
library packs the right operand of a product anew at every call, and here that is the
small one. With 32 rows and matrices of 512 x 1536 a CPU took two thirds of the time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.attention import KV, attend_all, rope, write
from r1jax.model.config import ModelConfig


class Int8(NamedTuple):
  """A weight matrix in a byte a number: values times the scale of their output."""

  values: jax.Array  # int8, the matrix's shape
  scale: jax.Array  # float32, its output axes


def decoding(config: ModelConfig, params: Any) -> Callable[..., Any]:
  """Returns `decode(tokens, positions, context, column)` for one token a row.

  It gives hidden states [B, D] and the last segment of the context with the rows' keys
  and values written to `column`, which its mask must let them see. A segment is a list
  here, of a `KV` for each layer: a scan over layers would copy all of the cache at each
  step.
  """
  layers = [_turned(config, params['blocks'], n) for n in range(config.layers)]

  def decode(
    token_B: jax.Array,
    position_B: jax.Array,
    context: Sequence[tuple[Sequence[KV], jax.Array]],
    column: jax.Array,
  ) -> tuple[jax.Array, list[KV]]:
    x_DB = params['embedding'][token_B].T
    written = []
    for n, weights in enumerate(layers):
      segments = [(kv[n], mask) for kv, mask in context]
      x_DB, kv = _layer(config, weights, x_DB, position_B[:, None], segments, column)
      written.append(kv)
    return jax.lax.optimization_barrier(
      _norm(config, x_DB, params['norm']['gain']).T
    ), written

  return decode


def _turned(config: ModelConfig, blocks: Any, layer: int) -> dict[str, Any]:
  """A layer's weights as they stand on the left: matrices [out, in], gains [D, 1]."""
  inputs = {'out': config.heads * config.head_dim, 'down': config.d_ff}

  def turn(name: str) -> Any:
    w = jax.tree.map(lambda x: x[layer], blocks[name])
    if name.endswith('_norm'):
      return w['gain'][:, None]
    values, scale = w if isinstance(w, Int8) else (w.astype(config.dtype), None)
    values = values.reshape(inputs.get(name, config.d_model), -1).T
    scale = None if scale is None else scale.reshape(-1, 1).astype(config.dtype)
    # Else the compiler would turn the product back, and not the matrix once.
    return jax.lax.optimization_barrier(values), scale

  return {name: turn(name) for name in blocks}


def _layer(
  config: ModelConfig,
  weights: dict[str, Any],
  x_DB: jax.Array,
  position_BT: jax.Array,
  segments: list[tuple[KV, jax.Array]],
  column: jax.Array,
) -> tuple[jax.Array, KV]:
  """`decoder.Block` for one position a row: the stream and the last segment."""

  def times(name: str, x_DB: jax.Array) -> jax.Array:
    values, scale = weights[name]
    out_FB = values.astype(config.dtype) @ x_DB.astype(config.dtype)
    return out_FB if scale is None else out_FB * scale

  def rows(x_FB: jax.Array, heads: int) -> jax.Array:
    return jax.lax.optimization_barrier(x_FB).T.reshape(-1, 1, heads, config.head_dim)

  with jax.named_scope('attention_norm'):
    h_DB = _norm(config, x_DB, weights['attention_norm'])
  with jax.named_scope('project'):
    q, k, v = (times(name, h_DB) for name in ('query', 'key', 'value'))
    q = rope(rows(q, config.heads), position_BT, config.rope_theta)
    k = rope(rows(k, config.kv_heads), position_BT, config.rope_theta)
    v = rows(v, config.kv_heads)
  with jax.named_scope('write'):
    # Written first and then read: the other way round it would have to be copied.
    *others, (last, mask) = segments
    last = write(last, KV(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2)), column)
  with jax.named_scope('attend'):
    attended = attend_all(q, [*others, (last, mask)])
  with jax.named_scope('project'):
    attended_FB = attended.reshape(x_DB.shape[1], -1).T
    x_DB += times('out', jax.lax.optimization_barrier(attended_FB))
  with jax.named_scope('mlp_norm'):
    h_DB = _norm(config, x_DB, weights['mlp_norm'])
  with jax.named_scope('mlp'):
    hidden_FB = nn.silu(times('gate', h_DB)) * times('up', h_DB)
    return x_DB + times('down', hidden_FB), last


def _norm(config: ModelConfig, x_DB: jax.Array, gain: jax.Array) -> jax.Array:
  mean_square = jnp.mean(jnp.square(x_DB), axis=0, keepdims=True)
  return x_DB * jax.lax.rsqrt(mean_square + config.norm_eps) * gain.reshape(-1, 1)
