"""What a method of distillation computes: tokens by what is done with them, operations.

A forward pass takes about 2 operations a parameter and token, the gradient 4 more
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention over the tokens before is
left out, and so are padding and evaluations. A prompt counts once a problem, as its
outputs share it in the sampler and, where they fit into a row, in the learner.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

FORWARD, GRADIENT = 2, 4  # operations a parameter and token


class Tokens(NamedTuple):
  """How many tokens go through a model, prompts included."""

  learned: float = 0.0  # by the student, forward and backward
  sampled: float = 0.0  # by the student, forward, one after the other
  scored: float = 0.0  # by the student or its reference, forward, all at once
  judged: float = 0.0  # by the teacher, forward, for its probabilities


def operations(tokens: Tokens, student: int, teacher: int) -> float:
  """Floating-point operations of these tokens, by models of so many parameters."""
  forward = tokens.learned + tokens.sampled + tokens.scored
  by_student = FORWARD * forward + GRADIENT * tokens.learned
  return student * by_student + teacher * FORWARD * tokens.judged


def of_rl(
  lines: Iterable[Mapping[str, Any]],
  *,
  prompts: int,
  outputs: int,
  epochs: int,
  passes: int,
) -> Tokens:
  """The tokens of RL.

  Args:
    lines: of metrics.jsonl, whose `length` is a step's tokens an output.
    prompts: tokens of all problems that were asked.
    outputs: of a step.
    epochs: over a rollout.
    passes: that score a rollout before it is learned, of the reference and the policy.
  """
  lengths = [line['length'] for line in lines if line['phase'] == 'rl']
  both = prompts + outputs * sum(lengths)
  return Tokens(epochs * both, both, passes * both)


def of_own_outputs(
  lines: Iterable[Mapping[str, Any]], *, phase: str, steps: int
) -> Tokens:
  """The tokens of on-policy distillation; steps that are not logged count as others."""
  counts = [line['tokens'] for line in lines if line['phase'] == phase]
  tokens = steps * sum(counts) / len(counts)
  return Tokens(learned=tokens, sampled=tokens, judged=tokens)


def compared(
  spent: Mapping[str, Tokens], student: int, teacher: int, first: str
) -> dict[str, dict[str, float | None]]:
  """By method: its tokens, its `operations`, and their ratio to those of `first`."""
  costs = {name: operations(tokens, student, teacher) for name, tokens in spent.items()}
  base = costs.get(first)
  return {
    name: {
      **tokens._asdict(),
      'operations': costs[name],
      f'times_{first}': costs[name] / base if base else None,
    }
    for name, tokens in spent.items()
  }
