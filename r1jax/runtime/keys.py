"""Random keys by name."""

import zlib

import jax


def named_key(key: jax.Array, name: str) -> jax.Array:
  """Returns the child of `key` for a named purpose; a new name changes no other key."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
