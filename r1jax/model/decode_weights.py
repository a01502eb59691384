"""Parameters in the layout that decode steps read; see `decode`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from r1jax.model import one_row
from r1jax.model.config import ModelConfig
from r1jax.model.linear import Int8, Lora, bits, to_int8, vector_dtype
from r1jax.sharding.constrain import platform

# By name: an array, a `Lora`, or a matrix and its scale; see `layer_weights`.
LayerWeights = dict[str, Any]


class DecodeParams(NamedTuple):
  """Parameters in the layout that decode steps read, prepared once for many steps."""

  outside: dict[str, optax.Params]  # embedding, final norm and head
  layers: list[LayerWeights]  # weights by name, see `layer_weights`
  # The head as a left operand with its scale, like matrices of the layers; None: it is
  # in `outside`.
  head: tuple[jax.Array, jax.Array | None] | None = None
  embedding_scale: jax.Array | None = None  # see the function


def decode_params(
  config: ModelConfig, params: optax.Params, single: bool = False
) -> DecodeParams:
  """Returns the parameters prepared for `decode.make_decode` and for the logits.

  `decode.make_decode` does this itself when it gets plain parameters: once per program,
  so once for a loop over tokens. Where each token is a call of a program, as in a chat,
  call this once in a program of its own.

  Args:
    config: of the model.
    params: parameters; matrices may be `Int8`.
    single: decode steps have one row. On a CPU weights then get the form that
      `one_row.product` reads, and with `Int8` matrices the head is rounded like them.
  """
  stacks = [name for name, _, _ in config.stacks]
  outside = {name: x for name, x in params.items() if name not in stacks}
  head = 'embedding' if config.tied else 'head'
  scale = embedding_scale(config, outside['embedding'].dtype)
  # A tied embedding keeps its precision. Cast here, not at each token.
  tied_dtype = jnp.promote_types(outside[head].dtype, config.dtype)
  outside[head] = outside[head].astype(tied_dtype if config.tied else config.dtype)
  layers = [
    layer_weights(config, params[name], n, single)
    for name, count, _ in config.stacks
    for n in range(count)
  ]
  int8 = any(isinstance(w, Int8) for name in stacks for w in params[name].values())
  left: tuple[jax.Array, jax.Array | None] | None = None
  if single and (int8 or config.dtype == 'bfloat16') and platform() == 'cpu':
    w = outside[head] if config.tied else outside.pop(head)
    if int8:
      values, of_row = to_int8(w.astype(jnp.float32), (1,))
      left = values, of_row[:, None]
    else:
      left = _for_one_row(w.astype(config.dtype)), None
  return DecodeParams(outside, layers, left, scale)


def _for_one_row(w_FD: jax.Array) -> jax.Array:
  """Returns a left operand in the form that `one_row.product` reads, if it can be."""
  served = platform() == 'cpu' and one_row.serves(w_FD.shape[1])
  return bits(w_FD) if served and w_FD.dtype == jnp.bfloat16 else w_FD


# Weights that decoding uses in the learner's layout.
_UNCHANGED = (
  *('latent_up', 'router', 'balance'),
  *('expert_gate', 'expert_up', 'expert_down'),
)


def layer_weights(
  config: ModelConfig, blocks: optax.Params, layer: int, single: bool = False
) -> LayerWeights:
  """Returns a layer's weights as left operands: matrices [out, in], the rest [D, 1].

  The weights in `_UNCHANGED` keep their layout. With float32 products an adapter is
  merged into its matrix; with bfloat16 it stays separate, as the sum would round it
  away. With `single` the matrices have the form for one row.
  """
  inputs = {
    'out': config.heads * config.value_dim,
    'down': config.d_ff,
    'shared_down': config.experts.shared * config.experts.d_ff,
    'query': config.latent.q_rank or config.d_model,
  }

  def left(w: jax.Array, width: int) -> jax.Array:
    w_FD = w.reshape(width, -1).T
    if platform() == 'cpu':
      # Else each loop that reads it would make a transposed copy of its own.
      w_FD = with_layout_constraint(w_FD, Layout((0, 1)))
    # Without the barrier XLA undoes the transpose inside each product.
    return jax.lax.optimization_barrier(w_FD)

  def prepare(name: str) -> Any:
    w = jax.tree.map(lambda x: x[layer], blocks[name])
    if isinstance(w, Lora) and (config.dtype == 'float32' or name == 'latent_up'):
      w = w.merged()  # once, not at each token
    if name in _UNCHANGED:
      return w
    if name.endswith('_norm'):
      return gain_of(config, w)[:, None]
    if name.endswith('_bias'):
      return w.reshape(-1, 1)
    width = inputs.get(name, config.d_model)
    if isinstance(w, Int8):
      return left(w.values, width), w.scale.reshape(-1, 1).astype(
        vector_dtype(config.dtype)
      )
    if isinstance(w, Lora):
      w, a, b = (x.astype(config.dtype) for x in w)
      return Lora(left(w, width), left(a, width), left(b, a.shape[-1]))
    w = left(w.astype(config.dtype), width)
    return _for_one_row(w) if single else w, None

  return {name: prepare(name) for name in blocks}


def embedding_scale(
  config: ModelConfig, dtype: jax.typing.DTypeLike
) -> jax.Array | None:
  """Returns sqrt(D) rounded to the type of the parameters, as Gemma does; else None."""
  if not config.scaled_embedding:
    return None
  rounded = jnp.asarray(config.d_model**0.5, dtype)
  return rounded.astype(jnp.promote_types(dtype, jnp.float32))


def gain_of(config: ModelConfig, norm: optax.Params) -> jax.Array:
  """Returns the factors of an RMSNorm."""
  gain = norm['gain']
  return 1 + gain.astype(jnp.float32) if config.stored_minus_1 else gain
