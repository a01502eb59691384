"""Rule-based rewards: accuracy, format and language consistency.

R1-Zero adds accuracy and format with equal weight and uses no neural reward model. R1's
second stage adds language consistency (Nature version of the R1 paper).
"""

from r1jax import tasks
from r1jax.rewards import filters
from r1jax.tasks import Problem
from r1jax.text import language, parsing


def accuracy(problem: Problem, output: str) -> float:
  """Returns 1.0 if `output` has the problem's form and a right answer, else 0.0."""
  parsed = parsing.parse(output, problem.form)
  return float(parsed is not None and tasks.verify(problem, parsed.answer))


def reasoning(problem: Problem, output: str) -> float:
  """Returns `accuracy` for a reasoning problem, 0.0 for an instruction.

  In R1's last stage rules judge only reasoning.
  """
  return accuracy(problem, output) if problem.task in tasks.REASONING else 0.0


def format_reward(problem: Problem, output: str) -> float:
  """Returns 1.0 if `output` has the problem's form, right or wrong, else 0.0."""
  return float(parsing.parse(output, problem.form) is not None)


def language_consistency(problem: Problem, output: str) -> float:
  """Returns the share of the words of the thoughts in the problem's language.

  That is 0.0 for thoughts without words; see `language.share`.
  """
  think, _, _ = output.partition('</think>')
  return language.share(think, problem.language)


def readable(problem: Problem, output: str) -> float:
  """Returns 1.0 if `output` has no fault but a wrong answer, else 0.0."""
  return float(not set(filters.faults(problem, output)) - {'wrong'})
