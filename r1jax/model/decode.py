"""Decoding: the decoder's layers for one token per row, with activations [D, B].

The same equations as in `block`, in the memory order that suits small batches: a matrix
product repacks its right operand at every call, and with activations as columns that is
the small one. With 32 rows and matrices of 512 x 1536 this took a CPU two thirds of the
time.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from r1jax.model import one_row
from r1jax.model.attention import Window, attend_all, write
from r1jax.model.config import LATENT_NORM_EPS, ModelConfig
from r1jax.model.decode_weights import (
  DecodeParams,
  LayerWeights,
  decode_params,
  gain_of,
)
from r1jax.model.linear import ACTIVATIONS, Int8, Lora, uses_product, vector_dtype
from r1jax.model.moe import mixture_of_experts
from r1jax.model.pattern import of_layer
from r1jax.model.rope import rotate, rotate_queries
from r1jax.sharding.constrain import constrain, constrain_rows, platform
from r1jax.trees import KV, Decode, KVByLayer, Segment


def score_scale(config: ModelConfig) -> float:
  """Returns the factor of q k^T: 1 / sqrt(C), times YaRN's share."""
  return (config.score_dim or config.head_dim) ** -0.5 * config.rope.score_factor


def row_logits(
  config: ModelConfig, head: tuple[jax.Array, jax.Array | None], x_BD: jax.Array
) -> jax.Array:
  """Returns the logits [B, V] in float32, with the head of `DecodeParams`."""
  values, scale = head
  return _sum(values, x_BD.astype(config.dtype).T, scale).T


def make_decode(config: ModelConfig, params: optax.Params | DecodeParams) -> Decode:
  """Returns `decode(tokens, positions, context, column)` for one token per row.

  `decode` returns hidden states [B, D], and the last segment of the context with the
  rows' keys and values written to `column`. That segment's mask must include `column`.
  A segment's cache is a list with a `KV` per layer: a scan over layers would copy the
  whole cache at each step.

  Args:
    config: of the model.
    params: parameters, or the `DecodeParams` made of them.
  """
  if not isinstance(params, DecodeParams):
    params = decode_params(config, params)
  outside, scale = params.outside, params.embedding_scale
  layers = [Layer(config, w, n) for n, w in enumerate(params.layers)]
  gain = gain_of(config, outside['norm'])

  def decode(
    token_B: jax.Array,
    position_B: jax.Array,
    context: Sequence[Segment],
    column: jax.Array,
  ) -> tuple[jax.Array, KVByLayer]:
    x_DB = outside['embedding'][token_B].astype(jnp.float32).T
    x_DB = x_DB if scale is None else x_DB * scale
    written = []
    for n, layer in enumerate(layers):
      segments = [(kv[n], mask) for kv, mask in context]
      x_DB, kv = layer(x_DB, position_B[:, None], segments, column)
      written.append(kv)
    return jax.lax.optimization_barrier(_norm(config.norm_eps, x_DB, gain).T), written

  return decode


