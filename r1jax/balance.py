"""Load balancing of experts without an auxiliary loss (DeepSeek-V3, section 2.1.2).

Each layer of experts has a routing bias `balance`, which has no gradient. The backward
pass returns the experts' load, tokens per expert, in its place (see `route` in
`r1jax.model.moe`). Here the optimizer turns loads into updates of the biases, and
metrics leave them out.

Source: 2412.19437.
"""

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath


def balanced(
  rule: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
  """Returns `rule` for all parameters but routing biases, which move by their loads.

  An expert's bias falls by `rate` if its load is above the mean, and rises by `rate` if
  it is below.
  """

  def update(
    grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    updates, state = rule.update(without_loads(grads), state, params)

    def one(path: KeyPath, change: jax.Array, load: jax.Array) -> jax.Array:
      if not _is_bias(path):
        return change
      return rate * jnp.sign(load.mean(-1, keepdims=True) - load)

    return jax.tree_util.tree_map_with_path(one, updates, grads), state

  return optax.GradientTransformation(rule.init, update)


def without_loads(grads: optax.Updates) -> optax.Updates:
  """Returns gradients with 0 in place of the experts' loads."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if _is_bias(path) else x, grads
  )


def largest_load(grads: optax.Updates) -> jax.Array | None:
  """Returns the load of the busiest expert in any layer, relative to a uniform load.

  None for a model without routing biases.
  """
  leaves = jax.tree_util.tree_leaves_with_path(grads)
  loads = [load for path, load in leaves if _is_bias(path)]
  shares = [jnp.max(x / jnp.maximum(x.mean(-1, keepdims=True), 1e-9)) for x in loads]
  return jnp.max(jnp.stack(shares)) if shares else None


def _is_bias(path: KeyPath) -> bool:
  return getattr(path[-1], 'key', None) == 'balance'
