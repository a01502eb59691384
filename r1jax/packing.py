"""Packs the outputs of a rollout into rows, to reduce padding.

Outputs [P, G, T] differ widely in length, so most of a padded batch is padding. Here
the outputs of a prompt are packed by first fit into rows of T positions. A few rows
share one computed prompt, and a micro-batch has a fixed number of rows. Only the number
of micro-batches depends on the lengths, not their shape, so the update compiles once.

Packing is host code, in numpy; `unpack` runs on the device.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray  # numpy's on the host
Inputs = tuple[Array, Array, Array, Array, Array]  # see `PackedRows.inputs`
ROW_OUTPUTS = 4  # outputs per row, at most; `unpack` makes B times as many rows


@dataclasses.dataclass(frozen=True)
class Layout:
  """The position of each token of [P, G, T] in N micro-batches of [P', B, T].

  A micro-batch computes P' prompts with B rows each. O = B * `ROW_OUTPUTS` is the
  number of slots for the outputs of one such prompt.

  Fields:
    count: micro-batches in use; the arrays have space for the worst case.
    prompts: int [N, P'], index of the prompt; 0 if unused.
    tokens: int [N, P', B, T], index into the P * G * T tokens; -1 for padding.
    offsets: int32 [N, P', B, T], position within the output.
    documents: int32 [N, P', B, T], 1 + the output's slot in 0 … O - 1; 0 for padding.
    outputs: int [N, P', O], index into the P * G outputs; -1 for an empty slot.
    starts: int32 [N, P', O], first position of an output in the B * T positions.
    lengths: int32 [N, P', O], tokens of an output; 0 for an empty slot.
  """

  count: int
  prompts: np.ndarray
  tokens: np.ndarray
  offsets: np.ndarray
  documents: np.ndarray
  outputs: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray

  def by_prompt(self, x_PS: np.ndarray) -> np.ndarray:
    """Returns the prompts' arrays as [N, P', S]."""
    return x_PS[self.prompts]

  def by_token(self, x_PGT: np.ndarray) -> np.ndarray:
    """Returns the tokens' array as [N, P', B, T], 0 on padding."""
    return _take(x_PGT, self.tokens)

  def by_output(self, x_PG: np.ndarray) -> np.ndarray:
    """Returns the outputs' array as [N, P', O], 0 in empty slots."""
    return _take(x_PG, self.outputs)

  def inputs(
    self, prompts: np.ndarray, prompt_mask: np.ndarray, tokens: np.ndarray
  ) -> Inputs:
    """Returns a rollout's `PackedRows.inputs`, given arrays [P, S] and [P, G, T]."""
    return (
      self.by_prompt(prompts),
      self.by_prompt(prompt_mask),
      self.by_token(tokens),
      self.offsets,
      self.documents,
    )

  def undo(self, x_NPBT: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns an array of `by_token` as [P, G, T], 0 after the outputs' ends."""
    x_PGT = np.zeros(shape, x_NPBT.dtype)
    real = self.tokens >= 0
    x_PGT.reshape(-1)[self.tokens[real]] = x_NPBT[real]
    return x_PGT


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PackedRows:
  """A rollout as N micro-batches of packed rows; see `Layout`.

  P is the number of prompts of a micro-batch, P' in the layout.
  """

  prompts: Array  # int32 [N, P, S], padded on the left
  prompt_mask: Array  # bool [N, P, S]
  tokens: Array  # int32 [N, P, B, T], outputs of one prompt, several per row
  offsets: Array  # int32 [N, P, B, T], position of a token within its output
  documents: Array  # int32 [N, P, B, T], an id per output; 0 is padding
  old_logp: Array  # float32 [N, P, B, T], under the policy before its updates
  ref_logp: Array | None  # float32 [N, P, B, T]; None without a reference
  sampler_logp: Array | None  # float32 [N, P, B, T]; None if the policy sampled
  advantage: Array  # float32 [N, P, O]
  group_tokens: Array  # int32 [N, P, O], tokens of all outputs to the same prompt
  starts: Array  # int32 [N, P, O], first position of an output in the B * T positions
  lengths: Array  # int32 [N, P, O], tokens of an output; 0 for none

  @property
  def inputs(self) -> Inputs:
    """What a model scores, in the order of `score_tokens`."""
    return self.prompts, self.prompt_mask, self.tokens, self.offsets, self.documents


def _take(x: np.ndarray, index: np.ndarray) -> np.ndarray:
  return np.where(index < 0, np.zeros((), x.dtype), x.reshape(-1)[index])


def rows_of_a_prompt(
  group_size: int,
  prompt_length: int,
  length: int,
  micro_batch_rows: int,
  devices: int = 1,
) -> int:
  """Returns the number of rows that share one computed prompt, B.

  A small B recomputes prompts, which costs S / (B T) of the work. A large B leaves rows
  empty, (B - 1) / 2 per group on average, of at most G. The sum is minimal at
  sqrt(2 G S / T). This returns the nearest number up to G, on a logarithmic scale, that
  divides the rows of a micro-batch into a multiple of `devices` prompts.

  Raises:
    ValueError: if `micro_batch_rows` is not a multiple of `devices`.
  """
  if micro_batch_rows % devices:
    raise ValueError(
      f'rl.micro_batch_rows: expected a multiple of the {devices} devices, got '
      f'{micro_batch_rows}'
    )
  best = math.sqrt(2 * group_size * prompt_length / length)
  possible = [
    rows
    for rows in range(1, min(group_size, micro_batch_rows) + 1)
    if micro_batch_rows % rows == 0 and micro_batch_rows // rows % devices == 0
  ]
  return min(possible, key=lambda rows: abs(math.log(rows / best)))


def plan(
  length_PG: np.ndarray,
  length: int,
  micro_batch_rows: int,
  prompt_rows: int,
  parts: Sequence[Sequence[int]] | None = None,
  room: int = 0,
) -> Layout:
  """Returns a layout for outputs of these lengths.

  Args:
    length_PG: tokens of each output, 1 to `length`; 0 takes no place.
    length: T, positions of a row.
    micro_batch_rows: P' * B.
    prompt_rows: B, a divisor of `micro_batch_rows`; see `rows_of_a_prompt`.
    parts: indices of the prompts in each shard of P'; None is one shard of all prompts.
    room: prompts per shard to reserve space for, if larger than the largest shard.
  """
  prompts, group_size = length_PG.shape
  if parts is None:
    parts = [range(prompts)]
  at_a_time = micro_batch_rows // prompt_rows // len(parts)
  worst = max(room, *map(len, parts)) * -(-group_size // prompt_rows)
  shape = (-(-worst // at_a_time), at_a_time * len(parts))
  places = (*shape, prompt_rows * ROW_OUTPUTS)
  layout = Layout(
    count=0,
    prompts=np.zeros(shape, int),
    tokens=np.full((*shape, prompt_rows, length), -1),
    offsets=np.zeros((*shape, prompt_rows, length), np.int32),
    documents=np.zeros((*shape, prompt_rows, length), np.int32),
    outputs=np.full(places, -1),
    starts=np.zeros(places, np.int32),
    lengths=np.zeros(places, np.int32),
  )
  most = 0
  for part, chosen in enumerate(parts):
    used = 0
    for prompt in chosen:
      rows = first_fit(length_PG[prompt], length, ROW_OUTPUTS)
      for first in range(0, len(rows), prompt_rows):
        batch, place = divmod(used, at_a_time)
        here = (batch, part * at_a_time + place)
        _fill(layout, here, prompt, rows[first : first + prompt_rows], length_PG)
        used += 1
    most = max(most, used)
  return dataclasses.replace(layout, count=-(-most // at_a_time))


def plan_for_host(
  host_PG: np.ndarray,
  rows: np.ndarray,
  all_PG: np.ndarray,
  chosen: np.ndarray,
  *,
  length: int,
  prompt_length: int,
  micro_batch_rows: int,
  shards: int,
  held: Sequence[int],
) -> Layout:
  """Returns a layout for this host's part of the outputs to the chosen prompts.

  All hosts make as many micro-batches as the fullest shard needs.

  Args:
    host_PG: tokens of each output of this host.
    rows: int [P], rising, the index of each of its prompts among those of all hosts.
    all_PG: tokens of each output of all hosts.
    chosen: indices of prompts among those of all hosts.
    length: T, positions of a row.
    prompt_length: S, positions of a prompt.
    micro_batch_rows: of all shards.
    shards: parts of the prompts, each on other devices.
    held: the shards of this host.
  """
  prompts, group_size = all_PG.shape
  prompt_rows = rows_of_a_prompt(
    group_size, prompt_length, length, micro_batch_rows, shards
  )
  by_shard = [chosen[chosen // (prompts // shards) == n] for n in range(shards)]
  layout = plan(
    host_PG,
    length,
    micro_batch_rows // shards * len(held),
    prompt_rows,
    [np.searchsorted(rows, by_shard[n]).tolist() for n in held],
    room=-(-len(chosen) // shards),
  )
  elsewhere = [
    slots(all_PG[by_shard[n]], length, prompt_rows)
    for n in set(range(shards)) - set(held)
  ]
  at_a_time = micro_batch_rows // shards // prompt_rows
  count = max([layout.count, *(-(-used // at_a_time) for used in elsewhere)])
  return dataclasses.replace(layout, count=count)


def slots(length_PG: np.ndarray, length: int, prompt_rows: int) -> int:
  """Returns the number of prompts that `plan` computes for outputs of these lengths."""
  rows = (len(first_fit(length_G, length, ROW_OUTPUTS)) for length_G in length_PG)
  return sum(-(-n // prompt_rows) for n in rows)


def _fill(
  layout: Layout,
  here: tuple[int, int],
  prompt: int,
  rows: Sequence[Sequence[int]],
  length_PG: np.ndarray,
) -> None:
  """Writes rows of a prompt's outputs to the layout at index `here`."""
  length = layout.tokens.shape[-1]
  layout.prompts[here] = prompt
  place = 0
  for row, samples in enumerate(rows):
    start = 0
    for sample in samples:
      output, tokens = prompt * length_PG.shape[1] + sample, length_PG[prompt, sample]
      span = (*here, row, slice(start, start + tokens))
      layout.tokens[span] = output * length + np.arange(tokens)
      layout.offsets[span] = np.arange(tokens)
      layout.documents[span] = place + 1
      layout.outputs[(*here, place)] = output
      layout.starts[(*here, place)] = row * length + start
      layout.lengths[(*here, place)] = tokens
      start, place = start + tokens, place + 1


def first_fit(
  lengths: np.ndarray, row_length: int, row_outputs: int
) -> list[list[int]]:
  """Returns rows of indices: longest first, each in the first row with space for it."""
  rows: list[list[int]] = []
  room: list[int] = []
  for index in np.argsort(-lengths, kind='stable').tolist():
    wanted = int(lengths[index])
    if not wanted:
      break  # not to be learned from
    for row, free in enumerate(room):
      if free >= wanted and len(rows[row]) < row_outputs:
        break
    else:
      row = len(rows)
      rows.append([])
      room.append(row_length)
    rows[row].append(index)
    room[row] -= wanted
  return rows


def pack(
  layout: Layout,
  *,
  prompts: np.ndarray,
  prompt_mask: np.ndarray,
  tokens: np.ndarray,
  old_logp: np.ndarray,
  ref_logp: np.ndarray | None,
  advantage: np.ndarray,
  sampler_logp: np.ndarray | None = None,
) -> PackedRows:
  """Returns host arrays [P, S], [P, G, T] and [P, G] in this layout."""

  def by_token(x_PGT: np.ndarray | None) -> np.ndarray | None:
    return None if x_PGT is None else layout.by_token(x_PGT)

  prompt, used = layout.outputs // advantage.shape[1], layout.outputs >= 0
  group_tokens = np.bincount(prompt[used], layout.lengths[used], len(advantage))
  return PackedRows(
    *layout.inputs(prompts, prompt_mask, tokens),
    old_logp=layout.by_token(old_logp),
    ref_logp=by_token(ref_logp),
    sampler_logp=by_token(sampler_logp),
    advantage=layout.by_output(advantage),
    group_tokens=np.where(used, group_tokens[prompt], 0).astype(np.int32),
    starts=layout.starts,
    lengths=layout.lengths,
  )


def unpack(x_PBT: jax.Array, starts: Array) -> jax.Array:
  """Returns packed rows as one output per row, [P, O, T].

  The inverse of `Layout.by_token`, for one micro-batch on the device. After an output's
  end a row holds values of other outputs, which the caller must mask.

  Args:
    x_PBT: one number per token.
    starts: int32 [P, O], first position of an output in the B * T positions.
  """
  prompts, rows, length = x_PBT.shape
  place_POT = starts[..., None] + jnp.arange(length)[None, None]
  place_PX = jnp.minimum(place_POT, rows * length - 1).reshape(prompts, -1)
  x_PX = jnp.take_along_axis(x_PBT.reshape(prompts, -1), place_PX, axis=1)
  return x_PX.reshape(place_POT.shape)
