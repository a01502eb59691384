"""Master weights: keeps updates that are smaller than the precision of bfloat16.

A bfloat16 has 8 significant bits. For a weight of 0.02, a step of 1e-6 is a sixtieth of
the distance to the next number, so every update would be rounded away. Two remedies:

- float32 masters. The parameter is its master rounded to bfloat16; the optimizer's
  state keeps the remaining 16 bits. Together they are a float32, so an update equals
  that of float32 parameters to the bit, for 4 bytes per parameter instead of 6. This is
  the split of Split SGD (Intel Extension for PyTorch), but it rounds to nearest where
  that truncates. The initial master is random among the float32 numbers that round to
  the parameter. If it were the parameter itself, no parameter would change until its
  master has moved half the distance to the next number. This way the expected change of
  a parameter equals that of its master from the first update on.
- stochastic rounding, which needs no more memory: a sum between two numbers is rounded
  up with a probability equal to its position between them, so it is right on average.

float32 parameters are unaffected.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from r1jax.trees import T, Tree

KINDS = ('float32', 'stochastic', 'none')  # see `OptimConfig.masters`


class Masters(NamedTuple):
  """An optimizer's state, and the lower 16 bits of the float32 masters."""

  remainders: Tree[jax.Array | None]  # like the parameters: int16; None for float32
  rule: optax.OptState  # the wrapped optimizer's state


class Stochastic(NamedTuple):
  """An optimizer's state, and the seed of stochastic rounding."""

  seed: jax.Array  # uint32 [], of the random bits
  rule: optax.OptState


