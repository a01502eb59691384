"""The decoder: embeddings, layers under one scan, logits.

It sees rows [B, T] and segments (see `attention`), and knows nothing of prompts,
groups, caches or losses. Parameters carry logical axis names, those of
`r1jax.sharding.rules`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from r1jax.gradient_sums import opened, replaced, values
from r1jax.model.attention import KV
from r1jax.model.block import Block, RMSNorm, remat_block
from r1jax.model.config import ModelConfig
from r1jax.model.decode import make_decode, row_logits
from r1jax.model.decode_weights import DecodeParams, embedding_scale
from r1jax.model.linear import Int8, bits, from_bits, product, to_int8, uses_product
from r1jax.model.pattern import part, patterns
from r1jax.sharding.constrain import constrain_params, current_mesh, on_mesh
from r1jax.trees import Boxed, Decode, Head, MatrixAxes

# Parameters that stay float32 in a bfloat16 model: trained routing biases are near 7,
# where bfloat16 has steps of 0.03, and an update is 0.001.
FLOAT32 = ('router', 'balance')


class Decoder(nn.Module):
  """A transformer decoder: token ids to hidden states, keys and values."""

  config: ModelConfig
  vocab_size: int

  def setup(self) -> None:
    c = self.config
    shape, axes = (self.vocab_size, c.d_model), ('vocab', 'embed')
    # 1/sqrt(D) for the input embedding too: the first RMSNorm rescales its rows.
    normal: Any = nn.initializers.normal(c.d_model**-0.5)
    init: Any = nn.with_logical_partitioning(normal, axes)
    self.embedding_VD = self.param('embedding', init, shape)
    if not c.tied:
      self.param('head', init, shape)  # see `head_logits`
    for name, layers, sparse in c.stacks:
      setattr(self, name, self._stack(layers, sparse))
    self.norm = RMSNorm(c.norm_eps, minus_1=c.stored_minus_1)

  def _stack(self, layers: int, sparse: bool) -> nn.Module:
    block = Block if self.config.remat == 'none' else remat_block(self.config.remat)
    new = self.is_initializing()
    # A layer's parameters are opened once, outside of the rematerialised block.
    opening: Any = nn.map_variables(
      block, 'params', lambda params: from_bits(opened(params)), init=new, mutable=new
    )
    return nn.scan(
      opening,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, *[nn.broadcast] * 4, 0),
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
    """Returns normalised hidden states [B, T, D], and the `KV` of the rows, [L, ...].

    Args:
      tokens_BT: int32, token ids.
      positions_BT: int32, positions for RoPE.
      document_BT: int32; a position attends to itself and to earlier ones of the same
        document id. Positions with an id above 0 count in the experts' load.
      context: earlier segments: pairs of a `KV` stacked over layers and the mask of its
        keys; see `attention.attend`.
    """
    segment = tokens_BT, positions_BT, document_BT
    (hidden_BTD,), (own,) = self._read([segment], context)
    return hidden_BTD, own

  def with_prompts(
    self,
    prompts: Sequence[jax.Array],
    outputs: Sequence[jax.Array],
    prompt_mask: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the hidden states of prompts [P, S, D] and of their outputs [B, T, D].

    Equal to two calls, the second with the first one's `KV` as context. Here each layer
    computes both at once, so its weights are gathered once and their gradient is one
    array; two calls would each make a gradient of all layers.

    Args:
      prompts: tokens, positions and documents as in `__call__`, each [P, S].
      outputs: likewise, [B, T]; B is a multiple of P.
      prompt_mask: bool [P, S], the tokens of a prompt that its outputs attend to.
    """
    hidden, _ = self._read([prompts, outputs], seen=[prompt_mask])
    return hidden[0], hidden[1]

  def _read(
    self,
    segments: Sequence[Sequence[jax.Array]],
    context: Sequence[tuple[KV, jax.Array]] = (),
    seen: Sequence[jax.Array] = (),
  ) -> tuple[tuple[jax.Array, ...], tuple[KV, ...]]:
    """Returns hidden states and the stacked `KV` of the segments; see `Block`."""
    tokens, positions, documents = zip(*segments, strict=True)
    # The residual stream is float32 or more, whatever the type of the parameters.
    dtype = jnp.promote_types(self.embedding_VD.dtype, jnp.float32)
    streams = tuple(self.embedding_VD[tokens_BT].astype(dtype) for tokens_BT in tokens)
    if (scale := embedding_scale(self.config, self.embedding_VD.dtype)) is not None:
      streams = tuple(x_BTD * scale for x_BTD in streams)
    kvs = tuple(kv for kv, _ in context)
    masks = tuple(mask for _, mask in context)
    found, first, every = [], 0, patterns(self.config)
    for name, layers, _ in self.config.stacks:
      span = slice(first, first + layers)
      past = jax.tree.map(lambda x, span=span: x[span], kvs) if context else ()
      stack, own = getattr(self, name), part(every, span)
      rest = positions, documents, masks, tuple(seen), own
      streams, owns = stack(streams, past, *rest)
      found.append(owns)
      first += layers
    joined = jax.tree.map(lambda *x: jnp.concatenate(x) if x[1:] else x[0], *found)
    return tuple(map(self.norm, streams)), joined


