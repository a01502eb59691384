"""Reads and writes adapter_config.json of the library PEFT.

An adapter with an unknown field that is set is refused, since PEFT adds a field for
every new kind of LoRA.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard, TypeVar

from r1jax.hub import storage
from r1jax.hub.storage import WeightsError
from r1jax.model.lora import LoraConfig
from r1jax.plain import JsonObject

T = TypeVar('T')

CONFIG = 'adapter_config.json'
FILE = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
# Initializations that leave the base model unchanged. PiSSA, OLoRA, CorDA, LoftQ and
# LoRA-GA subtract the initial adapter from the base, so they need another base.
INITS = (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica')
# Fields without effect on the computation, or which the tensors imply.
IGNORED = {
  *('task_type', 'auto_mapping', 'peft_version', 'base_model_name_or_path', 'revision'),
  *('inference_mode', 'target_modules', 'exclude_modules', 'target_parameters'),
  *('layers_to_transform', 'layers_pattern', 'modules_to_tie', 'ensure_weight_tying'),
  *('lora_dropout', 'fan_in_fan_out', 'megatron_config', 'megatron_core'),
  *('loftq_config', 'eva_config', 'corda_config', 'lora_ga_config', 'velora_config'),
  *('qalora_group_size', 'runtime_config', 'target_modules_to_tie'),
}
EXPECTED = {
  'peft_type': 'LORA',
  'bias': 'none',
  'use_dora': False,
  'use_qalora': False,
  'lora_bias': False,
  'modules_to_save': None,
  'layer_replication': None,
}


@dataclasses.dataclass(frozen=True)
class Scales:
  """Ranks and scales of an adapter's matrices."""

  rank: int
  alpha: float
  ranks: Mapping[str, int]  # by regular expression that matches the end of a name
  alphas: Mapping[str, float]
  stabilised: bool  # rsLoRA (2312.03732): alpha / sqrt(r)

  def rank_of(self, key: str) -> int:
    """Returns the rank of a matrix, given its name in the model."""
    return _matching(self.ranks, key, self.rank)

  def excess(self, key: str) -> float:
    """Returns a matrix's scale divided by the config's alpha / r."""
    rank = self.rank_of(key)
    scale = _matching(self.alphas, key, self.alpha)
    scale /= math.sqrt(rank) if self.stabilised else rank
    return scale / (self.alpha / self.rank)


def _matching(patterns: Mapping[str, T], key: str, default: T) -> T:
  """Returns the value of the first pattern that matches the end of a name, as PEFT."""
  for pattern, value in patterns.items():
    if re.match(rf'(.*\.)?({pattern})$', key):
      return value
  return default


def read(folder: Path) -> Scales:
  """Returns the ranks and scales of adapter_config.json.

  Raises:
    WeightsError: the file is missing or damaged, or asks for something that is not
      implemented.
  """
  file = folder / CONFIG
  settings = storage.read_json(file)
  for field, value in EXPECTED.items():
    if (settings.get(field) or value) != value:
      raise WeightsError(
        f'{file}: {field}: expected {value!r}, got {settings[field]!r}'
      )
  init = settings.get('init_lora_weights')
  if init not in INITS:
    raise WeightsError(
      f'{file}: init_lora_weights: expected true, false or one of '
      f'{", ".join(str(x) for x in INITS[3:])}, got {init!r}, which changes the base '
      'model; save the adapter by save_pretrained with '
      'path_initial_model_for_weight_conversion, which turns it into plain LoRA'
    )
  computed = {'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'use_rslora'}
  known = {*IGNORED, *EXPECTED, *computed, 'init_lora_weights'}
  if rest := sorted(name for name, x in settings.items() if x and name not in known):
    raise WeightsError(
      f'{file}: {rest[0]}: expected none, got {str(settings[rest[0]])[:80]}; this kind '
      'of LoRA is not implemented'
    )
  rank, alpha = settings.get('r'), settings.get('lora_alpha')
  if not _is_number(rank) or rank != int(rank) or not _is_number(alpha):
    raise WeightsError(
      f'{file}: expected numbers r and lora_alpha, got {rank!r}, {alpha!r}'
    )
  ranks, alphas = (
    _patterns(file, settings, name) for name in ('rank_pattern', 'alpha_pattern')
  )
  return Scales(int(rank), alpha, ranks, alphas, bool(settings.get('use_rslora')))


def _patterns(file: Path, settings: JsonObject, name: str) -> JsonObject:
  """Returns a field that maps patterns of names to numbers."""
  patterns = settings.get(name) or {}
  if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
    raise WeightsError(
      f'{file}: {name}: expected numbers above 0 by name, got {patterns!r}'
    )
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise WeightsError(
        f'{file}: {name}: expected regular expressions, got {pattern!r} ({error})'
      ) from None
  return patterns


def _is_number(x: object) -> TypeGuard[float]:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf


def settings(
  config: LoraConfig, modules: Sequence[str], parameters: Sequence[str]
) -> JsonObject:
  """Returns the adapter_config.json of an adapter of these modules and parameters."""
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'r': config.rank,
    'lora_alpha': config.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_rslora': False,
    'use_dora': False,
    'inference_mode': True,
    'target_modules': list(modules),
    **({'target_parameters': list(parameters)} if parameters else {}),
  }
