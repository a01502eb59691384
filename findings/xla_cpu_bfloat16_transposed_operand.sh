#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a product of two bfloat16 matrices is computed in float32, at half
# the speed or less, if its right operand is a transposed array. Copying the transposed
# array behind an optimization_barrier does not help.
#
# For bfloat16 factors and a float32 result, XLA's CPU compiler calls a kernel for the
# processor's bfloat16 units. It decides while the operand still has the layout of the
# array before the transpose; if its rows are not contiguous then, both factors are
# converted to float32. A barrier keeps the transposed layout. The operand need not be
# transposed next to the product: embeddings that are looked up as rows and used as columns
# some element-wise operations later are enough. `with_layout_constraint` helps.
#
# Seen: columns bf16 x bf16; transposed, with a barrier, embedded f32 x f32; with a layout
# bf16 x bf16.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$tmp/factors.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def factors(function, *args):
  """The types of the factors of each matrix product in the compiled program."""
  text = jax.jit(function).lower(*args).compile().as_text()
  found = []
  for body in re.findall(r'\{\n(.*?)\n\}', text, re.DOTALL):
    types = dict(re.findall(r'%(\S+) = (\w+)\[', body))
    for one, other in re.findall(r' dot\(%([^,]+), %([^)]+)\)', body):
      found.append(f'{types[one]} x {types[other]}')
  return ', '.join(found)


def product(w, x):
  return jnp.matmul(w, x, preferred_element_type=jnp.float32)


def embedded(w, table, tokens):
  x = jnp.tanh(table[tokens].astype(jnp.float32).T)
  return product(w, x.astype(jnp.bfloat16))


barrier = jax.lax.optimization_barrier
w, rows, table = (jnp.ones((n, 512), jnp.bfloat16) for n in (1536, 16, 100))
print('columns:', factors(product, w, rows.T))
print('transposed:', factors(lambda w, x: product(w, x.T), w, rows))
print('with a barrier:', factors(lambda w, x: product(w, barrier(x.T)), w, rows))
print('embedded:', factors(embedded, w, table, jnp.zeros(16, jnp.int32)))
by_rows = Layout((0, 1))
print('with a layout:', factors(
  lambda w, x: product(w, with_layout_constraint(x.T, by_rows)), w, rows
))
PY
seen=$(JAX_PLATFORMS=cpu "$tmp/venv/bin/python" "$tmp/factors.py")
echo "$seen"
expected='columns: bf16 x bf16
transposed: f32 x f32
with a barrier: f32 x f32
embedded: f32 x f32
with a layout: bf16 x bf16'
[ "$seen" = "$expected" ] || { echo 'it has changed' >&2; exit 1; }
