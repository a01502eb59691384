"""Reads the fields of a config.json by which layers differ: windows and RoPE."""

import dataclasses
import math
from collections.abc import Mapping

from r1jax.hub import config_fields
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.model.config import Rope, Sliding
from r1jax.plain import JsonObject

FULL, NEAR = 'full_attention', 'sliding_attention'
# Names of LongRoPE in Phi's config.json; transformers takes 'yarn' for it too.
LONGROPE = ('longrope', 'su', 'yarn')
WINDOWED = ('mistral', 'ministral3', 'phi3')  # families with a window in all layers


def sliding(fields: Fields, length: int, default: int | None) -> Sliding:
  """Returns the windows of the layers.

  Args:
    fields: of the config.json.
    length: positions of the model; a window of as many is none.
    default: the family's window where the config.json names none.

  Raises:
    FamilyError: the windows are of a kind that is not implemented.
  """
  kind = fields.raw['model_type']
  if kind == 'gemma3_text':
    full = tuple(n for n, one in enumerate(_gemma_types(fields)) if one == FULL)
    local = _by_type(fields.raw, NEAR)
    if (local.get('rope_type') or 'default') != 'default':
      raise FamilyError(
        f"rope_parameters.{NEAR}.rope_type: expected 'default', got "
        f'{local["rope_type"]!r}'
      )
    theta = local.get('rope_theta') or fields.raw.get('rope_local_base_freq') or 1e4
    window = fields.positive('sliding_window', default)
    return Sliding(window, full, float(theta))
  fields.expect('use_sliding_window', False)
  if any(one != FULL for one in fields.raw.get('layer_types') or ()):
    raise FamilyError(
      f'layer_types: expected {FULL} in all layers, got '
      f'{sorted(set(fields.raw["layer_types"]))}; windows in some layers are '
      'implemented for gemma3_text alone'
    )
  if kind not in WINDOWED or fields.raw.get('sliding_window', default) is None:
    return Sliding()
  window = fields.positive('sliding_window', default)
  return Sliding(window) if window < length else Sliding()


def _gemma_types(fields: Fields) -> list[str]:
  """Returns the type of each layer: given, or every sixth attends to all keys."""
  layers = fields.whole('num_hidden_layers')
  every = fields.positive('sliding_window_pattern', 6)
  given = fields.raw.get('layer_types')
  found = given or [NEAR if (n + 1) % every else FULL for n in range(layers)]
  if len(found) != layers or set(found) - {FULL, NEAR}:
    raise FamilyError(
      f'layer_types: expected {FULL} or {NEAR} for {layers} layers, got {given!r}'
    )
  return found


def _by_type(raw: JsonObject, kind: str) -> JsonObject:
  """Returns RoPE's parameters of one type of layer.

  Raises:
    FamilyError: `rope_parameters` has other entries than those of types.
  """
  nested = raw.get('rope_parameters') or {}
  for name, found in nested.items():
    if name not in (FULL, NEAR) or not isinstance(found, Mapping | None):
      raise FamilyError(
        f'rope_parameters.{name}: expected parameters for {FULL} and {NEAR}, got '
        f'{found!r}'
      )
  return nested.get(kind) or {}


def rope(raw: JsonObject, theta: float, head_dim: int) -> tuple[float, Rope]:
  """Returns the base of RoPE, and how it is scaled and which layers and channels turn.

  Args:
    raw: the config.json.
    theta: the base where the config.json names none.
    head_dim: channels of a head.

  Raises:
    FamilyError: see `config_fields.rope`.
  """
  kind, fields = raw['model_type'], Fields(raw)
  if kind == 'gemma3_text':  # that of layers without a window
    scaling = {**_by_type(raw, FULL), **(raw.get('rope_scaling') or {})}
    raw = {**raw, 'rope_parameters': scaling, 'rope_scaling': None}
  given = config_fields.scaling(raw)
  if kind == 'phi3':
    share = given.get('partial_rotary_factor', raw.get('partial_rotary_factor', 1.0))
    channels = int(head_dim * share)
    if channels < 2:
      raise FamilyError(
        f'partial_rotary_factor: expected 2 or more of {head_dim} channels, got {share}'
      )
    found = _phi_rope(raw)
    if channels < head_dim:
      found = dataclasses.replace(found, channels=channels)
  else:
    fields.expect('partial_rotary_factor', 1.0)
    Fields(given).expect('partial_rotary_factor', 1.0)
    found = config_fields.rope(raw)
  if kind == 'smollm3':
    found = dataclasses.replace(found, without=_without_rope(fields))
  return config_fields.theta(raw, theta), found


def _without_rope(fields: Fields) -> tuple[int, ...]:
  """Returns the layers of SmolLM3 without RoPE: given, or every fourth."""
  layers = fields.whole('num_hidden_layers')
  every = fields.positive('no_rope_layer_interval', 4)
  given = fields.raw.get('no_rope_layers')
  turned = [(n + 1) % every for n in range(layers)] if given is None else given
  if len(turned) != layers or not all(isinstance(one, int) for one in turned):
    raise FamilyError(
      f'no_rope_layers: expected 0 (no RoPE) or 1 for {layers} layers, got {given!r}'
    )
  return tuple(n for n, one in enumerate(turned) if not one)


def _phi_rope(raw: JsonObject) -> Rope:
  """Returns the scaling of Phi's RoPE: none, or LongRoPE's for short texts.

  LongRoPE has other frequencies for texts of more than the original length. A text that
  grows beyond it would need all its keys again, so here the model ends there; see
  `families.max_positions`.
  """
  given = config_fields.scaling(raw)
  kind = given.get('rope_type') or given.get('type') or 'default'
  if kind == 'default':
    return Rope()
  if kind not in LONGROPE:
    raise FamilyError(
      f'rope_parameters.rope_type: expected default or longrope for phi3, got {kind!r}'
    )
  length = config_fields.original_length(raw)
  factor = given.get('factor') or raw['max_position_embeddings'] / length
  amplitude = given.get('attention_factor')
  if amplitude is None:
    amplitude = math.sqrt(1 + math.log(max(factor, 1)) / math.log(length))
  for name in ('short_factor', 'long_factor'):
    if not isinstance(given.get(name), list):
      raise FamilyError(
        f'rope_parameters.{name}: expected a list of numbers, got {given.get(name)!r}'
      )
  return Rope(
    'longrope',
    original_length=length,
    amplitude=float(amplitude),
    divisors=tuple(float(one) for one in given['short_factor']),
  )
