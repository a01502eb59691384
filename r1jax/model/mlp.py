"""What follows attention in a layer: a SwiGLU, or a mixture of experts.

Experts are computed as one grouped product over tokens sorted by expert: none is
dropped, and no expert sees a token that is not its own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.config import Experts


class Int8(NamedTuple):
  """A weight matrix in a byte a number: values times the scale of their output."""

  values: jax.Array  # int8, the matrix's shape
  scale: jax.Array  # float32, its output axes


class Lora(NamedTuple):
  """A weight matrix and the two thin ones whose product is added; see `lora`."""

  w: jax.Array
  a: jax.Array  # the matrix's input axes, then r
  b: jax.Array  # r, then the matrix's output axes; scaled

  def merged(self) -> jax.Array:
    """Returns the sum as one matrix, in the type of `w`."""
    lead = self.w.shape[: self.a.ndim + self.b.ndim - 2 - self.w.ndim]
    rank = self.a.shape[-1]
    added = self.a.reshape(*lead, -1, rank) @ self.b.reshape(*lead, rank, -1)
    return (self.w + added.reshape(self.w.shape)).astype(self.w.dtype)


def dense(x_BTD: jax.Array, w: Any, dtype: str = 'float32') -> jax.Array:
  """Returns x @ w, [B, T, F], as one product over the positions of all rows.

  Its gradients are such products too. Of one that keeps the rows apart, the weights'
  gradient is transposed or summed row by row, which took a CPU 8 times as long.

  Args:
    x_BTD: activations.
    w: an array, `Int8` or `Lora` whose first axes make up D, and its last ones F.
    dtype: to compute in, and of the result.
  """
  if isinstance(w, Lora):
    added = dense(dense(x_BTD, w.a, dtype), w.b, dtype)
    return dense(x_BTD, w.w, dtype) + added
  values, scale = w if isinstance(w, Int8) else (w, None)
  inputs = x_BTD.shape[-1]
  x_ND = x_BTD.reshape(-1, inputs).astype(dtype)
  out_NF = x_ND @ values.reshape(inputs, -1).astype(dtype)
  if scale is not None:
    out_NF *= scale.reshape(-1)[None].astype(dtype)
  return out_NF.reshape(*x_BTD.shape[:-1], -1)


def swiglu(
  x_BTD: jax.Array, gate: Any, up: Any, down: Any, dtype: str = 'float32'
) -> jax.Array:
  """Returns (silu(x gate) * x up) down, [B, T, D] (Shazeer 2020, eq. 6)."""
  hidden_BTF = nn.silu(dense(x_BTD, gate, dtype)) * dense(x_BTD, up, dtype)
  return dense(hidden_BTF, down, dtype)


def route(
  x_ND: jax.Array, router_DE: jax.Array, balance_E: jax.Array | None, config: Experts
) -> tuple[jax.Array, jax.Array]:
  """Returns the experts of each token, int32 [N, A], and their weights, [N, A].

  Scores and weights are float32. `balance_E`, for 'sigmoid' alone, is added to scores
  where experts are chosen, and not to their weights (DeepSeek-V3, eq. 16).
  """
  logits_NE = x_ND.astype(jnp.float32) @ router_DE.astype(jnp.float32)
  if config.scores == 'softmax':
    score_NE = wanted_NE = jax.nn.softmax(logits_NE, axis=-1)
  else:
    assert balance_E is not None
    score_NE = jax.nn.sigmoid(logits_NE)
    wanted_NE = score_NE + balance_E[None]
  wanted_NE = _within_groups(jax.lax.stop_gradient(wanted_NE), config)
  _, chosen_NA = jax.lax.top_k(wanted_NE, config.active)
  weight_NA = jnp.take_along_axis(score_NE, chosen_NA, axis=-1)
  if config.normalised:
    weight_NA /= weight_NA.sum(-1, keepdims=True) + 1e-20
  if balance_E is not None:
    load_E = jnp.bincount(chosen_NA.reshape(-1), length=config.count)
    weight_NA = _counted(weight_NA, balance_E, load_E.astype(jnp.float32))
  return chosen_NA, weight_NA * config.scale


@jax.custom_vjp
def _counted(
  weight_NA: jax.Array, balance_E: jax.Array, load_E: jax.Array
) -> jax.Array:
  """Returns the weights; backward, the bias gets the load as if it were its gradient.

  The bias has none of its own. So loads are summed over layers' stacks, micro-batches
  and devices as gradients are, and `optim` finds them where it looks.
  """
  del balance_E, load_E
  return weight_NA


def _keep_load(weight_NA: jax.Array, balance_E: jax.Array, load_E: jax.Array) -> Any:
  del balance_E
  return weight_NA, load_E


def _give_load(load_E: jax.Array, slope_NA: jax.Array) -> Any:
  return slope_NA, load_E, jnp.zeros_like(load_E)


_counted.defvjp(_keep_load, _give_load)


def _within_groups(wanted_NE: jax.Array, config: Experts) -> jax.Array:
  """The scores, with those of experts outside of a token's groups at the bottom.

  A group stands by its best expert (DeepSeek-V2) or by the sum of its best two (V3).
  """
  if config.active_groups == config.groups:
    return wanted_NE
  grouped = wanted_NE.reshape(len(wanted_NE), config.groups, -1)
  best = min(1 if config.scores == 'softmax' else 2, grouped.shape[-1])
  group_NG = jax.lax.top_k(grouped, best)[0].sum(-1)
  _, kept = jax.lax.top_k(group_NG, config.active_groups)
  open_NG = jax.nn.one_hot(kept, config.groups, dtype=jnp.bool_).any(1)
  return jnp.where(open_NG[..., None], grouped, -jnp.inf).reshape(wanted_NE.shape)


def experts(
  x_BTD: jax.Array, weights: Mapping[str, Any], config: Experts, dtype: str
) -> jax.Array:
  """Returns the weighted sum of each token's experts, and the shared ones, [B, T, D].

  `weights` are a layer's: `router` [D, E], `balance` [E], `expert_gate` and `expert_up`
  [E, D, F], `expert_down` [E, F, D], and the SwiGLU of the shared ones side by side.
  """
  x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
  chosen_NA, weight_NA = route(x_ND, weights['router'], weights.get('balance'), config)
  expert_M = chosen_NA.reshape(-1)
  order_M = jnp.argsort(expert_M)  # stable, so tokens of an expert keep their order
  sizes_E = jnp.bincount(expert_M, length=config.count)
  x_MD = x_ND[order_M // config.active].astype(dtype)
  sorted_M = expert_M[order_M]

  def product(x: jax.Array, w: Any) -> jax.Array:
    if isinstance(w, Lora):
      return product(x, w.w) + product(product(x, w.a), w.b)
    values, scale = w if isinstance(w, Int8) else (w, None)
    out = jax.lax.ragged_dot(x, values.astype(dtype), sizes_E)
    return out if scale is None else out * scale[sorted_M].astype(dtype)

  gate_MF = product(x_MD, weights['expert_gate'])
  up_MF = product(x_MD, weights['expert_up'])
  out_MD = product(nn.silu(gate_MF) * up_MF, weights['expert_down'])
  # Back in the order of tokens, in which their experts are added.
  out_NAD = out_MD[jnp.argsort(order_M)].reshape(*chosen_NA.shape, -1)
  out_ND = jnp.sum(out_NAD * weight_NA[..., None].astype(dtype), axis=1)
  out_BTD = out_ND.reshape(x_BTD.shape)
  if config.shared:
    gate, up, down = (weights[f'shared_{name}'] for name in ('gate', 'up', 'down'))
    out_BTD += swiglu(x_BTD, gate, up, down, dtype)
  return out_BTD
