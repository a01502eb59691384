"""Rotary position embeddings, and how families stretch them over longer texts.

Sources: RoFormer (2104.09864); YaRN (2309.00071); the release of Llama 3.1.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from r1jax.model.config import ModelConfig, Rope

PLAIN = Rope()


def rope(
  x_BTHC: jax.Array, positions_BT: jax.Array, theta: float, scaling: Rope = PLAIN
) -> jax.Array:
  """Turns channel pairs (i, i + C/2) by position * frequency i (RoFormer, eq. 34).

  In float32 or more; the result has the type of `x_BTHC`.
  """
  half = x_BTHC.shape[-1] // 2
  kind = jnp.promote_types(x_BTHC.dtype, jnp.float32)
  frequency = frequencies(2 * half, theta, scaling, kind)
  positions_BT11 = positions_BT[..., None, None].astype(kind)
  angle = positions_BT11 * frequency[None, None, None]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  if scaling.amplitude != 1:
    sin, cos = sin * scaling.amplitude, cos * scaling.amplitude
  first, second = x_BTHC[..., :half], x_BTHC[..., half:]
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x_BTHC.dtype)


def turn(config: ModelConfig, x_BTHC: jax.Array, positions_BT: jax.Array) -> jax.Array:
  """`rope` with the config's wavelengths."""
  return rope(x_BTHC, positions_BT, config.rope_theta, config.rope)


def turn_queries(
  config: ModelConfig, x_BTHC: jax.Array, positions_BT: jax.Array
) -> jax.Array:
  """`turn`, and what queries grow by beyond the original length, as in Llama 4."""
  turned, scaling = turn(config, x_BTHC, positions_BT), config.rope
  if not scaling.query_growth:
    return turned
  passed_BT = jnp.floor(positions_BT.astype(jnp.float32) / scaling.original_length)
  grown_BT = 1 + scaling.query_growth * jnp.log1p(passed_BT)
  return turned * grown_BT[..., None, None].astype(turned.dtype)


def frequencies(
  channels: int, theta: float, scaling: Rope, dtype: Any = jnp.float32
) -> jax.Array:
  """Returns theta^(-2i/C) radians a token, [C/2], stretched as asked."""
  half = channels // 2
  plain = theta ** (-jnp.arange(half, dtype=dtype) / half)
  if scaling.kind == 'plain':
    return plain
  if scaling.kind == 'linear':
    return plain / scaling.factor
  if scaling.kind == 'llama3':
    # How many waves fit in the length decides: few are stretched, many are left.
    turns = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
  else:
    kept = 1 - _ramp(channels, theta, scaling, dtype)
  return plain * kept + plain / scaling.factor * (1 - kept)


def _ramp(channels: int, theta: float, scaling: Rope, dtype: Any) -> jax.Array:
  """YaRN's gamma turned round: 0 for channels that turn often, 1 for rare ones."""

  def channel(turns: float) -> float:
    """The channel pair that makes so many turns in the original length."""
    wave = scaling.original_length / (turns * 2 * math.pi)
    return channels * math.log(wave) / (2 * math.log(theta))

  low = max(math.floor(channel(scaling.beta_fast)), 0)
  high = min(math.ceil(channel(scaling.beta_slow)), channels - 1)
  width = high - low or 0.001
  pairs = jnp.arange(channels // 2, dtype=dtype)
  return jnp.clip((pairs - low) / width, 0, 1)
