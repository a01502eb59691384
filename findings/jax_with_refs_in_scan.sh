#!/usr/bin/env bash
# jax 0.10.2: gradients that `vjp(...).with_refs(...)` adds up in place go to the wrong
# parameters, without an error, where a scan runs over a computed array and a parameter.
#
# `with_refs` is meant to add cotangents to references, so that no second tree of
# gradients is held. Here a scan runs over (2 a, b): what belongs to b is added to the
# reference of another input. With equal shapes nothing is said and the numbers are wrong;
# with other shapes it is a ValueError about shapes; with the computed array last,
# (a, 2 b), they are right.
#
# Seen: largest differences to jax.grad above 0.1 for (2 a, b), below 1e-5 for (a, 2 b).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu "$tmp/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp


def loss(params, doubled):
  def layer(x, matrices):
    first, second = matrices
    return jnp.tanh(x @ first @ second), None

  stacks = {**params, doubled: 2 * params[doubled]}
  x, _ = jax.lax.scan(layer, jnp.ones((2, 3)), (stacks['a'], stacks['b']))
  return x.sum()


keys = jax.random.split(jax.random.key(0))
params = {name: jax.random.normal(key, (4, 3, 3)) for name, key in zip('ab', keys)}
differences = {}
for doubled in 'ab':
  expected = jax.grad(loss)(params, doubled)
  sums = jax.tree.map(lambda x: jax.new_ref(jnp.zeros_like(x)), params)
  _, backward = jax.vjp(lambda p: loss(p, doubled), params)
  backward.with_refs(sums)(jnp.ones(()))
  found = jax.tree.map(jax.freeze, sums)
  differences[doubled] = {
    name: float(jnp.abs(found[name] - expected[name]).max()) for name in params
  }
  print(f'{doubled} is computed: largest difference to jax.grad', differences[doubled])
assert max(differences['a'].values()) > 0.1, 'it has changed'
assert max(differences['b'].values()) < 1e-5, 'it has changed'
PY
