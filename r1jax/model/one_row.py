"""A matrix times one column on a CPU, for weights in bfloat16 and int8.

XLA's CPU compiler has a fast product with a vector for float32 alone. One of bfloat16
or int8 factors is computed an element at a time, and its matrix kernels take as long
for 1 column as for 16. Here the product is written as sums that the compiler makes
vector instructions of: a row of weights is D / LANES vectors of LANES numbers, which
are multiplied and added up lane by lane, then the lanes are summed.
"""

import functools
import operator

import jax
import jax.numpy as jnp

# With 32 the compiler unrolls the loop over lanes instead of making vectors of it.
LANES = 64
BITS = jnp.uint16  # of `linear.bits`, the form of bfloat16 weights here


def serves(inputs: int) -> bool:
  """Whether a matrix with this many columns can be multiplied here."""
  return inputs % LANES == 0


def product(w_FD: jax.Array, x_D1: jax.Array) -> jax.Array:
  """Returns w @ x, summed in float32: float32 [F, 1].

  Args:
    w_FD: int8, or the `linear.bits` of bfloat16; `serves(D)` must hold.
    x_D1: the column.
  """
  parts = len(x_D1) // LANES
  w_FNL = w_FD.reshape(-1, parts, LANES)
  # Without the barriers the loop would convert x anew in each row, and sum the lanes.
  x_NL = jax.lax.optimization_barrier(x_D1.astype(jnp.float32)).reshape(parts, LANES)
  terms = (_float32(w_FNL[:, n]) * x_NL[None, n] for n in range(parts))
  lanes_FL = jax.lax.optimization_barrier(functools.reduce(operator.add, terms))
  return lanes_FL @ jnp.ones((LANES, 1), jnp.float32)


def _float32(w: jax.Array) -> jax.Array:
  if w.dtype != BITS:
    return w.astype(jnp.float32)
  return jax.lax.bitcast_convert_type(w.astype(jnp.uint32) << 16, jnp.float32)
