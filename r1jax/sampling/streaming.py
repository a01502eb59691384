"""One token at a time: `prefill` and `decode_step`, for chat and budget forcing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.sampling.cache import by_layer, empty_block
from r1jax.sampling.decoder_api import DecoderFns, read_prompts


class DecodeState(NamedTuple):
  """Rows that are written a token at a time, and what of them has been computed."""

  prompt: Any  # keys and values by layer, and their mask
  past: Any  # keys and values of the output by layer
  length: jax.Array  # int32 [B], tokens of the prompt
  t: jax.Array  # int32 [], tokens of the output


def prefill(
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  *,
  model: DecoderFns,
  room: int,
  group_size: int = 1,
) -> tuple[jax.Array, DecodeState]:
  """Reads prompts [P, S]: logits of the first tokens [P, V], and where they stand.

  `room` is for so many tokens of each of a prompt's outputs.
  """
  last_PD, (kv, mask), length_P = read_prompts(params, prompts, prompt_mask, model)
  layers = by_layer(kv)
  past = [empty_block(layer, len(prompts) * group_size, room) for layer in layers]
  logits = model.logits(params, last_PD)
  length_B = jnp.repeat(length_P, group_size)
  return logits, DecodeState((layers, mask), past, length_B, jnp.int32(0))


def decode_step(
  params: Any, spoken: DecodeState, token: jax.Array, *, model: DecoderFns
) -> tuple[jax.Array, DecodeState]:
  """Writes a token a row, int32 [B]: logits of the next [B, V], and where they stand.

  There must be room for it.
  """
  room = spoken.past[0].k.shape[-1]
  seen = (jnp.arange(room) <= spoken.t)[None]
  context = [spoken.prompt, (spoken.past, seen)]
  position = spoken.length + spoken.t
  hidden_BD, past = model.decoding(params)(token, position, context, spoken.t)
  logits = model.logits(params, hidden_BD)
  return logits, spoken._replace(past=past, t=spoken.t + 1)
