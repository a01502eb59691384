"""The kernels of flash attention for GPUs, written in Pallas and compiled by Triton.

FlashAttention-2 (https://arxiv.org/abs/2307.08691, algorithms 1 and 2), for what a
query sees here: of the keys before its row what a mask says, and of its own row a run
of positions up to itself. Blocks of keys that no query of a block sees are not read.
The kernel that JAX brings along for GPUs takes neither keys before a row, nor a part of
a row's queries, nor values of another width than keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from r1jax.sharding.constrain import platform

# Of a block; lengths are multiples of both. In larger ones gradients of keys and values
# of 128 channels would not stay in the registers of a program.
QUERIES = 128
KEYS = 64
NARROWEST = 16  # channels that a tensor core's product has at least
WIDEST = 768  # bytes of a key and its value; blocks of wider ones overflow an A100
MASKED = -1e30


class _Sight(NamedTuple):
  """What the queries of a block see."""

  begin: jax.Array  # int32 [Q], the first position of their row
  place: jax.Array  # int32 [Q], the last one: their own
  before: int  # keys before the row's own

  def blocks(self) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """How many blocks of keys these are, and which is the nth."""
    context = -(-self.before // KEYS)
    start = jnp.maximum(context, _div(self.before + jnp.min(self.begin), KEYS))
    stop = _div(self.before + jnp.max(self.place), KEYS) + 1
    count = context + jnp.maximum(stop - start, 0)
    return count, lambda n: jnp.where(n < context, n, n - context + start)

  def scores(self, q: jax.Array, k: jax.Array, mask: jax.Array, block: Any):
    """Products of queries [Q, C] with a block of keys [S, C], as far as seen."""
    own = (block * KEYS + jnp.arange(KEYS) - self.before)[None]
    in_row = (own >= self.begin[:, None]) & (own <= self.place[:, None])
    seen = jnp.where(own < 0, mask[None] != 0, in_row)
    return jnp.where(seen, triton.dot(q, k.T), MASKED)


def _div(x: jax.Array, y: int) -> jax.Array:
  """x // y of what is not negative; JAX cannot lower the operator for Triton."""
  return jax.lax.div(x, jnp.int32(y))


def attend(
  q_BTHC: jax.Array,
  k_BSKC: jax.Array,
  v_BSKC: jax.Array,
  begin_BT: jax.Array,
  place_BT: jax.Array,
  mask_BS: jax.Array,
  before: int,
) -> jax.Array:
  """Returns softmax(q k^T) v over what each query sees, [B, T, H, C of v].

  Args:
    q_BTHC: queries, scaled.
    k_BSKC: keys, of which the first `before` are not of the queries' own row.
    v_BSKC: values.
    begin_BT: int32, the first position of its row that a query sees, rising along T.
    place_BT: int32, its own position, the last one; rising along T.
    mask_BS: int32, nonzero for keys before the row that every query sees.
    before: keys before the row.
  """
  channels = v_BSKC.shape[-1]
  wide = (_wider(x) for x in (q_BTHC, k_BSKC, v_BSKC))
  return _attend(before, *wide, begin_BT, place_BT, mask_BS)[..., :channels]


def fits(q_BTHC: jax.Array, value_channels: int) -> bool:
  """Whether keys as wide as queries, and values, are narrow enough."""
  channels = _width(q_BTHC.shape[-1]) + _width(value_channels)
  return channels * q_BTHC.dtype.itemsize <= WIDEST


def _width(channels: int) -> int:
  """Channels that Triton takes, at least as many."""
  return max(pl.next_power_of_2(channels), NARROWEST)


def _wider(x: jax.Array) -> jax.Array:
  """With zeros up to a width that Triton takes."""
  more = _width(x.shape[-1]) - x.shape[-1]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(before: int, *args: jax.Array) -> jax.Array:
  return _forward(before, *args)[0]


def _forward(
  before: int, *args: jax.Array
) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], jax.Array, jax.Array]]:
  """Outputs; and what gradients need, with log-sum-exps of scores [B, H, T]."""

  def kernel(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, out_ref, total_ref = refs
    q, sight = q_ref[...], _Sight(begin_ref[...], place_ref[...], before)
    count, nth = sight.blocks()

    def body(n, carry):
      out, top, total = carry
      at = pl.ds(nth(n) * KEYS, KEYS)
      scores = sight.scores(q, k_ref[at, :], mask_ref[at], nth(n))
      higher = jnp.maximum(top, scores.max(1))
      weights, shrink = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
      v = v_ref[at, :]
      out = out * shrink[:, None] + triton.dot(weights.astype(v.dtype), v)
      return out, higher, total * shrink + weights.sum(1)

    nothing = jnp.zeros(out_ref.shape, jnp.float32), jnp.full(QUERIES, MASKED)
    out, top, total = jax.lax.fori_loop(0, count, body, (*nothing, jnp.zeros(QUERIES)))
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    total_ref[...] = top + jnp.log(total)

  q, _, v, *_ = args
  block = _Blocks.of_queries(*args)
  out_shape = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[-1]), q.dtype)
  total_shape = jax.ShapeDtypeStruct((q.shape[0], *q.shape[2:0:-1]), jnp.float32)
  out, total = pl.pallas_call(
    kernel,
    grid=block.grid,
    in_specs=block.args,
    out_specs=(block.out, block.total),
    out_shape=(out_shape, total_shape),
    **_compiled('flash_fwd', q),
  )(*args)
  return out, (args, out, total)


