"""Products of rows that lie in the order of their groups, each with its group's matrix.

`jax.lax.ragged_dot` is that on CPUs and TPUs. For GPUs XLA computes every row with the
matrix of every group, so there are kernels for them, in Pallas and compiled by Triton:
programs take some rows of one group, as in MegaBlocks (https://arxiv.org/abs/2211.15841).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from r1jax.sharding.constrain import platform

KERNELS = ('gpu',)  # platforms that need one
# A program computes blocks of so many rows and columns at most, from parts of so many
# numbers of each.
BLOCK = 128
PART = 64
NARROWEST = 16  # a side of what a tensor core multiplies


# With a gradient of its own: `jax.lax.ragged_dot` takes no axis of copies (see
# `sum_over_replicas`), and what is made to take one here has no gradient.
@jax.custom_vjp
def product(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Returns each row times the matrix of its group, [M, F]; 0 for rows of none.

  Args:
    x_MD: rows, group by group.
    w_EDF: a matrix for each group.
    sizes_E: int32, the rows of each group; rows after those are of none.
  """
  return _by_group(x_MD, w_EDF, sizes_E)


@jax.custom_batching.sequential_vmap
def _by_group(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  if _served(x_MD, *w_EDF.shape[1:]):
    return _rows(x_MD, w_EDF, sizes_E, transposed=False)
  return jax.lax.ragged_dot(x_MD, w_EDF, sizes_E)


@jax.custom_batching.sequential_vmap
def _back_by_group(y_MF: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """Each row by the transposed matrix of its group, [M, D]."""
  if _served(y_MF, *w_EDF.shape[1:]):
    return _rows(y_MF, w_EDF, sizes_E, transposed=True)
  channels = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
  return jax.lax.ragged_dot_general(y_MF, w_EDF, sizes_E, channels)


@jax.custom_batching.sequential_vmap
def _of_groups(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """x^T y over the rows of each group, [E, D, F]."""
  if _served(x_MD, x_MD.shape[1], y_MF.shape[1]):
    return _sums(x_MD, y_MF, sizes_E)
  rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
  return jax.lax.ragged_dot_general(x_MD, y_MF, sizes_E, rows)


def _forward(x_MD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> Any:
  return _by_group(x_MD, w_EDF, sizes_E), (x_MD, w_EDF, sizes_E)


def _backward(kept: Any, slope_MF: jax.Array) -> Any:
  x_MD, w_EDF, sizes_E = kept
  slope_MD = _back_by_group(slope_MF, w_EDF, sizes_E)
  return slope_MD, _of_groups(x_MD, slope_MF, sizes_E), None


product.defvjp(_forward, _backward)


def _served(x_MD: jax.Array, *sides: int) -> bool:
  """Whether kernels are needed, and blocks of theirs make up the sides of matrices."""
  blocks = all(_block(side) >= NARROWEST for side in sides)
  return platform() in KERNELS and len(x_MD) >= BLOCK and blocks


def _block(side: int) -> int:
  """The largest power of two that divides it, up to a limit."""
  return min(side & -side, BLOCK)


def _rows(
  x_MI: jax.Array, w: jax.Array, sizes_E: jax.Array, *, transposed: bool
) -> jax.Array:
  """Each row by its group's matrix, whose axes are (out, in) where `transposed`."""
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  step, columns = min(_block(inner), PART), _block(outer)
  # A tile is some rows of one group: as many as these if every group has a last one.
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
    rows, mine = _some(start, end, BLOCK, len(x_MI))
    column = pl.ds(pl.program_id(1) * columns, columns)

    def body(n, total):
      part = pl.ds(n * step, step)
      x = triton.load(x_ref.at[rows, part], mask=mine, other=0)
      w = w_ref[group, column, part].T if transposed else w_ref[group, part, column]
      return total + triton.dot(x, w)

    steps = jnp.where(end > start, jnp.int32(inner // step), 0)
    total = jnp.zeros((BLOCK, columns), jnp.float32)
    total = jax.lax.fori_loop(0, steps, body, total)
    triton.store(out_ref.at[rows, column], total.astype(out_ref.dtype), mask=mine)

  out = pl.pallas_call(
    kernel,
    grid=(tiles, outer // columns),
    out_shape=_shape((len(x_MI), outer), x_MI, w, sizes_E),
    **_compiled('grouped_rows'),
  )(*(x.astype(jnp.int32) for x in (group, start, end)), x_MI, w)
  return jnp.where((jnp.arange(len(x_MI)) < ends_E[-1])[:, None], out, 0)


def _sums(x_MD: jax.Array, y_MF: jax.Array, sizes_E: jax.Array) -> jax.Array:
  """x^T y over the rows of each group."""
  ends_E = jnp.cumsum(sizes_E)
  shape = len(sizes_E), x_MD.shape[1], y_MF.shape[1]
  down, across = _block(shape[1]), _block(shape[2])

  def kernel(start_ref, end_ref, x_ref, y_ref, out_ref):
    group = pl.program_id(0)
    start, end = start_ref[group], end_ref[group]
    column = pl.ds(pl.program_id(1) * down, down)
    other = pl.ds(pl.program_id(2) * across, across)

    def body(n, total):
      rows, mine = _some(start + n * PART, end, PART, len(x_MD))
      x = triton.load(x_ref.at[rows, column], mask=mine, other=0)
      y = triton.load(y_ref.at[rows, other], mask=mine, other=0)
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
    **_compiled('grouped_sums'),
  )(starts_E.astype(jnp.int32), ends_E.astype(jnp.int32), x_MD, y_MF)


def _some(
  start: jax.Array, end: jax.Array, size: int, count: int
) -> tuple[Any, jax.Array]:
  """So many of `count` rows from `start` on, or the last ones; those before `end`."""
  first = jnp.minimum(start, count - size)
  row = first + jnp.arange(size)
  return pl.ds(first, size), ((row >= start) & (row < end))[:, None]


def _shape(shape: tuple[int, ...], *args: jax.Array) -> jax.ShapeDtypeStruct:
  """What comes out of arguments: of the first one's type, and as varied as all."""
  varied = [jax.typeof(x).manual_axis_type.varying for x in args]
  kind = jax.sharding.ManualAxisType(varying=frozenset().union(*varied))
  return jax.ShapeDtypeStruct(shape, args[0].dtype, manual_axis_type=kind)


def _compiled(name: str) -> dict[str, Any]:
  return {
    'name': name,
    'interpret': platform() != 'gpu',
    'compiler_params': triton.CompilerParams(num_warps=8, num_stages=2),
  }
