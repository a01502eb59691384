"""Flash attention for GPUs: Pallas kernels, compiled by Triton.

FlashAttention-2 (https://arxiv.org/abs/2307.08691, algorithms 1 and 2). A query attends
to the context keys that a mask allows, and to a contiguous range of its own row that
ends with itself. Key blocks that no query of a block sees are skipped. JAX's own GPU
kernel supports neither context keys, nor part of a row's queries, nor values of another
width than keys.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from r1jax.sharding.constrain import platform

# Block sizes; lengths are multiples of both. With larger blocks the gradients of keys
# and values with 128 channels don't fit in a program's registers.
QUERIES = 128
KEYS = 64
MIN_CHANNELS = 16  # of a tensor core's product
MAX_BYTES = 768  # of a key and its value; larger ones don't fit on an A100
MASKED = -1e30


class _Visible(NamedTuple):
  """The keys that the queries of a block attend to."""

  begin: jax.Array  # int32 [Q], the first visible position of the row
  place: jax.Array  # int32 [Q], the last one: the query's own
  before: int  # number of context keys

  def blocks(self) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Returns the number of visible key blocks, and a function n -> nth block."""
    context = -(-self.before // KEYS)
    start = jnp.maximum(context, _div(self.before + jnp.min(self.begin), KEYS))
    stop = _div(self.before + jnp.max(self.place), KEYS) + 1
    count = context + jnp.maximum(stop - start, 0)
    return count, lambda n: jnp.where(n < context, n, n - context + start)

  def scores(self, q: jax.Array, k: jax.Array, mask: jax.Array, block: jax.Array):
    """Returns q k^T for queries [Q, C] and keys [S, C]; MASKED where not visible."""
    own = (block * KEYS + jnp.arange(KEYS) - self.before)[None]
    in_row = (own >= self.begin[:, None]) & (own <= self.place[:, None])
    seen = jnp.where(own < 0, mask[None] != 0, in_row)
    return jnp.where(seen, triton.dot(q, k.T), MASKED)


def _div(x: jax.Array, y: int) -> jax.Array:
  """Returns x // y for x >= 0; JAX cannot lower the operator for Triton."""
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
  """Returns softmax(q k^T) v over the visible keys, [B, T, H, C of v].

  Args:
    q_BTHC: queries, already scaled.
    k_BSKC: keys; the first `before` are the context, then the row's own.
    v_BSKC: values.
    begin_BT: int32, the first position of the row that a query sees; ascending in T.
    place_BT: int32, the query's own position, the last it sees; ascending in T.
    mask_BS: int32, nonzero for context keys that every query sees.
    before: number of context keys.
  """
  channels = v_BSKC.shape[-1]
  padded = (_padded(x) for x in (q_BTHC, k_BSKC, v_BSKC))
  return _attend(before, *padded, begin_BT, place_BT, mask_BS)[..., :channels]


def fits(q_BTHC: jax.Array, value_channels: int) -> bool:
  """Whether a key (as wide as a query) and a value are small enough."""
  channels = _width(q_BTHC.shape[-1]) + _width(value_channels)
  return channels * q_BTHC.dtype.itemsize <= MAX_BYTES


def _width(channels: int) -> int:
  """Returns the number of channels padded to what Triton supports."""
  return max(pl.next_power_of_2(channels), MIN_CHANNELS)


def _padded(x: jax.Array) -> jax.Array:
  """Returns x with zero channels up to `_width`."""
  more = _width(x.shape[-1]) - x.shape[-1]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(before: int, *args: jax.Array) -> jax.Array:
  return _forward(before, *args)[0]


def _forward(
  before: int, *args: jax.Array
) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], jax.Array, jax.Array]]:
  """Returns outputs, and the residuals: inputs, outputs, log-sum-exps [B, H, T]."""

  def kernel(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, out_ref, total_ref = refs
    q, visible = q_ref[...], _Visible(begin_ref[...], place_ref[...], before)
    count, nth = visible.blocks()

    def body(n, carry):
      out, top, total = carry
      at = pl.ds(nth(n) * KEYS, KEYS)
      scores = visible.scores(q, k_ref[at, :], mask_ref[at], nth(n))
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
    **_pallas_options('flash_fwd', q),
  )(*args)
  return out, (args, out, total)


