"""The slots of continuous batching: which output each holds, and its keys and values.

All slots write to the same column of a block, whatever the positions of their tokens.
So an output has consecutive columns, and the newest token is in the newest column: the
number of columns, the output's age, is its mask. A full block is appended to the past,
and the slots are sorted by age, so that those which need the older past come first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVarTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.sampling.cache import empty_block, join_blocks, slice_columns
from r1jax.sharding.constrain import constrain_rows
from r1jax.trees import KV, KVByLayer, T

Ts = TypeVarTuple('Ts')
BLOCK = 64  # columns that are written until the slots are sorted


class Queue(NamedTuple):
  """P prompts and the first tokens of N = P * G outputs, which wait for a slot."""

  prompt: KVByLayer  # [P, ...]
  prompt_mask: jax.Array  # bool [P, S]
  length: jax.Array  # int32 [P], tokens of the prompt
  token: jax.Array  # int32 [N]
  ended: jax.Array  # bool [N], whether the output ends with its first token


class Slots(NamedTuple):
  """B slots; one that is done waits for another output."""

  row: jax.Array  # int32 [B], number of the output among all N
  t: jax.Array  # int32 [B], position of the newest token
  token: jax.Array  # int32 [B], the newest token
  done: jax.Array  # bool [B]
  prompt: KVByLayer  # [B, ...]
  prompt_mask: jax.Array  # bool [B, S]
  length: jax.Array  # int32 [B], tokens of the prompt
  age: jax.Array  # int32 [B], columns of the past that belong to the output
  start: jax.Array  # int32 [B], its first column in the block


class Block(NamedTuple):
  """The columns that are written, and what was drawn at each."""

  kv: KVByLayer
  column: jax.Array  # int32 [], the next to write
  row: jax.Array  # int32 [B, BLOCK], number of the output; N where nothing was drawn
  t: jax.Array  # int32 [B, BLOCK]
  token: jax.Array  # int32 [B, BLOCK]
  logp: jax.Array  # float32 [B, BLOCK]


def empty_slots(queue: Queue, count: int) -> Slots:
  """Returns slots that are all done."""
  zero = jnp.zeros(count, jnp.int32)
  prompt, mask = jax.tree.map(
    lambda x: constrain_rows(jnp.zeros((count, *x.shape[1:]), x.dtype)),
    (queue.prompt, queue.prompt_mask),
  )
  done = jnp.ones(count, bool)
  return Slots(zero, zero, zero, done, prompt, mask, zero, zero, zero)


def empty_columns(queue: Queue, count: int, width: int) -> KVByLayer:
  """Returns columns of zeros for so many slots, in the type of the prompts'."""
  columns = [empty_block(kv, count, width) for kv in queue.prompt]
  return jax.tree.map(lambda x, kv: x.astype(kv.dtype), columns, queue.prompt)


def new_block(queue: Queue, count: int) -> Block:
  """Returns a block to write to for so many slots."""
  none = jnp.zeros((count, BLOCK), jnp.int32)
  return Block(
    kv=[empty_block(kv, count, BLOCK) for kv in queue.prompt],
    column=jnp.int32(0),
    row=none + len(queue.token),
    t=none,
    token=none,
    logp=jnp.zeros((count, BLOCK)),
  )


def by_shard(shards: int, function: Callable[[*Ts], T], *trees: *Ts) -> T:
  """Maps a function over equal parts of the first axis of all arrays.

  What slots get and give stays on their device if the parts are the devices'.
  """

  def split(x: jax.Array) -> jax.Array:
    return x.reshape(shards, -1, *x.shape[1:])

  found = jax.vmap(function)(*jax.tree.map(split, trees))
  return jax.tree.map(lambda x: constrain_rows(x.reshape(-1, *x.shape[2:])), found)


def in_parts(
  function: Callable[..., T], arrays: tuple[jax.Array, ...], most: int, shards: int
) -> T:
  """Returns function(*arrays), computed for a part of the first axis at a time.

  A part has an equal number of each shard's rows, `most` or less, but one at least. So
  prompts take no more memory than the outputs that are decoded.
  """
  each = len(jax.tree.leaves(arrays)[0]) // shards
  size = max(n for n in range(1, max(1, min(most, each)) + 1) if each % n == 0)

  def split(x: jax.Array) -> jax.Array:
    x = x.reshape(shards, -1, size, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(-1, shards * size, *x.shape[3:])

  def join(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, shards, size, *x.shape[2:])
    return constrain_rows(jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:]))

  found = jax.lax.map(lambda part: function(*part), jax.tree.map(split, arrays))
  return jax.tree.map(join, found)


def refill(
  slots: Slots, following: jax.Array, queue: Queue, column: jax.Array, shards: int
) -> tuple[Slots, jax.Array]:
  """Puts the following outputs into the slots that are done; each starts at `column`.

  Returns the slots, and the number of outputs that each shard has taken from its part
  of the queue, [shards], given that number before.
  """
  outputs = len(queue.token) // shards  # of a shard
  group_size = len(queue.token) // len(queue.prompt_mask)

  def fill(
    slots: Slots, following: jax.Array, first: jax.Array, queue: Queue
  ) -> tuple[Slots, jax.Array]:
    number = following[0] + jnp.cumsum(slots.done) - 1
    filled = slots.done & (number < outputs)
    prompt = number // group_size

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
      return jnp.where(filled.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    taken = Slots(
      row=first[0] + number,
      t=jnp.zeros_like(slots.t),
      token=queue.token[number],
      done=queue.ended[number],
      prompt=jax.tree.map(lambda x: x[prompt], queue.prompt),
      prompt_mask=queue.prompt_mask[prompt],
      length=queue.length[prompt],
      age=jnp.zeros_like(slots.age),
      start=jnp.full_like(slots.start, column),
    )
    return jax.tree.map(put, slots, taken), following + filled.sum()

  firsts = jnp.arange(shards) * outputs
  return by_shard(shards, fill, slots, following, firsts, queue)


def append(
  slots: Slots, past: Sequence[KVByLayer], block: Block, shards: int
) -> tuple[Slots, list[KVByLayer]]:
  """Appends a full block to the past and sorts the slots, the oldest first.

  The past is a list of segments, keys and values by layer, of which the first is the
  newest; they keep their widths. Slots that are done are the last.
  """
  widths = [segment[0].k.shape[-1] for segment in past]

  def moved(block: KV, *segments: KV) -> list[KV]:
    """Returns a layer's segments, given the block and those before."""
    block = jax.tree.map(lambda x, like: x.astype(like.dtype), block, segments[0])
    every = join_blocks(*reversed(segments), block)
    ends = np.cumsum([0, *widths])
    total = BLOCK + ends[-1]
    return [
      slice_columns(every, total - ends[n + 1], total - ends[n])
      for n in range(len(widths))
    ]

  layers = [moved(*layer) for layer in zip(block.kv, *past, strict=True)]
  past = [list(segment) for segment in zip(*layers, strict=True)]
  age = jnp.where(slots.done, 0, slots.age + BLOCK - slots.start)
  slots = slots._replace(age=age, start=jnp.zeros_like(slots.start))

  def ordered(slots: Slots, past: list[KVByLayer]) -> tuple[Slots, list[KVByLayer]]:
    order = jnp.argsort(jnp.where(slots.done, 1, -slots.age))
    return jax.tree.map(lambda x: x[order], (slots, past))

  return by_shard(shards, ordered, slots, past)