class Layer:
  """`Block` for one position per row."""

  def __init__(self, config: ModelConfig, weights: LayerWeights, index: int):
    self.config, self.weights = config, weights
    self.pattern = of_layer(config, index)

  def times(self, name: str, x_DB: jax.Array) -> jax.Array:
    """Returns matrix @ x, plus the bias if there is one."""
    weights, dtype = self.weights[name], self.config.dtype
    x_DB = x_DB.astype(dtype)
    if isinstance(weights, Lora):
      out_FB = _product(weights.w, x_DB)
      out_FB += _product(weights.b, _product(weights.a, x_DB))
    else:
      values, scale = weights
      out_FB = _product(values, x_DB, scale)
    bias = self.weights.get(f'{name}_bias')
    return out_FB if bias is None else out_FB + bias.astype(dtype)

  def norm(self, name: str, x_DB: jax.Array) -> jax.Array:
    """Returns the columns after RMSNorm, or as they are where there is no such norm."""
    if name not in self.weights:
      return x_DB
    latent = name in ('query_down_norm', 'latent_norm')
    eps = LATENT_NORM_EPS if latent else self.config.norm_eps
    return _norm(eps, x_DB, self.weights[name])

  def grouped(self, h_DB: jax.Array, position_BT: jax.Array) -> tuple[jax.Array, KV]:
    """Returns queries [B, 1, H, C] and the position's `KV`, grouped-query attention."""
    c = self.config

    def head(name: str, heads: int) -> jax.Array:
      found = self.times(name, h_DB)
      if name != 'value' and c.qk_norm_joint:
        found = self.norm(f'{name}_norm', found).astype(c.dtype)
      x_BTHC = _rows(found, heads)
      if name == 'value' or not c.qk_norm:
        return x_BTHC
      x_CN = x_BTHC.reshape(-1, c.head_dim).T
      return self.norm(f'{name}_norm', x_CN).T.reshape(x_BTHC.shape).astype(c.dtype)

    turning = self.pattern.turning
    q = rotate_queries(c, head('query', c.heads), position_BT, turning)
    k = rotate(c, head('key', c.kv_heads), position_BT, turning)
    v = head('value', c.kv_heads)
    return q, KV(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2))

  def latent(self, h_DB: jax.Array, position_BT: jax.Array) -> tuple[jax.Array, KV]:
    """Returns queries and the position's `KV`, multi-head latent attention.

    The up-projection of keys is absorbed into the queries, so that all heads attend to
    the compressed cache itself (DeepSeek-V2, section 2.1.2).
    """
    c, rank = self.config, self.config.latent.kv_rank
    plain = c.head_dim - c.rope_dim
    q_DB = h_DB
    if c.latent.q_rank:
      q_DB = self.norm('query_down_norm', self.times('query_down', h_DB))
    q = _rows(self.times('query', q_DB), c.heads)
    q_rope = rotate(c, q[..., plain:], position_BT)
    up = self._up()[..., :plain].astype(c.dtype)
    q_latent = jnp.einsum('bthc,rhc->bthr', q[..., :plain], up)
    found = self.times('latent_down', h_DB)
    shared = rotate(c, _rows(found[rank:], 1), position_BT)
    kept = _rows(self.norm('latent_norm', found[:rank]), 1).astype(c.dtype)
    own = jnp.moveaxis(jnp.concatenate([kept, shared], axis=-1), 1, 3)
    return jnp.concatenate([q_latent, q_rope], axis=-1), KV(own, None)

  def values(self, attended_BTHC: jax.Array) -> jax.Array:
    """Returns the attention output as values of the heads, [B, 1, H, C]."""
    c = self.config
    if not c.latent.kv_rank:
      return attended_BTHC
    up = self._up()[..., c.head_dim - c.rope_dim :].astype(c.dtype)
    latent = attended_BTHC[..., : c.latent.kv_rank].astype(c.dtype)
    return jnp.einsum('bthr,rhc->bthc', latent, up)

  def _up(self) -> jax.Array:
    up = self.weights['latent_up']
    return up.values * up.scale[None] if isinstance(up, Int8) else up

  def mlp(self, h_DB: jax.Array) -> jax.Array:
    """Returns the output of the gated MLP or of the experts, [D, B]."""
    if 'router' not in self.weights:
      return self._gated('', h_DB)
    c = dataclasses.replace(self.config.experts, shared=0)
    out_DB = mixture_of_experts(h_DB.T, self.weights, c, self.config.dtype).T
    if self.config.experts.shared:
      out_DB += self._gated('shared_', h_DB)
    return out_DB

  def _gated(self, prefix: str, h_DB: jax.Array) -> jax.Array:
    kind = vector_dtype(self.config.dtype)
    gate, up = (
      self.times(f'{prefix}{name}', h_DB).astype(kind) for name in ('gate', 'up')
    )
    activation = ACTIVATIONS[self.config.activation]
    return self.times(f'{prefix}down', activation(gate) * up)

  def __call__(
    self,
    x_DB: jax.Array,
    position_BT: jax.Array,
    segments: list[tuple[KV, jax.Array]],
    column: jax.Array,
  ) -> tuple[jax.Array, KV]:
    """Returns the residual stream, and the last segment with this position written."""
    x_DB = constrain(x_DB, None, 'prompt')
    with jax.named_scope('attention_norm'):
      h_DB = self.norm('attention_norm', x_DB)
    with jax.named_scope('project'):
      project = self.latent if self.config.latent.kv_rank else self.grouped
      q_BTHC, own = project(h_DB, position_BT)
    with jax.named_scope('write'):
      # Write before reading: the other order would make XLA copy the cache.
      *others, (last, mask) = segments
      last = write(last, own, column)
      last = jax.tree.map(constrain_rows, last)
    with jax.named_scope('attend'):
      scale, size = score_scale(self.config), self.pattern.window
      window = None if size is None else Window(size, position_BT)
      attended = attend_all(q_BTHC, [*others, (last, mask)], scale, window)
    with jax.named_scope('project'):
      attended_FB = self.values(attended).reshape(x_DB.shape[1], -1).T
      added_DB = self.times('out', jax.lax.optimization_barrier(attended_FB))
      x_DB += self.norm('attention_post_norm', added_DB)
    with jax.named_scope('mlp_norm'):
      h_DB = self.norm('mlp_norm', x_DB)
    with jax.named_scope('mlp'):
      return x_DB + self.norm('mlp_post_norm', self.mlp(h_DB)), last


def _product(
  w_FD: jax.Array, x_DB: jax.Array, scale_F1: jax.Array | None = None
) -> jax.Array:
  """Returns w @ x, times the scale, in the type of x."""
  return _sum(w_FD, x_DB, scale_F1).astype(x_DB.dtype)


def _sum(w_FD: jax.Array, x_DB: jax.Array, scale_F1: jax.Array | None) -> jax.Array:
  """Returns w @ x, times the scale, in the type of the sums.

  XLA's CPU compiler uses the bfloat16 units only for a float32 result and a right
  operand whose rows are contiguous, so it must not keep x as a transposed array.
  """
  dtype = x_DB.dtype
  few = x_DB.shape[1] == 1 and platform() == 'cpu' and one_row.serves(len(x_DB))
  if few and w_FD.dtype in (one_row.BITS, jnp.int8):
    out_FB = one_row.product(w_FD, x_DB)
  elif uses_product(str(dtype)):
    x_DB = with_layout_constraint(x_DB, Layout((0, 1)))
    out_FB = jnp.matmul(w_FD.astype(dtype), x_DB, preferred_element_type=jnp.float32)
  else:
    out_FB = w_FD.astype(dtype) @ x_DB
  return out_FB if scale_F1 is None else out_FB * scale_F1


def _rows(x_FB: jax.Array, heads: int) -> jax.Array:
  """Returns columns [heads * C, B] as [B, 1, heads, C]."""
  return jax.lax.optimization_barrier(x_FB).T.reshape(x_FB.shape[1], 1, heads, -1)


def _norm(eps: float, x_DB: jax.Array, gain: jax.Array) -> jax.Array:
  x_DB = x_DB.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x_DB), axis=0, keepdims=True)
  return x_DB * jax.lax.rsqrt(mean_square + eps) * gain.reshape(-1, 1)
