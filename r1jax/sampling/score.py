"""Log-probs and entropies of given tokens."""

import jax
import jax.numpy as jnp
import optax

from r1jax.sampling.decoder_api import DecoderFns, prompt_segment
from r1jax.sampling.logprob import hidden_logp
from r1jax.sharding.constrain import num_shards


def score_tokens(
  params: optax.Params,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  tokens: jax.Array,
  offsets: jax.Array | None = None,
  documents: jax.Array | None = None,
  *,
  model: DecoderFns,
  temperature: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probs of the tokens and entropies of their distributions, [P, G, T].

  In nats, at the given temperature, without top-k or top-p. The prompt is computed once
  and shared by its group; gradients flow through it. A row may hold several outputs
  (see `r1jax.packing`), distinguished by `documents`.

  Args:
    params: of `model`.
    prompts: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S].
    tokens: int32 [P, G, T]; the caller must mask what follows a stop token.
    offsets: int32 [P, G, T], position within the output; None is 0, 1, 2, …
    documents: int32 [P, G, T], an id per output; None is one output per row.
    model: the decoder's functions.
    temperature: divides the logits, above 0.
  """
  groups, group_size, length = tokens.shape
  rows = groups * group_size
  tokens_BT = tokens.reshape(rows, length)
  if offsets is None:
    offsets = jnp.broadcast_to(jnp.arange(length)[None, None], tokens.shape)
  if documents is None:
    documents = jnp.ones_like(tokens)
  offset_BT = offsets.reshape(rows, -1)
  document_BT = jnp.asarray(documents).reshape(rows, -1)
  prompt = prompt_segment(prompts, prompt_mask)
  # The prompt's last position predicts an output's first token, and each token the
  # next one. So the last token of a row is predicted but not an input.
  if length == 1:
    last_PD = model.forward(params, *prompt)[0][:, -1]
    hidden_BTD = jnp.repeat(last_PD, group_size, axis=0)[:, None]
  else:
    length_B = jnp.repeat(prompt_mask.sum(-1), group_size)
    position_BT = length_B[:, None] + offset_BT
    # With T sharded the shards must be equal, so there all tokens are inputs.
    read = length if num_shards('length') > 1 else length - 1
    document_BT = document_BT.at[:, length - 1].set(0)  # not in the load
    outputs = tokens_BT[:, :read], position_BT[:, :read], document_BT[:, :read]
    hidden_PSD, rest_BTD = model.with_prompts(params, prompt, outputs, prompt_mask)
    hidden_BTD = jnp.repeat(hidden_PSD[:, -1], group_size, axis=0)[:, None]
    rest_BTD = rest_BTD[:, : length - 1]
    rest_BTD = jnp.where(offset_BT[:, 1:, None] == 0, hidden_BTD, rest_BTD)
    hidden_BTD = jnp.concatenate([hidden_BTD, rest_BTD], axis=1)
  logp_BT, entropy_BT = hidden_logp(
    hidden_BTD, tokens_BT, params, head=model.head, temperature=temperature
  )
  return logp_BT.reshape(tokens.shape), entropy_BT.reshape(tokens.shape)
