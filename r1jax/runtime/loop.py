"""The loop over the steps of a phase: times, logs, saves and stops."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from r1jax.plain import JsonObject
from r1jax.runtime import hosts
from r1jax.runtime.run import Run, check_finite

SETTLED = 3  # steps after which nothing should compile any more


class Loop:
  """Iterates over the remaining steps of a phase; they count from 1 to `steps`.

  Each step calls `log` with its metrics and, if `must_save`, `save` with the state; a
  phase that trains nothing writes its results to a file of its own instead. A line of
  the log is due every `log_every` steps, a checkpoint every `save_every` steps, and
  both after the last step. With `log_saves` each step with a checkpoint is logged too.

  Attributes:
    first: number of steps done by an earlier process.
    step: number of the current step.
  """

  def __init__(
    self,
    run: Run,
    phase: str,
    steps: int,
    *,
    first: int = 0,
    log_every: int = 1,
    save_every: int = 1,
    log_saves: bool = False,
    optim: str | None,
  ) -> None:
    """Starts the clock of the first line of the log.

    Args:
      run: the open run.
      phase: its name in logs and checkpoints.
      steps: of the whole phase.
      first: the step that the phase resumes from.
      log_every: steps between two lines of the log.
      save_every: steps between two checkpoints.
      log_saves: whether each step with a checkpoint has a line in the log.
      optim: the config's field with the optimizer's settings, for error messages; None
        for a phase that trains nothing.
    """
    self.run, self.phase, self.steps, self.first = run, phase, steps, first
    self.step = first
    self._log_every, self._save_every, self._optim = log_every, save_every, optim
    self._log_saves = log_saves
    self._began = time.monotonic()
    self._unchecked: Mapping[str, Any] | None = None

  def __iter__(self) -> Iterator[int]:
    for step in range(self.first + 1, self.steps + 1):
      self.step = step
      yield step

  def due(self, every: int) -> bool:
    """Returns whether this step is a multiple of `every`, or the last."""
    return self.step % every == 0 or self.step == self.steps

  @property
  def save_due(self) -> bool:
    """Whether a checkpoint is due after this step."""
    return self.due(self._save_every)

  def log(
    self,
    metrics: Mapping[str, Any],
    *,
    tokens: float = 0,
    device: float | None = None,
    more: Callable[[], JsonObject] = dict,
    samples: Iterable[JsonObject] = (),
  ) -> JsonObject:
    """Logs and shows the metrics of a step that is due.

    Returns what the log says of it, or nothing where it has no line.

    Args:
      metrics: numbers, or arrays that stay on the device if the step is not due.
        In training they must include `loss` and `grad_norm`.
      tokens: learned from since the last line, for `tokens_per_second`.
      device: seconds that the device was busy since the last line.
      more: returns further metrics; called only if the step is due.
      samples: lines for samples.jsonl.

    Raises:
      TrainingError: the loss or the gradient is not finite.
    """
    self._unchecked = metrics
    if not (self.due(self._log_every) or self.save_due):
      return {}
    now = time.monotonic()  # writing this line counts for the next one
    seconds = now - self._began
    values = {**self._checked(), **more()}
    timed = {**values.get('time', {}), 'seconds': seconds}
    if tokens:
      timed['tokens_per_second'] = tokens / seconds
    if device is not None:
      # Share of the time that the device waited for this step's host work and for the
      # last step's files.
      timed['device_waited'] = max(0.0, 1 - device / seconds)
    values['time'] = timed
    self.run.progress.update(self.phase, self.step, self.steps, values)
    if not (self.due(self._log_every) or self._log_saves):
      return {}
    self._began = now
    self.run.log.write(self.phase, self.step, **values)
    self.run.log.samples(
      {'phase': self.phase, 'step': self.step, **sample} for sample in samples
    )
    return values

  def _checked(self) -> JsonObject:
    """Returns the step's metrics as numbers; raises TrainingError as `log` does."""
    values = {
      name: float(value) if isinstance(value, jax.Array) else value
      for name, value in (self._unchecked or {}).items()
    }
    if values and self._optim is not None:
      check_finite(self.phase, self.step, values, self._optim)
    self._unchecked = None
    return values

  def restart_clock(self) -> None:
    """Excludes the time since the last line from the next line's seconds."""
    self._began = time.monotonic()

  def say(self, sentence: str) -> None:
    """Shows a sentence about this step."""
    self.run.progress.say(f'Step {self.step}: {sentence}')

  def say_compilations(self, seconds: float) -> None:
    """Reports the time of the first step, and later steps that compile."""
    programs, compiling = self.run.compilations.since()
    done = self.step - self.first
    if done == 1:
      self.run.progress.say(
        f'The first step took {seconds:.1f} s; compiling or loading {programs} '
        f'programs took {compiling:.1f} s so far.'
      )
    elif programs and done > SETTLED:
      self.say(
        f'{programs} programs had to be compiled or loaded, in {compiling:.1f} s; a '
        'shape that changes often costs this time at every change.'
      )

  @contextlib.contextmanager
  def traced(self, step: int) -> Iterator[None]:
    """Writes a trace for Perfetto and XProf if the current step is number `step`."""
    if not (hosts.is_primary() and self.step == step):
      yield
      return
    folder = self.run.workdir / 'profile'
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
      yield
    self.run.progress.say(f'The trace of this step is in {folder}.')

  def must_save(self) -> bool:
    """Returns whether to `save` after this step: it is due, or the run must end."""
    # Several hosts ask each other only at steps that are logged or saved anyway.
    asks = self.due(self._log_every) or self.save_due or hosts.count() == 1
    return asks and self.run.must_save(self.save_due)

  def save(self, tree: object) -> None:
    """Writes a checkpoint of the state that the next step starts from.

    Raises:
      CheckpointError: this checkpoint, or the one before, could not be written.
      Interruption: the run was asked to stop.
      TrainingError: the loss or the gradient is not finite; nothing is written.
    """
    self._checked()
    self.run.save(self.phase, self.step, tree)
