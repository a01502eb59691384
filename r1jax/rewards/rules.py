"""The rule-based rewards of R1-Zero: is the answer right, and is the form kept.

R1-Zero adds the two with equal weight and uses no neural reward model (Nature
version of the R1 paper).
"""

from r1jax import tasks, text
from r1jax.tasks import Problem


def accuracy(problem: Problem, output: str) -> float:
  """1.0 when `output` has the strict form and its answer is right, else 0.0."""
  parsed = text.parse(output)
  return float(parsed is not None and tasks.verify(problem, parsed.answer))


def format_reward(problem: Problem, output: str) -> float:
  """1.0 when `output` has the strict form, right or wrong, else 0.0."""
  del problem  # every problem asks for the same form
  return float(text.parse(output) is not None)
