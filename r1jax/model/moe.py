"""Mixture of experts: routing, the experts' products, and their exchange over devices.

Tokens are sorted by expert, and each weight matrix is applied as one grouped product.
There is no capacity limit: no token is dropped.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r1jax.model.config import Experts
from r1jax.model.kernels import grouped_matmul
from r1jax.model.linear import Int8, Lora, Weight, gated_mlp
from r1jax.sharding.constrain import (
  AxisNames,
  as_varying,
  current_mesh,
  num_shards,
  shard_mapped,
)


def route(
  x_ND: jax.Array,
  router_DE: jax.Array,
  balance_E: jax.Array | None,
  config: Experts,
  counted_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the experts of each token, int32 [N, A], and their weights, [N, A].

  N may be several axes. Scores and weights are float32 or more.

  Args:
    x_ND: activations.
    router_DE: the router's weights.
    balance_E: a bias that is added to the scores to choose experts, but not to weight
      them (DeepSeek-V3, eq. 16); only with 'sigmoid' scores.
    config: of the experts.
    counted_N: bool, which tokens count in the experts' load; None is all.
  """
  kind = jnp.promote_types(x_ND.dtype, jnp.float32)
  logits_NE = x_ND.astype(kind) @ router_DE.astype(kind)
  if config.scores == 'softmax':
    score_NE = wanted_NE = jax.nn.softmax(logits_NE, axis=-1)
  else:
    assert balance_E is not None
    score_NE = jax.nn.sigmoid(logits_NE)
    wanted_NE = score_NE + jnp.expand_dims(balance_E, range(score_NE.ndim - 1))
  wanted_NE = _within_groups(jax.lax.stop_gradient(wanted_NE), config)
  _, chosen_NA = jax.lax.top_k(wanted_NE, config.active)
  weight_NA = jnp.take_along_axis(score_NE, chosen_NA, axis=-1)
  if config.normalised:
    weight_NA /= weight_NA.sum(-1, keepdims=True) + 1e-20
  if balance_E is not None:
    once = jnp.ones(chosen_NA.shape, jnp.float32)
    if counted_N is not None:
      once *= counted_N[..., None].astype(jnp.float32)
    expert_M = chosen_NA.reshape(-1)
    load_E = jnp.bincount(expert_M, once.reshape(-1), length=config.count)
    weight_NA = _with_load(weight_NA, balance_E, load_E)
  return chosen_NA, weight_NA * config.scale


@jax.custom_vjp
def _with_load(
  weight_NA: jax.Array, balance_E: jax.Array, load_E: jax.Array
) -> jax.Array:
  """Returns the weights unchanged; the gradient of the bias is the load.

  The bias has no gradient of its own. Loads are thereby summed over micro-batches and
  devices like gradients, and reach the optimizer; see `r1jax.balance`.
  """
  del balance_E, load_E
  return weight_NA


