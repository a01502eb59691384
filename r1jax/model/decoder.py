"""The decoder: embeddings, layers under one scan, logits.

It sees rows [B, T] and segments (see `attention`), and knows nothing of prompts,
groups, caches or losses. Parameters carry logical axis names for `r1jax.sharding.mesh`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.attention import KV, attend
from r1jax.model.config import LATENT_NORM_EPS, ModelConfig
from r1jax.model.decode import Turned, decoding, score_scale
from r1jax.model.mlp import Int8, dense, experts, swiglu
from r1jax.model.rope import turn, turn_queries
from r1jax.sharding.constrain import constrain, constrain_params, current_mesh, on_mesh

# Parameters that stay float32, whatever the type of the others: near 7, where trained
# routing biases are, bfloat16 has steps of 0.03, and an update is 0.001.
FLOAT32 = ('router', 'balance')

SHORT = 32  # channels; an adapter's rank is seldom more


class RMSNorm(nn.Module):
  """Scales x to unit mean square, then by a learned gain (Zhang & Sennrich 2019)."""

  eps: float
  axis: str = 'gain'  # logical name of the axis that is scaled

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones: Any = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    gain = self.param('gain', ones, (x.shape[-1],))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    wide = jnp.expand_dims(gain, range(x.ndim - 1))
    return x * jax.lax.rsqrt(mean_square + self.eps) * wide


class Block(nn.Module):
  """Attention and SwiGLU or experts, each on a normalised copy, added to the stream."""

  config: ModelConfig
  sparse: bool  # experts in place of the SwiGLU

  def _weights(self, name: str, axes: Sequence[str], *shape: int, fan_in: int) -> Any:
    """A parameter, normal with variance 1 / fan-in, tagged with logical axis names."""
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
  ) -> tuple[tuple[jax.Array, ...], tuple[KV, ...]]:
    """Returns the streams of one segment or more, and their rows' own `KV`.

    A segment sees the context and all segments before it, each through its mask in
    `seen`.
    """
    moved: list[jax.Array] = []
    owns: list[KV] = []
    segments = zip(streams, positions, documents, strict=True)
    for n, (x_BTD, positions_BT, document_BT) in enumerate(segments):
      before, masks = (*context, *owns), (*context_masks, *seen[:n])
      x_BTD, own = self._layer(x_BTD, positions_BT, document_BT, before, masks)
      moved.append(x_BTD)
      owns.append(own)
    return tuple(moved), tuple(owns)

  @nn.compact
  def _layer(
    self,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    document_BT: jax.Array,
    context: Sequence[KV],
    context_masks: Sequence[jax.Array],
  ) -> tuple[jax.Array, KV]:
    """Returns the stream and the rows' own `KV`."""
    c = self.config
    x_BTD = constrain(x_BTD, 'prompt', 'length', None)
    h_BTD = RMSNorm(c.norm_eps, name='attention_norm')(x_BTD)
    project = self._latent if c.latent.kv_rank else self._grouped
    with jax.named_scope('project'):
      q_BTHC, own, whole = project(h_BTD, positions_BT)
    masked = [(whole(kv), m) for kv, m in zip(context, context_masks, strict=True)]
    with jax.named_scope('attend'):
      scale = score_scale(c)
      attended = attend(q_BTHC, whole(own), document_BT, masked, scale)
    out_axes, added = ('heads', 'channel', 'embed'), 2 * c.layers
    inputs = c.heads * c.value_dim
    out = self._weights(
      'out', out_axes, c.heads, c.value_dim, c.d_model, fan_in=inputs * added
    )
    with jax.named_scope('project'):
      added_BTD = dense(attended.reshape(*attended.shape[:2], -1), out, c.dtype)
      if c.out_bias:
        bias_D = self._zeros('out_bias', ('embed',), c.d_model)
        added_BTD += bias_D[None, None].astype(added_BTD.dtype)
      x_BTD += added_BTD
      x_BTD = constrain(x_BTD, 'prompt', 'length', None)
    h_BTD = RMSNorm(c.norm_eps, name='mlp_norm')(x_BTD)
    with jax.named_scope('mlp'):
      if self.sparse:
        counted_BT = document_BT > 0
        weights = self._expert_weights()
        return x_BTD + experts(h_BTD, weights, c.experts, c.dtype, counted_BT), own
      return x_BTD + swiglu(h_BTD, *self._swiglu('', c.d_ff), c.dtype), own

  def _grouped(self, h_BTD: jax.Array, positions_BT: jax.Array) -> Any:
    """Queries, keys and values of grouped-query attention; the cache is whole."""
    c = self.config

    def head(name: str, axis: str, heads: int) -> jax.Array:
      axes, shape = ('embed', axis, 'channel'), (c.d_model, heads, c.head_dim)
      w = self._weights(name, axes, *shape, fan_in=c.d_model)
      x = dense(h_BTD, w, c.dtype).reshape(*h_BTD.shape[:2], heads, c.head_dim)
      if c.qkv_bias:
        bias = self._zeros(f'{name}_bias', axes[1:], *shape[1:])
        x += bias[None, None].astype(x.dtype)
      if c.qk_norm and name != 'value':
        norm = RMSNorm(c.norm_eps, 'channel', name=f'{name}_norm')
        x = norm(x).astype(c.dtype)
      return x

    q = turn_queries(c, head('query', 'heads', c.heads), positions_BT)
    k = turn(c, head('key', 'kv_heads', c.kv_heads), positions_BT)
    v = head('value', 'kv_heads', c.kv_heads)
    q = constrain(q, 'prompt', 'length', 'heads', None)
    k, v = (constrain(x, 'prompt', 'length', 'kv_heads', None) for x in (k, v))
    return q, KV(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2)), lambda kv: kv

  def _latent(self, h_BTD: jax.Array, positions_BT: jax.Array) -> Any:
    """Queries, the compressed cache, and how a cache is opened to keys and values.

    The cache is the normalised latent and the shared key after RoPE, side by side, as
    the keys of one head.
    """
    c, latent = self.config, self.config.latent
    plain = c.head_dim - latent.rope_dim
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
    q = jnp.concatenate([q[..., :plain], turn(c, q[..., plain:], positions_BT)], -1)
    q = constrain(q, 'prompt', 'length', 'heads', None)

    width = latent.kv_rank + latent.rope_dim
    down = self._weights(
      'latent_down', ('embed', 'rank'), c.d_model, width, fan_in=c.d_model
    )
    found = self._biased('latent_down', 'rank', dense(h_BTD, down, c.dtype))
    norm = RMSNorm(LATENT_NORM_EPS, name='latent_norm')
    shared = turn(c, found[..., None, latent.kv_rank :], positions_BT)[..., 0, :]
    kept = jnp.concatenate(
      [norm(found[..., : latent.kv_rank]).astype(c.dtype), shared], axis=-1
    )
    up_shape = (latent.kv_rank, c.heads, plain + latent.value_dim)
    up_axes = ('rank', 'heads', 'channel')
    up = self._weights('latent_up', up_axes, *up_shape, fan_in=latent.kv_rank)

    def whole(kv: KV) -> KV:
      read_BSR = jnp.swapaxes(kv.k[:, 0, : latent.kv_rank], 1, 2)
      heads = dense(read_BSR, up, c.dtype).reshape(*read_BSR.shape[:2], *up_shape[1:])
      k_BHCS = jnp.moveaxis(heads[..., :plain], 1, 3)
      shape = (*k_BHCS.shape[:2], latent.rope_dim, k_BHCS.shape[-1])
      turned = jnp.broadcast_to(kv.k[:, :, latent.kv_rank :], shape)
      k_BHCS = jnp.concatenate([k_BHCS, turned], axis=2)
      v_BHSC = jnp.moveaxis(heads[..., plain:], 1, 2)
      lying = ('prompt', 'heads', None, None)
      return KV(constrain(k_BHCS, *lying), constrain(v_BHSC, *lying))

    return q, KV(jnp.swapaxes(kept, 1, 2)[:, None], None), whole

  def _biased(self, name: str, axis: str, x_BTF: jax.Array) -> jax.Array:
    """A product of latent attention with its bias, if it has one."""
    if not self.config.qkv_bias:
      return x_BTF
    bias_F = self._zeros(f'{name}_bias', (axis,), x_BTF.shape[-1])
    return x_BTF + bias_F[None, None].astype(x_BTF.dtype)

  def _swiglu(self, prefix: str, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
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
      parts = self._swiglu('shared_', e.shared * e.d_ff)
      found |= dict(zip(names, parts, strict=True))
    return found


def _remat(kept: str) -> Any:
  """`Block` that computes activations again in the backward pass; see the config."""
  policy = _is_long_product if kept == 'dots' else None
  return nn.remat(Block, prevent_cse=False, policy=policy)


def _is_long_product(primitive: Any, *operands: Any, **params: Any) -> bool:
  """Whether activations are kept: those of products over more than `SHORT` channels.

  The others, of adapters, cost less to compute again than they take.
  """
  kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  if not kept(primitive, *operands, **params):
    return False
  (inputs, _), _ = params['dimension_numbers']
  return math.prod(operands[0].shape[n] for n in inputs) > SHORT


class Decoder(nn.Module):
  """Token ids in, hidden states and the keys and values that they leave out."""

  config: ModelConfig
  vocab_size: int

  def setup(self) -> None:
    c = self.config
    shape, axes = (self.vocab_size, c.d_model), ('vocab', 'embed')
    # 1/sqrt(D) also for the input side: the first RMSNorm brings rows to unit scale.
    normal: Any = nn.initializers.normal(c.d_model**-0.5)
    init: Any = nn.with_logical_partitioning(normal, axes)
    self.embedding_VD = self.param('embedding', init, shape)
    self.head_VD = self.embedding_VD if c.tied else self.param('head', init, shape)
    for name, layers, sparse in c.stacks:
      setattr(self, name, self._stack(layers, sparse))
    self.norm = RMSNorm(c.norm_eps)

  def _stack(self, layers: int, sparse: bool) -> Any:
    return nn.scan(
      Block if self.config.remat == 'none' else _remat(self.config.remat),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
      length=layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(self.config, sparse)

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
        Those with an id above 0 count in the load of experts.
      context: earlier segments, each a `KV` stacked on L and the mask of its keys; see
        `attention.attend`.
    """
    segment = tokens_BT, positions_BT, document_BT
    (hidden_BTD,), (own,) = self._read([segment], context)
    return hidden_BTD, own

  def both(
    self,
    prompts: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
    prompt_mask: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the hidden states of prompts [P, S, D] and of their outputs [B, T, D].

    Those of two calls, the second with the first one's `KV` as context. But a layer
    reads both while its weights are there, and the gradient is one of the layer: of two
    calls each would make one of all layers, to be added up at the end.

    Args:
      prompts: tokens, positions and documents as in a call, each [P, S].
      outputs: likewise, [B, T].
      prompt_mask: bool [P, S], which tokens of a prompt its outputs see.
    """
    hidden, _ = self._read([prompts, outputs], seen=[prompt_mask])
    return hidden[0], hidden[1]

  def _read(
    self,
    segments: Sequence[Sequence[jax.Array]],
    context: Sequence[tuple[KV, jax.Array]] = (),
    seen: Sequence[jax.Array] = (),
  ) -> tuple[tuple[jax.Array, ...], tuple[KV, ...]]:
    """Hidden states and the stacked `KV` of segments; see `Block`."""
    tokens, positions, documents = zip(*segments, strict=True)
    # float32 or more: sums over the layers are kept in it, whatever the parameters'
    # type.
    wide = jnp.promote_types(self.embedding_VD.dtype, jnp.float32)
    streams = tuple(self.embedding_VD[tokens_BT].astype(wide) for tokens_BT in tokens)
    kvs = tuple(kv for kv, _ in context)
    masks = tuple(mask for _, mask in context)
    found, first = [], 0
    for name, layers, _ in self.config.stacks:
      part = slice(first, first + layers)
      past = jax.tree.map(lambda x, part=part: x[part], kvs) if context else ()
      stack = getattr(self, name)
      streams, owns = stack(streams, past, positions, documents, masks, tuple(seen))
      found.append(owns)
      first += layers
    joined = jax.tree.map(lambda *x: jnp.concatenate(x) if x[1:] else x[0], *found)
    return tuple(map(self.norm, streams)), joined

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """Unnormalised log-probabilities of the next token, [..., V]."""
    dtype = self.config.dtype
    return jnp.einsum(
      '...d,vd->...v',
      x_BTD.astype(dtype),
      self.head_VD.astype(dtype),
      preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


def init(config: ModelConfig, vocab_size: int, key: jax.Array) -> Any:
  """Returns fresh parameters, boxed with their logical axes (`r1jax.sharding`)."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  # There is nothing to cut in two tokens.
  fresh = on_mesh(None, Decoder(config, vocab_size).init)
  return fresh(key, tokens, tokens, tokens)['params']


def shapes(config: ModelConfig, vocab_size: int) -> Any:
  """Returns the tree of parameters as shapes, nothing allocated."""
  return nn.meta.unbox(names(config, vocab_size))


def held(shapes: Any, dtype: str) -> Any:
  """Returns the tree of shapes with the types of parameters that are held in one."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.update(dtype=x.dtype if path[-1].key in FLOAT32 else dtype),
    shapes,
  )


def names(config: ModelConfig, vocab_size: int) -> Any:
  """Returns the tree of parameters as shapes with their axes' names, boxed."""
  fresh = functools.partial(init, config, vocab_size)
  return jax.eval_shape(fresh, jax.random.key(0))


def functions(config: ModelConfig, vocab_size: int) -> tuple[Any, Any, Any, Any]:
  """Returns the pure functions `forward`, `logits`, `decoding` and `both`.

  `forward(params, …)`, `logits(params, hidden)` and `both(params, …)` are `Decoder`'s;
  `decoding(params)` gives a function for one token a row, see `decode.decoding`.
  `logits` and `decoding` also take what `decode.turned` has made of the parameters.
  """
  apply: Any = Decoder(config, vocab_size).apply

  def read(method: str, params: Any, *args: Any) -> Any:
    if current_mesh() is not None:
      params = constrain_params(params, names(config, vocab_size))
    return apply({'params': params}, *args, method=method)

  def logits(params: Any, hidden: jax.Array) -> jax.Array:
    outside = params.outside if isinstance(params, Turned) else params
    return apply({'params': outside}, hidden, method='logits')

  forward, both = (functools.partial(read, method) for method in ('__call__', 'both'))
  return forward, logits, functools.partial(decoding, config), both


def matrices(config: ModelConfig) -> Any:
  """Returns (input axes, output axes) of each weight matrix, None for the rest.

  A tree like the parameters'; axis 0 counts layers, and axis 1 of experts' matrices
  counts those. Embeddings, gains and biases are no matrices in the sense of Muon.
  """
  plain, heads, expert = ((1,), (2,)), ((1,), (2, 3)), ((2,), (3,))
  known = {
    **dict.fromkeys(('query', 'key', 'value', 'latent_up'), heads),
    'out': ((1, 2), (3,)),
    **dict.fromkeys(('expert_gate', 'expert_up', 'expert_down'), expert),
    **dict.fromkeys(('query_down', 'latent_down', 'router'), plain),
    **dict.fromkeys(('gate', 'up', 'down'), plain),
    **dict.fromkeys(('shared_gate', 'shared_up', 'shared_down'), plain),
  }
  return jax.tree_util.tree_map_with_path(
    lambda path, _: known.get(path[-1].key) if len(path) == 2 else None,
    shapes(config, 1),
  )


def quantize(params: Any, config: ModelConfig) -> Any:
  """Returns the parameters with each layer's weight matrices as `Int8`.

  For the rollout alone: half or a quarter of the bytes that a step of decoding reads
  for the layers' weights. A weight is rounded to 1/127 of the largest one that leads to
  the same output.
  Embedding, head and routers stay as they are.
  """

  def one(path: Any, axes: Any, w: jax.Array) -> Any:
    if axes is None or path[-1].key in FLOAT32:
      return w
    inputs, _ = axes
    largest = jnp.max(jnp.abs(w), axis=inputs, keepdims=True)
    scale = jnp.maximum(largest, 1e-30) / 127
    values = jnp.round(w / scale).astype(jnp.int8)
    return Int8(values, jnp.squeeze(scale, inputs))

  return jax.tree_util.tree_map_with_path(
    one, matrices(config), params, is_leaf=lambda x: x is None or isinstance(x, tuple)
  )