@jax.named_scope('head')
def head_logits(dtype: str, rows_RD: jax.Array, x_BTD: jax.Array) -> jax.Array:
  """Returns the logits of the tokens of these rows, [..., R], float32 or more.

  Args:
    dtype: of the factors.
    rows_RD: of the output embedding, all of them or some.
    x_BTD: normalised hidden states, [..., D].
  """
  rows_RD = from_bits(rows_RD)
  if uses_product(dtype):
    return product(x_BTD.astype(dtype), rows_RD, 1)
  return jnp.einsum(
    '...d,rd->...r',
    x_BTD.astype(dtype),
    rows_RD.astype(dtype),
    preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )


def init(config: ModelConfig, vocab_size: int, key: jax.Array) -> Boxed:
  """Returns random parameters, boxed with their logical axes (`r1jax.sharding`)."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  # Two tokens can't be sharded.
  fresh = on_mesh(None, Decoder(config, vocab_size).init)
  return fresh(key, tokens, tokens, tokens)['params']


def shapes(config: ModelConfig, vocab_size: int) -> optax.Params:
  """Returns the parameters as `jax.ShapeDtypeStruct`s; allocates nothing."""
  return nn.meta.unbox(names(config, vocab_size))


def with_dtype(shapes: optax.Params, dtype: str) -> optax.Params:
  """Returns the shapes with this dtype, but for the parameters that stay float32."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x.update(dtype=x.dtype if path[-1].key in FLOAT32 else dtype),
    shapes,
  )


def names(config: ModelConfig, vocab_size: int) -> Boxed:
  """Returns the parameters as shapes, boxed with their logical axis names."""
  fresh = functools.partial(init, config, vocab_size)
  return jax.eval_shape(fresh, jax.random.key(0))


def functions(
  config: ModelConfig, vocab_size: int
) -> tuple[
  Callable[..., tuple[jax.Array, KV]],
  Callable[[optax.Params, jax.Array], jax.Array],
  Callable[[optax.Params], Decode],
  Callable[..., tuple[jax.Array, jax.Array]],
  Head,
]:
  """Returns `forward`, `logits`, `make_decode`, `with_prompts` and `head`, all pure.

  `forward(params, …)` and `with_prompts(params, …)` call the `Decoder`;
  `make_decode(params)` returns a function that decodes one token per row, see
  `decode.make_decode`. `logits(params, hidden)` and `make_decode` also take the
  `DecodeParams` of `decode_params`.
  """
  decoder: Any = Decoder(config, vocab_size)
  stacks = [name for name, _, _ in config.stacks]

  def call(method: str, params: optax.Params, *args: Any) -> Any:
    if current_mesh() is not None:
      placed = constrain_params(values(params), names(config, vocab_size))
      params = replaced(params, placed)
    # Boxes of stacks are opened layer by layer; see `Decoder._stack`.
    params = {name: x if name in stacks else opened(x) for name, x in params.items()}
    return decoder.apply({'params': params}, *args, method=method)

  def matrix(params: optax.Params) -> Any:
    return params['embedding' if config.tied else 'head']

  def logits(params: optax.Params | DecodeParams, hidden: jax.Array) -> jax.Array:
    if isinstance(params, DecodeParams):
      if params.head is not None:
        return row_logits(config, params.head, hidden)
      params = params.outside
    return head_logits(config.dtype, opened(matrix(params)), hidden)

  methods = ('__call__', 'with_prompts')
  forward, with_prompts = (functools.partial(call, method) for method in methods)
  head = Head(matrix, functools.partial(head_logits, config.dtype))
  return forward, logits, functools.partial(make_decode, config), with_prompts, head


def matrices(config: ModelConfig) -> Mapping[str, Any]:
  """Returns (input axes, output axes) of each weight matrix, None for the rest.

  A tree like the parameters'. Axis 0 counts layers; axis 1 of expert matrices counts
  experts. Embeddings, gains and biases are not matrices in the sense of Muon.
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


def as_multiplied(params: optax.Params, config: ModelConfig) -> optax.Params:
  """Returns the parameters, their matrices rounded to the type they are multiplied in.

  A forward pass gives the same bits, as its products round them too. bfloat16 matrices
  are kept as their `bits`. Input embeddings, gains and routers stay as they are.
  """
  known = matrices(config)

  def one(path: KeyPath, axes: MatrixAxes | None, x: jax.Array) -> jax.Array:
    name = path[-1].key
    multiplied = (axes is not None and name not in FLOAT32) or name == 'head'
    wider = config.dtype == 'bfloat16' and x.dtype.itemsize > 2
    return bits(x) if multiplied and wider else x

  return jax.tree_util.tree_map_with_path(
    one, known, params, is_leaf=lambda x: x is None or isinstance(x, tuple)
  )


def quantize(params: optax.Params, config: ModelConfig) -> optax.Params:
  """Returns the parameters with each layer's weight matrices as `Int8`.

  For the rollout only: a decode step then reads half or a quarter of the bytes of the
  layers' weights. A weight is rounded to a multiple of 1/127 of the largest weight of
  the same output. Embedding, head and routers stay as they are.
  """

  def one(path: KeyPath, axes: MatrixAxes | None, w: jax.Array) -> jax.Array | Int8:
    if axes is None or path[-1].key in FLOAT32:
      return w
    inputs, _ = axes
    return to_int8(w, inputs)

  return jax.tree_util.tree_map_with_path(
    one, matrices(config), params, is_leaf=lambda x: x is None or isinstance(x, tuple)
  )
