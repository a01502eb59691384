"""Rewrites right outputs into R1's readable format: clean thoughts, then a summary.

In the paper a model rewrites R1-Zero's outputs before the cold start (Nature version).
Here a program does it: a calculation that was repeated in doubt replaces the first one,
and a summary in the output's language gives the result.
"""

import re

from r1jax.tasks import GENERAL, Problem, expressions
from r1jax.text import parsing
from r1jax.text.language import PHRASES

_DOUBTS = '|'.join(
  phrase
  for phrases in PHRASES.values()
  for name in ('wait', 'check')
  for phrase in phrases[name]
)
_DOUBT = re.compile(rf'^(?:(?:{_DOUBTS})\b\s*)+')


def rewrite(problem: Problem, output: str) -> str:
  """Returns the output with clean thoughts and, for a reasoning problem, a summary.

  Output and result have no faults; see `r1jax.rewards.filters`.

  Raises:
    ValueError: the output has no thoughts and answer, or the answer is not an
      expression.
  """
  parsed = parsing.parse(output)
  if parsed is None:
    raise ValueError(f'output: expected thoughts and an answer, got {output!r:.200}')
  summary = parsed.summary
  if problem.task not in GENERAL:
    used = PHRASES[problem.language]['used'][0]
    summary = f'{used} {_result(problem, parsed.answer)}'
  think = '\n'.join(_without_doubts(parsed.think))
  middle = f'\n{summary}\n' if summary else '\n'
  return f'<think>{think}</think>{middle}<answer>{parsed.answer}</answer>'


def _without_doubts(think: str) -> list[str]:
  """Returns the lines, each once, without calculations that were repeated in doubt."""
  kept: list[str] = []
  for line in map(str.strip, think.splitlines()):
    again = _DOUBT.sub('', line)
    calculation = again.partition('=')[0]
    if again != line and kept and kept[-1].startswith(f'{calculation}='):
      kept.pop()
    if again and again not in kept:
      kept.append(again)
  return kept


def _result(problem: Problem, answer: str) -> str:
  """Returns the result in the task's form, for Countdown all steps of the answer."""
  if problem.task == 'equations':
    return f'x={problem.truth["x"]}'
  if problem.task == 'arithmetic':
    return f'{problem.id}={problem.truth["result"]}'
  tree = expressions.read(answer)
  if tree is None:
    raise ValueError(f'answer: expected an expression, got {answer!r:.200}')
  steps = [tree]
  while not isinstance(steps[-1], int):
    steps.append(expressions.reduce_once(steps[-1]))
  return '='.join(map(expressions.write, steps))
