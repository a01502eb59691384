"""Random keys by the name of their purpose."""

import zlib

import jax


def named_key(key: jax.Array, name: str) -> jax.Array:
  """The child of `key` for a purpose, so that adding one changes no other."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
