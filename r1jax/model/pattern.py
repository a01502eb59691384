"""What differs between the layers of a model: windows, and RoPE.

As arrays over layers these are inputs of the scan over layers, so that a stack of
layers stays one compiled body.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.model.config import ModelConfig
from r1jax.model.rope import Turning, turnings

ALL = 2**30  # a window longer than any text


class Pattern(NamedTuple):
  """A layer's window and RoPE, or a stack's with a leading axis L; None: all alike."""

  window: jax.Array | None  # int32 [], keys that a query attends to; None: all
  turning: Turning | None  # None: the RoPE of the config


def patterns(config: ModelConfig) -> Pattern:
  """Returns the pattern of all layers, stacked."""
  sizes = [window or ALL for window in config.windows]
  window = jnp.array(sizes, jnp.int32) if any(config.windows) else None
  return Pattern(window, turnings(config))


def part(pattern: Pattern, layers: slice) -> Pattern:
  """Returns the pattern of some of the layers."""
  return jax.tree.map(lambda x: x[layers], pattern)


def of_layer(config: ModelConfig, layer: int) -> Pattern:
  """Returns the pattern of one layer, without a window if it attends to all keys."""
  window = config.windows[layer]
  turning = jax.tree.map(lambda x: x[layer], turnings(config))
  return Pattern(jnp.int32(window) if window else None, turning)
