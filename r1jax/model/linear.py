"""Linear layers: plain, int8 and LoRA weights, and the SwiGLU."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from r1jax.sharding.constrain import (
  constrain,
  num_shards,
)


class Int8(NamedTuple):
  """A weight matrix in a byte a number: values times the scale of their output."""

  values: jax.Array  # int8, the matrix's shape
  scale: jax.Array  # float32, its output axes


class Lora(NamedTuple):
  """A weight matrix and the two thin ones whose product is added; see `lora`."""

  w: jax.Array
  a: jax.Array  # the matrix's input axes, then r
  b: jax.Array  # r, then the matrix's output axes; scaled

  def merged(self) -> jax.Array:
    """Returns the sum as one matrix, in the type of the adapters, float32.

    In a bfloat16 what an adapter has learned in dozens of updates would round away.
    """
    lead = self.w.shape[: self.a.ndim + self.b.ndim - 2 - self.w.ndim]
    rank = self.a.shape[-1]
    added = self.a.reshape(*lead, -1, rank) @ self.b.reshape(*lead, rank, -1)
    return self.w.astype(added.dtype) + added.reshape(self.w.shape)


def dense(x_BTD: jax.Array, w: Any, dtype: str = 'float32') -> jax.Array:
  """Returns x @ w, [B, T, F], as one product over the positions of all rows.

  Its gradients are such products too. Of one that keeps the rows apart, the weights'
  gradient is transposed or summed row by row, which took a CPU 8 times as long.

  Args:
    x_BTD: activations.
    w: an array, `Int8` or `Lora` whose first axes make up D, and its last ones F.
    dtype: to compute in, and of the result.
  """
  if isinstance(w, Lora):
    added = dense(dense(x_BTD, w.a, dtype), w.b, dtype)
    return dense(x_BTD, w.w, dtype) + added
  values, scale = w if isinstance(w, Int8) else (w, None)
  inputs = x_BTD.shape[-1]
  if num_shards('length') > 1:  # positions of a row lie apart, so they stay an axis
    assert scale is None, 'int8 is for rollouts, which do not cut rows'
    return x_BTD.astype(dtype) @ values.reshape(inputs, -1).astype(dtype)
  x_ND = x_BTD.reshape(-1, inputs).astype(dtype)
  out_NF = x_ND @ values.reshape(inputs, -1).astype(dtype)
  if scale is not None:
    out_NF *= scale.reshape(-1)[None].astype(dtype)
  return out_NF.reshape(*x_BTD.shape[:-1], -1)


def swiglu(
  x_BTD: jax.Array, gate: Any, up: Any, down: Any, dtype: str = 'float32'
) -> jax.Array:
  """Returns (silu(x gate) * x up) down, [B, T, D] (Shazeer 2020, eq. 6)."""
  hidden_BTF = nn.silu(dense(x_BTD, gate, dtype)) * dense(x_BTD, up, dtype)
  if hidden_BTF.ndim == 3:
    hidden_BTF = constrain(hidden_BTF, 'prompt', 'length', 'mlp')
  return dense(hidden_BTF, down, dtype)
