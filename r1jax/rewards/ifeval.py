"""Measures of IFEval besides accuracy, which is its strict accuracy of prompts.

They are rewards, since adversarial texts are judged in worker processes. The names are
those of the results.
"""

from r1jax.rewards import Weighted
from r1jax.tasks import Problem
from r1jax.tasks.ifeval import Verdicts, verdicts
from r1jax.text import parsing


def prompt_loose(problem: Problem, output: str) -> float:
  """Returns 1.0 if an output follows all instructions loosely, else 0.0."""
  return float(all(_verdicts(problem, output).loose))


def instruction_strict(problem: Problem, output: str) -> float:
  """Returns how many instructions an output follows strictly."""
  return float(sum(_verdicts(problem, output).strict))


def instruction_loose(problem: Problem, output: str) -> float:
  """Returns how many instructions an output follows loosely."""
  return float(sum(_verdicts(problem, output).loose))


MEASURES = tuple(
  Weighted(function.__name__, function, 0.0)
  for function in (prompt_loose, instruction_strict, instruction_loose)
)


def _verdicts(problem: Problem, output: str) -> Verdicts:
  parsed = parsing.parse(output, problem.form)
  answer = '' if parsed is None else parsed.answer  # which follows no instruction
  return verdicts(answer, problem.truth['answer'], **problem.truth['details'])
