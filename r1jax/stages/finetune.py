"""Supervised training of a model on documents: base models, and later SFT.

The documents of step n are a function of (seed, n); so is everything else, and a run
that was killed goes on to the same bits.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from r1jax import mesh as mesh_lib
from r1jax import optim, sampling, sft
from r1jax.stages.run import Run, TrainingError


@dataclasses.dataclass(frozen=True)
class Config:
  """How long and in which portions to train."""

  steps: int = 1000  # updates
  rows_per_step: int = 16  # B
  row_length: int = 256  # T; rows are filled with documents, the last one cut
  micro_batches: int = 4  # parts of the rows that a gradient is summed over
  checkpoint_every: int = 100  # steps
  log_every: int = 10  # steps

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f'base.{field.name}: expected 1 or more, got {getattr(self, field.name)}'
        )
    if self.row_length < 2:
      raise ValueError(f'base.row_length: expected 2 or more, got {self.row_length}')
    if self.rows_per_step % self.micro_batches:
      raise ValueError(
        f'base.micro_batches: expected a divisor of rows_per_step='
        f'{self.rows_per_step}, got {self.micro_batches}'
      )


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
  tokens, positions, owners = (np.zeros((rows, length), np.int32) for _ in range(3))
  weights = np.ones((rows, length), np.float32)
  index = 0
  for row in range(rows):
    used = 0
    while used < length:
      ids = documents(index)[: length - used]
      index += 1
      span = slice(used, used + len(ids))
      tokens[row, span] = ids
      positions[row, span] = np.arange(len(ids))
      owners[row, span] = index
      weights[row, used] = 0.0  # nothing before it to be predicted from
      used += len(ids)
  return sft.Batch(tokens, positions, owners, weights)


def train(
  run: Run,
  phase: str,
  params: Any,
  *,
  model: sampling.Model,
  documents: Callable[[int, int], Sequence[int]],
  config: Config,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> Any:
  """Returns the parameters after `config.steps` updates, from the last checkpoint on.

  Args:
    run: of which `phase` is a part.
    phase: its name in logs and checkpoints.
    params: to start from when there is no checkpoint.
    model: the decoder's functions.
    documents: (step, index) -> token ids of a document, with its end of sequence.
    config: see `Config`.
    optimizer: see `optim.make`.
    mesh: rows lie along its data axis.

  Raises:
    TrainingError: the loss is no longer finite. The last checkpoint stays.
  """
  # Placed before the first step: another layout in the second would compile again.
  state = mesh_lib.put_everywhere(mesh, optim.init(params, optimizer))
  state, first = run.checkpoints[phase].resume(state)
  step_fn = jax.jit(
    functools.partial(
      sft.step,
      forward=model.forward,
      logits=model.logits,
      optimizer=optimizer,
      micro_batches=config.micro_batches,
    ),
    donate_argnums=0,
  )
  began, tokens = time.monotonic(), 0
  for step in range(first + 1, config.steps + 1):
    batch = pack(
      functools.partial(documents, step), config.rows_per_step, config.row_length
    )
    tokens += int(batch.weights.sum())
    state, metrics = step_fn(state, mesh_lib.put_batch(mesh, batch))
    saves = step % config.checkpoint_every == 0 or step == config.steps
    if step % config.log_every == 0 or saves or run.interrupted:
      values: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
      if not np.isfinite(values['loss']) or not np.isfinite(values['grad_norm']):
        raise TrainingError(
          f'the loss of {phase} is {values["loss"]} and the gradient norm '
          f'{values["grad_norm"]} at step {step}; lower {phase}_optim.learning_rate '
          'and choose another --workdir (earlier checkpoints are intact)'
        )
      seconds = time.monotonic() - began
      values['time'] = {'seconds': seconds, 'tokens_per_second': tokens / seconds}
      if step % config.log_every == 0:
        run.log.write(phase, step, **values)
      run.progress.update(phase, step, config.steps, values)
      began, tokens = time.monotonic(), 0
    if saves or run.interrupted:
      run.save(phase, step, state)
  return state.params
