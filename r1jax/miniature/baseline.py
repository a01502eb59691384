"""The fixed opponent of the stage table: preference is a win rate against its answers.

AlpacaEval compares every model with the same answers of one model; here somebody of
middling care has answered each instruction once.
"""

import random

from r1jax.miniature import corpus, judge
from r1jax.miniature.corpus import CorpusConfig
from r1jax.tasks import GENERAL, Problem

MIDDLING = CorpusConfig(obedient=0.75, native=0.75, kind=0.3)


def answer(problem: Problem) -> str:
  """The opponent's output, always the same for a problem."""
  return corpus.write(MIDDLING, problem, random.Random(f'{problem.id} opponent'))


def preference(problem: Problem, output: str) -> float:
  """1.0 where the judge prefers `output` to the opponent's, 0.5 for equals, else 0.0.

  Only for instructions; 0.0 for any other problem.
  """
  if problem.task not in GENERAL:
    return 0.0
  return judge.wins(problem, output, answer(problem))
