"""Supervised training of a model on documents: base models, and later SFT.

The documents of step n are a function of (seed, n); so is everything else, and a run
that was killed goes on to the same bits.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim, sft
from r1jax.optim import TrainState
from r1jax.runtime import hosts
from r1jax.runtime.run import Run, check_finite
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.place import like_params, put_batch


@dataclasses.dataclass(frozen=True)
class Rows:
  """In which portions to train; `Config` and `SFTConfig` say how long."""

  group: ClassVar[str]  # the name that this has in an experiment's config

  rows_per_step: int = 16  # B
  row_length: int = 256  # T
  micro_batches: int = 4  # parts of the rows that a gradient is summed over
  checkpoint_every: int = 100  # steps
  log_every: int = 10  # steps

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f'{self.group}.{field.name}: expected 1 or more, got '
          f'{getattr(self, field.name)}'
        )
    if self.row_length < 2:
      raise ValueError(
        f'{self.group}.row_length: expected 2 or more, got {self.row_length}'
      )
    if self.rows_per_step % self.micro_batches:
      raise ValueError(
        f'{self.group}.micro_batches: expected a divisor of rows_per_step='
        f'{self.rows_per_step}, got {self.micro_batches}'
      )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Rows):
  """Rows filled with documents, the last one of a row cut: a base model's training."""

  group: ClassVar[str] = 'base'

  steps: int = 1000  # updates


@dataclasses.dataclass(frozen=True)
class SFTConfig(Rows):
  """Passes over whole examples: supervised fine-tuning (SFT)."""

  group: ClassVar[str] = 'sft'

  rows_per_step: int = 6  # B (R1: 128)
  row_length: int = 352  # T
  micro_batches: int = 3  # parts of the rows that a gradient is summed over
  epochs: int = 2  # passes (R1: 2 to 3)


class Example(NamedTuple):
  """Token ids of a prompt, from which nothing is learned, and of what follows it."""

  prompt: Sequence[int]
  output: Sequence[int]


class Epochs:
  """Batches of whole examples, each example once an epoch, in an order of the seed.

  Attributes:
    steps: of all epochs.
    tokens: of all epochs, prompts included.

  Raises ValueError without examples, or for one that is longer than a row.
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

  def batch(self, step: int, params: Any = None) -> sft.Batch:
    """The rows of a step, counted from 1; the last step's may be padded."""
    del params  # the examples are what they are
    rows = self._config.rows_per_step
    return self._filled(self._rows[(step - 1) * rows : step * rows], rows)

  def whole(self) -> sft.Batch:
    """The rows of all steps as those of one."""
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
  """Examples side by side, each in the first of the last rows that has room for it."""
  rows: list[list[int]] = []
  room: list[int] = []
  for index in order:
    size = len(examples[index].prompt) + len(examples[index].output)
    recent = range(max(0, len(rows) - 16), len(rows))  # older ones are nearly full
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
  """Writes a document into a row; nothing is before its first token to predict it."""
  span = slice(start, start + len(ids))
  batch.tokens[row, span] = ids
  batch.positions[row, span] = np.arange(len(ids))
  batch.documents[row, span] = owner
  batch.weights[row, span] = 1.0
  batch.weights[row, start] = 0.0


def pack(
  documents: Callable[[int], Sequence[int]], rows: int, length: int
) -> sft.Batch:
  """Fills rows with documents one after the other; the last of a row is cut to fit.

  A cut depends on what stands before it alone, so what may follow a text keeps its
  probability; leaving out what does not fit would favour short documents, and a quarter
  of the places stayed empty.

  Args:
    documents: gives the token ids of document 0, 1, …
    rows: B.
    length: T.

  Returns:
    A batch of numpy arrays.
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


def train(
  run: Run,
  phase: str,
  params: Any,
  *,
  step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
  batch: Callable[[int, Any], sft.Batch],
  steps: int,
  config: Rows,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  constants: tuple[Any, ...] = (),
) -> Any:
  """Returns the parameters after `steps` updates, from the last checkpoint on.

  Args:
    run: of which `phase` is a part.
    phase: its name in logs and checkpoints.
    params: to start from when there is no checkpoint.
    step: (state, batch, *constants) -> state, metrics: `sft.step` or like it, without
      optimizer and micro-batches.
    batch: (step, from 1 on, and the parameters then) -> what to learn from; see `pack`
      and `Passes`. For some times the rows of `config` it has as many times the
      micro-batches, and another number of rows compiles once more.
    steps: updates.
    config: see `Rows`.
    optimizer: see `optim.make`.
    mesh: where the model is trained.
    constants: arrays that `step` takes beside, such as a teacher's parameters.

  Raises:
    TrainingError: the loss is no longer finite. The last checkpoint stays.
  """
  # A copy, as an update takes the memory of the state before it. Placed before the
  # first step: another layout in the second would compile again.
  own = jax.tree.map(jnp.copy, params)
  state = like_params(mesh, optim.init(own, optimizer), params)
  state, first = run.checkpoints[phase].resume(state)

  def update(state: TrainState, batch: sft.Batch, *constants: Any) -> Any:
    times = batch.tokens.shape[0] // config.rows_per_step
    parts = times * config.micro_batches
    return step(state, batch, *constants, optimizer=optimizer, micro_batches=parts)

  places = jax.tree.map(lambda leaf: leaf.sharding, state)
  step_fn = jax.jit(
    on_mesh(mesh, update), donate_argnums=0, out_shardings=(places, None)
  )
  began, tokens = time.monotonic(), 0
  for number in range(first + 1, steps + 1):
    rows = batch(number, state.params)
    tokens += int(rows.weights.sum())
    state, metrics = step_fn(state, put_batch(mesh, rows), *constants)
    due = number % config.checkpoint_every == 0 or number == steps
    logs = number % config.log_every == 0 or number == steps
    # With several hosts, whether one was stopped is asked with what is written down.
    saves = run.saves(due) if logs or due or hosts.count() == 1 else False
    if logs or saves:
      values: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
      check_finite(phase, number, values, f'{config.group}_optim')
      values['tokens'] = int((rows.documents > 0).sum())  # of the step, with prompts
      seconds = time.monotonic() - began
      values['time'] = {'seconds': seconds, 'tokens_per_second': tokens / seconds}
      if logs:
        run.log.write(phase, number, **values)
      run.progress.update(phase, number, steps, values)
      began, tokens = time.monotonic(), 0
    if saves:
      run.save(phase, number, state)
  return state.params
