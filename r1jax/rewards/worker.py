"""What runs inside a reward worker: score one output, outlive nobody."""

import dataclasses
import math
import multiprocessing
import numbers
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from r1jax.rewards import Weighted
from r1jax.tasks import Problem

LARGEST = float(np.finfo(np.float32).max)  # scores are float32


@dataclasses.dataclass(frozen=True)
class Failure:
  """Why a reward has no number for an output: the end of a sentence about it."""

  reason: str
  timeout: bool = False


def follow_parent() -> None:
  """Makes this worker end with its parent, even one that was killed during a task."""
  parent = multiprocessing.parent_process()
  assert parent is not None  # only workers run this
  # Pebble's handler runs in Python and, hit twice, prints a traceback; this can't.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  os.setpgrp()  # a signal to all of a run is for the parent, which saves first

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def score(
  rewards: Sequence[Weighted], problem: Problem, text: str
) -> list[float | Failure]:
  """A number or a failure for each reward of one output; never raises."""
  return [_score_one(reward, problem, text) for reward in rewards]


def _score_one(reward: Weighted, problem: Problem, text: str) -> float | Failure:
  try:
    value: Any = reward.function(problem, text)  # whatever the annotation promises
    # np.bool_ is no Real, and the text '1' is no number.
    number = float(value) if isinstance(value, numbers.Real | np.bool_) else math.nan
    if abs(number) <= LARGEST:
      return number
    return Failure(f'gave {value!r:.100} instead of a finite number')
  except BaseException as error:  # SystemExit too: nothing a reward does stops a run
    told = ' '.join(traceback.format_exception_only(error)[-1].split())
    return Failure(f'raised {told:.200}')
