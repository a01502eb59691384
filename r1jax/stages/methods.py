"""Methods of papers as a whole: the objective, and what the loop does beside it.

`--rl dapo` sets both, `--rl.grpo dapo` the objective alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from r1jax import algorithms
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


def method(rl: RLConfig, name: str) -> RLConfig:
  """Returns the config with the method of a paper.

  Raises:
    ValueError: it contradicts other settings, such as a group of one output.
  """
  objective = algorithms.PRESETS[name]
  if objective.mean == 'constant':  # of Dr. GRPO
    objective = dataclasses.replace(objective, constant_length=rl.longest)
  beside = BESIDE[name](rl) if name in BESIDE else {}
  return dataclasses.replace(rl, grpo=objective, **beside)


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
  row = algorithms.ALGORITHMS[name]
  beside = BESIDE[name](rl) if name in BESIDE else {}
  others = [f'rl.{field} {x}' for field, x in beside.items() if getattr(rl, field) != x]
  return [
    *([f'The algorithm is {row.note}.'] if row.note else []),
    *([f'The paper of {name} also has {" and ".join(others)}.'] if others else []),
  ]
