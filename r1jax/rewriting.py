"""Rewrites a right output into R1's readable format: clean thoughts, then a summary.

The paper has R1-Zero's outputs rewritten before its first stage learns from them
(Nature version, cold start). Here a program does it: doubts that changed nothing are
left out of the thoughts, and a summary in the output's language says what was used.
"""

import re

from r1jax import text
from r1jax.language import PHRASES
from r1jax.tasks import GENERAL, Problem

_DOUBTS = tuple(
  phrase
  for phrases in PHRASES.values()
  for name in ('wait', 'check')
  for phrase in phrases[name]
)


def rewrite(problem: Problem, output: str) -> str:
  """The output with clean thoughts and, for a reasoning problem, with a summary.

  Expects an output without faults; see `r1jax.filters`.
  """
  parsed = text.parse(output)
  if parsed is None:
    raise ValueError(f'output: expected thoughts and an answer, got {output!r:.200}')
  lines = [line for line in parsed.think.splitlines() if not line.startswith(_DOUBTS)]
  summary = parsed.summary
  if problem.task not in GENERAL:
    used = PHRASES[problem.language]['used'][0]
    summary = f'{used} {_result(problem, lines, parsed.answer)}'
  think = '\n'.join(lines)
  middle = f'\n{summary}\n' if summary else '\n'
  return f'<think>{think}</think>{middle}<answer>{parsed.answer}</answer>'


def _result(problem: Problem, lines: list[str], answer: str) -> str:
  """What was found, in the form of the task."""
  if problem.task == 'equations':
    return f'x={problem.truth["x"]}'
  if problem.task == 'arithmetic':
    return f'{problem.id}={problem.truth["result"]}'
  steps = re.sub(r'\?.*', '', lines[-1]) if lines else ''
  return steps if steps.startswith(answer) else f'{answer}={problem.truth["target"]}'
