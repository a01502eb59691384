"""Where problems come from, and how an answer to one is checked.

A task is a module with two functions: `verify(problem, answer)` says whether an
answer text is right, `answer_key(answer)` gives the value two samples must share to
vote together. Neither ever raises on what a model may write.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its checkable truth; plain data, so that it crosses processes."""

  id: str
  task: str  # the module in r1jax.tasks that checks answers
  question: str
  truth: dict[str, Any]


def verify(problem: Problem, answer: str) -> bool:
  """Whether `answer` (the text between the answer tags) solves the problem."""
  return _module(problem.task).verify(problem, answer)


def answer_key(problem: Problem, answer: str) -> Hashable | None:
  """What two answers must share to vote together; None if an answer has no meaning."""
  return _module(problem.task).answer_key(answer)


def _module(task: str) -> Any:
  from r1jax.tasks import countdown  # here: the task modules import Problem from above

  modules = {'countdown': countdown}
  if task not in modules:
    raise ValueError(f'task: expected one of {sorted(modules)}, got {task!r}')
  return modules[task]
