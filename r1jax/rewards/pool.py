"""Runs rewards in worker processes, with a hard time limit per output.

A reward gets text that nobody has foreseen: it may raise, hang, return NaN or crash its
process. Each failure counts as 0.0 for that reward on that output and is reported in a
sentence. A reward that fails on *every* output is a bug, and the pool raises.

An output is one task with all its rewards. If the process does not survive a task, the
pool runs each reward alone to find the one at fault.

Workers are spawned, since forking a process with the threads of jax can deadlock. They
import the modules of the rewards, in the background from `__enter__` on, and the
program's main module, which often imports jax, only if a reward is defined there; then
it needs the usual `if __name__ == '__main__'`. So a reward of another module can't rely
on what the main module does when it is imported.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import context, resource_tracker
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import pebble

from r1jax.rewards import Weighted, worker
from r1jax.tasks import Problem

TIMEOUT = 5.0  # seconds of an output, unless another limit is set
SENTENCES = 5  # failures that are described; the rest are counted
START_LIMIT = 120.0  # seconds for a first worker to import what it needs
HOPELESS = 16  # outputs; if these first ones all time out, so will the rest
POLL = 1.0  # seconds between checks that the workers are alive
# Seconds beyond two time limits in which no output is scored; then one was lost: its
# worker stands still, or the clock that the time limit goes by was set back.
LOST_AFTER = 120.0


class RewardError(RuntimeError):
  """A reward cannot be used: it failed on every output, or no worker could run it."""


@dataclasses.dataclass(frozen=True)
class Scores:
  """Rewards of N outputs, 0.0 where a reward failed.

  Fields:
    values: float32 [N, rewards], in the order of the pool's rewards.
    total: float32 [N], the weighted sum over the rewards.
    errors: a sentence for each of the first few failures, including timeouts.
    failures: the number of (output, reward) pairs that raised, returned no number or
      crashed.
    timeouts: the number of (output, reward) pairs that timed out.
  """

  values: np.ndarray
  total: np.ndarray
  errors: list[str]
  failures: int
  timeouts: int


_MAIN_HIDDEN = threading.Lock()  # pools start workers in threads of their own


class _Worker(context.SpawnProcess):
  """A process that doesn't import the program's main module."""

  @staticmethod
  def _Popen(process_obj: Any) -> Any:  # noqa: N802
    # What a process does if there is no such module, as in an interactive session.
    with _MAIN_HIDDEN:
      main = sys.modules['__main__']
      spec, file = main.__spec__, getattr(main, '__file__', None)
      try:
        main.__spec__ = None
        vars(main).pop('__file__', None)
        return context.SpawnProcess._Popen(process_obj)
      finally:
        main.__spec__ = spec
        if file is not None:
          main.__file__ = file


class _WithoutMain(context.SpawnContext):
  Process = _Worker


class _Task(NamedTuple):
  future: concurrent.futures.Future
  pool: pebble.ProcessPool  # of the future; a broken pool is replaced


class Pending:
  """Scores that are being computed."""

  def __init__(self, collect: Callable[[], Scores]):
    self._collect = collect

  def result(self) -> Scores:
    """Waits for all scores and returns them.

    Raises:
      RewardError: a reward failed on every output.
    """
    return self._collect()


class Rewarder(Protocol):
  """Rewards outputs by rules, as a `RewardPool` does, or by other means."""

  @property
  def names(self) -> tuple[str, ...]:
    """The rewards' names, in the order of `Scores.values`."""
    ...

  @property
  def weights(self) -> tuple[float, ...]:
    """Their weights in `Scores.total`, in the same order."""
    ...

  def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Pending:
    """Starts to score `texts[i]` as output for `problems[i]`."""
    ...


