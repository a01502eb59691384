"""The parameters of RoPE in a GGUF file, as a config.json has them."""

import math
from typing import Any

import numpy as np

from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.hub.gguf_file import GGUFFile
from r1jax.hub.layer_fields import FULL, NEAR
from r1jax.plain import JsonDict, JsonObject

FREQUENCIES = 'rope_freqs.weight'
# Tensors of divisors of the frequencies that are read, by architecture.
LONG = {kind: f'rope_factors_{kind}.weight' for kind in ('short', 'long')}
DIVISORS = {'llama': (FREQUENCIES,), 'phi3': tuple(LONG.values())}
# Scalings that llama.cpp writes, where an architecture has others.
SCALINGS = {'phi3': ('none', 'linear', 'longrope'), 'gemma3': ('none', 'linear')}
_LOW, _HIGH = 1.0, 4.0  # of Llama 3: wavelengths between original length / these


def read(file: GGUFFile, fields: Fields, attention: JsonObject) -> JsonDict:
  """Returns the fields of config.json for positions and their encoding.

  Args:
    file: with the metadata.
    fields: those metadata.
    attention: fields of config.json; of Phi-3 with `head_dim`.

  Raises:
    FamilyError: the encoding is malformed or not implemented.
  """
  name = file.architecture
  length, rope = _rope(file, fields)
  theta = rope['rope_theta']
  found: JsonDict = {'max_position_embeddings': length, 'rope_theta': theta}
  if name == 'gemma3':
    near = fields.number('gemma3.rope.freq_base_swa', 10_000.0)
    rope = {FULL: rope, NEAR: {'rope_type': 'default', 'rope_theta': near}}
  if name == 'phi3':
    head_dim = attention['head_dim']
    turned = fields.positive('phi3.rope.dimension_count', head_dim)
    if turned > head_dim or turned % 2:
      raise FamilyError(
        f'phi3.rope.dimension_count: expected an even number up to {head_dim}, got '
        f'{turned}'
      )
    rope['partial_rotary_factor'] = turned / head_dim
    if rope['rope_type'] == 'longrope':
      original = fields.positive('phi3.rope.scaling.original_context_length', length)
      found['original_max_position_embeddings'] = original
      rope['original_max_position_embeddings'] = original
  return {**found, 'rope_parameters': rope}


def _rope(file: GGUFFile, fields: Fields) -> tuple[int, JsonDict]:
  """Returns the positions before linear scaling, and the parameters of RoPE."""
  name = file.architecture
  length = fields.positive(f'{name}.context_length')
  found: dict[str, Any] = {
    'rope_type': 'default',
    'rope_theta': fields.number(f'{name}.rope.freq_base', 10_000.0),
  }
  kind = file.fields.get(f'{name}.rope.scaling.type', 'linear')  # as in llama.cpp
  factor = fields.number(
    f'{name}.rope.scaling.factor', fields.number(f'{name}.rope.scale_linear', 1.0)
  )
  known = SCALINGS.get(name, ('none', 'linear', 'yarn'))
  if kind not in known:
    raise FamilyError(
      f'{name}.rope.scaling.type: expected one of {", ".join(known)}, got {kind!r}'
    )
  if name == 'phi3':
    return length, {**found, **_long(file, fields, kind, factor)}
  if FREQUENCIES in file.tensors and name == 'llama':
    if kind == 'yarn' or factor not in (0, 1):
      raise FamilyError(
        f'{name}.rope.scaling.type: expected none beside {FREQUENCIES}, got {kind!r}'
      )
    return length, {**found, **_llama3(file, found['rope_theta'])}
  if kind == 'linear' and factor not in (0, 1):
    # The length of Gemma 3's config.json is the stretched one.
    before = length if name == 'gemma3' else int(length / factor)
    return before, {**found, 'rope_type': 'linear', 'factor': factor}
  if kind == 'yarn':
    found |= _yarn(fields, name, length)
  return length, found


def _yarn(fields: Fields, name: str, length: int) -> JsonDict:
  within = f'{name}.rope.scaling'
  found: JsonDict = {
    'rope_type': 'yarn',
    'factor': fields.number(f'{within}.factor'),
    'original_max_position_embeddings': fields.whole(
      f'{within}.original_context_length', length
    ),
    'beta_fast': fields.number(f'{within}.yarn_beta_fast', 32.0),
    'beta_slow': fields.number(f'{within}.yarn_beta_slow', 1.0),
  }
  if name == 'deepseek2':  # both are the same in the published models
    scale = round(10 * fields.number(f'{within}.yarn_log_multiplier'), 6)
    found |= {'mscale': scale, 'mscale_all_dim': scale}
  return found


def _long(file: GGUFFile, fields: Fields, kind: str, factor: float) -> JsonDict:
  """Returns the divisors of LongRoPE, which llama.cpp has with or without its name."""
  within = 'phi3.rope.scaling'
  if kind != 'longrope' and not any(name in file.tensors for name in LONG.values()):
    fields.expect(f'{within}.attn_factor', 1.0)
    if kind == 'linear' and factor not in (0, 1):
      raise FamilyError(f'{within}.factor: expected 1 for phi3, got {factor}')
    return {}
  found: JsonDict = {'rope_type': 'longrope'}
  for which, name in LONG.items():
    if name not in file.tensors:
      raise FamilyError(f'the tensor {name} is missing')
    found[f'{which}_factor'] = file.tensors[name].read().astype(float).tolist()
  return {**found, 'attention_factor': fields.number(f'{within}.attn_factor', 1.0)}


def _llama3(file: GGUFFile, theta: float) -> JsonDict:
  """Returns the scaling of Llama 3 with these divisors of the frequencies.

  They say no more about it: with twice the original length and twice both bounds they
  would be the same. The bounds are those of all published models.
  """
  divisors = file.tensors[FREQUENCIES].read().astype(np.float64)
  if np.allclose(divisors, 1):
    return {}
  plain = theta ** (-np.arange(len(divisors)) / len(divisors))
  factor = float(f'{divisors.max():.6g}')
  kept = np.clip((1 / divisors - 1 / factor) / (1 - 1 / factor), 0, 1)
  # The slowest one that is not fully stretched: turns - low = kept * (high - low).
  (partly,) = np.nonzero(kept > 1e-4)
  last = partly[-1] if len(partly) else 0
  turns = _LOW + kept[last] * (_HIGH - _LOW)
  original = round(turns * 2 * math.pi / plain[last])
  again = np.clip((original * plain / (2 * math.pi) - _LOW) / (_HIGH - _LOW), 0, 1)
  expected = 1 / (again + (1 - again) / factor)
  if not np.allclose(divisors, expected, rtol=1e-3):
    raise FamilyError(
      f'{FREQUENCIES}: expected the divisors of Llama 3, {expected.round(4).tolist()}, '
      f'got {divisors.round(4).tolist()}'
    )
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': _LOW,
    'high_freq_factor': _HIGH,
    'original_max_position_embeddings': original,
  }
