"""Methods of papers as a whole: the objective, and what the loop does beside it.

`--rl dapo` sets both, `--rl.grpo dapo` the objective alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from r1jax import algorithms
from r1jax.grpo import GRPOConfig
from r1jax.stages.rl_config import RLConfig


def _dapo(rl: RLConfig) -> dict[str, Any]:
  """DAPO's dynamic sampling, and its penalty over the last fifth of the tokens."""
  shortest = min(length for _, length in rl.max_length)
  return {'equal_groups': 'replace', 'overlong_tokens': shortest // 5}


# Name of an algorithm -> fields of RLConfig that its paper sets beside the objective
BESIDE: dict[str, Callable[[RLConfig], dict[str, Any]]] = {
  'dapo': _dapo,
  'cispo': _dapo,
  'top_entropy': _dapo,
  'scale_rl': lambda rl: {'equal_groups': 'drop'},
}


def objective(rl: RLConfig, name: str) -> GRPOConfig:
  """Returns the objective of a paper; Dr. GRPO's constant is the longest output's."""
  found = algorithms.PRESETS[name]
  if found.mean != 'constant':
    return found
  return dataclasses.replace(found, constant_length=rl.longest)


def beside(rl: RLConfig, name: str) -> dict[str, Any]:
  """Returns the fields of `rl` that a paper sets beside the objective."""
  return BESIDE[name](rl) if name in BESIDE else {}


def method(rl: RLConfig, name: str) -> RLConfig:
  """Returns the config with the method of a paper.

  Raises:
    ValueError: it contradicts other settings, such as a group of one output.
  """
  return dataclasses.replace(rl, grpo=objective(rl, name), **beside(rl, name))


@dataclasses.dataclass(frozen=True)
class Methods(Mapping[str, RLConfig]):
  """The methods by name, each applied to `rl` when it is asked for."""

  rl: RLConfig

  def __getitem__(self, name: str) -> RLConfig:
    return method(self.rl, name)

  def __iter__(self) -> Iterator[str]:
    return iter(algorithms.PRESETS)

  def __len__(self) -> int:
    return len(algorithms.PRESETS)


def notes(rl: RLConfig) -> list[str]:
  """Returns sentences on what the chosen algorithm's paper does otherwise."""
  name = algorithms.preset_of(rl.grpo)
  if name is None:
    return []
  note = algorithms.ALGORITHMS[name].note
  if rl.grpo.mean == 'constant' and rl.grpo == objective(rl, name):
    note = ''  # it asks for that constant
  fields = beside(rl, name).items()
  others = [f'rl.{field} {x}' for field, x in fields if getattr(rl, field) != x]
  return [
    *([f'The algorithm is {note}.'] if note else []),
    *([f'The paper of {name} also has {" and ".join(others)}.'] if others else []),
  ]
