"""Texts of outputs as bytes, on the device: tokens to bytes, bytes to the answer.

`parse` is `text.parsing.parse` of the form 'tags', for bytes. Whitespace is that of
ASCII; `str.strip` also strips that of other alphabets.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

THINK, END_THINK, ANSWER, END_ANSWER = (
  *(b'<think>', b'</think>'),
  *(b'<answer>', b'</answer>'),
)
SPACES = (9, 10, 11, 12, 13, 28, 29, 30, 31, 32)  # that str.strip strips


class Pieces(NamedTuple):
  """The bytes of every token."""

  bytes: jax.Array  # uint8 [V, L], 0 after the end
  lengths: jax.Array  # int32 [V]


class Texts(NamedTuple):
  """Texts as bytes, [B, M]."""

  bytes: jax.Array  # uint8; 0 after the end
  lengths: jax.Array  # int32 [B]


def pieces(tokens: list[bytes]) -> Pieces:
  """Returns the bytes of all tokens as arrays."""
  longest = max(map(len, tokens))
  rows = [list(token.ljust(longest, b'\0')) for token in tokens]
  return Pieces(
    jnp.array(rows, jnp.uint8), jnp.array([len(token) for token in tokens], jnp.int32)
  )


def written(tokens: jax.Array, mask: jax.Array, pieces: Pieces) -> Texts:
  """Returns the texts of tokens [B, T]; M is T L, so that every text has room."""
  rows, length = tokens.shape
  longest = pieces.bytes.shape[1]
  width = length * longest
  size = jnp.where(mask, pieces.lengths[tokens], 0)
  start = jnp.cumsum(size, axis=1) - size
  place = start[..., None] + jnp.arange(longest)[None, None]
  inside = jnp.arange(longest)[None, None] < size[..., None]
  place = jnp.where(inside, place, width).reshape(rows, -1)  # beyond the end: dropped
  found = jnp.zeros((rows, width), jnp.uint8)
  row = jnp.arange(rows)[:, None]
  found = found.at[row, place].set(pieces.bytes[tokens].reshape(rows, -1), mode='drop')
  return Texts(found, size.sum(1))


def stripped(text: Texts) -> tuple[jax.Array, jax.Array]:
  """Returns where each text begins and ends without whitespace around it, [B]."""
  return _bounds(text.bytes, jnp.zeros_like(text.lengths), text.lengths)


def parse(text: Texts) -> tuple[jax.Array, Texts]:
  """Returns which texts have the form, bool [B], and their answers, stripped.

  The form is `<think>…</think> … <answer>…</answer>`: each tag once, in this order,
  with nothing but whitespace before and after. Of others the answers mean nothing.
  """
  begin, end = stripped(text)
  places = [_places(text, tag) for tag in (THINK, END_THINK, ANSWER, END_ANSWER)]
  once = jnp.stack([found.sum(1) == 1 for found in places]).all(0)
  opened, thought, answer, closed = (jnp.argmax(found, axis=1) for found in places)
  inner = answer + len(ANSWER)
  formed = (
    once
    & (opened == begin)
    & (closed + len(END_ANSWER) == end)
    & (thought + len(END_THINK) <= answer)
    & (inner <= closed)
  )
  first, last = _bounds(text.bytes, inner, closed)
  width = text.bytes.shape[1]
  place = first[:, None] + jnp.arange(width)[None]
  cut = jnp.take_along_axis(text.bytes, jnp.minimum(place, width - 1), axis=1)
  length = jnp.maximum(last - first, 0)
  return formed, Texts(
    jnp.where(jnp.arange(width)[None] < length[:, None], cut, jnp.uint8(0)), length
  )


def _bounds(
  text: jax.Array, begin: jax.Array, end: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the bounds [B] of what is left of text[begin:end] without whitespace."""
  place = jnp.arange(text.shape[1])[None]
  inside = (place >= begin[:, None]) & (place < end[:, None])
  solid = inside & ~jnp.isin(text, jnp.array(SPACES, jnp.uint8))
  any_left = solid.any(1)
  first = jnp.argmax(solid, axis=1)
  last = text.shape[1] - jnp.argmax(solid[:, ::-1], axis=1)
  return jnp.where(any_left, first, begin), jnp.where(any_left, last, begin)


def _places(text: Texts, tag: bytes) -> jax.Array:
  """Returns where a tag begins, bool [B, M]."""
  width = text.bytes.shape[1]
  found = jnp.ones(text.bytes.shape, bool)
  for n, byte in enumerate(tag):
    found &= jnp.pad(text.bytes[:, n:], ((0, 0), (0, min(n, width)))) == byte
  return found
