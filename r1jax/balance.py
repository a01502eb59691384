"""Balanced experts."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib


def balanced(
  rule: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
  """Returns `rule`, but for the biases that keep the load of experts even.

  What stands in the place of their gradient is the load (see `model.mlp.route`): those
  with more than the mean are lowered by `rate`, the others raised (DeepSeek-V3,
  2412.19437, section 2.1.2).
  """

  def update(grads: Any, state: Any, params: Any = None) -> Any:
    updates, state = rule.update(without_loads(grads), state, params)

    def one(path: Any, change: jax.Array, load: jax.Array) -> jax.Array:
      if not is_bias(path):
        return change
      return rate * jnp.sign(load.mean(-1, keepdims=True) - load)

    return jax.tree_util.tree_map_with_path(one, updates, grads), state

  return optax.GradientTransformation(rule.init, update)


def is_bias(path: Any) -> bool:
  return getattr(path[-1], 'key', None) == 'balance'


def without_loads(grads: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if is_bias(path) else x, grads
  )


def largest_load(grads: Any) -> jax.Array | None:
  """How many times its share the fullest expert of any layer has; None without any."""
  leaves = jax.tree_util.tree_leaves_with_path(grads)
  loads = [load for path, load in leaves if is_bias(path)]
  shares = [jnp.max(x / jnp.maximum(x.mean(-1, keepdims=True), 1e-9)) for x in loads]
  return jnp.max(jnp.stack(shares)) if shares else None
