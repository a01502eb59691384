"""Adapters in PEFT's files for tensors that hold several matrices, such as Phi's.

PEFT has one adapter for the whole tensor, here each matrix has its own. Side by side
they are one of a higher rank: A is theirs one below the other, and B has each one's
outputs in its columns alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from r1jax.hub.tensor_names import Part
from r1jax.model.lora import LoraConfig
from r1jax.plain import JsonObject


def joined(
  adapters: Sequence[tuple[np.ndarray, np.ndarray, Part]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns A [n r, in] and B [total, n r], given those and the rows of n matrices."""
  rank = len(adapters[0][0])
  b = np.zeros((adapters[0][2].total, rank * len(adapters)), np.float32)
  for n, (_, own, part) in enumerate(adapters):
    b[part.first : part.first + len(own), n * rank : (n + 1) * rank] = own
  return np.concatenate([a for a, _, _ in adapters]), b


def settings(config: LoraConfig, counts: Mapping[str, int]) -> JsonObject:
  """Returns the ranks of such adapters, by module, for adapter_config.json."""
  patterns = {rf'.*\.{module.rsplit(".")[-1]}': n for module, n in counts.items()}
  if not patterns:
    return {}
  return {
    'rank_pattern': {name: n * config.rank for name, n in patterns.items()},
    'alpha_pattern': {name: n * config.alpha for name, n in patterns.items()},
  }
