"""Rewards by rule: is the answer right, the form kept, the language the one asked for.

R1-Zero adds accuracy and form with equal weight and uses no neural reward model; R1's
second stage adds the language (Nature version of the R1 paper).
"""

from r1jax import tasks
from r1jax.rewards import filters
from r1jax.tasks import Problem
from r1jax.text import language, parsing


def accuracy(problem: Problem, output: str) -> float:
  """1.0 when `output` has the strict form and its answer is right, else 0.0."""
  parsed = parsing.parse(output)
  return float(parsed is not None and tasks.verify(problem, parsed.answer))


def reasoning(problem: Problem, output: str) -> float:
  """`accuracy` for a reasoning problem; 0.0 for an instruction, right or wrong.

  In R1's last stage rules decide about reasoning alone.
  """
  return accuracy(problem, output) if problem.task in tasks.REASONING else 0.0


def format_reward(problem: Problem, output: str) -> float:
  """1.0 when `output` has the strict form, right or wrong, else 0.0."""
  del problem  # every problem asks for the same form
  return float(parsing.parse(output) is not None)


def language_consistency(problem: Problem, output: str) -> float:
  """The share of the words of the chain of thought that are in the problem's language.

  An output without words earns nothing; see `language.share`.
  """
  think, _, _ = output.partition('</think>')
  return language.share(think, problem.language)


def readable(problem: Problem, output: str) -> float:
  """1.0 when no filter but the one for right answers objects to `output`, else 0.0."""
  return float(not set(filters.faults(problem, output)) - {'wrong'})
