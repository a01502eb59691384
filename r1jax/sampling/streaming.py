"""One token at a time: `prefill` and `decode_step`, for chat and budget forcing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.sampling.cache import by_layer, empty_block
from r1jax.sampling.decoder_api import DecoderFns, read_prompts
from r1jax.sharding.constrain import platform
from r1jax.trees import KVByLayer, Segment


class DecodeState(NamedTuple):
  """The KV cache of B rows that are decoded one token at a time."""

  prompt: Segment
  past: KVByLayer  # of the outputs; see `_kept`
  length: jax.Array  # int32 [B], tokens of the prompt
  t: jax.Array  # int32 [], tokens of the output so far


def prefill(
  params: optax.Params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  *,
  model: DecoderFns,
  room: int,
  group_size: int = 1,
) -> tuple[jax.Array, DecodeState]:
  """Prefills prompts [P, S]: returns the first tokens' logits [P, V], and the state.

  Args:
    params: of `model`.
    prompts: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S], true on real tokens.
    model: the decoder's functions.
    room: tokens per output that the cache has space for.
    group_size: outputs per prompt.
  """
  last_PD, (kv, mask), length_P = read_prompts(params, prompts, prompt_mask, model)
  layers = by_layer(kv)
  rows = len(prompts) * group_size
  past = _kept([empty_block(layer, rows, room) for layer in layers], rows)
  logits = model.logits(params, last_PD)
  length_B = jnp.repeat(length_P, group_size)
  return logits, DecodeState((layers, mask), past, length_B, jnp.int32(0))


def decode_step(
  params: optax.Params, state: DecodeState, token: jax.Array, *, model: DecoderFns
) -> tuple[jax.Array, DecodeState]:
  """Appends a token to each row, int32 [B]; returns next logits [B, V] and the state.

  The cache must have space for it; see `prefill`.
  """
  past = state.past
  room = past[0].k.shape[-1]
  seen = (jnp.arange(room) <= state.t)[None]
  if _single(len(token)):
    past = jax.tree.map(lambda x: x[None], past)
  context = [state.prompt, (past, seen)]
  position = state.length + state.t
  hidden_BD, past = model.make_decode(params)(token, position, context, state.t)
  logits = model.logits(params, hidden_BD)
  past = _kept(past, len(token))
  return logits, state._replace(past=past, t=state.t + 1)


def _single(rows: int) -> bool:
  return rows == 1 and platform() == 'cpu'


def _kept(past: KVByLayer, rows: int) -> KVByLayer:
  """Returns blocks of keys and values; those of one row on a CPU without its axis.

  With the axis XLA would write each position twice, once into a copy of the block:
  `attention.write` writes without it too.
  """
  return jax.tree.map(lambda x: x[0], past) if _single(rows) else past
