"""Master weights: how an update far below a bfloat16's precision is not lost.

A bfloat16 has 8 significant bits: beside a weight of 0.02 a step of 1e-6 is a sixtieth
of the distance to the next number and rounds away, at each update. Two ways keep it:

- float32 masters. The parameter is its master's upper half, rounded; the state of the
  optimizer keeps what the master has beyond it, in 16 bits. Both together are a
  float32, so an update is that of float32 parameters to the bit, for 4 bytes a
  parameter in place of 6. It is the split of Split SGD (Intel Extension for PyTorch),
  which cuts the lower half off where this rounds to the nearest. A parameter begins
  anywhere among the float32 that round to it, at random, as if it were itself a rounded
  master. Began it in their midst, no model of bfloat16 would change until a weight has
  gone half the way to the next number; so about as many step over as should, and the
  model that samples, which sees parameters alone, moves as far as the masters do.
- stochastic rounding, which needs no more bytes: a sum between two numbers becomes the
  upper one as often as it is near to it, so that it is right on average.

Parameters that are float32 already are left alone.
"""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

KINDS = ('float32', 'stochastic', 'none')  # see `optim.Config.masters`


class Masters(NamedTuple):
  """An optimizer's state with what float32 masters have beyond bfloat16 parameters."""

  remainders: Any  # a tree like the parameters': int16, None of a float32
  rule: Any  # the state of what makes the updates


class Stochastic(NamedTuple):
  """An optimizer's state, where parameters are to be rounded stochastically."""

  seed: jax.Array  # uint32 [], of the random bits
  rule: Any


