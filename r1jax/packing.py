"""Outputs of a prompt laid side by side in rows, so that padding costs little.

Outputs [P, G, T] differ widely in length, and most of a padded batch is padding. Here
the outputs of a prompt are packed into as few rows of T positions as first fit finds; a
few rows at a time share one computed prompt, and a micro-batch takes as many of those
as the memory of a step allows. How many micro-batches come out depends on the lengths,
their shape does not: a program is compiled once.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from r1jax.update import PackedRows

ROW_OUTPUTS = 4  # at most, in a row; `unpack` goes through B times as many places


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where each token of [P, G, T] lies in N micro-batches of [P', B, T].

  P' is how many prompts a micro-batch computes, B the rows of each, and O is
  B * `ROW_OUTPUTS`, the places for outputs that belong to one such prompt.

  Fields:
    count: micro-batches that hold something; the arrays have room for the worst case.
    prompts: int [N, P'], which prompt; 0 where nothing is.
    tokens: int [N, P', B, T], index into the P * G * T tokens; -1 is padding.
    offsets: int32 [N, P', B, T], position within the output.
    documents: int32 [N, P', B, T], 1 + the output's place in 0 … O - 1; 0 is padding.
    outputs: int [N, P', O], index into the P * G outputs; -1 is an empty place.
    starts: int32 [N, P', O], where an output begins in the B * T positions.
    lengths: int32 [N, P', O], tokens of an output; 0 for an empty place.
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
    """Returns the outputs' array as [N, P', O], 0 at empty places."""
    return _take(x_PG, self.outputs)

  def undo(self, x_NPBT: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns what `by_token` made as [P, G, T], 0 beyond the outputs' ends."""
    x_PGT = np.zeros(shape, x_NPBT.dtype)
    real = self.tokens >= 0
    x_PGT.reshape(-1)[self.tokens[real]] = x_NPBT[real]
    return x_PGT


def _take(x: np.ndarray, index: np.ndarray) -> np.ndarray:
  return np.where(index < 0, np.zeros((), x.dtype), x.reshape(-1)[index])


def rows_of_a_prompt(
  group_size: int,
  prompt_length: int,
  length: int,
  micro_batch_rows: int,
  devices: int = 1,
) -> int:
  """Returns how many rows should share one computed prompt, B.

  Fewer compute prompts again, which costs S / (B T) of the work; more leave rows empty,
  (B - 1) / 2 a group on average, of at most G. The sum is least at sqrt(2 G S / T);
  taken is the nearest number up to G, on a logarithmic scale, that divides the rows of
  a micro-batch and leaves a multiple of `stage_devices` prompts to be cut over them.

  Raises:
    ValueError: `micro_batch_rows` is no multiple of `stage_devices`.
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
    length_PG: tokens of each output, 1 to `length`.
    length: T, positions of a row.
    micro_batch_rows: P' * B.
    prompt_rows: B, a divisor of that; see `rows_of_a_prompt`.
    parts: the prompts of each part that P' is cut into; None is one part of all.
    room: prompts of a part that there is to be room for, if more than there are.
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


def slots(length_PG: np.ndarray, length: int, prompt_rows: int) -> int:
  """Returns how many computed prompts `plan` needs for outputs of these lengths."""
  rows = (len(first_fit(length_G, length, ROW_OUTPUTS)) for length_G in length_PG)
  return sum(-(-n // prompt_rows) for n in rows)


def _fill(
  layout: Layout,
  here: tuple[int, int],
  prompt: int,
  rows: Sequence[Sequence[int]],
  length_PG: np.ndarray,
) -> None:
  """Writes rows of a prompt's outputs to one place of the layout."""
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
  """Returns rows of indices: each, longest first, in the first row with room for it."""
  rows: list[list[int]] = []
  room: list[int] = []
  for index in np.argsort(-lengths, kind='stable').tolist():
    wanted = int(lengths[index])
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
  """Returns the rollout of host arrays [P, S], [P, G, T] and [P, G] in this layout."""

  def by_token(x_PGT: np.ndarray | None) -> np.ndarray | None:
    return None if x_PGT is None else layout.by_token(x_PGT)

  return PackedRows(
    prompts=layout.by_prompt(prompts),
    prompt_mask=layout.by_prompt(prompt_mask),
    tokens=layout.by_token(tokens),
    offsets=layout.offsets,
    documents=layout.documents,
    old_logp=layout.by_token(old_logp),
    ref_logp=by_token(ref_logp),
    sampler_logp=by_token(sampler_logp),
    advantage=layout.by_output(advantage),
    starts=layout.starts,
    lengths=layout.lengths,
  )
