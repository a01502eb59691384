"""Types of the trees that functions hand to each other.

JAX's functions on trees return `Any`; these names say what the leaves are. Parameters
are `optax.Params`, gradients `optax.Updates`, an optimizer's state `optax.OptState`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import jax
from jax.sharding import Sharding

# A tree, of which a function keeps the structure. Its arrays may change from numpy's to
# JAX's or back.
T = TypeVar('T')
# A nest of dicts, lists and tuples with such leaves.
Tree: TypeAlias = T | Sequence['Tree[T]'] | Mapping[str, 'Tree[T]']


class Box(Protocol):
  """A parameter, or its shape, with the logical names of its axes: flax's box."""

  @property
  def names(self) -> tuple[str | None, ...]:
    """See `r1jax.sharding.rules`."""

  @property
  def value(self) -> jax.Array:
    """The parameter."""

  def replace(self, *, names: tuple[str | None, ...]) -> Self:
    """Returns the parameter with other names."""


class KV(NamedTuple):
  """Keys after RoPE [B, K, C, S] and values [B, K, S, C], in the products' layout.

  A leading L axis when stacked over layers. A block that `write` changes has no axis K
  if K is 1. With `v` None the keys are also the values, as in latent attention.
  """

  k: jax.Array
  v: jax.Array | None


Boxed = Tree[Box]  # parameters with their axis names
Shardings = Tree[Sharding]
MatrixAxes = tuple[tuple[int, ...], tuple[int, ...]]  # input axes, output axes
# Nested like the parameters: `MatrixAxes` of weight matrices, None for other leaves.
# None as a whole where it is not known.
Matrices = Mapping[str, Any] | None
KVByLayer = list[KV]
Segment = tuple[KVByLayer, jax.Array]  # of a decoding cache, with the mask of its keys
# (tokens, positions, context, column) -> hidden states [B, D], and the last segment of
# the context with this position written; segments are in the order of the text
Decode = Callable[
  [jax.Array, jax.Array, Sequence[Segment], jax.Array], tuple[jax.Array, KVByLayer]
]


class Head(NamedTuple):
  """What makes logits of hidden states: a matrix, and its product."""

  # params -> the output embedding [V, D], boxed if they are (`r1jax.gradient_sums`)
  matrix: Callable[[Any], Any]
  # (rows [R, D] of that matrix, hidden states [..., D]) -> logits [..., R]
  logits: Callable[[jax.Array, jax.Array], jax.Array]
