"""The fixed baseline of the preference measure, which is a win rate against it.

AlpacaEval compares every model with the answers of one model. Here a writer of average
quality has answered each instruction once.
"""

import random

from r1jax.miniature import corpus, judge
from r1jax.miniature.corpus import CorpusConfig
from r1jax.tasks import GENERAL, Problem

AVERAGE = CorpusConfig(obedient=0.75, native=0.75, kind=0.3)


def answer(problem: Problem) -> str:
  """Returns the baseline's output, always the same for a problem."""
  return corpus.write(AVERAGE, problem, random.Random(f'{problem.id} opponent'))


def preference(problem: Problem, output: str) -> float:
  """Returns 1.0 if the judge prefers `output` to the baseline's, 0.5 for equals.

  Else 0.0, also for any problem that is no instruction.
  """
  if problem.task not in GENERAL:
    return 0.0
  return judge.wins(problem, output, answer(problem))
