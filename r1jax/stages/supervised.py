"""Supervised training: base models, SFT, distillation and the preference model.

The batch of step n is a function of (seed, n), so a resumed run is bit-for-bit
identical.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from r1jax import optim, sft
from r1jax.optim import OptimConfig, TrainState
from r1jax.runtime.loop import Loop
from r1jax.runtime.run import Run
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.place import like_params, put_batch
from r1jax.trees import T


@dataclasses.dataclass(frozen=True)
class RowsConfig:
  """Rows per step; `PretrainConfig` and `SFTConfig` add the length of training."""

  rows_per_step: int = 16  # B
  row_length: int = 256  # T
  micro_batches: int = 4  # parts of the rows that a gradient is summed over
  checkpoint_every: int = 100  # steps
  log_every: int = 10  # steps
  optim: OptimConfig = OptimConfig()

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, int) and value < 1:
        raise ValueError(f'{field.name}: expected 1 or more, got {value}')
    if self.row_length < 2:
      raise ValueError(f'row_length: expected 2 or more, got {self.row_length}')
    if self.rows_per_step % self.micro_batches:
      raise ValueError(
        f'micro_batches: expected a divisor of rows_per_step = {self.rows_per_step}, '
        f'got {self.micro_batches}'
      )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RowsConfig):
  """Training of a base model on rows filled with documents, the last one truncated."""

  steps: int = 1000  # updates


@dataclasses.dataclass(frozen=True)
class SFTConfig(RowsConfig):
  """Supervised fine-tuning (SFT): passes over whole examples."""

  rows_per_step: int = 6  # B (R1: 128)
  row_length: int = 352  # T
  micro_batches: int = 3  # parts of the rows that a gradient is summed over
  epochs: int = 2  # passes (R1: 2 to 3)


# (state, batch, *constants, optimizer=..., micro_batches=...) -> state, metrics
StepFunction = Callable[..., tuple[TrainState, optim.Metrics]]


def fit(
  run: Run,
  phase: str,
  state: TrainState,
  *,
  update: Callable[..., tuple[TrainState, optim.Metrics]],
  batch: Callable[[int, optax.Params], T],
  steps: int,
  log_every: int,
  checkpoint_every: int,
  log_saves: bool = False,
  optim_field: str,
  mesh: jax.sharding.Mesh,
  constants: tuple[optax.Params, ...] = (),
  tokens: Callable[[T], int] = lambda batch: 0,
  measure: Callable[[T, TrainState, bool], Mapping[str, float]] | None = None,
) -> TrainState:
  """Returns the state after `steps` updates; resumes from the last checkpoint.

  Args:
    run: the open run.
    phase: name in logs and checkpoints.
    state: to start from if there is no checkpoint, placed on the mesh; donated.
    update: (state, batch, *constants) -> state, metrics; compiled here.
    batch: (step, parameters before it) -> batch; steps count from 1.
    steps: updates.
    log_every: steps between two lines of the log.
    checkpoint_every: steps between two checkpoints.
    log_saves: whether each step with a checkpoint has a line in the log.
    optim_field: the config's field with the optimizer's settings, for errors.
    mesh: devices for training.
    constants: further arguments of `update`, such as a teacher's parameters.
    tokens: batch -> number of tokens with a loss.
    measure: (batch, state, whether a checkpoint is due) -> further metrics.

  Raises:
    TrainingError: the loss is not finite. The last checkpoint is kept.
  """
  state, first = run.checkpoints[phase].resume(state)
  places = jax.tree.map(lambda leaf: leaf.sharding, state)
  step_fn = jax.jit(
    on_mesh(mesh, update), donate_argnums=0, out_shardings=(places, None)
  )
  loop = Loop(
    run,
    phase,
    steps,
    first=first,
    log_every=log_every,
    save_every=checkpoint_every,
    log_saves=log_saves,
    optim=optim_field,
  )
  learned = 0
  for step in loop:
    rows = batch(step, state.params)
    learned += tokens(rows)
    state, metrics = step_fn(state, put_batch(mesh, rows), *constants)

    def more(rows: T = rows, state: TrainState = state) -> Mapping[str, float]:
      return measure(rows, state, loop.save_due) if measure else {}

    if loop.log(metrics, tokens=learned, more=more):
      learned = 0
    if loop.must_save():
      loop.save(state)
  return state


def train(
  run: Run,
  phase: str,
  params: optax.Params,
  *,
  step: StepFunction,
  batch: Callable[[int, optax.Params], sft.Batch],
  steps: int,
  config: RowsConfig,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  optim_field: str,
  constants: tuple[optax.Params, ...] = (),
) -> optax.Params:
  """Returns the parameters after `steps` updates on rows; see `fit`.

  Args:
    run: the open run.
    phase: name in logs and checkpoints.
    params: to start from; not donated.
    step: such as `sft.step`, without optimizer and micro-batches.
    batch: (step, parameters) -> rows. If it returns a multiple of the config's rows,
      the micro-batches multiply too, and the program compiles for that shape.
    steps: updates.
    config: see `RowsConfig`.
    optimizer: see `optim.make`.
    mesh: devices for training.
    optim_field: the config's field with the optimizer's settings, for errors.
    constants: further arguments of `step`.
  """

  def update(
    state: TrainState, batch: sft.Batch, *constants: optax.Params
  ) -> tuple[TrainState, optim.Metrics]:
    times = batch.tokens.shape[0] // config.rows_per_step
    parts = times * config.micro_batches
    return step(state, batch, *constants, optimizer=optimizer, micro_batches=parts)

  # A copy, as an update donates the memory of its input state. Placed now, as another
  # sharding in the second step would compile again.
  state = optim.init(jax.tree.map(jnp.copy, params), optimizer)
  state = fit(
    run,
    phase,
    like_params(mesh, state, params),
    update=update,
    batch=batch,
    steps=steps,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint_every,
    optim_field=optim_field,
    mesh=mesh,
    constants=constants,
    tokens=lambda rows: int(rows.weights.sum()),
    # Tokens of this step, with prompts.
    measure=lambda rows, *_: {'tokens': int((rows.documents > 0).sum())},
  )
  return state.params
