"""Continuous batching with fixed shapes: a finished output's slot gets the next one.

`generate.sample` decodes all outputs at once, and its last steps have few unfinished
rows. Here B slots decode N outputs: the cache has space for B, and while outputs wait,
a step has few slots that are done. The draws are those of `generate.sample`.

A few outputs are long when the others are short. So the past has segments, each as wide
as all newer ones, and the older a segment is, the fewer slots read it: a step has one
of several sizes. When a block is full, the slots are sorted and the size is chosen.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax.sampling.cache import by_layer
from r1jax.sampling.decoder_api import DecoderFns, read_prompts
from r1jax.sampling.generate import Completions
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sampling.slots import (
  BLOCK,
  Block,
  Queue,
  Slots,
  append,
  empty_columns,
  empty_slots,
  in_parts,
  new_block,
  refill,
)
from r1jax.trees import Decode, KVByLayer

WIDTHS = 1, 1, 2, 4  # of the past's segments, from the newest
FEWER = 4  # fewer rows are decoded when one of so many is left
MIN_ROWS = 8  # a step of fewer takes about as long
IDLE = 8  # slots are refilled when one of so many is done


class _Size(NamedTuple):
  """The size of a step."""

  rows: int  # the first so many slots are decoded
  read: tuple[int, ...]  # the first so many attend to each segment of the past


class _Carry(NamedTuple):
  """The carry of the loop over blocks."""

  slots: Slots
  past: list[KVByLayer]  # segments from the newest
  following: jax.Array  # int32 [shards], outputs taken from the queue
  size: jax.Array  # int32 [], which `_Size` the steps have
  tokens: jax.Array  # int32 [N, T]
  logp: jax.Array  # float32 [N, T]


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
  temperature: jax.Array,
  slots: int,
  shards: int = 1,
) -> Completions:
  """Returns the completions of `generate.sample`, decoded `slots` at a time.

  They are equal but for rounding. The other arguments are those of `generate.sample`.

  Args:
    params, keys, prompts, prompt_mask, model, config, group_size, max_length, stop_ids,
      temperature: see `generate.sample`.
    slots: B, outputs that are decoded at a time.
    shards: number of equal parts of prompts and slots; each part of the slots takes its
      outputs from the same part of the prompts.
  """
  stops = jnp.asarray(stop_ids, jnp.int32)

  def draw(
    row_B: jax.Array, t_B: jax.Array, logits_BV: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    def uniform(row: jax.Array, t: jax.Array) -> jax.Array:
      key = jax.random.fold_in(keys[row // group_size], t)
      return jax.random.uniform(key, (group_size,))[row % group_size]

    return sample_token(jax.vmap(uniform)(row_B, t_B), logits_BV, config, temperature)

  def first(
    prompts: jax.Array, mask: jax.Array, row_PG: jax.Array
  ) -> tuple[Queue, jax.Array]:
    """Returns the prompts' part of the queue, and its tokens' log-probs [P, G]."""
    last_PD, (kv, _), length_P = read_prompts(params, prompts, mask, model)
    logits_BV = jnp.repeat(model.logits(params, last_PD), group_size, axis=0)
    row_B = row_PG.reshape(-1)
    token_B, logp_B = draw(row_B, jnp.zeros_like(row_B), logits_BV)
    token_PG, logp_PG = token_B.reshape(row_PG.shape), logp_B.reshape(row_PG.shape)
    ended_PG = jnp.isin(token_PG, stops)
    return Queue(by_layer(kv), mask, length_P, token_PG, ended_PG), logp_PG

  every = jnp.arange(len(prompts) * group_size).reshape(len(prompts), -1)
  most = slots // shards // group_size
  queue, logp = in_parts(first, (prompts, prompt_mask, every), most, shards)
  queue = queue._replace(token=queue.token.reshape(-1), ended=queue.ended.reshape(-1))
  decoding = _Decoding(
    decode=model.make_decode(params),
    logits=functools.partial(model.logits, params),
    draw=draw,
    stops=stops,
    queue=queue,
    max_length=max_length,
    slots=slots,
    shards=shards,
  )
  carry = decoding.start(logp.reshape(-1))
  if max_length > 1:
    carry = jax.lax.while_loop(decoding.unfinished, decoding.block, carry)
  stop = jnp.isin(carry.tokens, stops)
  mask = jnp.cumsum(stop, axis=1) - stop == 0
  shape = (len(prompts), group_size, max_length)
  return Completions(*(x.reshape(shape) for x in (carry.tokens, mask, carry.logp)))


def _sizes(slots: int, shards: int) -> list[_Size]:
  """Returns the sizes of a step, in ascending order of their work."""
  whole = _Size(slots, (slots,) * len(WIDTHS))
  newest = _Size(slots, (slots, *[0] * (len(WIDTHS) - 1)))
  if shards > 1:  # the first slots of all are not those of each device
    return [newest, whole]
  halves = [slots >> n for n in range(len(WIDTHS))]
  stairs = [_Size(slots, (*[slots] * n, *halves)[: len(WIDTHS)]) for n in (0, 1)]
  fewer, few = [], slots // FEWER
  while few >= MIN_ROWS:
    fewer.append(_Size(few, (few,) * len(WIDTHS)))
    few //= FEWER
  return [*reversed(fewer), newest, *stairs, whole]


@dataclasses.dataclass(frozen=True)
class _Decoding:
  """What the loop's functions share.

  Fields:
    decode: see `DecoderFns.make_decode`.
    logits: hidden states -> logits.
    draw: (rows, positions, logits) -> tokens and their log-probs.
    stops: int32 tokens that end an output.
    queue: prompts and first tokens.
    max_length: T, tokens.
    slots: B.
    shards: of slots and of the queue.
  """

  decode: Decode
  logits: Callable[[jax.Array], jax.Array]
  draw: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
  stops: jax.Array
  queue: Queue
  max_length: int
  slots: int
  shards: int

  @property
  def widths(self) -> list[int]:
    """Columns of the past's segments, from the newest."""
    unit = -(-(self.max_length - 1) // sum(WIDTHS))
    return [width * unit for width in WIDTHS]

  @functools.cached_property
  def sizes(self) -> list[_Size]:
    """The sizes of a step."""
    return _sizes(self.slots, self.shards)

  def start(self, logp_N: jax.Array) -> _Carry:
    """Returns the first carry, given the first log-probs; the slots are empty."""
    shape = len(logp_N), self.max_length
    slots = empty_slots(self.queue, self.slots)
    following = jnp.zeros(self.shards, jnp.int32)
    return _Carry(
      slots,
      [empty_columns(self.queue, self.slots, width) for width in self.widths],
      following,
      self.size(slots, following),
      jnp.zeros(shape, jnp.int32).at[:, 0].set(self.queue.token),
      jnp.zeros(shape).at[:, 0].set(logp_N),
    )

  def waits(self, following: jax.Array) -> jax.Array:
    """Returns whether outputs wait, bool [shards]."""
    return following < len(self.queue.token) // self.shards

  def unfinished(self, carry: _Carry) -> jax.Array:
    """Returns whether an output waits or is in a slot."""
    return ~carry.slots.done.all() | self.waits(carry.following).any()

  def block(self, carry: _Carry) -> _Carry:
    """Decodes a block of columns, appends it to the past and sorts the slots."""
    branches = [functools.partial(self.turns, size) for size in self.sizes]
    slots, block, following = jax.lax.switch(
      carry.size, branches, carry.slots, carry.past, carry.following
    )
    slots, past = append(slots, carry.past, block, self.shards)
    place = block.row, block.t
    return _Carry(
      slots,
      past,
      following,
      self.size(slots, following),
      carry.tokens.at[place].set(block.token, mode='drop'),
      carry.logp.at[place].set(block.logp, mode='drop'),
    )

  def size(self, slots: Slots, following: jax.Array) -> jax.Array:
    """Returns the first of the sizes that slots need; they are sorted."""
    active = (~slots.done).sum()
    none_waits = ~self.waits(following).any()
    newer = [0, *itertools.accumulate(self.widths)]  # columns newer than each segment
    need = [(slots.age > columns).sum() for columns in newer[:-1]]
    fits = [
      jnp.all(jnp.stack(need) <= jnp.array(size.read))
      & ((size.rows == self.slots) | none_waits & (active <= size.rows))
      for size in self.sizes
    ]
    return jnp.argmax(jnp.stack(fits))

  def turns(
    self, size: _Size, slots: Slots, past: list[KVByLayer], following: jax.Array
  ) -> tuple[Slots, Block, jax.Array]:
    """Decodes a block of columns; refills slots as they are done."""
    read = [
      jax.tree.map(lambda x, rows=rows: x[:rows], segment)
      for segment, rows in zip(past, size.read, strict=True)
      if rows
    ]
    step = functools.partial(self.step, read)
    whole = slots, new_block(self.queue, self.slots)
    first = jax.tree.map(lambda x: x[: size.rows] if x.ndim else x, whole)

    def unfinished(carry: tuple[Slots, Block, jax.Array]) -> jax.Array:
      slots, block, following = carry
      active = ~slots.done.all() | self.waits(following).any()
      return (block.column < BLOCK) & active

    def turn(carry: tuple[Slots, Block, jax.Array]) -> tuple[Slots, Block, jax.Array]:
      slots, block, following = carry
      slots, following = refill(slots, following, self.queue, block.column, self.shards)
      more = functools.partial(self.more, self.waits(following))
      return *jax.lax.while_loop(more, step, (slots, block)), following

    *some, following = jax.lax.while_loop(unfinished, turn, (*first, following))
    slots, block = jax.tree.map(
      lambda every, x: every.at[: size.rows].set(x) if x.ndim else x, whole, tuple(some)
    )
    return slots, block, following

  def more(self, waits: jax.Array, carry: tuple[Slots, Block]) -> jax.Array:
    """Returns whether to decode a step before slots are refilled."""
    slots, block = carry
    done = slots.done.reshape(self.shards, -1).sum(1)
    due = waits & (IDLE * done >= self.slots // self.shards)
    return (block.column < BLOCK) & ~due.any() & ~slots.done.all()

  def step(
    self, past: list[KVByLayer], carry: tuple[Slots, Block]
  ) -> tuple[Slots, Block]:
    """Feeds the newest tokens and draws the next ones."""
    slots, block = carry
    context, newer = [], 0
    for segment, width in zip(past, self.widths, strict=False):
      newer += width
      back = newer - jnp.arange(width)  # columns from here to the block
      context.append((segment, back[None] <= slots.age[:, None]))
    # In the order of the text, by which windows find the positions of keys.
    context = [(slots.prompt, slots.prompt_mask), *reversed(context)]
    column, columns = block.column, jnp.arange(BLOCK)[None]
    seen = (slots.start[:, None] <= columns) & (columns <= column)
    hidden_BD, kv = self.decode(
      slots.token, slots.length + slots.t, [*context, (block.kv, seen)], column
    )
    t = slots.t + 1
    token, logp = self.draw(slots.row, t, self.logits(hidden_BD))

    def put(into: jax.Array, x: jax.Array) -> jax.Array:
      x = x[:, None].astype(into.dtype)
      return jax.lax.dynamic_update_slice_in_dim(into, x, column, 1)

    none = len(self.queue.token)
    block = Block(
      kv=kv,
      column=column + 1,
      row=put(block.row, jnp.where(slots.done, none, slots.row)),
      t=put(block.t, t),
      token=put(block.token, token),
      logp=put(block.logp, logp),
    )
    done = slots.done | jnp.isin(token, self.stops) | (t == self.max_length - 1)
    return slots._replace(t=t, token=token, done=done), block
