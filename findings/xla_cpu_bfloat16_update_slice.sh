#!/usr/bin/env bash
# jax 0.10.2 on a CPU: writing one position to a bfloat16 array in a loop converts the whole
# array to float32 and back at every step.
#
# `dynamic_update_slice` only moves bytes, and with float32 the loop writes the position in
# place. XLA's CPU compiler treats the operation as arithmetic that bfloat16 lacks: it
# converts array and position to float32, updates, and converts the whole result back. A
# cache of keys and values in bfloat16 is so slower to write than one in float32, the more
# the longer it is; so are the arrays in which a scan stacks bfloat16 results.
#
# Seen: of 262,144 elements a step converts 0 in float32, and all in bfloat16.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$tmp/write.py" <<'PY'
import re

import jax
import jax.numpy as jnp


def write(cache, x):
  def one(i, cache):
    return jax.lax.dynamic_update_slice_in_dim(cache, jnp.sin(x), i, axis=2)

  return jax.lax.fori_loop(0, 64, one, cache)


for kind in (jnp.float32, jnp.bfloat16):
  cache, x = jnp.zeros((16, 4, 64, 64), kind), jnp.ones((16, 4, 1, 64), kind)
  text = jax.jit(write).lower(cache, x).compile().as_text()
  whole = re.findall(r'= \w+\[16,4,64,64\]\S* convert\(', text)
  print(f'{kind.__name__}: {len(whole)} conversions of the whole array in the program')
PY
seen=$(JAX_PLATFORMS=cpu "$tmp/venv/bin/python" "$tmp/write.py")
echo "$seen"
grep -q '^float32: 0 ' <<<"$seen" && grep -Eq '^bfloat16: [1-9]' <<<"$seen" ||
  { echo 'it has changed' >&2; exit 1; }
