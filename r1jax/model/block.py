"""A layer of the decoder: attention, then a gated MLP or experts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from r1jax.model.attention import KV, Window, attend
from r1jax.model.config import LATENT_NORM_EPS, ModelConfig
from r1jax.model.decode import score_scale
from r1jax.model.linear import LONG_PRODUCT, SHORT, dense, gated_mlp
from r1jax.model.moe import mixture_of_experts
from r1jax.model.pattern import Pattern
from r1jax.model.rope import rotate, rotate_queries
from r1jax.sharding.constrain import constrain

# Maps a compressed cache to keys and values; the identity for grouped-query attention.
Expand = Callable[[KV], KV]


class RMSNorm(nn.Module):
  """x / rms(x), times a learned gain, in float32 or more (Zhang & Sennrich 2019)."""

  eps: float
  axis: str = 'gain'  # logical name of the normalised axis
  minus_1: bool = False  # the parameter is the gain - 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.zeros if self.minus_1 else nn.initializers.ones
    init: Any = nn.with_logical_partitioning(start, (self.axis,))
    gain = self.param('gain', init, (x.shape[-1],))
    if self.minus_1:
      gain = 1 + gain.astype(jnp.promote_types(gain.dtype, jnp.float32))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    gain = jnp.expand_dims(gain, range(x.ndim - 1))
    return x * jax.lax.rsqrt(mean_square + self.eps) * gain


class Block(nn.Module):
  """Attention, then a gated MLP or experts, with norms and residual sums."""

  config: ModelConfig
  sparse: bool  # experts instead of the MLP

  def _weights(self, name: str, axes: Sequence[str], *shape: int, fan_in: int) -> Any:
    """Returns a parameter with logical axis names, normal with variance 1 / fan-in."""
    init: Any = nn.initializers.normal(fan_in**-0.5)
    return self.param(name, nn.with_logical_partitioning(init, tuple(axes)), shape)

  def _zeros(self, name: str, axes: Sequence[str], *shape: int) -> jax.Array:
    init: Any = nn.with_logical_partitioning(nn.initializers.zeros, tuple(axes))
    return self.param(name, init, shape)

  def __call__(
    self,
    streams: Sequence[jax.Array],
    context: Sequence[KV],
    positions: Sequence[jax.Array],
    documents: Sequence[jax.Array],
    context_masks: Sequence[jax.Array],
    seen: Sequence[jax.Array],
    pattern: Pattern,
  ) -> tuple[tuple[jax.Array, ...], tuple[KV, ...]]:
    """Returns the residual streams of the segments, and the `KV` of each.

    A segment attends to the context, to all segments before it (through their masks in
    `seen`) and causally to itself.
    """
    outputs: list[jax.Array] = []
    owns: list[KV] = []
    segments = zip(streams, positions, documents, strict=True)
    for n, (x_BTD, positions_BT, document_BT) in enumerate(segments):
      before, masks = (*context, *owns), (*context_masks, *seen[:n])
      x_BTD, own = self._layer(x_BTD, positions_BT, document_BT, before, masks, pattern)
      outputs.append(x_BTD)
      owns.append(own)
    return tuple(outputs), tuple(owns)

  @nn.compact
  def _layer(
    self,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    document_BT: jax.Array,
    context: Sequence[KV],
    context_masks: Sequence[jax.Array],
    pattern: Pattern,
  ) -> tuple[jax.Array, KV]:
    """Returns the residual stream, and the `KV` of these positions."""
    c = self.config
    x_BTD = constrain(x_BTD, 'prompt', 'length', None)
    h_BTD = self._norm('attention_norm', x_BTD, 'after')
    project = self._latent if c.latent.kv_rank else self._grouped
    with jax.named_scope('project'):
      q_BTHC, own, expand = project(h_BTD, positions_BT, pattern)
    masked = [(expand(kv), m) for kv, m in zip(context, context_masks, strict=True)]
    with jax.named_scope('attend'):
      scale = score_scale(c)
      size = pattern.window
      window = None if size is None else Window(size, positions_BT)
      attended = attend(q_BTHC, expand(own), document_BT, masked, scale, window)
    out_axes, shape = ('heads', 'channel', 'embed'), (c.heads, c.value_dim, c.d_model)
    # The stream is a sum of 2 L outputs; see GPT-2's initialisation.
    fan_in = c.heads * c.value_dim * 2 * c.layers
    out = self._weights('out', out_axes, *shape, fan_in=fan_in)
    with jax.named_scope('project'):
      added_BTD = dense(attended.reshape(*attended.shape[:2], -1), out, c.dtype)
      if c.out_bias:
        bias_D = self._zeros('out_bias', ('embed',), c.d_model)
        added_BTD += bias_D[None, None].astype(added_BTD.dtype)
      x_BTD += self._norm('attention_post_norm', added_BTD, 'before')
      x_BTD = constrain(x_BTD, 'prompt', 'length', None)
    h_BTD = self._norm('mlp_norm', x_BTD, 'after')
    with jax.named_scope('mlp'):
      if self.sparse:
        counted_BT = document_BT > 0
        experts = self._expert_weights()
        added_BTD = mixture_of_experts(h_BTD, experts, c.experts, c.dtype, counted_BT)
      else:
        weights = self._mlp('', c.d_ff)
        added_BTD = gated_mlp(h_BTD, *weights, c.activation, c.dtype)
      return x_BTD + self._norm('mlp_post_norm', added_BTD, 'before'), own

  def _norm(self, name: str, x_BTD: jax.Array, without: str) -> jax.Array:
    """Returns x after RMSNorm, or as it is in a config with norms only `without`."""
    c = self.config
    if c.norms == without:
      return x_BTD
    return RMSNorm(c.norm_eps, minus_1=c.stored_minus_1, name=name)(x_BTD)

  def _grouped(
    self, h_BTD: jax.Array, positions_BT: jax.Array, pattern: Pattern
  ) -> tuple[jax.Array, KV, Expand]:
    """Returns queries, keys and values of grouped-query attention."""
    c = self.config

    def head(name: str, axis: str, heads: int) -> jax.Array:
      axes, shape = ('embed', axis, 'channel'), (c.d_model, heads, c.head_dim)
      w = self._weights(name, axes, *shape, fan_in=c.d_model)
      x = dense(h_BTD, w, c.dtype).reshape(*h_BTD.shape[:2], heads, c.head_dim)
      if c.qkv_bias:
        bias = self._zeros(f'{name}_bias', axes[1:], *shape[1:])
        x += bias[None, None].astype(x.dtype)
      if name == 'value' or not (c.qk_norm or c.qk_norm_joint):
        return x
      norm = RMSNorm(c.norm_eps, 'channel', c.stored_minus_1, name=f'{name}_norm')
      if c.qk_norm_joint:
        return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape).astype(c.dtype)
      return norm(x).astype(c.dtype)

    turning = pattern.turning
    q = rotate_queries(c, head('query', 'heads', c.heads), positions_BT, turning)
    k = rotate(c, head('key', 'kv_heads', c.kv_heads), positions_BT, turning)
    v = head('value', 'kv_heads', c.kv_heads)
    q = constrain(q, 'prompt', 'length', 'heads', None)
    k, v = (constrain(x, 'prompt', 'length', 'kv_heads', None) for x in (k, v))
    return q, KV(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2)), lambda kv: kv

  def _latent(
    self, h_BTD: jax.Array, positions_BT: jax.Array, _: Pattern
  ) -> tuple[jax.Array, KV, Expand]:
    """Returns queries, the compressed cache, and its expansion to keys and values.

    The cache is the normalised latent concatenated with the shared RoPE key, stored as
    the keys of one head.
    """
    c, latent = self.config, self.config.latent
    plain = c.head_dim - latent.rope_dim  # channels without RoPE
    q_BTD, inputs, axis = h_BTD, c.d_model, 'embed'
    if latent.q_rank:
      axes = ('embed', 'rank')
      w = self._weights('query_down', axes, inputs, latent.q_rank, fan_in=inputs)
      norm = RMSNorm(LATENT_NORM_EPS, name='query_down_norm')
      found = self._biased('query_down', 'rank', dense(h_BTD, w, c.dtype))
      q_BTD, inputs, axis = norm(found), latent.q_rank, 'rank'
    shape = (inputs, c.heads, c.head_dim)
    w = self._weights('query', (axis, 'heads', 'channel'), *shape, fan_in=inputs)
    q = dense(q_BTD, w, c.dtype).reshape(*h_BTD.shape[:2], *shape[1:])
    q = jnp.concatenate([q[..., :plain], rotate(c, q[..., plain:], positions_BT)], -1)
    q = constrain(q, 'prompt', 'length', 'heads', None)

    width = latent.kv_rank + latent.rope_dim
    down = self._weights(
      'latent_down', ('embed', 'rank'), c.d_model, width, fan_in=c.d_model
    )
    found = self._biased('latent_down', 'rank', dense(h_BTD, down, c.dtype))
    norm = RMSNorm(LATENT_NORM_EPS, name='latent_norm')
    shared = rotate(c, found[..., None, latent.kv_rank :], positions_BT)[..., 0, :]
    kept = jnp.concatenate(
      [norm(found[..., : latent.kv_rank]).astype(c.dtype), shared], axis=-1
    )
    up_shape = (latent.kv_rank, c.heads, plain + latent.value_dim)
    up_axes = ('rank', 'heads', 'channel')
    up = self._weights('latent_up', up_axes, *up_shape, fan_in=latent.kv_rank)

    def expand(kv: KV) -> KV:
      read_BSR = jnp.swapaxes(kv.k[:, 0, : latent.kv_rank], 1, 2)
      heads = dense(read_BSR, up, c.dtype).reshape(*read_BSR.shape[:2], *up_shape[1:])
      k_BHCS = jnp.moveaxis(heads[..., :plain], 1, 3)
      shape = (*k_BHCS.shape[:2], latent.rope_dim, k_BHCS.shape[-1])
      shared = jnp.broadcast_to(kv.k[:, :, latent.kv_rank :], shape)
      k_BHCS = jnp.concatenate([k_BHCS, shared], axis=2)
      v_BHSC = jnp.moveaxis(heads[..., plain:], 1, 2)
      axes = ('prompt', 'heads', None, None)
      return KV(constrain(k_BHCS, *axes), constrain(v_BHSC, *axes))

    return q, KV(jnp.swapaxes(kept, 1, 2)[:, None], None), expand

  def _biased(self, name: str, axis: str, x_BTF: jax.Array) -> jax.Array:
    """Returns x plus its bias, if the config has biases."""
    if not self.config.qkv_bias:
      return x_BTF
    bias_F = self._zeros(f'{name}_bias', (axis,), x_BTF.shape[-1])
    return x_BTF + bias_F[None, None].astype(x_BTF.dtype)

  def _mlp(self, prefix: str, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    c = self.config
    into, out = ('embed', 'mlp'), ('mlp', 'embed')
    return (
      self._weights(f'{prefix}gate', into, c.d_model, width, fan_in=c.d_model),
      self._weights(f'{prefix}up', into, c.d_model, width, fan_in=c.d_model),
      self._weights(
        f'{prefix}down', out, width, c.d_model, fan_in=width * 2 * c.layers
      ),
    )

  def _expert_weights(self) -> dict[str, jax.Array]:
    c, e = self.config, self.config.experts
    into, out = ('expert', 'embed', 'mlp'), ('expert', 'mlp', 'embed')
    shape = (e.count, c.d_model, e.d_ff)
    found = {
      'router': self._weights(
        'router', ('embed', 'expert'), c.d_model, e.count, fan_in=c.d_model
      ),
      'expert_gate': self._weights('expert_gate', into, *shape, fan_in=c.d_model),
      'expert_up': self._weights('expert_up', into, *shape, fan_in=c.d_model),
      'expert_down': self._weights(
        'expert_down', out, e.count, e.d_ff, c.d_model, fan_in=e.d_ff * 2 * c.layers
      ),
    }
    if e.scores == 'sigmoid':
      found['balance'] = self._zeros('balance', ('expert',), e.count)
    if e.shared:
      names = ('shared_gate', 'shared_up', 'shared_down')
      parts = self._mlp('shared_', e.shared * e.d_ff)
      found |= dict(zip(names, parts, strict=True))
    return found


def remat_block(kept: str) -> type[Block]:
  """Returns `Block` with rematerialization; `kept` is the config's `remat`."""
  policy = _is_long_product if kept == 'dots' else None
  return nn.remat(Block, prevent_cse=False, policy=policy)


def _is_long_product(primitive: Primitive, *operands: Any, **params: Any) -> bool:
  """Whether to keep an activation: a product with more than `SHORT` input channels.

  Those of LoRA adapters have fewer; recomputing them is cheaper than keeping them.
  Products in bfloat16 go by their name, as a policy does not see into `linear.product`.
  """
  if primitive.name == 'name':
    return params['name'] == LONG_PRODUCT
  kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  if not kept(primitive, *operands, **params):
    return False
  (inputs, _), _ = params['dimension_numbers']
  return math.prod(operands[0].shape[n] for n in inputs) > SHORT
