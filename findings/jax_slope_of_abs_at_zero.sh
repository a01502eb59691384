#!/usr/bin/env bash
# jax 0.10.2: the derivative of jnp.abs at 0 is 1, on both signs of zero, where torch
# takes sign(0) = 0. `jnp.sign` is 0 there, and so is the slope of x * sign(x).
#
# It matters where a loss starts exactly at such a point. A penalty |log(pi / pi_old)| is 0
# at the first update of a rollout, since both are the same: with torch it pushes nothing
# (KL-Cov, arXiv 2505.22617), with jax each of its tokens is pushed down with the full
# coefficient. The same holds for an L1 norm of weights that start at 0.
#
# Seen: "abs 1.0 1.0", "norm [1.0, 1.0]", "sign 0.0".
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$tmp/slope.py" <<'PY'
import jax
import jax.numpy as jnp

slope = jax.grad(lambda x: jnp.abs(x))
print('abs', slope(0.0), slope(-0.0))
print('norm', jax.grad(lambda x: jnp.linalg.norm(x, ord=1))(jnp.zeros(2)).tolist())
print('sign', jax.grad(lambda x: x * jnp.sign(x))(0.0))
PY
seen=$(JAX_PLATFORMS=cpu "$tmp/venv/bin/python" "$tmp/slope.py")
echo "$seen"
[[ $seen == $'abs 1.0 1.0\nnorm [1.0, 1.0]\nsign 0.0' ]] ||
  { echo 'it has changed' >&2; exit 1; }
