"""Evaluation on held-out problems: pass@1, pass@k, consensus, with intervals.

Intervals are bootstrapped over problems, and over all problems of a group at once (such
as Countdown's targets of the same numbers): samples of one problem are not independent,
nor are answers to problems that are alike. They are about the model at hand: another
seed makes another model, and by how much those differ no interval here says. The same
step of the same seed always draws the same samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax import statistics, tasks
from r1jax.runtime import hosts
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages.rewarding import Rewarder
from r1jax.stages.rollout import Rollout, Sampler
from r1jax.tasks import Problem
from r1jax.text import parsing


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How much to sample."""

  problems: int = 96  # held-out problems, the same ones at every evaluation
  samples: int = 16  # k of pass@k and cons@k
  prompts_per_batch: int = 16  # problems sampled at a time
  draw: SamplingConfig = SamplingConfig()  # as in rollouts (the paper: 0.6, top-p 0.95)
  shown: int = 8  # problems whose first output is kept for the report

  def __post_init__(self) -> None:
    for field in ('problems', 'samples', 'prompts_per_batch'):
      if getattr(self, field) < 1:
        raise ValueError(
          f'evals.{field}: expected 1 or more, got {getattr(self, field)}'
        )
    if self.shown < 0:
      raise ValueError(f'evals.shown: expected 0 or more, got {self.shown}')


def evaluate(
  params: Any,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  sampler: Sampler,
  rewarder: Rewarder,
  config: EvalConfig,
  max_length: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Returns the metrics of one evaluation, and the samples to be shown.

  Args:
    params: of the policy.
    key: the samples come from it.
    problems: to be answered; a multiple of `prompts_per_batch` wastes nothing.
    sampler: how to sample.
    rewarder: has a reward named `accuracy`, 1.0 for a right answer.
    config: see `Config`.
    max_length: T.
  """
  size = config.prompts_per_batch
  answered: list[_Answered] = []  # of this host
  pending = []
  for start in range(0, len(problems), size):
    chunk = list(problems[start : start + size])
    filled = chunk + [chunk[-1]] * (size - len(chunk))  # one shape, one compilation
    sampled = sampler.sample(
      params,
      jax.random.fold_in(key, start),
      filled,
      group_size=config.samples,
      max_length=max_length,
      draw=config.draw,
    )
    mine = [
      n for n, row in enumerate(sampled.rows) if sampled.own[n] and row < len(chunk)
    ]
    for n in mine:
      number = start + int(sampled.rows[n])
      answered.append(
        _answered(number, problems[number], sampled, n, number < config.shown)
      )
    pairs = [
      (chunk[sampled.rows[n]], output) for n in mine for output in sampled.texts[n]
    ]
    # Scored while the next ones are sampled.
    pending.append(
      rewarder.submit([p for p, _ in pairs], [output for _, output in pairs])
    )
  scored = np.concatenate([scores.result().values for scores in pending])
  own = answered, scored.reshape(len(answered), config.samples, len(rewarder.names))
  parts = hosts.all_gather('evaluation', own)
  together = [pair for part in parts for pair in zip(*part, strict=True)]
  together.sort(key=lambda pair: pair[0].number)
  values_PGR = np.stack([values for _, values in together])
  values = dict(zip(rewarder.names, np.moveaxis(values_PGR, -1, 0), strict=True))
  found = [one for one, _ in together]
  shown = [
    {
      'problem': problems[one.number].id,
      'prompt': sampler.policy.prompt(problems[one.number].question),
      'output': one.output,
      'correct': bool(values['accuracy'][one.number, 0]),
      'cut_off': bool(one.cut_off[0]),
    }
    for one in found[: config.shown]
  ]
  return _summary(found, problems, values, config), shown


class _Answered(NamedTuple):
  """What is kept of the outputs to a problem."""

  number: int  # of the problem
  length: np.ndarray  # int [G]
  cut_off: np.ndarray  # bool [G]
  unparsable: list[bool]
  reflective: list[bool]
  agreed: bool  # whether the answer that most give is right
  output: str | None  # the first, where it is to be shown


def _answered(
  number: int, problem: Problem, sampled: Rollout, n: int, shown: bool
) -> _Answered:
  group = sampled.texts[n]
  return _Answered(
    number,
    sampled.lengths[n],
    sampled.cut_off[n],
    [parsing.parse(output) is None for output in group],
    [parsing.is_reflective(output) for output in group],
    _consensus(problem, group),
    group[0] if shown else None,
  )


def _summary(
  found: Sequence[_Answered],
  problems: Sequence[Problem],
  values_PG: dict[str, np.ndarray],
  config: EvalConfig,
) -> dict[str, Any]:
  correct_PG = values_PG['accuracy']
  metrics: dict[str, Any] = {
    'problems': len(found),
    'k': config.samples,
    **dataclasses.asdict(config.draw),
  }
  groups = [tasks.group(problem) for problem in problems]
  count = correct_PG.sum(1).astype(int)
  pass_at_k = statistics.pass_at_k(config.samples, count, config.samples)
  for name, values in (
    ('pass_at_1', correct_PG),
    ('pass_at_k', pass_at_k),
    ('consensus', np.array([one.agreed for one in found], float)),
    ('length', [one.length for one in found]),
    ('cut_off', [one.cut_off for one in found]),
    ('unparsable', [one.unparsable for one in found]),
    ('reflective', [one.reflective for one in found]),
  ):
    metrics[name] = statistics.bootstrap(values, seed=0, groups=groups)._asdict()
  metrics['rewards'] = {
    name: statistics.bootstrap(values, seed=0, groups=groups)._asdict()
    for name, values in values_PG.items()
    if name != 'accuracy'
  }
  if len(of_tasks := by_task(correct_PG, problems)) > 1:
    metrics['tasks'] = of_tasks
  metrics['right'] = count.tolist()  # of k, a number a problem: for paired tests
  metrics['groups'] = groups  # of the problems, for the same
  return metrics


def by_task(
  values_PG: np.ndarray, problems: Sequence[Problem]
) -> dict[str, dict[str, float]]:
  """The mean over the problems of each task with its interval, as plain data."""
  found = {}
  for name in dict.fromkeys(problem.task for problem in problems):
    places = [n for n, problem in enumerate(problems) if problem.task == name]
    groups = [tasks.group(problems[n]) for n in places]
    interval = statistics.bootstrap(values_PG[places], seed=0, groups=groups)
    found[name] = interval._asdict()
  return found


def _consensus(problem: Problem, group: Sequence[str]) -> bool:
  """Whether the answer that most of the group gives is right."""
  parsed = [parsing.parse(output) for output in group]
  answers = [part.answer if part else None for part in parsed]
  votes = [
    None if answer is None else tasks.answer_key(problem, answer) for answer in answers
  ]
  winner = statistics.consensus(votes)
  if winner is None:
    return False
  answer = answers[votes.index(winner)]
  return answer is not None and tasks.verify(problem, answer)
