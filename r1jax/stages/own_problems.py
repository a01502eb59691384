"""Problems of a data file for a model: those whose prompts fit."""

from collections.abc import Sequence

from r1jax.rollout.policy import Policy
from r1jax.stages.problem_sets import Problems
from r1jax.tasks import Problem, data


def own_problems(
  files: data.Files, policy: Policy, *, max_prompt_length: int, max_positions: int
) -> Problems:
  """Returns the problems of data files, without those of longer prompts.

  Raises:
    ValueError: all prompts of a split are longer.
  """

  def fitting(problems: Sequence[Problem], split: str) -> list[Problem]:
    ids = (policy.tokenizer.prompt_ids(policy.template, p.question) for p in problems)
    lengths = [len(one) for one in ids]
    kept = [
      one
      for one, length in zip(problems, lengths, strict=True)
      if length <= max_prompt_length
    ]
    if not kept:
      raise ValueError(
        f'rl.max_prompt_length: expected at least {min(lengths)}, the tokens of the '
        f'shortest prompt for {split}, got {max_prompt_length}'
      )
    if dropped := len(problems) - len(kept):
      remarks.append(
        f'{dropped} of {len(problems)} problems for {split} have prompts of more than '
        f'rl.max_prompt_length = {max_prompt_length} tokens and are left out.'
      )
    return kept

  remarks = list(files.remarks)
  train = fitting(files.train, 'training')
  validation = fitting(files.validation, 'validation')
  remarks.append(
    f'{len(train)} problems for training, {len(validation)} for validation.'
  )
  return Problems(
    [train], [validation], max_prompt_length, max_positions, remarks=tuple(remarks)
  )
