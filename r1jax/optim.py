"""Train state, optimizers, and gradients accumulated over micro-batches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from r1jax import balance, gradient_sums, master_weights
from r1jax.sharding.constrain import sum_over_replicas
from r1jax.trees import Matrices, MatrixAxes, T, Tree

# With a larger b1 or b2 a bfloat16 mean may never decay: without a gradient it should
# shrink by 1 - b of itself, but a relative change below 2^-8 may be rounded away.
MAX_BFLOAT16_DECAY = 1 - 2**-8
# A run starts only if a step at the peak rate changes this share of the weights.
MIN_MOVING_SHARE = 0.5

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW, or Muon for weight matrices, with global-norm clipping and warm-up."""

  learning_rate: float = 3e-4  # peak
  muon_learning_rate: float = 0.0  # peak, for weight matrices; 0: AdamW for them too
  warmup_steps: int = 10  # updates of linear warm-up from 0
  schedule: Literal['constant', 'cosine'] = 'constant'  # after the warm-up
  final_share: float = 0.1  # end of the cosine, as a share of the peak
  weight_decay: float = 0.0  # decoupled (AdamW), only of weight matrices
  b1: float = 0.9  # decay of the mean gradient
  b2: float = 0.99  # decay of the mean squared gradient; 0.999 lags in short runs
  # Added to the root of that mean. Where eps is the larger one, steps are shorter than
  # the learning rate: a gradient of norm g has entries of about g / sqrt(parameters).
  eps: float = 1e-8
  max_grad_norm: float = 1.0  # larger gradients are scaled down to this
  # For bfloat16 parameters, which small steps would not change: float32 master weights
  # (2 more bytes each), stochastic rounding, or neither.
  masters: Literal['float32', 'stochastic', 'none'] = 'float32'
  # The type of both means: DeepSeek-V3 (section 3.3.3) uses bfloat16, with b2 0.95. It
  # needs b1 and b2 of at most MAX_BFLOAT16_DECAY.
  moments: Literal['float32', 'bfloat16'] = 'float32'
  # Change of an expert's routing bias per update. DeepSeek-V3 (section 4.2) uses 0.001
  # in most of its pre-training and 0 at the end; later training keeps the biases.
  balance_rate: float = 0.0

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
    for name in ('b1', 'b2') if self.moments == 'bfloat16' else ():
      if getattr(self, name) > MAX_BFLOAT16_DECAY:
        raise ValueError(
          f'{name}: expected at most {MAX_BFLOAT16_DECAY} with moments bfloat16, which '
          f'rounds smaller changes of a mean away, got {getattr(self, name)}; lower '
          'it, or set moments to float32'
        )
    if self.masters not in master_weights.KINDS:
      raise ValueError(
        f'masters: expected one of {", ".join(master_weights.KINDS)}, got '
        f'{self.masters!r}'
      )
    if not self.max_grad_norm > 0:
      raise ValueError(f'max_grad_norm: expected above 0, got {self.max_grad_norm}')
    if self.warmup_steps < 0:
      raise ValueError(f'warmup_steps: expected 0 or more, got {self.warmup_steps}')


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """Parameters, the optimizer's state, and the number of updates so far."""

  params: optax.Params
  opt_state: optax.OptState
  step: jax.Array  # int32 []


def make(
  config: OptimConfig, total_steps: int, matrices: Matrices = None, seed: int = 0
) -> optax.GradientTransformation:
  """Returns the optimizer of `config`; `apply` applies its updates.

  It computes in float32, whatever the type of parameters and gradients.

  Args:
    config: of the optimizer.
    total_steps: number of updates; the cosine ends there.
    matrices: the weight matrices, which decay and whose updates Muon orthogonalises: a
      tree like the parameters' with (input axes, output axes) for each weight matrix
      and None for the rest. If None, all parameters of 2 or more axes decay that are
      not named as a gain, bias or embedding; see `_decay_mask`.
    seed: of the random bits for bfloat16 parameters; see `master_weights`.

  Raises:
    ValueError: for Muon without `matrices`.
  """
  if config.muon_learning_rate:
    rule = _muon(config, total_steps, matrices)
  else:
    rule = optax.adamw(
      schedule(config, config.learning_rate, total_steps),
      config.b1,
      config.b2,
      config.eps,
      weight_decay=config.weight_decay,
      mask=functools.partial(_decay_mask, matrices),
    )
  chain = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)
  chain = balance.balanced(chain, config.balance_rate)
  moments = jnp.bfloat16 if config.moments == 'bfloat16' else jnp.float32
  return master_weights.in_float32(chain, config.masters, moments, seed)