def _backward(
  before: int,
  saved: tuple[tuple[jax.Array, ...], jax.Array, jax.Array],
  d_out: jax.Array,
) -> tuple[jax.Array | None, ...]:
  args, out, total = saved
  delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
  inputs = *args, d_out, total, jnp.swapaxes(delta, 1, 2)
  dq = _query_gradient(before, *inputs)
  return dq, *_key_value_gradients(before, *inputs), None, None, None


def _query_gradient(before: int, *inputs: jax.Array) -> jax.Array:
  def kernel(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, *more = refs
    d_out, total, delta = (ref[...] for ref in more[:3])
    q, visible = q_ref[...], _Visible(begin_ref[...], place_ref[...], before)
    count, nth = visible.blocks()

    def body(n, dq):
      at = pl.ds(nth(n) * KEYS, KEYS)
      k = k_ref[at, :]
      scores = visible.scores(q, k, mask_ref[at], nth(n))
      _, d_scores = _gradients(scores, total, d_out, v_ref[at, :], delta)
      return dq + triton.dot(d_scores.astype(k.dtype), k)

    dq_ref = more[3]
    dq = jax.lax.fori_loop(0, count, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = dq.astype(dq_ref.dtype)

  q, block = inputs[0], _Blocks.of_queries(*inputs[:6])
  return pl.pallas_call(
    kernel,
    grid=block.grid,
    in_specs=(*block.args, block.out, block.total, block.total),
    out_specs=block.args[0],
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    **_pallas_options('flash_dq', q),
  )(*inputs)


def _key_value_gradients(
  before: int, *inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
  def kernel(*refs):
    q_ref, k_ref, v_ref, begin_ref, place_ref, mask_ref, *more = refs
    d_out_ref, total_ref, delta_ref, dk_ref, dv_ref = more
    length, repeats, _ = q_ref.shape
    k, v, mask, block = k_ref[...], v_ref[...], mask_ref[...], pl.program_id(2)
    # `place` ascends in steps of at most one, so earlier queries don't see this block.
    own = block * KEYS - before
    start = jnp.where(own < 0, 0, _div(jnp.maximum(own - place_ref[0], 0), KEYS))

    def body(n, carry):
      dk, dv = carry
      at = pl.ds((start + _div(n, repeats)) * KEYS, KEYS)
      head = n - _div(n, repeats) * repeats
      q, d_out = q_ref[at, head, :], d_out_ref[at, head, :]
      visible = _Visible(begin_ref[at], place_ref[at], before)
      scores = visible.scores(q, k, mask, block)
      total, delta = total_ref[head, at], delta_ref[head, at]
      weights, d_scores = _gradients(scores, total, d_out, v, delta)
      dk = dk + triton.dot(d_scores.astype(q.dtype).T, q)
      return dk, dv + triton.dot(weights.astype(d_out.dtype).T, d_out)

    count = jnp.maximum(length // KEYS - start, 0) * repeats
    nothing = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, count, body, nothing)
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)

  q, k, v, *_ = inputs
  block = _Blocks.of_keys(*inputs[:6])
  return pl.pallas_call(
    kernel,
    grid=block.grid,
    in_specs=(*block.args, block.out, block.total, block.total),
    out_specs=block.args[1:3],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
    **_pallas_options('flash_dkv', q),
  )(*inputs)


_attend.defvjp(_forward, _backward)


def _gradients(
  scores: jax.Array, total: jax.Array, d_out: jax.Array, v: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the attention weights [Q, S], and the gradients of the scores."""
  weights = jnp.exp(scores - total[:, None])
  return weights, weights * (triton.dot(d_out, v.T) - delta[:, None])


class _Blocks(NamedTuple):
  """The grid of a kernel, and the blocks of the arrays that each program gets."""

  grid: tuple[int, int, int]
  args: tuple[pl.BlockSpec, ...]  # queries, keys, values, begin, place, mask
  out: pl.BlockSpec
  total: pl.BlockSpec  # and delta

  @classmethod
  def of_queries(cls, q, k, v, begin, place, mask) -> Self:
    """A program per block of a head's queries; it gets all keys of their kv head."""
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
    """A program per block of a kv head's keys; it gets all queries that share it."""
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


def _pallas_options(name: str, q: jax.Array) -> dict[str, Any]:
  return {
    'name': name,
    'interpret': platform() != 'gpu',
    'compiler_params': triton.CompilerParams(
      num_warps=4 if q.shape[-1] < 64 else 8, num_stages=2
    ),
  }
