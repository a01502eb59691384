"""Train state, optimizers, and gradients summed over micro-batches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from r1jax import mesh


@dataclasses.dataclass(frozen=True)
class Config:
  """AdamW, or Muon for weight matrices, with global-norm clipping and a warm-up."""

  learning_rate: float = 3e-4  # peak
  muon_learning_rate: float = 0.0  # peak, of weight matrices; 0: AdamW for them too
  warmup_steps: int = 10  # updates of linear rise from 0
  schedule: Literal['constant', 'cosine'] = 'constant'  # after the warm-up
  final_share: float = 0.1  # of the peak, where the cosine ends
  weight_decay: float = 0.0  # decoupled (AdamW)
  b1: float = 0.9  # decay of the mean gradient
  b2: float = 0.99  # decay of the mean squared gradient; 0.999 lags in short runs
  eps: float = 1e-6  # beside a gradient's size; 1e-8 makes full steps of rounding noise
  max_grad_norm: float = 1.0  # longer gradients are scaled down to this
  # Of the means: as the parameters, or half of float32 (DeepSeek-V3, section 3.3.2).
  moments: Literal['params', 'bfloat16'] = 'params'
  balance_rate: float = 0.001  # what an update moves an expert's bias (DeepSeek-V3)

  def __post_init__(self) -> None:
    rates = ('learning_rate', 'muon_learning_rate', 'weight_decay', 'balance_rate')
    for name in rates:
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f'{name}: expected a finite number of 0 or more, got {getattr(self, name)}'
        )
    if not 0 <= self.final_share <= 1:
      raise ValueError(f'final_share: expected 0 to 1, got {self.final_share}')
    if not self.eps > 0:
      raise ValueError(f'eps: expected above 0, got {self.eps}')
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'{name}: expected at least 0, less than 1, got {getattr(self, name)}'
        )
    if not self.max_grad_norm > 0:
      raise ValueError(f'max_grad_norm: expected above 0, got {self.max_grad_norm}')
    if self.warmup_steps < 0:
      raise ValueError(f'warmup_steps: expected 0 or more, got {self.warmup_steps}')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['params', 'opt_state', 'step'],
  meta_fields=[],
)
@dataclasses.dataclass
class TrainState:
  """What an update changes: parameters, the optimizer's state, updates made so far."""

  params: Any
  opt_state: Any
  step: jax.Array  # int32 []


def make(
  config: Config, total_steps: int, matrices: Any = None
) -> optax.GradientTransformation:
  """Returns the optimizer of `config`.

  Args:
    config: see `Config`.
    total_steps: updates, after which a cosine ends.
    matrices: for Muon (Jordan et al. 2024), which orthogonalises the updates of weight
      matrices: a tree like the parameters' with (input axes, output axes) for each
      matrix and None for what stays with AdamW.
  """
  adamw = optax.adamw(
    _schedule(config, config.learning_rate, total_steps),
    config.b1,
    config.b2,
    config.eps,
    weight_decay=config.weight_decay,
  )
  rule = adamw
  if config.muon_learning_rate:
    if matrices is None:
      raise ValueError(
        'muon_learning_rate: expected 0 where the weight matrices are not known, got '
        f'{config.muon_learning_rate}'
      )
    numbers = jax.tree.map(
      lambda axes: axes and optax.contrib.MuonDimensionNumbers(*axes),
      matrices,
      is_leaf=lambda leaf: leaf is None or isinstance(leaf, tuple),
    )
    rule = optax.contrib.muon(
      _schedule(config, config.muon_learning_rate, total_steps),
      adam_b1=config.b1,
      adam_b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
      adam_weight_decay=config.weight_decay,
      adam_learning_rate=_schedule(config, config.learning_rate, total_steps),
      muon_weight_dimension_numbers=numbers,
    )
  if config.moments == 'bfloat16':
    rule = _stored_as(jnp.bfloat16, rule)
  chain = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)
  return _balanced(chain, config.balance_rate)


