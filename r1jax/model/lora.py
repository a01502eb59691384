"""LoRA: what is learned is a product of two thin matrices beside each weight matrix.

The model's own parameters stay as they are and are the reference policy as well: with
`b` at 0, where it begins, a matrix is itself. Adapters are a tree of their own, which
is all that is trained and saved; `attach` lays them beside the matrices, `merged` adds
them up.

Source: Hu et al. 2021 (2106.09685).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.model.linear import Lora

Pair = dict[str, jax.Array]  # 'a' [..., in, r] and 'b' [..., r, out]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which matrices get an adapter, and how large."""

  rank: int = 0  # r; 0 trains all parameters instead
  alpha: float = 32.0  # the product is scaled by alpha / r
  # Of names in `decoder.matrices`: attention's, and those of the SwiGLU.
  targets: str = 'query|key|value|out|gate|up|down'

  def __post_init__(self) -> None:
    if self.rank < 0:
      raise ValueError(f'lora.rank: expected 0 or more, got {self.rank}')
    if not 0 <= self.alpha < math.inf:
      raise ValueError(
        f'lora.alpha: expected a finite number of 0 or more, got {self.alpha}'
      )
    if self.rank and not self.alpha:
      raise ValueError(
        'lora.alpha: expected more than 0 with lora.rank, as adapters that are '
        'multiplied by 0 change nothing and learn nothing, got 0'
      )
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
        f'lora.targets: expected a pattern, got {self.targets!r} ({error})'
      ) from None

  @property
  def scale(self) -> float:
    """What the product is multiplied by."""
    return self.alpha / self.rank if self.rank else 0.0


class Target(NamedTuple):
  """A stack of weight matrices that gets an adapter."""

  stack: str
  name: str
  lead: tuple[int, ...]  # layers, and experts if there are any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


def targets(model: ModelConfig, config: LoraConfig) -> list[Target]:
  """Returns the matrices whose whole name the pattern matches.

  Raises:
    ValueError: it matches none.
  """
  known = [target for target in matrices(model) if target.name != 'router']
  found = [target for target in known if re.fullmatch(config.targets, target.name)]
  if not found:
    names = sorted({target.name for target in known})
    raise ValueError(
      f'lora.targets: expected a pattern for some of {", ".join(names)}, got '
      f'{config.targets!r}'
    )
  return found


def matrices(model: ModelConfig) -> Iterator[Target]:
  """All weight matrices, routers too, which are not trained by adapters here."""
  shapes, every = decoder.shapes(model, 1), decoder.matrices(model)
  for stack, _, _ in model.stacks:
    for name, axes in every[stack].items():
      if isinstance(axes, tuple):
        shape, (inputs, outputs) = shapes[stack][name].shape, axes
        yield Target(
          stack,
          name,
          shape[: inputs[0]],
          tuple(shape[n] for n in inputs),
          tuple(shape[n] for n in outputs),
        )


def init(model: ModelConfig, config: LoraConfig, key: jax.Array) -> dict[str, Any]:
  """Returns adapters that change nothing yet: `a` is random, `b` is 0."""
  tree: dict[str, dict[str, Pair]] = {}
  for n, target in enumerate(targets(model, config)):
    bound = math.prod(target.inputs) ** -0.5
    shape = (*target.lead, *target.inputs, config.rank)
    own = jax.random.fold_in(key, n)
    tree.setdefault(target.stack, {})[target.name] = {
      'a': jax.random.uniform(own, shape, minval=-bound, maxval=bound),
      'b': jnp.zeros((*target.lead, config.rank, *target.outputs)),
    }
  return tree


def attach(params: Any, adapters: Mapping[str, Any], scale: float) -> Any:
  """Returns the parameters with each adapter beside its matrix; with scale 0 as is."""
  if not scale:
    return params
  tree = dict(params)
  for stack, named in adapters.items():
    pairs = {
      name: Lora(params[stack][name], pair['a'], pair['b'] * scale)
      for name, pair in named.items()
    }
    tree[stack] = {**params[stack], **pairs}
  return tree


def merged(params: Any) -> Any:
  """Returns parameters of which each matrix has its adapter added to it, in float32."""
  return jax.tree.map(
    lambda leaf: leaf.merged() if isinstance(leaf, Lora) else leaf,
    params,
    is_leaf=lambda leaf: isinstance(leaf, Lora),
  )


def merged_as_kept(params: Any) -> Any:
  """Returns what `merged` does, each matrix rounded to the type it had without."""
  return jax.tree.map(
    lambda leaf: leaf.merged().astype(leaf.w.dtype) if isinstance(leaf, Lora) else leaf,
    params,
    is_leaf=lambda leaf: isinstance(leaf, Lora),
  )
