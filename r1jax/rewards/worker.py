"""Code that runs inside a reward worker: scores an output, ends with its parent."""

import dataclasses
import importlib
import math
import multiprocessing
import numbers
import os
import signal
import threading
import traceback
from collections.abc import Sequence

import numpy as np

from r1jax.rewards import Weighted
from r1jax.tasks import Problem

LARGEST = float(np.finfo(np.float32).max)  # scores are float32


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a reward has no number for an output, as the end of a sentence."""

  reason: str
  timeout: bool = False


def start(modules: Sequence[str]) -> None:
  """Imports modules, and makes this worker end with its parent, even a killed one."""
  for module in modules:
    importlib.import_module(module)
  parent = multiprocessing.parent_process()
  assert parent is not None  # this is a worker
  # Pebble's Python handler prints a traceback on a second signal; the default can't.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  os.setpgrp()  # signals to the run's group go to the parent, which saves first

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def score(
  rewards: Sequence[Weighted], problem: Problem, text: str
) -> list[float | Failure]:
  """Returns a number or a failure for each reward of one output; never raises."""
  return [_score_one(reward, problem, text) for reward in rewards]


def _score_one(reward: Weighted, problem: Problem, text: str) -> float | Failure:
  try:
    value: object = reward.function(problem, text)  # whatever its annotation says
    # np.bool_ is no Real.
    number = float(value) if isinstance(value, numbers.Real | np.bool_) else math.nan
    if abs(number) <= LARGEST:
      return number
    return Failure(f'returned {value!r:.100} instead of a finite number')
  except BaseException as error:  # also SystemExit: a reward must not end the run
    message = ' '.join(traceback.format_exception_only(error)[-1].split())
    return Failure(f'raised {message:.200}')
