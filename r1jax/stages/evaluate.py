"""Evaluation on held-out problems: pass@1, pass@k, consensus, with intervals.

Intervals are bootstrapped over problems: the samples of one problem are not
independent. The same step of the same seed always draws the same samples.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax import drawing, statistics, tasks, text
from r1jax.rewards.pool import RewardPool
from r1jax.stages.generate import Generator
from r1jax.tasks import Problem


@dataclasses.dataclass(frozen=True)
class Config:
  """How much to sample."""

  problems: int = 96  # held-out problems, the same ones at every evaluation
  samples: int = 16  # k of pass@k and cons@k
  prompts_per_batch: int = 16  # problems sampled at a time
  draw: drawing.Config = drawing.Config()  # as in rollouts (the paper: 0.6, top-p 0.95)
  shown: int = 8  # problems whose first output is kept for the report

  def __post_init__(self) -> None:
    for field in ('problems', 'samples', 'prompts_per_batch'):
      if getattr(self, field) < 1:
        raise ValueError(
          f'evaluate.{field}: expected 1 or more, got {getattr(self, field)}'
        )
    if self.shown < 0:
      raise ValueError(f'evaluate.shown: expected 0 or more, got {self.shown}')


def evaluate(
  params: Any,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  generator: Generator,
  pool: RewardPool,
  config: Config,
  max_length: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Returns the metrics of one evaluation, and the samples to be shown.

  Args:
    params: of the policy.
    key: the samples come from it.
    problems: to be answered; a multiple of `prompts_per_batch` wastes nothing.
    generator: how to sample.
    pool: has a reward named `accuracy`, 1.0 for a right answer.
    config: see `Config`.
    max_length: T.
  """
  size = config.prompts_per_batch
  outputs, pending = [], []
  for start in range(0, len(problems), size):
    chunk = list(problems[start : start + size])
    filled = chunk + [chunk[-1]] * (size - len(chunk))  # one shape, one compilation
    sampled = generator(
      params,
      jax.random.fold_in(key, start),
      filled,
      group_size=config.samples,
      max_length=max_length,
      draw=config.draw,
    )
    pairs = [
      (problem, output)
      for problem, group in zip(chunk, sampled.texts, strict=False)
      for output in group
    ]
    # Scored while the next ones are sampled.
    pending.append(pool.submit(*map(list, zip(*pairs, strict=True))))
    for index, problem in enumerate(chunk):
      outputs.append((problem, sampled, index))
  scored = np.concatenate([scores.result().values for scores in pending])
  values = dict(
    zip(pool.names, scored.T.reshape(-1, len(outputs), config.samples), strict=True)
  )
  return _summary(outputs, values, config, generator)


def _summary(outputs, values_PG, config, generator):
  correct_PG = values_PG.pop('accuracy')
  metrics: dict[str, Any] = {
    'split': 'test',
    'problems': len(outputs),
    'k': config.samples,
    **dataclasses.asdict(config.draw),
  }
  texts = [sampled.texts[index] for _, sampled, index in outputs]
  count = correct_PG.sum(1).astype(int)
  pass_at_k = statistics.pass_at_k(config.samples, count, config.samples)
  agreed = [
    _consensus(problem, group)
    for (problem, _, _), group in zip(outputs, texts, strict=True)
  ]
  for name, values in (
    ('pass_at_1', correct_PG),
    ('pass_at_k', pass_at_k),
    ('consensus', np.array(agreed, float)),
    ('length', [sampled.lengths[index] for _, sampled, index in outputs]),
    ('cut_off', [sampled.cut_off[index] for _, sampled, index in outputs]),
    ('unparsable', [[text.parse(o) is None for o in group] for group in texts]),
    ('reflective', [[text.is_reflective(o) for o in group] for group in texts]),
  ):
    metrics[name] = statistics.bootstrap(values, seed=0)._asdict()
  metrics['rewards'] = {
    name: statistics.bootstrap(values, seed=0)._asdict()
    for name, values in values_PG.items()
  }
  names = [problem.task for problem, _, _ in outputs]
  if len(set(names)) > 1:
    metrics['tasks'] = {
      name: statistics.bootstrap(correct_PG[np.array(names) == name], seed=0)._asdict()
      for name in dict.fromkeys(names)
    }
  metrics['right'] = count.tolist()  # of k, a number a problem: for paired tests
  shown = [
    {
      'problem': problem.id,
      'prompt': generator.prompt(problem),
      'output': sampled.texts[index][0],
      'correct': bool(right[0]),
      'cut_off': bool(sampled.cut_off[index][0]),
    }
    for (problem, sampled, index), right in zip(
      outputs[: config.shown], correct_PG, strict=False
    )
  ]
  return metrics, shown


def _consensus(problem: Problem, group: Sequence[str]) -> bool:
  """Whether the answer that most of the group gives is right."""
  parsed = [text.parse(output) for output in group]
  answers = [part.answer if part else None for part in parsed]
  votes = [
    None if answer is None else tasks.answer_key(problem, answer) for answer in answers
  ]
  winner = statistics.consensus(votes)
  if winner is None:
    return False
  answer = answers[votes.index(winner)]
  return answer is not None and tasks.verify(problem, answer)


def named_key(key: jax.Array, name: str) -> jax.Array:
  """The child of `key` for a purpose, so that adding one changes no other."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
