"""Sums of gradients, to which the backward pass adds in place.

A loop over micro-batches adds the gradient of each to a sum. A gradient that is a value
is a second tree of the parameters' size beside the sum. Here the loss gets each
parameter in a box with a reference to its sum. Where the box is opened the parameter's
cotangent ends up, and is added to the sum: in a scan over layers one layer at a time.
"""

from typing import Any, Self, TypeGuard

import jax
import jax.numpy as jnp
import optax

from r1jax.trees import T

# `jax.Ref` has no public type for arguments of functions that are traced.
Ref = Any


class _Total:
  """A reference to a sum, equal to itself alone: so it can be part of a tree's type."""

  def __init__(self, ref: Ref) -> None:
    self.ref = ref


@jax.tree_util.register_pytree_node_class
class Summed:
  """A parameter with the sum of its gradients.

  A scan over stacked parameters slices `numbers` with them, so that the box of a layer
  says which part of the sum is its own.
  """

  def __init__(self, value: jax.Array, numbers: jax.Array, total: _Total) -> None:
    self.value = value
    self.numbers = numbers  # int32: of all rows of the sum, or of one layer
    self.total = total

  def tree_flatten(self) -> tuple[tuple[jax.Array, jax.Array], _Total]:
    """Returns the leaves, and the reference as a part of the tree's type."""
    return (self.value, self.numbers), self.total

  @classmethod
  def tree_unflatten(cls, total: _Total, leaves: tuple[jax.Array, jax.Array]) -> Self:
    """The inverse of `tree_flatten`."""
    return cls(*leaves, total)

  def replaced(self, value: jax.Array) -> Self:
    """Returns a box of another value with the same sum."""
    return type(self)(value, self.numbers, self.total)

  def opened(self) -> jax.Array:
    """Returns the parameter. Its cotangent is added to the sum."""
    return _opened(self.total.ref, self.numbers, self.value)


@jax.custom_vjp
def _opened(total: Ref, numbers: jax.Array, value: jax.Array) -> jax.Array:
  del total, numbers
  return value


def _forward(
  total: Ref, numbers: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[Ref, jax.Array]]:
  return value, (total, numbers)


def _backward(
  residuals: tuple[Ref, jax.Array], cotangent: jax.Array
) -> tuple[None, None, jax.Array]:
  total, numbers = residuals
  rows = numbers if numbers.ndim == 0 else ...
  total[rows] += cotangent.astype(total.dtype)
  # Nobody reads this one, so the compiler drops it.
  return None, None, jnp.zeros_like(cotangent)


_opened.defvjp(_forward, _backward)


def sum_of(leaf: jax.Array | Summed) -> Ref | None:
  """Returns the reference to a parameter's sum; None for one without a box."""
  return leaf.total.ref if is_summed(leaf) else None


def add_rows(total: Ref, first: jax.Array | int, cotangent: jax.Array) -> None:
  """Adds the cotangent of some rows of a parameter to its sum, from row `first` on."""
  total[jax.ds(first, len(cotangent))] += cotangent.astype(total.dtype)


def summed(params: optax.Params, sums: optax.Updates) -> optax.Params:
  """Returns the parameters, each boxed with the reference to its sum."""

  def one(x: jax.Array, ref: Ref) -> Summed:
    return Summed(x, jnp.arange(x.shape[0] if x.ndim else 0), _Total(ref))

  return jax.tree.map(one, params, sums)


def is_summed(leaf: object) -> TypeGuard[Summed]:
  """Whether a leaf is a boxed parameter."""
  return isinstance(leaf, Summed)


def opened(tree: T) -> T:
  """Returns the tree with each box replaced by its parameter."""
  return jax.tree.map(
    lambda x: x.opened() if is_summed(x) else x, tree, is_leaf=is_summed
  )


def values(tree: T) -> T:
  """Returns the tree with each box replaced by what it holds, without its sum."""
  return jax.tree.map(lambda x: x.value if is_summed(x) else x, tree, is_leaf=is_summed)


def replaced(tree: T, values: T) -> T:
  """Returns the tree with other values, in boxes where its own are."""
  return jax.tree.map(
    lambda x, value: x.replaced(value) if is_summed(x) else value,
    tree,
    values,
    is_leaf=is_summed,
  )