class RewardPool:
  """Worker processes that score outputs; a context manager that ends all of them.

  `timeout` is the time limit of one output in seconds; after it, each reward gets that
  time for itself. Workers import `imports` before. Only the parent receives Ctrl-C.
  Workers also end if the parent is killed.
  """

  def __init__(
    self,
    rewards: Sequence[Weighted],
    workers: int = 2,
    timeout: float = TIMEOUT,
    imports: Sequence[str] = (),
  ):
    """Checks the settings; `__enter__` starts the workers.

    Raises:
      ValueError: a setting is invalid, or a reward cannot be pickled.
    """
    names = [reward.name for reward in rewards]
    if not names or len(set(names)) < len(names):
      raise ValueError(
        f'rewards: expected one or more rewards with unique names, got {names}'
      )
    if workers < 1:
      raise ValueError(f'workers: expected at least 1, got {workers}')
    if not 0.0 < timeout < math.inf:
      raise ValueError(f'timeout: expected a number of seconds above 0, got {timeout}')
    for reward in rewards:
      _check_importable(reward)
    of_main = b'__main__' in pickle.dumps(rewards)
    self._context = context.SpawnContext() if of_main else _WithoutMain()
    self._rewards = tuple(rewards)
    self._workers = workers
    self._timeout = timeout
    self._imports = tuple(imports)

  @property
  def names(self) -> tuple[str, ...]:
    """The rewards' names, in the order of the columns of `Scores.values`."""
    return tuple(reward.name for reward in self._rewards)

  @property
  def weights(self) -> tuple[float, ...]:
    """The rewards' weights in `Scores.total`, in the order of `names`."""
    return tuple(reward.weight for reward in self._rewards)

  def __enter__(self) -> Self:
    self._start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._stop()

  def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Pending:
    """Starts to score `texts[i]` as output for `problems[i]`; returns at once."""
    if len(problems) != len(texts):
      raise ValueError(
        f'expected a problem for every text, got {len(problems)} and {len(texts)}'
      )
    outputs = list(zip(problems, texts, strict=True))
    tasks = [self._schedule(self._rewards, *output) for output in outputs]
    return Pending(functools.partial(self._collect, outputs, tasks))

  def _start(self) -> None:
    self._pool = pebble.ProcessPool(
      max_workers=self._workers,
      context=self._context,
      initializer=worker.start,
      initargs=(self._imports,),
    )
    # Workers inherit the signal mask of the pool's threads, and these that of this
    # thread, so Ctrl-C cannot reach a worker while it is still importing.
    resource_tracker.ensure_running()  # before, since starting it unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      self._started = self._pool.schedule(os.getpid)
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)

  def _stop(self) -> None:
    self._pool.stop()
    self._pool.join()

  def _schedule(
    self, rewards: Sequence[Weighted], problem: Problem, text: str
  ) -> _Task:
    if not self._pool.active:  # a worker that died without a task breaks the pool
      self._stop()
      self._start()
    future = self._pool.schedule(
      worker.score, args=(rewards, problem, text), timeout=self._timeout
    )
    future.add_done_callback(lambda _: self._note_progress())
    return _Task(future, self._pool)

  def _note_progress(self) -> None:
    self._last_done = time.monotonic()

  def _collect(
    self, outputs: Sequence[tuple[Problem, str]], tasks: Sequence[_Task]
  ) -> Scores:
    if len(tasks) >= HOPELESS and all(map(self._timed_out, tasks[:HOPELESS])):
      self._find_hanging((outputs[0], outputs[-1]))
    values = np.zeros((len(outputs), len(self._rewards)), np.float32)
    failed: list[list[worker.Failure]] = [[] for _ in self._rewards]
    errors: list[str] = []
    for row, (output, task) in enumerate(zip(outputs, tasks, strict=True)):
      for column, outcome in enumerate(self._outcomes(output, task)):
        if isinstance(outcome, worker.Failure):
          failed[column].append(outcome)
          name, problem = self._rewards[column].name, output[0].id
          errors.append(f'reward {name!r} on problem {problem!r} {outcome.reason}')
        else:
          values[row, column] = outcome
    for reward, failures in zip(self._rewards, failed, strict=True):
      _check_any_survived(reward, failures, len(outputs))
    timeouts = sum(failure.timeout for column in failed for failure in column)
    return Scores(
      values=values,
      total=weighted_sum(values, self.weights),
      errors=errors[:SENTENCES],
      failures=len(errors) - timeouts,
      timeouts=timeouts,
    )

  def _timed_out(self, task: _Task) -> bool:
    try:
      outcome = self._wait(task)
    except concurrent.futures.BrokenExecutor:
      return False
    return isinstance(outcome, worker.Failure) and outcome.timeout

  def _find_hanging(self, outputs: Sequence[tuple[Problem, str]]) -> None:
    """Cancels all tasks; raises RewardError for a reward that times out alone."""
    self._stop()
    self._start()
    for reward in self._rewards:
      outcomes = [self._wait_alone([reward], output) for output in outputs]
      if all(isinstance(one, worker.Failure) and one.timeout for one in outcomes):
        raise RewardError(
          f'reward {reward.name!r} timed out after {self._timeout:g} s on each of '
          f'the first {HOPELESS} outputs and on the last; make it faster or raise the '
          'time limit of the rewards'
        )

  def _outcomes(
    self, output: tuple[Problem, str], task: _Task
  ) -> list[float | worker.Failure]:
    """Returns a number or a failure for each reward."""
    try:
      outcomes = self._wait(task)
    except concurrent.futures.BrokenExecutor:  # not this output's fault: try again
      outcomes = self._wait_alone(self._rewards, output)
    if isinstance(outcomes, list):
      return outcomes
    if len(self._rewards) == 1:
      return [outcomes]
    alone = [self._wait_alone([reward], output) for reward in self._rewards]
    return [one[0] if isinstance(one, list) else one for one in alone]

  def _wait_alone(
    self, rewards: Sequence[Weighted], output: tuple[Problem, str]
  ) -> list[float | worker.Failure] | worker.Failure:
    try:
      return self._wait(self._schedule(rewards, *output))
    except concurrent.futures.BrokenExecutor as error:
      raise RewardError(_lost(error)) from error

  def _wait(self, task: _Task) -> list[float | worker.Failure] | worker.Failure:
    """Returns the result of a task, or one failure if its process did not survive.

    Raises:
      BrokenExecutor: the pool broke before the task was done, or lost it.
    """
    try:
      self._started.result(START_LIMIT)
    except (concurrent.futures.BrokenExecutor, TimeoutError) as error:
      raise RewardError(_lost(error)) from error
    self._note_progress()
    while not task.future.done():
      # A broken pool never finishes the tasks in its queue.
      if not task.pool.active and not task.future.done():
        raise concurrent.futures.BrokenExecutor('all workers ended')
      if time.monotonic() - self._last_done > LOST_AFTER + 2 * self._timeout:
        self._stop()
        self._start()
        raise concurrent.futures.BrokenExecutor('no worker scored an output')
      concurrent.futures.wait([task.future], POLL)
    try:
      return task.future.result()
    except TimeoutError:
      return worker.Failure(f'timed out after {self._timeout:g} s', timeout=True)
    except pebble.ProcessExpired as error:
      return worker.Failure(f'ended its process with exit code {error.exitcode}')


