"""Sampling completions: prefill each prompt once, then decode its G samples.

`sample` and `score.score_tokens` are two sides of one computation: both attend to the
same segments, the prompt (shared by its group) and the completion's own past. Neither
knows the model (they take its functions), nor what tokens mean.

The decode loop writes to a block of the cache that doubles in length when it is full.
When only a third of the rows are unfinished, those are gathered into a smaller batch
("compaction"), and again when a third of these are left.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.sampling.cache import (
  CACHE_BLOCK,
  by_layer,
  empty_block,
  for_writing,
  join_blocks,
  map_columns,
  slice_columns,
)
from r1jax.sampling.decoder_api import DecoderFns, read_prompts
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.trees import KVByLayer, Segment

# Rows that are not done are moved together when they are a third of all. Thirds were as
# fast as halves, on lengths with a long tail, with half as many loops to compile.
COMPACTION = 3
MIN_ROWS = 8  # a step of fewer takes about as long


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Completions:
  """Sampled completions, each field [P, G, T]; after the stop token all are 0."""

  tokens: jax.Array  # int32
  mask: jax.Array  # bool, true up to and including the stop token
  logp: jax.Array  # float32, nats, after temperature, top-k and top-p


def _put_column(array_BT: jax.Array, x_B: jax.Array, column: jax.Array) -> jax.Array:
  x_B1 = x_B[:, None].astype(array_BT.dtype)
  return jax.lax.dynamic_update_slice_in_dim(array_BT, x_B1, column, axis=1)


class _State(NamedTuple):
  """The carry of the decode loop: B completions, all at position `t`."""

  t: jax.Array  # int32 [], position of the newest token
  tokens: jax.Array  # int32 [B, T]
  mask: jax.Array  # bool [B, T]
  logp: jax.Array  # float32 [B, T]
  done: jax.Array  # bool [B]
  row: jax.Array  # int32 [B], index among all P * G completions

  def unfinished(self, more_than: int) -> jax.Array:
    """Whether more rows than this are unfinished, and t is not the last position."""
    before_end = self.t < self.tokens.shape[1] - 1
    return before_end & (jnp.sum(~self.done) > more_than)


# (state, context, column) -> the next state, and the context's last segment written
_Step = Callable[[_State, Sequence[Segment], jax.Array], tuple[_State, KVByLayer]]


def sample(
  params: optax.Params,
  keys: jax.Array,
  prompts: jax.Array,
  prompt_mask: jax.Array,
  *,
  model: DecoderFns,
  config: SamplingConfig,
  group_size: int,
  max_length: int,
  stop_ids: Sequence[int],
  temperature: jax.Array | None = None,
  compact: bool = True,
) -> Completions:
  """Samples G completions of each prompt, of at most `max_length` tokens.

  Args:
    params: of `model`.
    keys: [P]; a prompt's samples use only its own key, and at position t the key
      `fold_in(key, t)`. So they don't depend on the other prompts of the batch.
    prompts: int32 [P, S], padded on the left.
    prompt_mask: bool [P, S], true on real tokens.
    model: the decoder's functions.
    config: temperature, top-k and top-p.
    group_size: G.
    max_length: T.
    stop_ids: a completion ends with any of these tokens.
    temperature: overrides the config's, so that a schedule does not recompile.
    compact: whether to gather unfinished rows when few are left; False where rows are
      sharded over devices.
  """
  if temperature is None:
    temperature = jnp.float32(config.temperature)
  rows = prompts.shape[0] * group_size
  stops = jnp.asarray(stop_ids, jnp.int32)
  last_PD, (prompt_kv, _), length_P = read_prompts(params, prompts, prompt_mask, model)
  decode = model.make_decode(params)

  def choose(t: jax.Array, logits_BV: jax.Array, row_B: jax.Array):
    uniform_PG = jax.vmap(
      lambda key: jax.random.uniform(jax.random.fold_in(key, t), (group_size,))
    )(keys)
    # Indexed by the row's number, so compaction does not change the draws.
    return sample_token(uniform_PG.reshape(-1)[row_B], logits_BV, config, temperature)

  def step(
    state: _State, context: Sequence[Segment], column: jax.Array
  ) -> tuple[_State, KVByLayer]:
    """Feeds the token at t and draws the one at t + 1; writes to the last segment."""
    t, tokens, mask, logp, done_B, row_B = state
    token_B = jax.lax.dynamic_index_in_dim(tokens, t, axis=1, keepdims=False)
    position_B = length_P[row_B // group_size] + t
    hidden_BD, written = decode(token_B, position_B, context, column)
    token_B, logp_B = choose(t + 1, model.logits(params, hidden_BD), row_B)
    put = functools.partial(_put_column, column=t + 1)
    tokens = put(tokens, jnp.where(done_B, 0, token_B))
    logp = put(logp, jnp.where(done_B, 0.0, logp_B))
    mask = put(mask, ~done_B)
    done_B |= jnp.isin(token_B, stops)
    return _State(t + 1, tokens, mask, logp, done_B, row_B), written

  # All samples of a group draw their first token from the same distribution.
  row_B = jnp.arange(rows)
  logits_BV = jnp.repeat(model.logits(params, last_PD), group_size, axis=0)
  token_B, logp_B = choose(jnp.int32(0), logits_BV, row_B)
  state = _first_state(token_B, logp_B, jnp.isin(token_B, stops), max_length)
  if max_length > 1:
    prompt = (by_layer(prompt_kv), prompt_mask)
    state, past = _decode_in_blocks(state, prompt, step, compact)
    segment = functools.partial(_with_prompt, prompt, row_B // group_size, past)
    state = _decode_compacted(state, segment, step, compact)
  shape = (prompts.shape[0], group_size, max_length)
  completed = (state.tokens, state.mask, state.logp)
  return Completions(*(x.reshape(shape) for x in completed))


def _first_state(
  token_B: jax.Array, logp_B: jax.Array, done_B: jax.Array, max_length: int
) -> _State:
  shape = (len(token_B), max_length)
  return _State(
    t=jnp.int32(0),
    tokens=jnp.zeros(shape, jnp.int32).at[:, 0].set(token_B),
    mask=jnp.zeros(shape, bool).at[:, 0].set(True),
    logp=jnp.zeros(shape).at[:, 0].set(logp_B),
    done=done_B,
    row=jnp.arange(len(token_B)),
  )


def _compacted_rows(rows: int, compact: bool) -> int:
  """Returns the batch size after the next compaction; 0 for none."""
  compacted = rows // COMPACTION
  return compacted if compact and compacted >= MIN_ROWS else 0


def _decode_in_blocks(
  state: _State, prompt: Segment, step: _Step, compact: bool
) -> tuple[_State, KVByLayer]:
  """Decodes until the first compaction; returns all keys and values by layer too."""
  rows, max_length = state.tokens.shape
  compacted = _compacted_rows(rows, compact)
  blocks: list[KVByLayer] = []
  start = 0
  while start < max_length - 1:
    width = min(max(CACHE_BLOCK, start), max_length - 1 - start)
    full = [(block, jnp.ones((1, block[0].k.shape[-1]), bool)) for block in blocks]

    def unfinished(carry, end=start + width):
      state, _ = carry
      return (state.t < end) & state.unfinished(more_than=compacted)

    def body(carry, start=start, width=width, full=full):
      state, block = carry
      column = state.t - start
      seen = (jnp.arange(width) <= column)[None]
      return step(state, [prompt, *full, (block, seen)], column)

    empty = [empty_block(kv, rows, width) for kv in prompt[0]]  # of each layer
    state, block = jax.lax.while_loop(unfinished, body, (state, empty))
    # Full blocks are only read.
    blocks.append(jax.tree.map(lambda x, kv: x.astype(kv.dtype), block, prompt[0]))
    start += width
  return state, [join_blocks(*kvs) for kvs in zip(*blocks, strict=True)]


def _decode_compacted(
  state: _State,
  segment: Callable[[jax.Array], Segment],
  step: _Step,
  compact: bool,
) -> _State:
  """Gathers the unfinished rows, a third of all, decodes them and scatters them back.

  `segment(rows)` returns, by layer, the keys and values of these rows' prompts and
  outputs as one segment, with space for those to come, and its mask.
  """
  compacted = _compacted_rows(len(state.done), compact)
  if not compacted:
    return state

  def rest(state: _State) -> _State:
    kept = jnp.argsort(state.done)[:compacted]  # stable: unfinished rows come first
    few = jax.tree.map(lambda x: x[kept] if x.ndim else x, state)
    past, mask = segment(kept)
    past = for_writing(past)
    few, past = _decode_in_segment(few, past, mask, step, compact)

    def own_segment(rows: jax.Array) -> Segment:
      return jax.tree.map(lambda x: x[rows], (past, mask))

    few = _decode_compacted(few, own_segment, step, compact)
    return jax.tree.map(
      lambda all_rows, x: all_rows.at[kept].set(x) if x.ndim else x, state, few
    )

  return jax.lax.cond(state.unfinished(more_than=0), rest, lambda state: state, state)


def _decode_in_segment(
  state: _State,
  past: KVByLayer,
  mask: jax.Array,
  step: _Step,
  compact: bool,
) -> tuple[_State, KVByLayer]:
  """Decodes with one segment, first with only the first half of its positions."""
  columns = mask.shape[1]
  first = columns - (state.tokens.shape[1] - 1)  # column of the outputs' first token
  compacted = _compacted_rows(len(state.done), compact)
  halves = [columns // 2] if columns // 2 > first + CACHE_BLOCK else []
  for width in [*halves, columns]:

    def unfinished(carry, width=width):
      state, _ = carry
      return (first + state.t < width) & state.unfinished(more_than=compacted)

    def body(carry, width=width):
      state, near = carry
      column = first + state.t
      seen = mask[:, :width] & (jnp.arange(width) <= column)[None]
      return step(state, [(near, seen)], column)

    near = [slice_columns(kv, 0, width) for kv in past]
    state, near = jax.lax.while_loop(unfinished, body, (state, near))
    past = [
      join_blocks(kv, slice_columns(far, width, None))
      for kv, far in zip(near, past, strict=True)
    ]
  return state, past


def _with_prompt(
  prompt: Segment, prompt_B: jax.Array, past: KVByLayer, rows: jax.Array
) -> Segment:
  """Returns the rows' prompts and outputs as one segment by layer, and its mask.

  `prompt_B` is each row's index into the prompts' segment.
  """
  prompt_kvs, prompt_mask = prompt

  def join(axis: int, prompt: jax.Array, past: jax.Array) -> jax.Array:
    prompt, past = prompt[prompt_B[rows]], past[rows]
    shape = past.shape[:-2] + prompt.shape[-2:]  # without K as in `empty_block`
    return jnp.concatenate([prompt.reshape(shape), past], axis)

  joined = [
    map_columns(join, prompt_kv, kv)
    for prompt_kv, kv in zip(prompt_kvs, past, strict=True)
  ]
  outputs = [(0, 0), (0, past[0].k.shape[-1])]
  return joined, jnp.pad(prompt_mask[prompt_B[rows]], outputs, constant_values=True)
