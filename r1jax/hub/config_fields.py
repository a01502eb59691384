"""Reads fields of a config.json with type checks, and the settings of RoPE.

Checkpoints describe the scaling of RoPE in three ways: `rope_scaling` and `rope_theta`
(transformers 4), `rope_parameters` with both (transformers 5), or `rope_parameters` and
a `rope_scaling` that was added by hand, as model cards recommend for longer texts.
"""

import math
from collections.abc import Mapping

from r1jax.model.config import Rope
from r1jax.plain import JsonObject


class FamilyError(ValueError):
  """A config.json that this decoder does not support; the message names the field."""


class Fields:
  """Typed access to a config.json; errors name the missing or wrong field."""

  def __init__(self, raw: JsonObject):
    self.raw = raw

  def expect(self, name: str, value: object) -> None:
    """Raises FamilyError unless the field is missing or has this value."""
    if self.raw.get(name, value) != value:
      raise FamilyError(
        f'{name}: expected {value!r}, got {self.raw[name]!r}; other values are not '
        'implemented'
      )

  def positive(self, name: str, default: int | None = None) -> int:
    """Returns a positive integer; null means the default."""
    value = self.whole(name, default)
    if not 0 < value < 2**31:
      raise FamilyError(f'{name}: expected 1 or more and less than 2^31, got {value}')
    return value

  def whole(self, name: str, default: int | None = None) -> int:
    """Returns an integer; null means the default."""
    value = self.raw.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool):
      raise FamilyError(f'{name}: expected a whole number, got {value!r}')
    return value

  def number(self, name: str, default: float | None = None) -> float:
    """Returns a number."""
    value = self.raw.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
      raise FamilyError(f'{name}: expected a number, got {value!r}')
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    """Returns a boolean; null means the default."""
    value = self.raw.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
      raise FamilyError(f'{name}: expected true or false, got {value!r}')
    return value


def scaling(raw: JsonObject) -> JsonObject:
  """Returns the parameters of RoPE; `rope_scaling` wins, as in transformers 5."""
  return raw.get('rope_scaling') or raw.get('rope_parameters') or {}


def theta(raw: JsonObject, default: float) -> float:
  """Returns the base of RoPE; `default` is the family's.

  If a config has both `rope_parameters` and a `rope_scaling` without `rope_theta`, and
  no `rope_theta` at the top level, transformers 5.24 ignores `rope_parameters` and uses
  10,000, which the model was not trained with. This function returns the model's own.
  """
  places = (scaling(raw), raw, raw.get('rope_parameters') or {})
  return float(next(filter(None, (x.get('rope_theta') for x in places)), default))


def original_length(raw: JsonObject) -> int:
  """Returns the context length before RoPE is stretched, in tokens."""
  name = 'original_max_position_embeddings'
  given = raw.get(name) or scaling(raw).get(name) or raw['max_position_embeddings']
  return int(given)


def rope(raw: JsonObject) -> Rope:
  """Returns how the frequencies of RoPE are stretched.

  Raises:
    FamilyError: the kind of scaling is unknown, or a parameter is missing.
  """
  given = scaling(raw)
  kind = given.get('rope_type') or given.get('type') or 'default'
  known = ('default', 'linear', 'llama3', 'yarn')
  if kind not in known:
    raise FamilyError(
      f'rope_parameters.rope_type: expected one of {", ".join(known)}, got {kind!r}'
    )
  if nested := [name for name, x in given.items() if isinstance(x, Mapping)]:
    raise FamilyError(
      f'rope_parameters.{nested[0]}: expected one set of parameters for all layers, '
      'got a set for one type of layer'
    )
  fields = Fields(given)
  if kind == 'default':
    return Rope()
  if kind == 'linear':
    return Rope('linear', factor=fields.number('factor', math.nan))
  if kind == 'llama3':
    return Rope(
      'llama3',
      factor=fields.number('factor', math.nan),
      original_length=original_length(raw),
      low_freq_factor=fields.number('low_freq_factor', math.nan),
      high_freq_factor=fields.number('high_freq_factor', math.nan),
    )
  return _yarn(raw, fields)


def _yarn(raw: JsonObject, fields: Fields) -> Rope:
  """Returns the settings of YaRN; transformers ignores `attn_factor`, so does this."""
  given, length = fields.raw, original_length(raw)
  fields.expect('truncate', True)
  if not given.get('factor') and not given.get('original_max_position_embeddings'):
    raise FamilyError('rope_parameters.factor: expected a number, got None')
  factor = given.get('factor') or raw['max_position_embeddings'] / length

  def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

  all_dims = given.get('mscale_all_dim') or 0.0
  amplitude = given.get('attention_factor')
  if amplitude is None:
    amplitude = mscale(1)
    if given.get('mscale') and all_dims:
      amplitude = mscale(given['mscale']) / mscale(all_dims)
  latent = 'kv_lora_rank' in raw
  return Rope(
    'yarn',
    factor=float(factor),
    original_length=length,
    beta_fast=float(given.get('beta_fast') or 32),
    beta_slow=float(given.get('beta_slow') or 1),
    amplitude=float(amplitude),
    score_factor=mscale(all_dims) ** 2 if latent and all_dims else 1.0,
    query_growth=float(given.get('llama_4_scaling_beta') or 0),
  )
