"""The decoder: embeddings, layers under one scan, logits.

It sees rows [B, T] and segments (see `attention`), and knows nothing of prompts,
groups, caches or losses. Parameters carry logical axis names for `r1jax.mesh`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.attention import KV, attend, rope
from r1jax.model.config import ModelConfig
from r1jax.model.decode import Int8, decoding


def _weights(*axes: str, fan_in: int):
  """Normal with variance 1 / fan-in, tagged with logical axis names."""
  return nn.with_logical_partitioning(nn.initializers.normal(fan_in**-0.5), axes)


def dense(x_BTD: jax.Array, w: Any, dtype: str = 'float32') -> jax.Array:
  """Returns x @ w, [B, T, F], as one product over the positions of all rows.

  Its gradients are such products too. Of one that keeps the rows apart, the weights'
  gradient is transposed or summed row by row, which took a CPU 8 times as long.

  Args:
    x_BTD: activations.
    w: an array or `Int8` whose first axes make up D, and its last ones F.
    dtype: to compute in, and of the result.
  """
  values, scale = w if isinstance(w, Int8) else (w, None)
  inputs = x_BTD.shape[-1]
  x_ND = x_BTD.reshape(-1, inputs).astype(dtype)
  out_NF = x_ND @ values.reshape(inputs, -1).astype(dtype)
  if scale is not None:
    out_NF *= scale.reshape(-1)[None].astype(dtype)
  return out_NF.reshape(*x_BTD.shape[:-1], -1)


class RMSNorm(nn.Module):
  """Scales x to unit mean square, then by a learned gain (Zhang & Sennrich 2019)."""

  eps: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    ones: Any = nn.with_logical_partitioning(nn.initializers.ones, ('embed',))
    gain_D = self.param('gain', ones, (x_BTD.shape[-1],))
    mean_square = jnp.mean(jnp.square(x_BTD), axis=-1, keepdims=True)
    return x_BTD * jax.lax.rsqrt(mean_square + self.eps) * gain_D[None, None]


class Block(nn.Module):
  """Attention and SwiGLU, each on a normalised copy and added to the stream."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    context: Sequence[KV],
    positions_BT: jax.Array,
    document_BT: jax.Array,
    context_masks: Sequence[jax.Array],
  ) -> tuple[jax.Array, KV]:
    """Returns the stream and the rows' own `KV`."""
    c = self.config
    param = self.param
    q_init = _weights('embed', 'heads', 'channel', fan_in=c.d_model)
    kv_init = _weights('embed', 'kv_heads', 'channel', fan_in=c.d_model)
    kv_shape = (c.d_model, c.kv_heads, c.head_dim)
    query = param('query', q_init, (c.d_model, c.heads, c.head_dim))
    key = param('key', kv_init, kv_shape)
    value = param('value', kv_init, kv_shape)
    out = param(
      'out',
      _weights('heads', 'channel', 'embed', fan_in=c.heads * c.head_dim * 2 * c.layers),
      (c.heads, c.head_dim, c.d_model),
    )
    h_BTD = RMSNorm(c.norm_eps, name='attention_norm')(x_BTD)

    def project(w: Any, heads: int) -> jax.Array:
      flat = dense(h_BTD, w, c.dtype)
      return flat.reshape(*x_BTD.shape[:2], heads, c.head_dim)

    with jax.named_scope('project'):
      q = rope(project(query, c.heads), positions_BT, c.rope_theta)
      k = rope(project(key, c.kv_heads), positions_BT, c.rope_theta)
      v = project(value, c.kv_heads)
    own = KV(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2))
    masked = list(zip(context, context_masks, strict=True))
    with jax.named_scope('attend'):
      attended = attend(q, own, document_BT, masked)
    with jax.named_scope('project'):
      x_BTD += dense(attended.reshape(*attended.shape[:2], -1), out, c.dtype)

    mlp_init = _weights('embed', 'mlp', fan_in=c.d_model)
    gate = param('gate', mlp_init, (c.d_model, c.d_ff))
    up = param('up', mlp_init, (c.d_model, c.d_ff))
    down = param(
      'down',
      _weights('mlp', 'embed', fan_in=c.d_ff * 2 * c.layers),
      (c.d_ff, c.d_model),
    )
    h_BTD = RMSNorm(c.norm_eps, name='mlp_norm')(x_BTD)
    with jax.named_scope('mlp'):
      hidden_BTF = nn.silu(dense(h_BTD, gate, c.dtype)) * dense(h_BTD, up, c.dtype)
      return x_BTD + dense(hidden_BTF, down, c.dtype), own


