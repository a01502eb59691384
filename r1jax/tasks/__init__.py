"""Tasks: where problems come from, and how an answer is checked.

A task is a module of this package with

  SETTINGS                      the class of its config, which sets the difficulty
  VERSION                       of its problems: three numbers, and for problems of a
                                library + and its version
  generate(config, split)       every problem of a split; a published data set has
                                load(config, split, data_dir) instead
  group(problem)                the name of what is held out together; see `splits`
  verify(problem, answer)       whether the text of an answer is right
  answer_key(answer)            the value that two answers must share to vote together

The last two never raise on what a model may write.
"""

import dataclasses
import importlib
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

from r1jax.plain import JsonObject
from r1jax.text import parsing
from r1jax.text.templates import Question, messages_of

REASONING = ('countdown', 'equations', 'arithmetic')
GENERAL = ('instructions',)
PUBLISHED = ('gsm8k',)
OWN = 'data'  # a file of the user's, or a data set by name
LIBRARY = 'reasoning_gym'  # a library of data sets, each a task: reasoning_gym:NAME


class Difficulty(Protocol):
  """The config of a task; its fields set how hard the problems are."""

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question with its checkable truth, as plain data that can be pickled."""

  id: str
  task: str  # the module in r1jax.tasks that checks answers
  question: Question
  truth: JsonObject
  language: str = 'en'  # of a good output; see `r1jax.text.language`
  form: parsing.Form = 'tags'  # of a good output; see `r1jax.text.parsing`

  @property
  def text(self) -> str:
    """The text of the question; of a conversation that of all messages."""
    return '\n'.join(one['content'] for one in messages_of(self.question))


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether `answer`, the text between the answer tags, is right."""
  return module(problem.task).verify(problem, answer)


def answer_key(problem: Problem, answer: str) -> Hashable | None:
  """Returns what two answers must share to vote together; None for no answer."""
  return module(problem.task).answer_key(answer)


def group(problem: Problem) -> str:
  """Returns the name of the group that is held out together; see `splits`."""
  return module(problem.task).group(problem)


def versions(names: Iterable[str]) -> dict[str, str]:
  """Returns the version of each task; another one has other problems and splits."""
  return {name: module(name).VERSION for name in names}


def module(task: str) -> Any:
  """Returns the module of a task.

  Raises:
    ValueError: the name is unknown, or a package that the task needs is missing.
  """
  name = module_name(task)
  expected = [*sorted((*REASONING, *GENERAL, *PUBLISHED)), f'{LIBRARY}:NAME']
  if name not in (*expected, OWN, LIBRARY):
    raise ValueError(f'task: expected one of {expected}, got {task!r}')
  return importlib.import_module(f'r1jax.tasks.{name}')


def module_name(task: str) -> str:
  """Returns the name of a task's module, which is LIBRARY for its data sets."""
  return task if dataset_of(task) is None else LIBRARY


def dataset_of(task: str) -> str | None:
  """Returns NAME of a task `reasoning_gym:NAME`, None for another task."""
  library, _, name = task.partition(':')
  return name if library == LIBRARY else None


def imports(task: str) -> tuple[str, ...]:
  """Returns modules that verifying needs and that take long to import."""
  return () if dataset_of(task) is None else (LIBRARY,)
