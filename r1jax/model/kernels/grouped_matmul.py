"""Grouped matrix products: rows sorted by group, each times its group's matrix.

CPUs and TPUs use `jax.lax.ragged_dot`. On GPUs XLA multiplies every row with the matrix
of every group, so there are Pallas kernels for them, compiled by Triton. A program
computes rows of a single group, as in MegaBlocks (https://arxiv.org/abs/2211.15841).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from r1jax.sharding.constrain import platform

KERNELS = ('gpu',)  # platforms that use the kernels
BLOCK = 128  # rows and columns that a program computes, at most
PART = 64  # length of the inner axis that is loaded at a time
MIN_SIDE = 16  # of a tensor core's product


# A custom gradient: `jax.lax.ragged_dot` can't be batched over replicas (see
# `sum_over_replicas`), and with `sequential_vmap`, which can, it has no gradient.
@jax.custom_vjp
def product(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Returns each row times the matrix of its group, [M, F]; 0 for rows of no group.

  Args:
    x_MD: rows, sorted by group.
    w_EDF: a matrix per group.
    sizes_E: int32, rows per group; any rows after these belong to no group.
  """
  return _by_group(x_MD, w_EDF, sizes_E)


@jax.custom_batching.sequential_vmap
def _by_group(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  if _served(x_MD, *w_EDF.shape[1:]):
    return _rows(x_MD, w_EDF, sizes_E, transposed=False)
  return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)


