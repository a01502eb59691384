"""Rotary position embeddings (RoPE), and their scaling to longer contexts.

Sources: RoFormer (2104.09864); YaRN (2309.00071); LongRoPE (2402.13753); the Llama 3.1
release.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from r1jax.model.config import ModelConfig, Rope

PLAIN = Rope()


class Turning(NamedTuple):
  """RoPE of one layer, or of a stack of layers with a leading axis L."""

  frequency: jax.Array  # [C/2], radians per token; 0 turns nothing
  amplitude: jax.Array  # [], of cosine and sine


def rope(
  x_BTHC: jax.Array, positions_BT: jax.Array, theta: float, scaling: Rope = PLAIN
) -> jax.Array:
  """Rotates channel pairs (i, i + C/2) by position * frequency i (RoFormer, eq. 34).

  Computes in float32 or more; the result has the type of `x_BTHC`.
  """
  kind = jnp.promote_types(x_BTHC.dtype, jnp.float32)
  frequency = frequencies(x_BTHC.shape[-1], theta, scaling, kind)
  return _turned(x_BTHC, positions_BT, frequency, scaling.amplitude)


def _turned(
  x_BTHC: jax.Array,
  positions_BT: jax.Array,
  frequency: jax.Array,
  amplitude: jax.Array | float,
) -> jax.Array:
  half = x_BTHC.shape[-1] // 2
  positions_BT11 = positions_BT[..., None, None].astype(frequency.dtype)
  angle = positions_BT11 * frequency[None, None, None]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  if isinstance(amplitude, jax.Array) or amplitude != 1:
    sin, cos = sin * amplitude, cos * amplitude
  first, second = x_BTHC[..., :half], x_BTHC[..., half:]
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x_BTHC.dtype)


def turnings(config: ModelConfig) -> Turning | None:
  """Returns RoPE of each layer, stacked; None where all layers have the same.

  As arrays they are inputs of the scan over layers, so that its body is compiled once.
  """
  c, local = config, config.sliding.theta
  if not c.rope.without and not (local and any(c.windows)):
    return None
  kind = jnp.promote_types(c.dtype, jnp.float32)

  def layer(n: int, window: int) -> Turning:
    if n in c.rope.without:
      return Turning(jnp.zeros(c.rope_dim // 2, kind), jnp.ones((), kind))
    theta, scaling = (local, PLAIN) if window and local else (c.rope_theta, c.rope)
    found = frequencies(c.rope_dim, theta, scaling, kind)
    return Turning(found, jnp.asarray(scaling.amplitude, kind))

  layers = [layer(n, window) for n, window in enumerate(c.windows)]
  return jax.tree.map(lambda *x: jnp.stack(x), *layers)


def rotate(
  config: ModelConfig,
  x_BTHC: jax.Array,
  positions_BT: jax.Array,
  turning: Turning | None = None,
) -> jax.Array:
  """Returns `rope` with the frequencies of the layer, or of the config for None.

  Channels after the first `config.rope.channels` are returned as they are.
  """
  if 0 < config.rope.channels < x_BTHC.shape[-1]:
    first, rest = jnp.split(x_BTHC, [config.rope.channels], axis=-1)
    first = rotate(config, first, positions_BT, turning)
    return jnp.concatenate([first, rest], axis=-1)
  if turning is None:
    return rope(x_BTHC, positions_BT, config.rope_theta, config.rope)
  return _turned(x_BTHC, positions_BT, *turning)


def rotate_queries(
  config: ModelConfig,
  x_BTHC: jax.Array,
  positions_BT: jax.Array,
  turning: Turning | None = None,
) -> jax.Array:
  """Returns rotated queries, scaled up beyond the original length as in Llama 4."""
  rotated, scaling = rotate(config, x_BTHC, positions_BT, turning), config.rope
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
  if scaling.kind == 'longrope':
    return plain / jnp.asarray(scaling.divisors, dtype)
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
