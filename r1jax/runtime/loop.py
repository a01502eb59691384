"""The loop of one phase of training: resumes, counts, times, logs, saves and stops."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from r1jax.runtime import hosts
from r1jax.runtime.run import Run, check_finite

SETTLED = 3  # steps of a run after which nothing should be compiled any more


class Loop:
  """Iterates over the steps that a phase still has to make, from 1 to `steps`.

  A step calls `log` with its metrics, and `save` if `saves_now`, with what the next
  step starts from. Due are steps `log_every` and `save_every` apart, and the last one.
  Steps with a checkpoint are shown, too; with `log_saves` they are also logged.

  Attributes:
    first: steps that an earlier process has made.
    step: the step at hand.
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
    optim: str,
  ) -> None:
    """Begins to measure time.

    Args:
      run: of which `phase` is a part.
      phase: its name in logs and checkpoints.
      steps: in all.
      first: steps of the checkpoint that the phase goes on from.
      log_every: steps between two lines of the log.
      save_every: steps between two checkpoints.
      log_saves: whether each step with a checkpoint has a line in the log.
      optim: the config's field with the optimizer's settings, for error messages.
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
    """Whether this step is one of every so many, or the last."""
    return self.step % every == 0 or self.step == self.steps

  @property
  def saves(self) -> bool:
    """Whether a checkpoint is due after this step."""
    return self.due(self._save_every)

  def log(
    self,
    metrics: Mapping[str, Any],
    *,
    tokens: float = 0,
    device: float | None = None,
    more: Callable[[], Mapping[str, Any]] = dict,
    samples: Iterable[Mapping[str, Any]] = (),
  ) -> dict[str, Any]:
    """Logs and shows the metrics of a step that is due, and returns them.

    Returns an empty dictionary after a step that is not due.

    Args:
      metrics: numbers, or arrays that stay on the device where the step is not due.
        `loss` and `grad_norm` must be among them.
      tokens: learned from since the last line; for the rate.
      device: seconds that the device worked since the last line.
      more: further metrics, computed where the step is due.
      samples: lines for samples.jsonl.

    Raises:
      TrainingError: the loss or the gradient is not finite.
    """
    self._unchecked = metrics
    if not (self.due(self._log_every) or self.saves):
      return {}
    now = time.monotonic()  # writing this line counts for the next one
    seconds, self._began = now - self._began, now
    values = {**self._checked(), **more()}
    timed = {**values.get('time', {}), 'seconds': seconds}
    if tokens:
      timed['tokens_per_second'] = tokens / seconds
    if device is not None:
      # The share in which this step's host work and the last one's files held it up.
      timed['device_waited'] = max(0.0, 1 - device / seconds)
    values['time'] = timed
    if self.due(self._log_every) or self._log_saves:
      self.run.log.write(self.phase, self.step, **values)
      self.run.log.samples(
        {'phase': self.phase, 'step': self.step, **sample} for sample in samples
      )
    self.run.progress.update(self.phase, self.step, self.steps, values)
    return values

  def _checked(self) -> dict[str, Any]:
    """The step's metrics as numbers; raises TrainingError if they are not finite."""
    values = {
      name: float(value) if isinstance(value, jax.Array) else value
      for name, value in (self._unchecked or {}).items()
    }
    if values:
      check_finite(self.phase, self.step, values, self._optim)
    self._unchecked = None
    return values

  def restart_clock(self) -> None:
    """Leaves out of the next line's seconds what was done since the last one."""
    self._began = time.monotonic()

  def say(self, sentence: str) -> None:
    """Shows a sentence about this step."""
    self.run.progress.say(f'Step {self.step}: {sentence}')

  def say_compilations(self, seconds: float) -> None:
    """Says what the first step took, and when a later one compiles."""
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
        'shape that changes at many steps costs that each time.'
      )

  @contextlib.contextmanager
  def traced(self, step: int) -> Iterator[None]:
    """Writes a trace for Perfetto and XProf if the step at hand is number `step`."""
    if not (hosts.is_primary() and self.step == step):
      yield
      return
    folder = self.run.workdir / 'profile'
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
      yield
    self.run.progress.say(f'The trace of this step is in {folder}.')

  def saves_now(self) -> bool:
    """Whether to `save` after this step: if it is due, or the run is to end."""
    # Several hosts ask each other only at steps that are written down anyway.
    asks = self.due(self._log_every) or self.saves or hosts.count() == 1
    return asks and self.run.saves(self.saves)

  def save(self, tree: Any) -> None:
    """Writes a checkpoint of what the next step starts from.

    Raises:
      CheckpointError: it, or the one before, could not be written.
      Interruption: the run was asked to stop.
      TrainingError: the loss or the gradient is not finite; nothing is written.
    """
    self._checked()
    self.run.save(self.phase, self.step, tree)
