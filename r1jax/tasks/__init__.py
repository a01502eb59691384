"""Where problems come from, and how an answer to one is checked.

A task is a module of this package: `Config` says how hard, `generate(config, split)`
yields every problem of a split (`load(config, split, data_dir)` where a published set
holds them), `group(problem)` names what is held out together (see `splits`),
`verify(problem, answer)` says whether an answer text
is right, `answer_key(answer)` gives the value two samples must share to vote together.
The last two never raise on what a model may write.
"""

import dataclasses
import importlib
from collections.abc import Hashable, Iterable
from typing import Any

REASONING = ('countdown', 'equations', 'arithmetic')
GENERAL = ('instructions',)
PUBLISHED = ('gsm8k',)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its checkable truth; plain data, so that it crosses processes."""

  id: str
  task: str  # the module in r1jax.tasks that checks answers
  question: str
  truth: dict[str, Any]
  language: str = 'en'  # that an output is to be in; see `r1jax.text.language`


def verify(problem: Problem, answer: str) -> bool:
  """Whether `answer` (the text between the answer tags) solves the problem."""
  return module(problem.task).verify(problem, answer)


def answer_key(problem: Problem, answer: str) -> Hashable | None:
  """What two answers must share to vote together; None if an answer has no meaning."""
  return module(problem.task).answer_key(answer)


def group(problem: Problem) -> str:
  """The name of what is held out together with the problem; see `splits`."""
  return module(problem.task).group(problem)


def versions(names: Iterable[str]) -> dict[str, str]:
  """The version of each of these tasks' problems: with it changes what is held out."""
  return {name: module(name).VERSION for name in names}


def module(task: str) -> Any:
  """The module of a task; ValueError for a name that is none."""
  expected = sorted((*REASONING, *GENERAL, *PUBLISHED))
  if task not in expected:
    raise ValueError(f'task: expected one of {expected}, got {task!r}')
  return importlib.import_module(f'r1jax.tasks.{task}')
