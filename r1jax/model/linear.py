"""Linear layers: plain, int8 and LoRA weights, and the SwiGLU."""

from typing import NamedTuple

import flax.linen as nn
import jax

from r1jax.sharding.constrain import constrain, num_shards


class Int8(NamedTuple):
  """A weight matrix as int8 values times one float32 scale per output."""

  values: jax.Array  # int8, the matrix's shape
  scale: jax.Array  # float32, the matrix's output axes


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


def dense(x_BTD: jax.Array, w: Weight, dtype: str = 'float32') -> jax.Array:
  """Returns x @ w, [B, T, F].

  Rows and positions are flattened to one axis, so that the gradients are single matrix
  products too. With separate rows the weights' gradient is transposed or summed row by
  row, which took a CPU 8 times as long.

  Args:
    x_BTD: activations.
    w: its first axes make up D, its last ones F.
    dtype: of the product and of the result.
  """
  if isinstance(w, Lora):
    added = dense(dense(x_BTD, w.a, dtype), w.b, dtype)
    return dense(x_BTD, w.w, dtype) + added
  values, scale = w if isinstance(w, Int8) else (w, None)
  inputs = x_BTD.shape[-1]
  if num_shards('length') > 1:  # T is sharded, so it can't be flattened into B
    assert scale is None, 'int8 weights are for rollouts, which do not shard rows in T'
    return x_BTD.astype(dtype) @ values.reshape(inputs, -1).astype(dtype)
  x_ND = x_BTD.reshape(-1, inputs).astype(dtype)
  out_NF = x_ND @ values.reshape(inputs, -1).astype(dtype)
  if scale is not None:
    out_NF *= scale.reshape(-1)[None].astype(dtype)
  return out_NF.reshape(*x_BTD.shape[:-1], -1)


def swiglu(
  x_BTD: jax.Array, gate: Weight, up: Weight, down: Weight, dtype: str = 'float32'
) -> jax.Array:
  """Returns (silu(x gate) * x up) down, [B, T, D] (Shazeer 2020, eq. 6)."""
  hidden_BTF = nn.silu(dense(x_BTD, gate, dtype)) * dense(x_BTD, up, dtype)
  if hidden_BTF.ndim == 3:
    hidden_BTF = constrain(hidden_BTF, 'prompt', 'length', 'mlp')
  return dense(hidden_BTF, down, dtype)