def weighted_sum(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
  """Returns values @ weights, float32 [N], with equal results for equal rows.

  Sums each row in the order of the columns. A matrix product does not: BLAS processes
  rows in blocks and sums the remaining rows in another order.
  """
  total = np.zeros(len(values))
  for column, weight in enumerate(weights):
    total += values[:, column].astype(np.float64) * weight
  return total.astype(np.float32)


def _check_importable(reward: Weighted) -> None:
  try:
    pickle.dumps(reward)
  except (pickle.PicklingError, AttributeError, TypeError) as error:
    raise ValueError(
      f'reward {reward.name!r} cannot be sent to a worker process ({error}); define its'
      ' function at the top level of a module'
    ) from error


def _check_any_survived(
  reward: Weighted, failures: Sequence[worker.Failure], outputs: int
) -> None:
  if not failures or len(failures) < outputs:
    return
  remedy = 'fix its function'
  if all(failure.timeout for failure in failures):
    remedy = 'make it faster or raise the time limit of the rewards'
  raise RewardError(
    f'reward {reward.name!r} failed on all {outputs} outputs, so there is nothing to'
    f' learn from; it {failures[0].reason}; {remedy}'
  )


def _lost(error: BaseException) -> str:
  return (
    f'the reward workers died or could not start ({type(error).__name__}: {error});'
    " keep the main module importable, under `if __name__ == '__main__'`, and leave"
    ' enough memory for the workers; see their output for the reason'
  )
