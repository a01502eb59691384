#!/usr/bin/env bash
# jax 0.10.2: a float32 array times the `size` of an array of 2^31 elements or more is an
# OverflowError while tracing, although both the product and the size as a float fit.
#
# `x.mean() * x.size` reads as a sum of floats. But `x.size` is a Python int, which jax
# first makes an int32 and only then a float32. So it works for every array but a very
# large one, such as all experts of a mixture stacked in one array: 58 layers of 256
# matrices of 7168 x 2048 are 2.2e11 weights. Shapes alone show it, on any machine; no
# memory is taken. `x.mean() * float(x.size)` works, and so does numpy with either.
#
# Seen: OverflowError "... Got <class 'int'> with value 217969590272", and the shape () of
# the product with a float.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$tmp/sizes.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

experts = jax.ShapeDtypeStruct((58, 256, 7168, 2048), jnp.float32)
few = jax.ShapeDtypeStruct((2, 256, 7168, 128), jnp.float32)
print('few:', jax.eval_shape(lambda x: x.mean() * x.size, few).shape)
print('numpy:', np.float32(1) * np.prod(experts.shape, dtype=object))
print('float:', jax.eval_shape(lambda x: x.mean() * float(x.size), experts).shape)
try:
  print('int:', jax.eval_shape(lambda x: x.mean() * x.size, experts).shape)
except OverflowError as error:
  print('int: OverflowError', str(error).splitlines()[0])
PY
seen=$(JAX_PLATFORMS=cpu "$tmp/venv/bin/python" "$tmp/sizes.py")
echo "$seen"
grep -q '^few: ()$' <<<"$seen" && grep -q '^float: ()$' <<<"$seen" &&
  grep -q '^int: OverflowError.*217969590272' <<<"$seen" ||
  { echo 'it has changed' >&2; exit 1; }