def _stored_as(
  dtype: Any, rule: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Returns `rule`, computed in float32, with a state that is kept in `dtype`."""

  def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )

  def update(grads: Any, state: Any, params: Any = None) -> Any:
    updates, state = rule.update(
      cast(grads, jnp.float32), cast(state, jnp.float32), params
    )
    return updates, cast(state, dtype)

  return optax.GradientTransformation(
    lambda params: cast(rule.init(params), dtype), update
  )


def _balanced(
  rule: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
  """Returns `rule`, but for the biases that keep the load of experts even.

  What stands in the place of their gradient is the load (see `model.mlp.route`): those
  with more than the mean are lowered by `rate`, the others raised (DeepSeek-V3,
  2412.19437, section 2.1.2).
  """

  def update(grads: Any, state: Any, params: Any = None) -> Any:
    updates, state = rule.update(_without_loads(grads), state, params)

    def one(path: Any, change: jax.Array, load: jax.Array) -> jax.Array:
      if not _is_balance(path):
        return change
      return rate * jnp.sign(load.mean(-1, keepdims=True) - load)

    return jax.tree_util.tree_map_with_path(one, updates, grads), state

  return optax.GradientTransformation(rule.init, update)


def _is_balance(path: Any) -> bool:
  return getattr(path[-1], 'key', None) == 'balance'


def _without_loads(grads: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if _is_balance(path) else x, grads
  )


def _fullest(grads: Any) -> jax.Array | None:
  """How many times its share the fullest expert of any layer has; None without any."""
  leaves = jax.tree_util.tree_leaves_with_path(grads)
  loads = [load for path, load in leaves if _is_balance(path)]
  shares = [jnp.max(x / jnp.maximum(x.mean(-1, keepdims=True), 1e-9)) for x in loads]
  return jnp.max(jnp.stack(shares)) if shares else None


def _schedule(config: Config, peak: float, total_steps: int) -> optax.Schedule:
  warmup = config.warmup_steps
  if config.schedule == 'cosine':
    after = optax.cosine_decay_schedule(
      peak, max(1, total_steps - warmup), config.final_share
    )
  else:
    after = optax.constant_schedule(peak)
  return optax.join_schedules(
    [lambda step: peak * (step + 1) / (warmup + 1), after], [warmup]
  )


def init(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first update."""
  return TrainState(params, optimizer.init(params), jnp.int32(0))


def cut(batch: Any, parts: int) -> Any:
  """Returns the tree's arrays [N, ...] as [parts, N / parts, ...].

  Strided, so that a cut of an axis sharded in runs needs no exchange of rows.

  Raises:
    ValueError: `parts` does not divide the first axis.
  """
  size = len(jax.tree.leaves(batch)[0])
  if size % parts:
    raise ValueError(
      f'micro_batches: expected a divisor of the batch size {size}, got {parts}'
    )
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch
  )


def gradients(
  params: Any,
  parts: Any,
  *,
  loss: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]],
  count: int | jax.Array | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
  """Returns the gradient summed over micro-batches, and the metrics with `loss`.

  Args:
    params: that the gradient is of.
    parts: a tree of arrays [N, B, ...]: N micro-batches of B rows.
    loss: gives a part's share of the batch's loss and of its metrics: shares add up
      to the whole, so the cut changes nothing but memory and speed.
    count: of the micro-batches only the first so many are computed; None is all.
  """

  def summed(parts: Any) -> Any:
    # Each layer's own is added where the sum lies: no micro-batch's gradient is whole.
    # jax 0.10.2 mixes up those of a scan's inputs if some are parameters and others,
    # before them, are computed from some; so `lora.attach` computes both of a pair.
    grads = jax.tree.map(lambda x: jax.new_ref(jnp.zeros(x.shape, x.dtype)), params)

    def one(index: int | jax.Array) -> Any:
      part = jax.tree.map(lambda x: x[index], parts)
      value, backward, metrics = jax.vjp(lambda p: loss(p, part), params, has_aux=True)
      return {'loss': value, **metrics}, backward

    def body(index: jax.Array, total: Any) -> Any:
      metrics, backward = one(index)
      backward.with_refs(grads)(jnp.ones_like(metrics['loss']))
      return jax.tree.map(jnp.add, total, metrics)

    metrics = jax.lax.fori_loop(
      0,
      len(jax.tree.leaves(parts)[0]) if count is None else count,
      body,
      jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: one(0)[0])
      ),
    )
    return jax.tree.map(jax.freeze, grads), metrics

  return mesh.sum_of_copies(summed, parts, axis=1)


@jax.named_scope('optimizer')
def apply(
  state: TrainState, grads: Any, *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update along a gradient.

  Returns:
    The new state, and as metrics `grad_norm` (before clipping) and of a model whose
    experts have biases `expert_load`: how many times its share the fullest one has.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {'grad_norm': optax.tree.norm(_without_loads(grads))}
  if (fullest := _fullest(grads)) is not None:
    metrics['expert_load'] = fullest
  return TrainState(params, opt_state, state.step + 1), metrics


def update(
  state: TrainState,
  parts: Any,
  *,
  loss: Callable[[Any, Any], tuple[jax.Array, dict[str, jax.Array]]],
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`gradients` and `apply`: the new state, and the metrics of both."""
  grads, metrics = gradients(state.params, parts, loss=loss)
  state, more = apply(state, grads, optimizer=optimizer)
  return state, metrics | more
