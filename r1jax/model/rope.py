"""Rotary position embeddings (RoPE), and their scaling to longer contexts.

Sources: RoFormer (2104.09864); YaRN (2309.00071); the Llama 3.1 release.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from r1jax.model.config import ModelConfig, Rope

PLAIN = Rope()


def rope(
  x_BTHC: jax.Array, positions_BT: jax.Array, theta: float, scaling: Rope = PLAIN
) -> jax.Array:
  """Rotates channel pairs (i, i + C/2) by position * frequency i (RoFormer, eq. 34).

  Computes in float32 or more; the result has the type of `x_BTHC`.
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
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BTHC.dtype)


def rotate(
  config: ModelConfig, x_BTHC: jax.Array, positions_BT: jax.Array
) -> jax.Array:
  """Returns `rope` with the config's frequencies."""
  return rope(x_BTHC, positions_BT, config.rope_theta, config.rope)


def rotate_queries(
  config: ModelConfig, x_BTHC: jax.Array, positions_BT: jax.Array
) -> jax.Array:
  """Returns rotated queries, scaled up beyond the original length as in Llama 4."""
  rotated, scaling = rotate(config, x_BTHC, positions_BT), config.rope
  if not scaling.query_growth:
    return rotated
  kind = jnp.promote_types(rotated.dtype, jnp.float32)
  passed_BT = jnp.floor(positions_BT.astype(kind) / scaling.original_length)
  growth_BT = 1 + scaling.query_growth * jnp.log1p(passed_BT)
  return rotated * growth_BT[..., None, None].astype(rotated.dtype)


def frequencies(
  channels: int, theta: float, scaling: Rope, dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """Returns theta^(-2i/C), [C/2] radians per token, scaled by `scaling`."""
  half = channels // 2
  plain = theta ** (-jnp.arange(half, dtype=dtype) / half)
  if scaling.kind == 'plain':
    return plain
  if scaling.kind == 'linear':
    return plain / scaling.factor
  if scaling.kind == 'llama3':
    # Frequencies with few turns in the original length are scaled, the others kept.
    turns = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
  else:
    kept = 1 - _ramp(channels, theta, scaling, dtype)
  return plain * kept + plain / scaling.factor * (1 - kept)


def _ramp(channels: int, theta: float, scaling: Rope, dtype: DTypeLike) -> jax.Array:
  """Returns 1 - gamma of YaRN: 0 for fast channels, 1 for slow ones, [C/2]."""

  def channel(turns: float) -> float:
    """The channel pair that makes `turns` turns in the original length."""
    wave = scaling.original_length / (turns * 2 * math.pi)
    return channels * math.log(wave) / (2 * math.log(theta))

  low = max(math.floor(channel(scaling.beta_fast)), 0)
  high = min(math.ceil(channel(scaling.beta_slow)), channels - 1)
  width = high - low or 0.001
  pairs = jnp.arange(channels // 2, dtype=dtype)
  return jnp.clip((pairs - low) / width, 0, 1)
