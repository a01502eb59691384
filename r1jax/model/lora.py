"""LoRA: trains a low-rank product a b that is added to each weight matrix.

The model's own parameters are frozen and also serve as the reference policy, since `b`
starts at 0. Adapters are a separate tree, the only one that is trained and saved.
`attach` pairs them with the matrices; `merged` adds them.

Source: Hu et al. 2021 (2106.09685).
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.model.linear import Lora

Pair = dict[str, jax.Array]  # 'a' [..., in, r] and 'b' [..., r, out]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """The rank of the adapters, and the matrices that get one."""

  rank: int = 0  # r; 0: no adapters, all parameters are trained
  alpha: float = 32.0  # the product is scaled by alpha / r
  # A pattern for names in `decoder.matrices`; here attention's and the SwiGLU's.
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
        'lora.alpha: expected more than 0 with lora.rank, as adapters multiplied by 0 '
        'learn nothing, got 0; set lora.alpha to 32, or lora.rank to 0'
      )
    try:
      re.compile(self.targets)
    except re.error as error:
      raise ValueError(
        f'lora.targets: expected a regular expression, got {self.targets!r} ({error})'
      ) from None

  @property
  def scale(self) -> float:
    """The factor of the product a b: alpha / r."""
    return self.alpha / self.rank if self.rank else 0.0


class Target(NamedTuple):
  """A stack of weight matrices that gets an adapter."""

  stack: str
  name: str
  lead: tuple[int, ...]  # layers, and experts if there are any
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


def targets(model: ModelConfig, config: LoraConfig) -> list[Target]:
  """Returns the matrices whose full name matches the pattern.

  Raises:
    ValueError: if none does.
  """
  known = [target for target in matrices(model) if target.name != 'router']
  found = [target for target in known if re.fullmatch(config.targets, target.name)]
  if not found:
    names = sorted({target.name for target in known})
    raise ValueError(
      f'lora.targets: expected a pattern that matches some of {", ".join(names)}, got '
      f'{config.targets!r}'
    )
  return found


def matrices(model: ModelConfig) -> Iterator[Target]:
  """Yields all weight matrices, including routers, which get no adapter."""
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


def init(
  model: ModelConfig, config: LoraConfig, key: jax.Array
) -> dict[str, dict[str, Pair]]:
  """Returns initial adapters: `a` is random and `b` is 0, so a b is 0."""
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


def attach(params: optax.Params, adapters: optax.Params, scale: float) -> optax.Params:
  """Returns the parameters with a `Lora` for each matrix that has an adapter.

  With scale 0 it returns the parameters unchanged.
  """
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


def merged(params: optax.Params) -> optax.Params:
  """Returns the parameters with every adapter merged into its matrix, in float32."""
  return jax.tree.map(
    lambda leaf: leaf.merged() if isinstance(leaf, Lora) else leaf,
    params,
    is_leaf=lambda leaf: isinstance(leaf, Lora),
  )


def merged_in_dtype(params: optax.Params) -> optax.Params:
  """Returns `merged`, with each matrix rounded to its original type."""
  return jax.tree.map(
    lambda leaf: leaf.merged().astype(leaf.w.dtype) if isinstance(leaf, Lora) else leaf,
    params,
    is_leaf=lambda leaf: isinstance(leaf, Lora),
  )
