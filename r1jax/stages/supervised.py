"""Supervised training of a model on documents: base models, and later SFT.

The documents of step n are a function of (seed, n); so is everything else, and a run
that was killed goes on to the same bits.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
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