def _with_load_forward(
  weight_NA: jax.Array, balance_E: jax.Array, load_E: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del balance_E
  return weight_NA, load_E


def _with_load_backward(
  load_E: jax.Array, slope_NA: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return slope_NA, load_E, jnp.zeros_like(load_E)


_with_load.defvjp(_with_load_forward, _with_load_backward)


def _within_groups(wanted_NE: jax.Array, config: Experts) -> jax.Array:
  """Returns the scores, with -inf for experts outside of the token's best groups.

  A group's score is that of its best expert (DeepSeek-V2) or the sum of its best two
  (DeepSeek-V3).
  """
  if config.active_groups == config.groups:
    return wanted_NE
  grouped = wanted_NE.reshape(*wanted_NE.shape[:-1], config.groups, -1)
  best = min(1 if config.scores == 'softmax' else 2, grouped.shape[-1])
  group_NG = jax.lax.top_k(grouped, best)[0].sum(-1)
  _, kept = jax.lax.top_k(group_NG, config.active_groups)
  open_NG = jax.nn.one_hot(kept, config.groups, dtype=jnp.bool_).any(-2)
  return jnp.where(open_NG[..., None], grouped, -jnp.inf).reshape(wanted_NE.shape)


def mixture_of_experts(
  x_BTD: jax.Array,
  weights: Mapping[str, Any],
  config: Experts,
  dtype: str,
  counted_BT: jax.Array | None = None,
) -> jax.Array:
  """Returns the weighted sum of each token's experts and the shared ones, [B, T, D].

  Args:
    x_BTD: activations; [B, D] in decoding.
    weights: of a layer: `router` [D, E], `balance` [E], `expert_gate` and `expert_up`
      [E, D, F], `expert_down` [E, F, D], and `shared_gate`, `shared_up`, `shared_down`,
      the shared experts concatenated to one SwiGLU.
    config: of the experts.
    dtype: of the products and of the result.
    counted_BT: see `route`.
  """
  one_device = current_mesh() is None
  x = x_BTD.reshape(-1, x_BTD.shape[-1]) if one_device else x_BTD
  counted = counted_BT
  if counted is not None and one_device:
    counted = counted.reshape(-1)
  routed = route(x, weights['router'], weights.get('balance'), config, counted)
  matrices = {name: weights[f'expert_{name}'] for name in ('gate', 'up', 'down')}
  combine = _sum_of_experts if one_device else _sum_over_devices
  out = combine(x, *routed, matrices, dtype)
  out_BTD = out.reshape(x_BTD.shape)
  if config.shared:
    gate, up, down = (weights[f'shared_{name}'] for name in ('gate', 'up', 'down'))
    out_BTD += gated_mlp(x_BTD, gate, up, down, dtype=dtype)
  return out_BTD


def _sum_of_experts(
  x_ND: jax.Array,
  chosen_NA: jax.Array,
  weight_NA: jax.Array,
  matrices: Mapping[str, Weight],
  dtype: str,
  first: jax.Array | None = None,
) -> jax.Array:
  """Returns the weighted sum of each token's experts, [N, D].

  `matrices` may hold only some of the experts, those from number `first` on; the others
  add 0.
  """
  count = jax.tree.leaves(matrices['gate'])[0].shape[0]
  active, expert_M = chosen_NA.shape[-1], chosen_NA.reshape(-1)
  if first is not None:
    here_M = (expert_M >= first) & (expert_M < first + count)
    # Other devices' experts get the number `count`: sorted last, in no product.
    expert_M = jnp.where(here_M, expert_M - first, count)
  order_M = jnp.argsort(expert_M)  # stable
  sizes_E = jnp.bincount(expert_M, length=count)
  x_MD = x_ND[order_M // active].astype(dtype)
  sorted_M = expert_M[order_M]

  def product(x: jax.Array, w: Weight) -> jax.Array:
    if isinstance(w, Lora):
      return product(x, w.w) + product(product(x, w.a), w.b)
    values, scale = w if isinstance(w, Int8) else (w, None)
    out = grouped_matmul.product(x, values.astype(dtype), sizes_E)
    return out if scale is None else out * scale[sorted_M].astype(dtype)

  gate_MF = product(x_MD, matrices['gate'])
  up_MF = product(x_MD, matrices['up'])
  out_MD = product(nn.silu(gate_MF) * up_MF, matrices['down'])
  # Back to the order of tokens.
  out_MD = out_MD[jnp.argsort(order_M)]
  if first is not None:
    out_MD = jnp.where(here_M[:, None], out_MD, 0)
  out_NAD = out_MD.reshape(*chosen_NA.shape, -1)
  return jnp.sum(out_NAD * weight_NA[..., None].astype(dtype), axis=1)


# Rows (tokens times active experts) that a device computes at a time.
CHUNK_ROWS = 2**17


def _sum_over_devices(
  x_BTD: jax.Array,
  chosen_BTA: jax.Array,
  weight_BTA: jax.Array,
  matrices: Mapping[str, Weight],
  dtype: str,
) -> jax.Array:
  """`_sum_of_experts` with experts and tokens sharded over devices.

  The devices along `expert` all-gather their tokens, each applies its own experts, and
  the sums are reduce-scattered. No token is dropped. With at most as many devices as
  active experts this sends no more bytes than an all-to-all of each token's copies.
  """
  lead = ('prompt', 'length', None) if x_BTD.ndim == 3 else ('prompt', None)
  tokens = AxisNames(*lead)
  names = {name: _axis_names(name, w) for name, w in matrices.items()}
  experts_sharded = num_shards('expert') > 1

  def local(x, chosen, weight, matrices):
    shape, first = x.shape, None
    matrices = as_varying(matrices, names, 'piece')
    # So that the gradients of the `mlp` shards are summed once, after the scatter.
    x, weight = as_varying((x, weight), (tokens, tokens), 'mlp')
    if experts_sharded:
      x, chosen, weight = (
        jax.lax.all_gather(part, 'expert', axis=0, tiled=True)
        for part in (x, chosen, weight)
      )
      first = jax.lax.axis_index('expert') * len(jax.tree.leaves(matrices['gate'])[0])
    gathered = x.shape
    flat = [part.reshape(-1, part.shape[-1]) for part in (x, chosen, weight)]
    out = _in_chunks(
      lambda x, chosen, weight: _sum_of_experts(
        x, chosen, weight, matrices, dtype, first
      ),
      flat,
    ).reshape(gathered)
    if experts_sharded:
      out = jax.lax.psum_scatter(out, 'expert', scatter_dimension=0, tiled=True)
    if num_shards('mlp') > 1:  # after the scatter, so of fewer tokens
      out = jax.lax.psum(out, 'tensor')
    return out.reshape(shape)

  inputs = (tokens, tokens, tokens, names)
  x_BTD = x_BTD.astype(dtype)  # half the bytes to send
  return shard_mapped(local, inputs, tokens)(x_BTD, chosen_BTA, weight_BTA, matrices)


def _axis_names(name: str, w: Weight) -> Any:
  """Returns the logical axes of an expert matrix, gathered over 'embed'."""
  into, out = (None, 'mlp') if name != 'down' else ('mlp', None)
  whole: Any = AxisNames('expert', into, out)
  if isinstance(w, Lora):
    a: Any = AxisNames('expert', into, None)
    b: Any = AxisNames('expert', None, out)
    return Lora(_axis_names(name, w.w), a, b)
  scale: Any = AxisNames('expert', out)
  return Int8(whole, scale) if isinstance(w, Int8) else whole


def _in_chunks(
  function: Callable[..., jax.Array], arrays: list[jax.Array]
) -> jax.Array:
  """Applies `function` to a chunk of tokens at a time, with rematerialization."""
  count, active = arrays[1].shape
  parts = -(-count * active // CHUNK_ROWS)
  while count % parts:
    parts += 1
  if parts == 1:
    return function(*arrays)
  each = [x.reshape(parts, -1, x.shape[-1]) for x in arrays]
  one = jax.checkpoint(lambda parts: function(*parts))
  return jax.lax.map(one, tuple(each)).reshape(count, -1)
