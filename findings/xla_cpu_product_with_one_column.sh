#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a bfloat16 or int8 matrix times one column takes ten times as long
# as the float32 matrix, which has two or four times the bytes.
#
# Decoding one row reads every weight once, so half the bytes should take half the time,
# as they do elsewhere. XLA's CPU compiler has a kernel for a product with a vector for
# float32 alone; the other two are computed one element at a time. Two columns instead of
# one already use a matrix kernel, and take less time than one.
#
# Seen, 4864 x 896, two cores with AVX-512 BF16, milliseconds a product: float32 0.42,
# bfloat16 5.37, int8 converted to float32 5.28, bfloat16 with two columns 0.49.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$tmp/venv/bin/python" - <<'PY'
import time

import jax
import jax.numpy as jnp

MATRICES = 10  # one after the other, so that they don't stay in the caches


def milliseconds(kind, factors, columns):
  keys = jax.random.split(jax.random.key(0), MATRICES)
  if kind == 'int8':
    matrices = [jax.random.randint(k, (4864, 896), -127, 128, jnp.int8) for k in keys]
  else:
    matrices = [jax.random.normal(k, (4864, 896), kind) for k in keys]
  x = jnp.ones((896, columns), factors)

  @jax.jit
  def products(matrices, x):
    return [
      jnp.matmul(w.astype(factors), x, preferred_element_type=jnp.float32)
      for w in matrices
    ]

  jax.block_until_ready(products(matrices, x))
  times = []
  for _ in range(9):
    began = time.perf_counter()
    jax.block_until_ready(products(matrices, x))
    times.append(time.perf_counter() - began)
  return 1e3 * sorted(times)[len(times) // 2] / MATRICES


float32 = milliseconds('float32', 'float32', 1)
bfloat16 = milliseconds('bfloat16', 'bfloat16', 1)
int8 = milliseconds('int8', 'float32', 1)
two = milliseconds('bfloat16', 'bfloat16', 2)
print(f'float32 {float32:.2f} ms, bfloat16 {bfloat16:.2f}, int8 {int8:.2f}')
print(f'bfloat16 with two columns {two:.2f}')
assert bfloat16 > 4 * float32 and int8 > 4 * float32, 'it has changed'
assert two < bfloat16, 'it has changed'
PY