def _muon(
  config: OptimConfig, total_steps: int, matrices: Matrices
) -> optax.GradientTransformation:
  """Returns Muon (Jordan et al. 2024) for weight matrices and Adam for the rest."""
  if matrices is None:
    raise ValueError(
      'muon_learning_rate: expected 0 where the weight matrices are not known, got '
      f'{config.muon_learning_rate}'
    )
  numbers = jax.tree.map(
    lambda axes: axes and optax.contrib.MuonDimensionNumbers(*axes),
    matrices,
    is_leaf=_is_axes,
  )
  return optax.contrib.muon(
    schedule(config, config.muon_learning_rate, total_steps),
    adam_b1=config.b1,
    adam_b2=config.b2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    adam_weight_decay=0.0,
    adam_learning_rate=schedule(config, config.learning_rate, total_steps),
    muon_weight_dimension_numbers=numbers,
  )


def _is_axes(leaf: object) -> bool:
  return leaf is None or isinstance(leaf, tuple)


def _decay_mask(matrices: Matrices, params: optax.Params) -> Tree[bool]:
  """Returns which parameters decay: weight matrices, not gains, biases or embeddings.

  Decay pulls to 0, which is no good value for a gain or a bias. The embedding of a
  token that does not occur has no gradient that would counter the decay.
  """
  if matrices is not None:
    return jax.tree.map(lambda axes: axes is not None, matrices, is_leaf=_is_axes)

  def one(path: jax.tree_util.KeyPath, x: jax.Array) -> bool:
    name = str(getattr(path[-1], 'key', ''))
    other = ('gain', 'bias', 'balance', 'embedding', 'head')
    return x.ndim >= 2 and not name.endswith(other)

  return jax.tree_util.tree_map_with_path(one, params)


