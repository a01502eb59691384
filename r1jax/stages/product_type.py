"""The type of products that a device computes faster: float32 or bfloat16."""

import time
from typing import Literal

import jax
import jax.numpy as jnp

from r1jax.model.linear import dense
from r1jax.runtime import compilation

# Casts, norms and attention gain little by bfloat16, so products must gain clearly.
NEEDED = 1.3
SIZES = 2048, 512, 1536  # rows, inputs and outputs of a product


def choose() -> tuple[Literal['float32', 'bfloat16'], str]:
  """Returns the type to compute in on this device, measured, and a reason."""
  ratio = speedup()
  found = faster(ratio)
  return found, (
    f'{found}, as products in bfloat16 are {ratio:.1f} times as fast as in float32.'
  )


def speedup() -> float:
  """Returns how many times as fast as float32 products are in bfloat16, measured.

  It takes about a second, most of it for compiling. A CPU without units for bfloat16
  is slower in it than in float32.
  """
  return _seconds('float32') / _seconds('bfloat16')


def faster(ratio: float) -> Literal['float32', 'bfloat16']:
  """Returns the type to compute in, given the result of `speedup`."""
  return 'bfloat16' if ratio >= NEEDED else 'float32'


def _seconds(dtype: str) -> float:
  rows, inputs, outputs = SIZES
  x = jnp.ones((1, rows, inputs), dtype)
  w = jnp.ones((inputs, outputs), jnp.float32)
  run = jax.jit(lambda x, w: dense(x, w, dtype), compiler_options=compilation.options())
  jax.block_until_ready(run(x, w))
  found = []
  for _ in range(9):  # the fastest, as others may use the device
    began = time.perf_counter()
    jax.block_until_ready(run(x, w))
    found.append(time.perf_counter() - began)
  return min(found)
