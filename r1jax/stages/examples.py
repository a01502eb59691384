"""Packs documents and examples into rows for supervised training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from r1jax import sft
from r1jax.stages.supervised import SFTConfig


class Example(NamedTuple):
  """Token ids of a prompt, which has no loss, and of the output after it."""

  prompt: Sequence[int]
  output: Sequence[int]


class Epochs:
  """Batches of whole examples, each once per epoch, shuffled by seed and epoch.

  Attributes:
    steps: number of steps of all epochs.
    tokens: number of tokens of all epochs, prompts included.

  Raises:
    ValueError: there are no examples, or one is longer than a row.
  """

  def __init__(self, examples: Sequence[Example], config: SFTConfig, seed: int) -> None:
    longest = max((len(x.prompt) + len(x.output) for x in examples), default=0)
    if not longest:
      raise ValueError('examples: expected at least one to learn from, got none')
    if longest > config.row_length:
      raise ValueError(
        f'sft.row_length: expected at least {longest}, the tokens of the longest '
        f'example, got {config.row_length}'
      )
    self._examples, self._config = examples, config
    self._rows: list[list[int]] = []  # examples of each row
    for epoch in range(config.epochs):
      order = np.random.default_rng((seed, epoch)).permutation(len(examples))
      self._rows += _in_rows(order.tolist(), examples, config.row_length)
    self.steps = -(-len(self._rows) // config.rows_per_step)
    self.tokens = config.epochs * sum(len(x.prompt) + len(x.output) for x in examples)

  def batch(self, step: int, params: optax.Params | None = None) -> sft.Batch:
    """Returns the rows of a step; steps count from 1, the last one may be padded."""
    del params  # the examples do not depend on them
    rows = self._config.rows_per_step
    return self._filled(self._rows[(step - 1) * rows : step * rows], rows)

  def whole(self) -> sft.Batch:
    """Returns the rows of all steps as one batch."""
    return self._filled(self._rows, self.steps * self._config.rows_per_step)

  def _filled(self, examples: Sequence[Sequence[int]], rows: int) -> sft.Batch:
    batch = _empty(rows, self._config.row_length)
    for row, chosen in enumerate(examples):
      used = 0
      for owner, index in enumerate(chosen, start=1):
        example = self._examples[index]
        _put(batch, row, used, [*example.prompt, *example.output], owner)
        batch.weights[row, used : used + max(1, len(example.prompt))] = 0.0
        used += len(example.prompt) + len(example.output)
    return batch


def _in_rows(
  order: Sequence[int], examples: Sequence[Example], length: int
) -> list[list[int]]:
  """Returns rows of indices: each example in the first recent row with room for it."""
  rows: list[list[int]] = []
  room: list[int] = []
  for index in order:
    size = len(examples[index].prompt) + len(examples[index].output)
    recent = range(max(0, len(rows) - 16), len(rows))  # older rows are nearly full
    row = next((n for n in recent if room[n] >= size), None)
    if row is None:
      rows.append([])
      room.append(length)
      row = len(rows) - 1
    rows[row].append(index)
    room[row] -= size
  return rows


def _empty(rows: int, length: int) -> sft.Batch:
  tokens, positions, owners = (np.zeros((rows, length), np.int32) for _ in range(3))
  return sft.Batch(tokens, positions, owners, np.zeros((rows, length), np.float32))


def _put(batch: Any, row: int, start: int, ids: Sequence[int], owner: int) -> None:
  """Writes a document into a row; its first token, without context, has no loss."""
  span = slice(start, start + len(ids))
  batch.tokens[row, span] = ids
  batch.positions[row, span] = np.arange(len(ids))
  batch.documents[row, span] = owner
  batch.weights[row, span] = 1.0
  batch.weights[row, start] = 0.0


def pack(
  documents: Callable[[int], Sequence[int]], rows: int, length: int
) -> sft.Batch:
  """Returns rows filled with consecutive documents; the last of a row is truncated.

  Truncation depends only on the tokens before it, so it does not bias what follows a
  text. Leaving out documents that do not fit would favour short ones, and left a
  quarter of the positions empty.

  Args:
    documents: returns the token ids of document 0, 1, …
    rows: B.
    length: T.

  Returns:
    A batch of numpy arrays [B, T].
  """
  batch = _empty(rows, length)
  index = 0
  for row in range(rows):
    used = 0
    while used < length:
      ids = documents(index)[: length - used]
      index += 1
      _put(batch, row, used, ids, index)
      used += len(ids)
  return batch