def split(master: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns a float32 rounded to bfloat16, halves away from 0, and the rest, int16.

  The rest is the difference of the bits, counted in those of the float32.
  """
  bits = jax.lax.bitcast_convert_type(master, jnp.uint32)
  upper = (bits + jnp.uint32(0x8000)) >> 16
  rest = jax.lax.bitcast_convert_type(bits - (upper << 16), jnp.int32)
  rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
  return rounded, rest.astype(jnp.int16)


def join(rounded: jax.Array, remainder: jax.Array) -> jax.Array:
  """Returns the float32 that `split` has split."""
  upper = jax.lax.bitcast_convert_type(rounded, jnp.uint16).astype(jnp.uint32) << 16
  rest = jax.lax.bitcast_convert_type(remainder.astype(jnp.int32), jnp.uint32)
  return jax.lax.bitcast_convert_type(upper + rest, jnp.float32)


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
  """Returns a float32 as one of the two bfloat16 around it, on average as itself."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  upper = ((bits + noise) >> 16).astype(jnp.uint16)
  rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def is_rounded(x: jax.Array) -> bool:
  """Whether a parameter is kept in less than float32."""
  return x.dtype == jnp.bfloat16


def in_float32(
  rule: optax.GradientTransformation, kind: str, moments: Any, seed: int = 0
) -> optax.GradientTransformation:
  """Returns `rule` computed in float32, of parameters of any type.

  Its updates are float32, of the masters if there are any, and for `add` to add up.

  Args:
    rule: what makes the updates.
    kind: what becomes of bfloat16 parameters; see `optim.Config.masters`.
    moments: the type that the arrays of the rule's state are kept in.
    seed: of where masters begin, and of stochastic rounding.
  """

  def init(params: Any) -> Any:
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

  def update(grads: Any, state: Any, params: Any = None) -> Any:
    wrapped = isinstance(state, Masters | Stochastic)
    inner = _cast_moments(state.rule if wrapped else state, jnp.float32)
    weights = None if params is None else masters(params, state)
    updates, inner = rule.update(as_float32(grads), inner, weights)
    inner = _cast_moments(inner, moments)
    return updates, state._replace(rule=inner) if wrapped else inner

  return optax.GradientTransformation(init, update)


def _initial_remainder(seed: int, path: Any, x: jax.Array) -> jax.Array:
  """The remainder of one of the float32 that round to a parameter, each as likely."""

  def drawn(key: jax.Array, x: jax.Array) -> jax.Array:
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    # The bits of a 0 or an infinity end there: none is below, or above.
    inside = (x != 0) & jnp.isfinite(x)
    return jnp.where(inside, jax.lax.bitcast_convert_type(bits, jnp.int16), 0)

  key = _key(seed, path, 'masters')
  if isinstance(x, jax.core.Tracer) or not x.committed:
    return drawn(key, x)
  return jax.jit(drawn, out_shardings=x.sharding)(key, x)


def _key(seed: int | jax.Array, path: Any, purpose: str) -> jax.Array:
  """The key of a parameter's random bits, by what they are for and its name."""
  name = zlib.crc32(f'{purpose} {jax.tree_util.keystr(path)}'.encode())
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(root, name)


def as_float32(tree: Any) -> Any:
  """Returns the tree's arrays as float32, or as they are if that is more."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def masters(params: Any, state: Any) -> Any:
  """Returns the float32 weights that an optimizer's state and parameters stand for."""
  if not isinstance(state, Masters):
    return as_float32(params)
  return jax.tree.map(
    lambda x, rest: x.astype(jnp.float32) if rest is None else join(x, rest),
    params,
    state.remainders,
  )


def add(params: Any, updates: Any, state: Any, step: jax.Array) -> tuple[Any, Any]:
  """Returns the parameters after an update, and the optimizer's state.

  Where neither masters nor stochastic rounding are asked for, the sum is rounded to the
  nearest number of the parameter's type.

  Args:
    params: before it.
    updates: of a transformation that `in_float32` has made, or of any other.
    state: which that one has returned.
    step: int32 [], updates before this one: what is random follows from it, from the
      name of the parameter and from the seed in the state.
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

    def one(path: Any, x: jax.Array, change: jax.Array) -> jax.Array:
      if not is_rounded(x):
        return x + change
      key = jax.random.fold_in(_key(state.seed, path, 'rounding'), step)
      return round_stochastically(key, x.astype(jnp.float32) + change)

    return jax.tree_util.tree_map_with_path(one, params, updates), state
  return optax.apply_updates(params, updates), state


def _cast_moments(state: Any, dtype: Any) -> Any:
  """Casts an optimizer's state, but for counts and for the coefficients of Muon.

  To float32 or more, or to bfloat16.
  """

  def one(path: Any, x: jax.Array) -> jax.Array:
    constant = any(getattr(key, 'name', None) == 'ns_coeffs' for key in path)
    floats = jnp.issubdtype(x.dtype, jnp.floating)
    kind = jnp.promote_types(x.dtype, dtype) if dtype == jnp.float32 else dtype
    return x.astype(kind) if floats and not constant else x

  return jax.tree_util.tree_map_with_path(one, state)


def movable(params: Any, steps: Any) -> jax.Array:
  """Returns the share of weights that a step of this size changes, nearest rounded.

  That is those whose next number in their type is less than two steps away.

  Args:
    params: the weights.
    steps: a tree like theirs of floats: how far an update moves one.
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
  """Returns the mean in float32, an axis at a time: it counts no further than 2^24."""
  x = x.astype(jnp.float32)
  for _ in range(x.ndim):
    x = x.mean(-1)
  return x


def mean_change(updates: Any) -> jax.Array:
  """The mean of |change| over the weights that have one; 0 if none has."""
  leaves = jax.tree.leaves(updates)
  means = [_sum_and_count(x.astype(jnp.float32)) for x in leaves]

  def summed(n: int) -> jax.Array:
    return jnp.stack(
      [
        mean(found[n]) * float(x.size)  # may not fit an int32
        for found, x in zip(means, leaves, strict=True)
      ]
    ).sum()

  return summed(0) / jnp.maximum(summed(1), 1)


def _sum_and_count(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The means of |x| and of x != 0 over the last axis.

  Both in one reduction, which XLA on a CPU computes x within. For two it would write
  down |x| and x != 0 of all weights first.
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
