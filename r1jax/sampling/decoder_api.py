"""The functions of a decoder that sampling and scoring call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class DecoderFns(NamedTuple):
  """The functions of a decoder (see `r1jax.model.decoder.functions`)."""

  # (params, tokens, positions, document, context), the last may be left out
  forward: Callable[..., tuple[jax.Array, Any]]
  logits: Callable[[Any, jax.Array], jax.Array]  # (params, hidden)
  # params -> (tokens, positions, context, column) -> hidden, the last segment written
  decoding: Callable[[Any], Callable[..., tuple[jax.Array, Any]]]
  # (params, prompts, outputs, prompt_mask) -> hidden states of both
  both: Callable[..., tuple[jax.Array, jax.Array]]


def read_prompts(
  params: Any, prompts: jax.Array, prompt_mask: jax.Array, model: DecoderFns
):
  """Last hidden state [P, D], the prompt as a segment, and its lengths [P]."""
  hidden_PSD, kv = model.forward(params, *prompt_segment(prompts, prompt_mask))
  return hidden_PSD[:, -1], (kv, prompt_mask), prompt_mask.sum(-1)


def prompt_segment(prompts: jax.Array, prompt_mask: jax.Array) -> tuple[jax.Array, ...]:
  """Tokens, positions and documents of prompts, as `Model.forward` takes them."""
  positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
  # Padding is a document of its own: real tokens never see it. Below 0, as a prompt is
  # computed as often as it suits the layout and must not count for experts' load.
  return prompts, positions, -prompt_mask.astype(jnp.int32)