def split(master: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns a float32 rounded to bfloat16, and the remainder, int16.

  Ties round away from 0. The remainder is the difference of the bits, in units of the
  float32's last bit.
  """
  bits = jax.lax.bitcast_convert_type(master, jnp.uint32)
  upper = (bits + jnp.uint32(0x8000)) >> 16
  rest = jax.lax.bitcast_convert_type(bits - (upper << 16), jnp.int32)
  rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
  return rounded, rest.astype(jnp.int16)


def join(rounded: jax.Array, remainder: jax.Array) -> jax.Array:
  """Returns the float32 from the two results of `split`."""
  upper = jax.lax.bitcast_convert_type(rounded, jnp.uint16).astype(jnp.uint32) << 16
  rest = jax.lax.bitcast_convert_type(remainder.astype(jnp.int32), jnp.uint32)
  return jax.lax.bitcast_convert_type(upper + rest, jnp.float32)


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
  """Returns float32 rounded up or down to bfloat16 at random, unbiased."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  upper = ((bits + noise) >> 16).astype(jnp.uint16)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def is_rounded(x: jax.Array) -> bool:
  """Whether a parameter is bfloat16."""
  return x.dtype == jnp.bfloat16


def in_float32(
  rule: optax.GradientTransformation, kind: str, moments: DTypeLike, seed: int = 0
) -> optax.GradientTransformation:
  """Returns `rule` computed in float32, for parameters of any type.

  Its updates are float32, those of the masters if there are any; apply them with `add`.

  Args:
    rule: the optimizer.
    kind: of `KINDS`, for bfloat16 parameters; see `OptimConfig.masters`.
    moments: the type of the arrays in the optimizer's state.
    seed: of the initial masters and of stochastic rounding.
  """

  def init(params: optax.Params) -> optax.OptState:
    state = _cast_moments(rule.init(params), moments)
    if kind == 'none' or not any(map(is_rounded, jax.tree.leaves(params))):
      return state
    if kind == 'stochastic':
      return Stochastic(jnp.uint32(seed), state)
    remainders = jax.tree_util.tree_map_with_path(
      lambda path, x: _initial_remainder(seed, path, x) if is_rounded(x) else None,
      params,
    )
    return Masters(remainders, state)

  def update(
    grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    wrapped = isinstance(state, Masters | Stochastic)
    inner = _cast_moments(state.rule if wrapped else state, jnp.float32)
    weights = None if params is None else masters(params, state)
    updates, inner = rule.update(as_float32(grads), inner, weights)
    inner = _cast_moments(inner, moments)
    return updates, state._replace(rule=inner) if wrapped else inner

  return optax.GradientTransformation(init, update)


def _initial_remainder(seed: int, path: KeyPath, x: jax.Array) -> jax.Array:
  """Returns the remainder of a random float32 that rounds to the parameter."""

  def drawn(key: jax.Array, x: jax.Array) -> jax.Array:
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    # 0 and infinity have no float32 neighbours on both sides.
    inside = (x != 0) & jnp.isfinite(x)
    return jnp.where(inside, jax.lax.bitcast_convert_type(bits, jnp.int16), 0)

  key = _key(seed, path, 'masters')
  if isinstance(x, jax.core.Tracer) or not x.committed:
    return drawn(key, x)
  return jax.jit(drawn, out_shardings=x.sharding)(key, x)


def _key(seed: int | jax.Array, path: KeyPath, purpose: str) -> jax.Array:
  """Returns the key of a parameter's random bits, from purpose and name."""
  name = zlib.crc32(f'{purpose} {jax.tree_util.keystr(path)}'.encode())
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(root, name)


def as_float32(tree: T) -> T:
  """Returns the tree's arrays as float32, or wider if they are wider."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def masters(params: optax.Params, state: optax.OptState) -> optax.Params:
  """Returns the float32 weights: the masters, or the parameters if there are none."""
  if not isinstance(state, Masters):
    return as_float32(params)
  return jax.tree.map(
    lambda x, rest: x.astype(jnp.float32) if rest is None else join(x, rest),
    params,
    state.remainders,
  )


def add(
  params: optax.Params,
  updates: optax.Updates,
  state: optax.OptState,
  step: jax.Array,
) -> tuple[optax.Params, optax.OptState]:
  """Returns the parameters after an update, and the optimizer's state.

  Without masters and stochastic rounding, the sum is rounded to nearest.

  Args:
    params: before the update.
    updates: from an optimizer, wrapped by `in_float32` or not.
    state: the optimizer's state, returned together with the updates.
    step: int32 [], the number of updates before this one. The random bits depend on
      it, on the parameter's name and on the seed in the state.
  """
  if isinstance(state, Masters):
    moved = jax.tree.map(jnp.add, masters(params, state), updates)

    def half(n: int, x: jax.Array, rest: jax.Array | None) -> jax.Array | None:
      return (x, None)[n] if rest is None else split(x)[n]

    rounded, rests = (
      jax.tree.map(functools.partial(half, n), moved, state.remainders) for n in (0, 1)
    )
    return rounded, state._replace(remainders=rests)
  if isinstance(state, Stochastic):

    def one(path: KeyPath, x: jax.Array, change: jax.Array) -> jax.Array:
      if not is_rounded(x):
        return x + change
      key = jax.random.fold_in(_key(state.seed, path, 'rounding'), step)
      return round_stochastically(key, x.astype(jnp.float32) + change)

    return jax.tree_util.tree_map_with_path(one, params, updates), state
  return optax.apply_updates(params, updates), state


def _cast_moments(state: optax.OptState, dtype: DTypeLike) -> optax.OptState:
  """Casts an optimizer's state to bfloat16, or to float32 or wider.

  Leaves counts and the coefficients of Muon unchanged.
  """

  def one(path: KeyPath, x: jax.Array) -> jax.Array:
    constant = any(getattr(key, 'name', None) == 'ns_coeffs' for key in path)
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    kind = jnp.promote_types(x.dtype, dtype) if dtype == jnp.float32 else dtype
    return x.astype(kind) if floats and not constant else x

  return jax.tree_util.tree_map_with_path(one, state)


def moving_share(params: optax.Params, steps: Tree[float]) -> jax.Array:
  """Returns the share of weights that a step of this size changes, rounded to nearest.

  Args:
    params: the weights.
    steps: a tree like theirs: the size of an update of each.
  """

  def share(x: jax.Array, step: float) -> jax.Array:
    kind = jnp.finfo(x.dtype)
    wide = x.astype(jnp.float32)

    def rounded(x: jax.Array) -> jax.Array:
      return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)

    return mean((rounded(wide + step) != wide) | (rounded(wide - step) != wide))

  sizes = [x.size for x in jax.tree.leaves(params)]
  shares = jax.tree.leaves(jax.tree.map(share, params, steps))
  return jnp.dot(jnp.stack(shares), jnp.array(sizes, jnp.float32)) / float(sum(sizes))


def mean(x: jax.Array) -> jax.Array:
  """Returns the mean in float32, one axis at a time: float32 counts only to 2^24."""
  x = x.astype(jnp.float32)
  for _ in range(x.ndim):
    x = x.mean(-1)
  return x


def mean_change(updates: optax.Updates) -> jax.Array:
  """Returns the mean |change| over the weights that change; 0 if none does."""
  leaves = jax.tree.leaves(updates)
  means = [_mean_and_share(x.astype(jnp.float32)) for x in leaves]

  def summed(n: int) -> jax.Array:
    return jnp.stack(
      [
        mean(found[n]) * float(x.size)  # may not fit an int32
        for found, x in zip(means, leaves, strict=True)
      ]
    ).sum()

  return summed(0) / jnp.maximum(summed(1), 1)


def _mean_and_share(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the means of |x| and of x != 0 over the last axis.

  In a single reduction, which XLA fuses with the computation of x on a CPU. With two it
  would first store |x| and x != 0 of all weights.
  """
  x = jnp.atleast_1d(x)
  zero = jnp.float32(0)
  sums = jax.lax.reduce(
    (jnp.abs(x), (x != 0).astype(jnp.float32)),
    (zero, zero),
    lambda one, other: (one[0] + other[0], one[1] + other[1]),
    (x.ndim - 1,),
  )
  return sums[0] / x.shape[-1], sums[1] / x.shape[-1]
