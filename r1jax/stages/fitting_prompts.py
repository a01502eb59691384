"""Leaves out problems whose prompts are too long for a run."""

import dataclasses
from collections.abc import Sequence

from r1jax.rollout.policy import Policy
from r1jax.stages.problem_sets import Problems
from r1jax.tasks import Problem


def fitting(problems: Problems, policy: Policy) -> Problems:
  """Returns the problems whose prompts fit into `max_prompt_length`.

  Says how many are left out, and how many there are.

  Args:
    problems: of one task.
    policy: with the tokenizer and the template of the prompts.

  Raises:
    ValueError: all prompts of a split are longer.
  """
  limit, remarks = problems.max_prompt_length, list(problems.remarks)

  def kept(found: Sequence[Problem], split: str) -> list[Problem]:
    ids = (policy.tokenizer.prompt_ids(policy.template, p.question) for p in found)
    lengths = [len(one) for one in ids]
    fit = [p for p, length in zip(found, lengths, strict=True) if length <= limit]
    if not fit:
      raise ValueError(
        f'rl.max_prompt_length: expected at least {min(lengths)}, the tokens of the '
        f'shortest prompt for {split}, got {limit}'
      )
    if dropped := len(found) - len(fit):
      remarks.append(
        f'{dropped} of {len(found)} problems for {split} have prompts of more than '
        f'rl.max_prompt_length = {limit} tokens and are left out.'
      )
    return fit

  train, validation, test = (
    [kept(source, split) for source in sources]
    for sources, split in (
      (problems.train, 'training'),
      (problems.validation, 'validation'),
      (problems.test, 'testing'),
    )
  )
  remarks.append(
    f'{sum(map(len, train))} problems for training, {sum(map(len, validation))} for '
    'validation.'
  )
  return dataclasses.replace(
    problems,
    train=train,
    validation=validation,
    test=test,
    remarks=tuple(remarks),
  )