@jax.custom_batching.sequential_vmap
def _back_by_group(y_MF: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Returns each row times the transposed matrix of its group, [M, D]."""
  if _served(y_MF, *w_EDF.shape[1:]):
    return _rows(y_MF, w_EDF, sizes_E, transposed=True)
  channels = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
  return jax.lax.ragged_dot_general(y_MF, w_EDF, sizes_E, channels)


@jax.custom_batching.sequential_vmap
def _of_groups(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Returns x^T y over the rows of each group, [E, D, F]."""
  if _served(x_MD, x_MD.shape[1], y_MF.shape[1]):
    return _sums(x_MD, y_MF, sizes_E)
  rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
  return jax.lax.ragged_dot_general(x_MD, y_MF, sizes_E, rows)


_Kept = tuple[jax.Array, jax.Array, jax.Array]  # the arguments of `_by_group`


def _forward(
  x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array
) -> tuple[jax.Array, _Kept]:
  return _by_group(x_MD, w_EDF, sizes_E), (x_MD, w_EDF, sizes_E)


def _backward(kept: _Kept, slope_MF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
  x_MD, w_EDF, sizes_E = kept
  slope_MD = _back_by_group(slope_MF, w_EDF, sizes_E)
  return slope_MD, _of_groups(x_MD, slope_MF, sizes_E), None


product.defvjp(_forward, _backward)


def _served(x_MD: jax.Array, *sides: int) -> bool:
  """Whether the kernels are used: on GPUs, for sides that divide into blocks."""
  blocks = all(_block(side) >= MIN_SIDE for side in sides)
  return platform() in KERNELS and len(x_MD) >= BLOCK and blocks


def _block(side: int) -> int:
  """Returns the largest power of two that divides the side, up to `BLOCK`."""
  return min(side & -side, BLOCK)


def _rows(
  x_MI: jax.Array, w: jax.Array, sizes_E: jax.Array, *, transposed: bool
) -> jax.Array:
  """Returns each row times its group's matrix; (out, in) axes if `transposed`."""
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  step, columns = min(_block(inner), PART), _block(outer)
  # A tile is up to BLOCK rows of one group; each group may have one partial tile.
  tiles = len(x_MI) // BLOCK + len(sizes_E)
  tiles_E = -(-sizes_E // BLOCK)
  after_E, ends_E = jnp.cumsum(tiles_E), jnp.cumsum(sizes_E)
  tile = jnp.arange(tiles)
  group = jnp.searchsorted(after_E, tile, side='right')
  used, group = group < len(sizes_E), jnp.minimum(group, len(sizes_E) - 1)
  before = (after_E - tiles_E)[group]
  start = jnp.where(used, (ends_E - sizes_E)[group] + (tile - before) * BLOCK, 0)
  end = jnp.where(used, ends_E[group], 0)

  def kernel(group_ref, start_ref, end_ref, x_ref, w_ref, out_ref):
    at = pl.program_id(0)
    group, start, end = group_ref[at], start_ref[at], end_ref[at]
    rows, mask = _masked_rows(start, end, BLOCK, len(x_MI))
    column = pl.ds(pl.program_id(1) * columns, columns)

    def body(n, total):
      part = pl.ds(n * step, step)
      x = triton.load(x_ref.at[rows, part], mask=mask, other=0)
      w = w_ref[group, column, part].T if transposed else w_ref[group, part, column]
      return total + triton.dot(x, w)

    steps = jnp.where(end > start, jnp.int32(inner // step), 0)
    total = jnp.zeros((BLOCK, columns), jnp.float32)
    total = jax.lax.fori_loop(0, steps, body, total)
    triton.store(out_ref.at[rows, column], total.astype(out_ref.dtype), mask=mask)

  out = pl.pallas_call(
    kernel,
    grid=(tiles, outer // columns),
    out_shape=_shape((len(x_MI), outer), x_MI, w, sizes_E),
    **_pallas_options('grouped_rows'),
  )(*(x.astype(jnp.int32) for x in (group, start, end)), x_MI, w)
  return jnp.where((jnp.arange(len(x_MI)) < ends_E[-1])[:, None], out, 0)


def _sums(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Returns x^T y over the rows of each group, [E, D, F], by a kernel."""
  ends_E = jnp.cumsum(sizes_E)
  shape = len(sizes_E), x_MD.shape[1], y_MF.shape[1]
  down, across = _block(shape[1]), _block(shape[2])

  def kernel(start_ref, end_ref, x_ref, y_ref, out_ref):
    group = pl.program_id(0)
    start, end = start_ref[group], end_ref[group]
    column = pl.ds(pl.program_id(1) * down, down)
    other = pl.ds(pl.program_id(2) * across, across)

    def body(n, total):
      rows, mask = _masked_rows(start + n * PART, end, PART, len(x_MD))
      x = triton.load(x_ref.at[rows, column], mask=mask, other=0)
      y = triton.load(y_ref.at[rows, other], mask=mask, other=0)
      return total + triton.dot(x.T, y)

    steps = jax.lax.div(end - start + PART - 1, jnp.int32(PART))
    total = jnp.zeros((down, across), jnp.float32)
    total = jax.lax.fori_loop(0, steps, body, total)
    out_ref[...] = total.astype(out_ref.dtype)

  starts_E = ends_E - sizes_E
  return pl.pallas_call(
    kernel,
    grid=(shape[0], shape[1] // down, shape[2] // across),
    in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 4,
    out_specs=pl.BlockSpec((None, down, across), lambda e, d, f: (e, d, f)),
    out_shape=_shape(shape, x_MD, y_MF, sizes_E),
    **_pallas_options('grouped_sums'),
  )(starts_E.astype(jnp.int32), ends_E.astype(jnp.int32), x_MD, y_MF)


def _masked_rows(
  start: jax.Array, end: jax.Array, size: int, count: int
) -> tuple[slice | pl.Slice, jax.Array]:
  """Returns a slice of `size` rows from `start` on, and a mask up to `end`."""
  first = jnp.minimum(start, count - size)
  row = first + jnp.arange(size)
  return pl.ds(first, size), ((row >= start) & (row < end))[:, None]


def _shape(shape: tuple[int, ...], *args: jax.Array) -> jax.ShapeDtypeStruct:
  """Returns a shape with the first argument's dtype and all arguments' varying axes."""
  varied = [jax.typeof(x).manual_axis_type.varying for x in args]
  kind = jax.sharding.ManualAxisType(varying=frozenset().union(*varied))
  return jax.ShapeDtypeStruct(shape, args[0].dtype, manual_axis_type=kind)


def _pallas_options(name: str) -> dict[str, Any]:
  return {
    'name': name,
    'interpret': platform() != 'gpu',
    'compiler_params': triton.CompilerParams(num_warps=8, num_stages=2),
  }
