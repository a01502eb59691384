"""Linear layers: plain, int8 and LoRA weights, and the gated MLP."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from r1jax.sharding.constrain import constrain, num_shards, platform
from r1jax.trees import T

SHORT = 32  # input channels; LoRA ranks are rarely larger
LONG_PRODUCT = 'long product'  # name of bfloat16 products with more input channels


class Int8(NamedTuple):
  """A weight matrix as int8 values times one float32 scale per output."""

  values: jax.Array  # int8, the matrix's shape
  scale: jax.Array  # float32, the matrix's output axes


def to_int8(w: jax.Array, inputs: tuple[int, ...]) -> Int8:
  """Returns weights rounded to multiples of 1/127 of an output's largest weight."""
  largest = jnp.max(jnp.abs(w), axis=inputs, keepdims=True)
  scale = jnp.maximum(largest, 1e-30) / 127
  return Int8(jnp.round(w / scale).astype(jnp.int8), jnp.squeeze(scale, inputs))


class Lora(NamedTuple):
  """A weight matrix and its LoRA adapter: the layer multiplies by w + a b."""

  w: jax.Array
  a: jax.Array  # the matrix's input axes, then r
  b: jax.Array  # r, then the matrix's output axes; scaled

  def merged(self) -> jax.Array:
    """Returns w + a b in the adapters' type, float32.

    bfloat16 would round away what an adapter learns in dozens of updates.
    """
    lead = self.w.shape[: self.a.ndim + self.b.ndim - 2 - self.w.ndim]
    rank = self.a.shape[-1]
    added = self.a.reshape(*lead, -1, rank) @ self.b.reshape(*lead, rank, -1)
    return self.w.astype(added.dtype) + added.reshape(self.w.shape)


Weight = jax.Array | Int8 | Lora


def _dot(
  x: jax.Array, y: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
  return jax.lax.dot_general(x, y, (axes, ((), ())), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w: jax.Array, axis: int = 0) -> jax.Array:
  """Returns x @ w for bfloat16 factors, summed in float32: float32 [..., F].

  For CPUs. Gradients are products of bfloat16 factors too, since the cotangent is
  rounded, and the weights' gradient is a float32 sum. A CPU computes such products at
  the rate of its bfloat16 units if the left factor is summed over its last axis or over
  two axes. JAX's own gradients multiply float32 cotangents at half of that or less.

  Args:
    x: bfloat16 [..., D].
    w: [D, F], or [F, D] with `axis` 1; rounded to bfloat16.
    axis: of `w` to sum over.
  """
  return _dot(x, w.astype(x.dtype), ((x.ndim - 1,), (axis,)))


def _product_fwd(
  x: jax.Array, w: jax.Array, axis: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(x, w, axis), (x, w)


def _product_bwd(
  axis: int, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, w = kept
  g = g.astype(x.dtype)
  dx = _dot(g, w.astype(x.dtype), ((g.ndim - 1,), (1 - axis,))).astype(x.dtype)
  if x.ndim == 2:
    x, g = x[:, None], g[:, None]
  rows = tuple(range(x.ndim - 1))
  pair = (x, g) if axis == 0 else (g, x)
  return dx, _dot(*pair, (rows, rows)).astype(w.dtype)


product.defvjp(_product_fwd, _product_bwd)


def uses_product(dtype: str) -> bool:
  """Whether a layer computes with `product` in this type: bfloat16 on a CPU.

  Other devices multiply bfloat16 at their rate whatever the type of the result, and
  their gradients are reduced over a mesh in bfloat16, half the bytes.
  """
  return dtype == 'bfloat16' and platform() == 'cpu'


def vector_dtype(dtype: str) -> jax.typing.DTypeLike:
  """Returns the type of what is computed between two products in `dtype`.

  On a CPU it is float32 or more, as it would convert each bfloat16 there and back.
  """
  return jnp.promote_types(dtype, jnp.float32) if platform() == 'cpu' else dtype


def bits(x: jax.Array) -> jax.Array:
  """Returns x rounded to bfloat16, as uint16 with the same bits; see `from_bits`.

  XLA's CPU compiler converts a whole stack of bfloat16 layers to float32 where a loop
  reads a layer of it, and likewise where it writes one.
  """
  return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def from_bits(tree: T) -> T:
  """Returns the tree with its uint16 arrays as the bfloat16 numbers that they are."""

  def one(x: Any) -> Any:
    if getattr(x, 'dtype', None) != jnp.uint16:
      return x
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16)

  return jax.tree.map(one, tree)


@jax.custom_jvp
def _kept(x: jax.Array) -> jax.Array:
  """Returns x in bfloat16; a remat policy may keep its bits as `LONG_PRODUCT`."""
  return from_bits(checkpoint_name(bits(x), LONG_PRODUCT))


@_kept.defjvp
def _kept_jvp(
  primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  # Inlined where it is differentiated, so that the policy sees the name.
  return _kept.fun(*primals), tangents[0].astype(jnp.bfloat16)


def dense(x_BTD: jax.Array, w: Weight, dtype: str = 'float32') -> jax.Array:
  """Returns x @ w, [B, T, F].

  Rows and positions are flattened to one axis, so that the gradients are single matrix
  products too. With separate rows the weights' gradient is transposed or summed row by
  row, which took a CPU 8 times as long. For bfloat16 on a CPU see `product`.

  Args:
    x_BTD: activations.
    w: its first axes make up D, its last ones F.
    dtype: of the factors and of the result.
  """
  if isinstance(w, Lora):
    added = dense(dense(x_BTD, w.a, dtype), w.b, dtype)
    return dense(x_BTD, w.w, dtype) + added
  values, scale = w if isinstance(w, Int8) else (w, None)
  inputs = x_BTD.shape[-1]
  values = values.reshape(inputs, -1)
  if uses_product(dtype):
    out_BTF = product(x_BTD.astype(dtype), values)
    if scale is not None:
      out_BTF *= scale.reshape(-1)[None, None]
    return _kept(out_BTF) if inputs > SHORT else out_BTF.astype(dtype)
  if num_shards('length') > 1:  # T is sharded, so it can't be flattened into B
    assert scale is None, 'int8 weights are for rollouts, which do not shard rows in T'
    return x_BTD.astype(dtype) @ values.astype(dtype)
  out_NF = x_BTD.reshape(-1, inputs).astype(dtype) @ values.astype(dtype)
  if scale is not None:
    out_NF *= scale.reshape(-1)[None].astype(dtype)
  return out_NF.reshape(*x_BTD.shape[:-1], -1)


# By the name in `ModelConfig.activation`.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'silu': nn.silu,
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
}


def gated_mlp(
  x_BTD: jax.Array,
  gate: Weight,
  up: Weight,
  down: Weight,
  activation: str = 'silu',
  dtype: str = 'float32',
) -> jax.Array:
  """Returns (f(x gate) * x up) down, [B, T, D] (Shazeer 2020, eq. 6)."""
  kind = vector_dtype(dtype)
  gated_BTF, up_BTF = (dense(x_BTD, w, dtype).astype(kind) for w in (gate, up))
  hidden_BTF = ACTIVATIONS[activation](gated_BTF) * up_BTF
  if hidden_BTF.ndim == 3:
    hidden_BTF = constrain(hidden_BTF, 'prompt', 'length', 'mlp')
  return dense(hidden_BTF, down, dtype)
