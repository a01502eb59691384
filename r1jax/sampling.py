"""Sampling completions, and scoring them: two sides of one computation.

`sample` prefills each prompt once, then decodes its G samples in one compiled loop;
`score` gives the log-probabilities of given completions, with gradients. Both attend
to the same segments: the prompt (shared by its group) and the completion's own past.
Neither knows what a model is (they take its two functions), nor what tokens mean.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax.logprob import token_logp

# Positions a block of the decoding cache holds. A full block is frozen and only read;
# so the loop carries and copies one block, not the cache, and attends to what exists.
CACHE_BLOCK = 64


class Model(NamedTuple):
  """The two functions of a decoder (see `r1jax.model.decoder.Decoder`)."""

  # (params, tokens, positions, document, context), the last may be left out
  forward: Callable[..., tuple[jax.Array, Any]]
  logits: Callable[[Any, jax.Array], jax.Array]  # (params, hidden)


@dataclasses.dataclass(frozen=True)
class Config:
  """How tokens are drawn."""

  temperature: float = 1.0  # divides the logits; 0 takes the most likely token
  top_k: int = 0  # only the k most likely tokens; 0 is all
  top_p: float = 1.0  # only the smallest set of tokens of this total probability

  def __post_init__(self) -> None:
    if not self.temperature >= 0:
      raise ValueError(f'temperature: expected 0 or more, got {self.temperature}')
    if self.top_k < 0:
      raise ValueError(f'top_k: expected 0 (all tokens) or more, got {self.top_k}')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p: expected more than 0, at most 1, got {self.top_p}')


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['tokens', 'mask', 'logp'],
  meta_fields=[],
)
@dataclasses.dataclass
class Completions:
  """What a policy said, each field [P, G, T].

  `mask` is true up to and including the stop token; beyond it tokens are 0 and `logp`
  (nats, under the distribution that was drawn from, after temperature, top-k and
  top-p) is 0.
  """

  tokens: jax.Array
  mask: jax.Array
  logp: jax.Array


def draw_logits(
  logits: jax.Array, temperature: jax.Array, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
  """Logits [..., V] of the distribution to draw from; excluded tokens are -inf.

  Temperature first, then top-k, then top-p (nucleus, Holtzman et al. 2020) on what is
  left. Ties at the cut are kept.
  """
  logits = logits / temperature
  if top_k:
    smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    logits = jnp.where(logits < smallest, -jnp.inf, logits)
  if top_p < 1:
    ordered = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    smallest = jnp.min(
      jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True
    )
    logits = jnp.where(logits < smallest, -jnp.inf, logits)
  return logits


def draw(
  key: jax.Array, logits: jax.Array, config: Config, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Draws one token a row; returns ids and log-probs, each [...].

  With temperature 0 the most likely token, of log-prob 0: it is certain.
  """
  greedy = temperature == 0
  safe = jnp.where(greedy, 1.0, temperature)
  tempered = draw_logits(logits, safe, config.top_k, config.top_p)
  drawn = jax.random.categorical(key, tempered)
  token = jnp.where(greedy, jnp.argmax(logits, axis=-1), drawn)
  logp = jnp.take_along_axis(
    jax.nn.log_softmax(tempered, axis=-1), token[..., None], axis=-1
  )[..., 0]
  return token.astype(jnp.int32), jnp.where(greedy, 0.0, logp)


def _prefill(params: Any, prompts: jax.Array, prompt_mask: jax.Array, model: Model):
  """Last hidden state [P, D], the prompt as a segment, and its lengths [P]."""
  positions = jnp.maximum(jnp.cumsum(prompt_mask, axis=-1) - 1, 0)
  # Padding is a document of its own: real tokens never see it.
  document = prompt_mask.astype(jnp.int32)
  hidden_PSD, kv = model.forward(params, prompts, positions, document)
  return hidden_PSD[:, -1], (kv, prompt_mask), prompt_mask.sum(-1)


def _put_column(array_BT: jax.Array, x_B: jax.Array, column: jax.Array) -> jax.Array:
  x_B1 = x_B[:, None].astype(array_BT.dtype)
  return jax.lax.dynamic_update_slice_in_dim(array_BT, x_B1, column, axis=1)