def _backward(
  before: int, saved: Any, d_out: jax.Array
) -> tuple[jax.Array | None, ...]:
  args, out, total = saved
  q, k, v, *_ = args
  delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
  inputs = *args, d_out, total, jnp.swapaxes(delta, 1, 2)

  def of_queries(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, *more = refs
    d_out, total, delta = (ref[...] for ref in more[:3])
    q, sight = q_ref[...], _Sight(begin_ref[...], place_ref[...], before)
    count, nth = sight.blocks()

    def body(n, dq):
      at = pl.ds(nth(n) * KEYS, KEYS)
      k = k_ref[at, :]
      scores = sight.scores(q, k, mask_ref[at], nth(n))
      _, d_scores = _gradients(scores, total, d_out, v_ref[at, :], delta)
      return dq + triton.dot(d_scores.astype(k.dtype), k)

    dq_ref = more[3]
    dq = jax.lax.fori_loop(0, count, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)

  def of_keys(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, *more = refs
    d_out_ref, total_ref, delta_ref, dk_ref, dv_ref = more
    length, repeats, _ = q_ref.shape
    k, v, mask, block = k_ref[...], v_ref[...], mask_ref[...], pl.program_id(2)
    # Places rise by one at most, so queries before these do not see the first key.
    own = block * KEYS - before
    start = jnp.where(own < 0, 0, _div(jnp.maximum(own - place_ref[0], 0), KEYS))

    def body(n, carry):
      dk, dv = carry
      at = pl.ds((start + _div(n, repeats)) * KEYS, KEYS)
      head = n - _div(n, repeats) * repeats
      q, d_out = q_ref[at, head, :], d_out_ref[at, head, :]
      sight = _Sight(begin_ref[at], place_ref[at], before)
      scores = sight.scores(q, k, mask, block)
      of_head = total_ref[head, at], d_out, v, delta_ref[head, at]
      weights, d_scores = _gradients(scores, *of_head)
      dk = dk + triton.dot(d_scores.astype(q.dtype).T, q)
      return dk, dv + triton.dot(weights.astype(d_out.dtype).T, d_out)

    count = jnp.maximum(length // KEYS - start, 0) * repeats
    nothing = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, count, body, nothing)
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)

  block = _Blocks.of_queries(*args)
  dq = pl.pallas_call(
    of_queries,
    grid=block.grid,
    in_specs=(*block.args, block.out, block.total, block.total),
    out_specs=block.args[0],
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    **_compiled('flash_dq', q),
  )(*inputs)
  block = _Blocks.of_keys(*args)
  dk, dv = pl.pallas_call(
    of_keys,
    grid=block.grid,
    in_specs=(*block.args, block.out, block.total, block.total),
    out_specs=block.args[1:3],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    **_compiled('flash_dkv', q),
  )(*inputs)
  return dq, dk, dv, None, None, None


_attend.defvjp(_forward, _backward)


def _gradients(
  scores: jax.Array, total: jax.Array, d_out: jax.Array, v: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The weights of keys [Q, S], and the gradients of their scores."""
  weights = jnp.exp(scores - total[:, None])
  return weights, weights * (triton.dot(d_out, v.T) - delta[:, None])


class _Blocks(NamedTuple):
  """What each program of a kernel is given of the arrays."""

  grid: tuple[int, int, int]
  args: tuple[pl.BlockSpec, ...]  # queries, keys, values, begin, place, mask
  out: pl.BlockSpec
  total: pl.BlockSpec  # and delta

  @classmethod
  def of_queries(cls, q, k, v, begin, place, mask) -> Self:
    """A block of one head's queries, and all keys of the head that it shares."""
    del begin, place
    rows, length, heads, channels = q.shape
    repeats, keys, wide = heads // k.shape[2], mask.shape[1], v.shape[-1]

    def part(x: int) -> pl.BlockSpec:
      return pl.BlockSpec((None, QUERIES, None, x), lambda b, h, n: (b, n, h, 0))

    def whole(x: int) -> pl.BlockSpec:
      return pl.BlockSpec(
        (None, keys, None, x), lambda b, h, n: (b, 0, h // repeats, 0)
      )

    places = pl.BlockSpec((None, QUERIES), lambda b, h, n: (b, n))
    mask_block = pl.BlockSpec((None, keys), lambda b, h, n: (b, 0))
    args = part(channels), whole(channels), whole(wide), places, places, mask_block
    total = pl.BlockSpec((None, None, QUERIES), lambda b, h, n: (b, h, n))
    return cls((rows, heads, length // QUERIES), args, part(wide), total)

  @classmethod
  def of_keys(cls, q, k, v, begin, place, mask) -> Self:
    """A block of one head's keys, and all queries of the heads that share them."""
    del begin, place
    rows, length, heads, channels = q.shape
    repeats, wide = heads // k.shape[2], v.shape[-1]

    def part(x: int) -> pl.BlockSpec:
      return pl.BlockSpec((None, KEYS, None, x), lambda b, h, n: (b, n, h, 0))

    def whole(x: int) -> pl.BlockSpec:
      return pl.BlockSpec((None, length, repeats, x), lambda b, h, n: (b, 0, h, 0))

    places = pl.BlockSpec((None, length), lambda b, h, n: (b, 0))
    mask_block = pl.BlockSpec((None, KEYS), lambda b, h, n: (b, n))
    args = whole(channels), part(channels), part(wide), places, places, mask_block
    total = pl.BlockSpec((None, repeats, length), lambda b, h, n: (b, h, 0))
    return cls((rows, k.shape[2], mask.shape[1] // KEYS), args, whole(wide), total)


def _compiled(name: str, q: jax.Array) -> dict[str, Any]:
  return {
    'name': name,
    'interpret': platform() != 'gpu',
    'compiler_params': triton.CompilerParams(
      num_warps=4 if q.shape[-1] < 64 else 8, num_stages=2
    ),
  }