def _remat(kept: str) -> Any:
  """`Block` that computes activations again in the backward pass; see the config."""
  policies = jax.checkpoint_policies
  policy = policies.dots_with_no_batch_dims_saveable if kept == 'dots' else None
  return nn.remat(Block, prevent_cse=False, policy=policy)


class Decoder(nn.Module):
  """Token ids in, hidden states and the keys and values that they leave out."""

  config: ModelConfig
  vocab_size: int

  def setup(self) -> None:
    c = self.config
    shape = (self.vocab_size, c.d_model)
    # 1/sqrt(D) also for the input side: the first RMSNorm brings rows to unit scale.
    init = _weights('vocab', 'embed', fan_in=c.d_model)
    self.embedding_VD = self.param('embedding', init, shape)
    self.head_VD = self.embedding_VD if c.tied else self.param('head', init, shape)
    self.blocks = nn.scan(
      Block if c.remat == 'none' else _remat(c.remat),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c)
    self.norm = RMSNorm(c.norm_eps)

  def __call__(
    self,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    document_BT: jax.Array,
    context: Sequence[tuple[KV, jax.Array]] = (),
  ) -> tuple[jax.Array, KV]:
    """Returns normalised hidden states [B, T, D] and the rows' own `KV`, stacked on L.

    Args:
      tokens_BT: token ids.
      positions_BT: positions for RoPE.
      document_BT: a position sees itself and earlier ones of the same document id.
      context: earlier segments, each a `KV` stacked on L and the mask of its keys; see
        `attention.attend`.
    """
    x_BTD = self.embedding_VD[tokens_BT]
    kvs = tuple(kv for kv, _ in context)
    masks = tuple(mask for _, mask in context)
    x_BTD, own = self.blocks(x_BTD, kvs, positions_BT, document_BT, masks)
    return self.norm(x_BTD), own

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """Unnormalised log-probabilities of the next token, [..., V]."""
    dtype = self.config.dtype
    return jnp.einsum(
      '...d,vd->...v',
      x_BTD.astype(dtype),
      self.head_VD.astype(dtype),
      preferred_element_type=jnp.float32,
    )


def init(config: ModelConfig, vocab_size: int, key: jax.Array) -> Any:
  """Returns fresh parameters, boxed with their logical axes (see `r1jax.mesh`)."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  model = Decoder(config, vocab_size)
  return model.init(key, tokens, tokens, tokens)['params']


def functions(config: ModelConfig, vocab_size: int) -> tuple[Any, Any, Any]:
  """Returns the pure functions `forward`, `logits` and `decoding`.

  `forward(params, …)` and `logits(params, hidden)` are `Decoder`'s; `decoding(params)`
  gives a function for one token a row, see `decode.decoding`.
  """
  apply: Any = Decoder(config, vocab_size).apply

  def forward(params: Any, *args: Any) -> tuple[jax.Array, KV]:
    return apply({'params': params}, *args)

  def logits(params: Any, hidden: jax.Array) -> jax.Array:
    return apply({'params': params}, hidden, method='logits')

  return forward, logits, functools.partial(decoding, config)


def matrices(config: ModelConfig) -> Any:
  """Returns (input axes, output axes) of each weight matrix, None for the rest.

  A tree like the parameters'; axis 0 counts layers. Embeddings and gains are no
  matrices in the sense of Muon.
  """
  into_heads, plain = ((1,), (2, 3)), ((1,), (2,))
  gain = {'gain': None}
  blocks = {
    'attention_norm': gain,
    'mlp_norm': gain,
    'query': into_heads,
    'key': into_heads,
    'value': into_heads,
    'out': ((1, 2), (3,)),
    'gate': plain,
    'up': plain,
    'down': plain,
  }
  rest = {'embedding': None} if config.tied else {'embedding': None, 'head': None}
  return {'blocks': blocks, 'norm': gain, **rest}


def quantize(params: Any, config: ModelConfig) -> Any:
  """Returns the parameters with each layer's weight matrices as `Int8`.

  For the rollout alone: half or a quarter of the bytes that a step of decoding reads
  for the layers' weights. A weight is rounded to 1/127 of the largest one that leads to
  the same output.
  Embedding and head stay as they are.
  """

  def one(axes: Any, w: jax.Array) -> Any:
    if axes is None:
      return w
    inputs, _ = axes
    largest = jnp.max(jnp.abs(w), axis=inputs, keepdims=True)
    scale = jnp.maximum(largest, 1e-30) / 127
    values = jnp.round(w / scale).astype(jnp.int8)
    return Int8(values, jnp.squeeze(scale, inputs))

  return jax.tree.map(
    one, matrices(config), params, is_leaf=lambda x: x is None or isinstance(x, tuple)
  )