def sample(
  params: Any,
  key: jax.Array,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  *,
  model: Model,
  config: Config,
  group_size: int,
  max_length: int,
  stop_ids: Sequence[int],
  temperature: jax.Array | None = None,
) -> Completions:
  """Samples G completions of each prompt, of at most `max_length` tokens.

  Args:
    params: of `model`.
    key: everything random comes from it; the draw at position t from its t-th child.
    prompts: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S], true on real tokens.
    model: the decoder's functions.
    config: how to draw.
    group_size: G.
    max_length: T.
    stop_ids: a completion ends with any of these.
    temperature: overrides the config's, so that a schedule does not recompile.
  """
  if temperature is None:
    temperature = jnp.float32(config.temperature)
  rows = prompts.shape[0] * group_size
  stops = jnp.asarray(stop_ids, jnp.int32)
  last_PD, prompt, length_P = _prefill(params, prompts, prompt_mask, model)
  length_B = jnp.repeat(length_P, group_size)
  pick = functools.partial(draw, config=config, temperature=temperature)

  # Every sample of a group starts from the same distribution, drawn G times.
  logits_BV = jnp.repeat(model.logits(params, last_PD), group_size, axis=0)
  token_B, logp_B = pick(jax.random.fold_in(key, 0), logits_BV)
  tokens = jnp.zeros((rows, max_length), jnp.int32).at[:, 0].set(token_B)
  logp = jnp.zeros((rows, max_length)).at[:, 0].set(logp_B)
  mask = jnp.zeros((rows, max_length), bool).at[:, 0].set(True)
  state = (jnp.int32(0), tokens, mask, logp, jnp.isin(token_B, stops))

  def step(start, blocks, carry):
    """Feeds the token at t, draws the one at t + 1."""
    (t, tokens, mask, logp, done_B), block = carry
    token_B = jax.lax.dynamic_index_in_dim(tokens, t, axis=1, keepdims=False)
    written = (jnp.arange(block.k.shape[-1]) < t - start)[None]
    hidden, own = model.forward(
      params,
      token_B[:, None],
      (length_B + t)[:, None],
      jnp.zeros((rows, 1), jnp.int32),
      [prompt, *blocks, (block, written)],
    )
    token_B, logp_B = pick(
      jax.random.fold_in(key, t + 1), model.logits(params, hidden[:, 0])
    )
    put = functools.partial(_put_column, column=t + 1)
    tokens = put(tokens, jnp.where(done_B, 0, token_B))
    logp = put(logp, jnp.where(done_B, 0.0, logp_B))
    mask = put(mask, ~done_B)
    done_B |= jnp.isin(token_B, stops)
    block = type(block)(
      jax.lax.dynamic_update_slice_in_dim(block.k, own.k, t - start, axis=-1),
      jax.lax.dynamic_update_slice_in_dim(block.v, own.v, t - start, axis=-2),
    )
    return (t + 1, tokens, mask, logp, done_B), block

  def unfinished(end, carry):
    (t, _, _, _, done_B), _ = carry
    return (t < end) & ~jnp.all(done_B)

  blocks: list[Any] = []
  for start in range(0, max_length - 1, CACHE_BLOCK):
    width = min(CACHE_BLOCK, max_length - 1 - start)
    layers, _, kv_heads, channels, _ = prompt[0].k.shape
    shape = (layers, rows, kv_heads)
    empty = type(prompt[0])(
      jnp.zeros((*shape, channels, width), prompt[0].k.dtype),
      jnp.zeros((*shape, width, channels), prompt[0].v.dtype),
    )
    state, block = jax.lax.while_loop(
      functools.partial(unfinished, start + width),
      functools.partial(step, start, tuple(blocks)),
      (state, empty),
    )
    blocks.append((block, jnp.ones((1, width), bool)))

  _, tokens, mask, logp, _ = state
  shape = (prompts.shape[0], group_size, max_length)
  return Completions(tokens.reshape(shape), mask.reshape(shape), logp.reshape(shape))


def score(
  params: Any,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  tokens: jax.Array,
  offsets: jax.Array | None = None,
  documents: jax.Array | None = None,
  *,
  model: Model,
  temperature: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns log-probs of the tokens and entropies of their distributions, [P, G, T].

  The prompt is computed once and shared by its group; gradients flow through it.
  Nats, at the given temperature, without truncation. A row may hold several outputs
  one after the other (see `r1jax.packing`), told apart by `documents`.

  Args:
    params: of `model`.
    prompts: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S].
    tokens: int32 [P, G, T]; what follows a stop token must be masked by the caller.
    offsets: int32 [P, G, T], position within the output; None is 0, 1, 2, …
    documents: int32 [P, G, T], an id an output; None is one output a row.
    model: the decoder's functions.
    temperature: divides the logits, above 0.
  """
  groups, group_size, length = tokens.shape
  rows = groups * group_size
  last_PD, prompt, length_P = _prefill(params, prompts, prompt_mask, model)
  tokens_BT = tokens.reshape(rows, length)
  if offsets is None:
    offsets = jnp.broadcast_to(jnp.arange(length)[None, None], tokens.shape)
  if documents is None:
    documents = jnp.zeros_like(tokens)
  offset_BT, document_BT = offsets.reshape(rows, -1), documents.reshape(rows, -1)
  # An output's first token comes after the prompt, any other after the one before it.
  hidden_BTD = jnp.repeat(last_PD, group_size, axis=0)[:, None]
  if length > 1:  # the last token is predicted, never read
    position_BT = jnp.repeat(length_P, group_size)[:, None] + offset_BT
    rest_BTD, _ = model.forward(
      params, tokens_BT[:, :-1], position_BT[:, :-1], document_BT[:, :-1], [prompt]
    )
    rest_BTD = jnp.where(offset_BT[:, 1:, None] == 0, hidden_BTD, rest_BTD)
    hidden_BTD = jnp.concatenate([hidden_BTD, rest_BTD], axis=1)
  logits_BTV = model.logits(params, hidden_BTD) / temperature
  logp_BT, entropy_BT = token_logp(logits_BTV, tokens_BT)
  return logp_BT.reshape(tokens.shape), entropy_BT.reshape(tokens.shape)