def schedule(config: OptimConfig, peak: float, total_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the update, counted from 0."""
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


def check_learning_rate(
  params: optax.Params, config: OptimConfig, field: str, matrices: Matrices = None
) -> None:
  """Checks that the weights' precision does not round the learning rate away.

  Args:
    params: the trained parameters; each is read once.
    config: of the optimizer.
    field: the name of `config` in the experiment's config.
    matrices: see `make`.

  Raises:
    ValueError: if a step at the peak rate changes less than `MIN_MOVING_SHARE` of the
      weights.
  """
  rounded = any(map(master_weights.is_rounded, jax.tree.leaves(params)))
  kind = 'bfloat16' if rounded and config.masters == 'none' else 'float32'
  steps = jax.tree.leaves(_step_sizes(params, config, matrices))
  moving = [n for n, step in enumerate(steps) if step]  # a rate of 0 is intended
  sizes = [steps[n] for n in moving]
  # In float32 a step of 1e-7 changes all weights below 2.
  if not moving or (kind == 'float32' and min(sizes) >= 1e-7):
    return

  def share(params: optax.Params) -> jax.Array:
    weights = params if kind == 'bfloat16' else master_weights.as_float32(params)
    leaves = jax.tree.leaves(weights)
    return master_weights.moving_share([leaves[n] for n in moving], sizes)

  found = float(jax.jit(share)(params))
  if found < MIN_MOVING_SHARE:
    fix = f'set {field}.masters to float32 or stochastic, or raise the rate'
    rate = f'{config.learning_rate:g}'
    if config.muon_learning_rate:
      rate += f' and {field}.muon_learning_rate {config.muon_learning_rate:g}'
    raise ValueError(
      f'{field}.learning_rate: expected a step that changes at least '
      f'{MIN_MOVING_SHARE:.0%} of the weights in {kind}, got {rate}, which changes '
      f'{found:.1%} and is rounded away in the others; '
      + (fix if kind == 'bfloat16' else 'raise it')
    )


def _step_sizes(
  params: optax.Params, config: OptimConfig, matrices: Matrices
) -> Tree[float]:
  """Returns the size of an update at the peak rate, one number per parameter.

  Adam moves each weight by about the rate. Muon's update of a matrix has singular
  values of about sqrt(max(1, outputs / inputs)), so its root mean square is
  1 / sqrt(inputs).
  """
  if matrices is None or not config.muon_learning_rate:
    return jax.tree.map(lambda _: config.learning_rate, params)

  def one(axes: MatrixAxes | None, x: jax.Array) -> float:
    if axes is None:
      return config.learning_rate
    return config.muon_learning_rate / math.sqrt(math.prod(x.shape[n] for n in axes[0]))

  return jax.tree.map(one, matrices, params, is_leaf=_is_axes)


def init(params: optax.Params, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first update."""
  return TrainState(params, optimizer.init(params), jnp.int32(0))


def split_micro_batches(batch: T, parts: int) -> T:
  """Returns the tree's arrays [N, ...] as [parts, N / parts, ...].

  Part n has the rows n, n + parts, …, so that splitting a sharded axis moves no rows
  between devices.

  Raises:
    ValueError: if `parts` does not divide N.
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
  params: optax.Params,
  parts: T,
  *,
  loss: Callable[[optax.Params, T], tuple[jax.Array, Metrics]],
  count: int | jax.Array | None = None,
  in_place: bool = False,
) -> tuple[optax.Updates, Metrics]:
  """Returns the gradient summed over micro-batches, and the summed metrics and `loss`.

  The sum is float32 for any type of parameters: in bfloat16 the contribution of one
  micro-batch to the sum of many would be rounded away.

  Args:
    params: of the model.
    parts: a tree of arrays [N, B, ...]: N micro-batches of B rows.
    loss: (params, part) -> the part's share of the batch's loss and metrics. Shares add
      up, so the number of micro-batches changes only memory and speed.
    count: compute only the first `count` micro-batches; None is all.
    in_place: `loss` gets boxed parameters (see `gradient_sums`), which the functions of
      a decoder open. Then no micro-batch's gradient is in memory beside the sum.
  """

  def summed(parts: T) -> tuple[optax.Updates, Metrics]:
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(master_weights.as_float32, params),
    )
    sums = jax.tree.map(jax.new_ref, zeros)

    def part_loss(
      params: optax.Params, index: int | jax.Array
    ) -> tuple[jax.Array, Metrics]:
      if not in_place:
        params = gradient_sums.opened(params)
      value, metrics = loss(params, jax.tree.map(lambda x: x[index], parts))
      return value, {'loss': value, **metrics}

    def one(index: int | jax.Array, total: Metrics) -> Metrics:
      gradient = jax.grad(
        lambda params: part_loss(gradient_sums.summed(params, sums), index),
        has_aux=True,
      )
      _, metrics = gradient(params)
      return jax.tree.map(jnp.add, total, metrics)

    _, metrics = jax.eval_shape(part_loss, params, 0)
    metrics = jax.lax.fori_loop(
      0,
      len(jax.tree.leaves(parts)[0]) if count is None else count,
      one,
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics),
    )
    return jax.tree.map(jax.freeze, sums), metrics

  return sum_over_replicas(summed, parts, axis=1)


@jax.named_scope('optimizer')
def apply(
  state: TrainState, grads: optax.Updates, *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
  """Returns the state after one update along a gradient, and its metrics.

  Metrics are `grad_norm` (before clipping), `update_size` (the mean |change| of weights
  that change; of the float32 masters if there are any) and, for experts with routing
  biases, `expert_load` (see `balance.largest_load`).
  """
  grads = master_weights.as_float32(grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params, opt_state = master_weights.add(state.params, updates, opt_state, state.step)
  metrics = {
    'grad_norm': optax.tree.norm(balance.without_loads(grads)),
    'update_size': master_weights.mean_change(balance.without_loads(updates)),
  }
  if (load := balance.largest_load(grads)) is not None:
    metrics['expert_load'] = load
  return TrainState(params, opt_state, state.step + 1), metrics


def update(
  state: TrainState,
  parts: T,
  *,
  loss: Callable[[optax.Params, T], tuple[jax.Array, Metrics]],
  optimizer: optax.GradientTransformation,
  in_place: bool = False,
) -> tuple[TrainState, Metrics]:
  """Returns the state after `gradients` and `apply`, and the metrics of both."""
  grads, metrics = gradients(state.params, parts, loss=loss, in_place=in_place)
  state, more = apply(state, grads, optimizer=optimizer)
  return state, metrics | more
