"""The functions of a decoder that sampling and scoring call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.trees import KV, Decode, Head

# (params, tokens, positions, documents, context=()) -> hidden states [B, T, D], KV
Forward = Callable[..., tuple[jax.Array, KV]]
Logits = Callable[[optax.Params, jax.Array], jax.Array]  # hidden -> [..., V]


class DecoderFns(NamedTuple):
  """The pure functions of a decoder; see `r1jax.model.decoder.functions`."""

  forward: Forward
  logits: Logits
  make_decode: Callable[[optax.Params], Decode]
  # (params, prompts, outputs, prompt_mask) -> hidden states [P, S, D] and [B, T, D]
  with_prompts: Callable[..., tuple[jax.Array, jax.Array]]
  head: Head


def read_prompts(
  params: optax.Params, prompts: jax.Array, prompt_mask: jax.Array, model: DecoderFns
) -> tuple[jax.Array, tuple[KV, jax.Array], jax.Array]:
  """Returns last hidden states [P, D], the prompts as a segment, and lengths [P]."""
  hidden_PSD, kv = model.forward(params, *prompt_segment(prompts, prompt_mask))
  return hidden_PSD[:, -1], (kv, prompt_mask), prompt_mask.sum(-1)


def prompt_segment(prompts: jax.Array, prompt_mask: jax.Array) -> tuple[jax.Array, ...]:
  """Returns tokens, positions and documents of prompts, for `DecoderFns.forward`."""
  positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
  # Padding is a document of its own: real tokens never attend to it. Ids are not above
  # 0, so that prompts, which some layouts compute repeatedly, don't count in the
  # experts' load.
  return prompts, positions, -prompt_mask.astype(jnp.int32)
