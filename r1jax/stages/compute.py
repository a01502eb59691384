"""Compute of a distillation method: its tokens and floating-point operations.

A forward pass takes about 2 operations per parameter and token, the gradient 4 more
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention scores, padding and
evaluations are not counted. A prompt counts once per problem: its outputs share it in
the sampler and, where they fit into one row, in the learner.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from r1jax.plain import JsonObject

FORWARD, GRADIENT = 2, 4  # operations per parameter and token


class Tokens(NamedTuple):
  """Numbers of tokens that go through a model, prompts included."""

  learned: float = 0.0  # student, forward and backward
  sampled: float = 0.0  # student, forward, one token at a time
  scored: float = 0.0  # student or its reference, forward, whole rows
  judged: float = 0.0  # teacher, forward, for its probabilities


def operations(tokens: Tokens, student: int, teacher: int) -> float:
  """Returns the floating-point operations, given the models' numbers of parameters."""
  forward = tokens.learned + tokens.sampled + tokens.scored
  by_student = FORWARD * forward + GRADIENT * tokens.learned
  return student * by_student + teacher * FORWARD * tokens.judged


def of_rl(
  lines: Iterable[JsonObject],
  *,
  prompts: int,
  outputs: int,
  epochs: int,
  passes: int,
) -> Tokens:
  """Returns the tokens of RL.

  Args:
    lines: of metrics.jsonl; `length` is the mean tokens of an output.
    prompts: tokens of all prompts.
    outputs: number of outputs per step.
    epochs: passes of learning over a rollout.
    passes: scoring passes over a rollout, of the reference and of the policy.
  """
  lengths = [line['length'] for line in lines if line['phase'] == 'rl']
  both = prompts + outputs * sum(lengths)
  return Tokens(epochs * both, both, passes * both)


def of_own_outputs(lines: Iterable[JsonObject], *, phase: str, steps: int) -> Tokens:
  """Returns the tokens of on-policy distillation, extrapolated from logged steps."""
  counts = [line['tokens'] for line in lines if line['phase'] == phase]
  tokens = steps * sum(counts) / len(counts)
  return Tokens(learned=tokens, sampled=tokens, judged=tokens)


def compared(
  spent: Mapping[str, Tokens], student: int, teacher: int, first: str
) -> dict[str, dict[str, float | None]]:
  """Returns by method: tokens, `operations`, and their ratio to those of `first`."""
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
