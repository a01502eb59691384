"""Evaluation on held-out problems: pass@1, pass@k, consensus, with intervals.

Intervals are bootstrapped over groups of problems (such as Countdown's targets of the
same numbers), since samples of one problem are not independent, nor are answers to
similar problems. They hold for the given model; they do not cover the variance over
training seeds. The same step and seed always draw the same samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from r1jax import statistics, tasks
from r1jax.plain import JsonDict
from r1jax.rewards.pool import Rewarder
from r1jax.rollout.sampler import Rollout, Sampler
from r1jax.runtime import hosts
from r1jax.runtime.loop import Loop
from r1jax.sampling.sampler import SamplingConfig
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
  params: optax.Params,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  sampler: Sampler,
  rewarder: Rewarder,
  config: EvalConfig,
  max_length: int,
) -> tuple[JsonDict, list[JsonDict]]:
  """Returns the metrics of one evaluation, and the samples to show.

  Args:
    params: of the policy.
    key: of the samples.
    problems: to answer; a multiple of `prompts_per_batch` wastes no compute.
    sampler: of the policy.
    rewarder: must have a reward named `accuracy`, 1.0 for a right answer.
    config: see `EvalConfig`.
    max_length: T, tokens.
  """
  size = config.prompts_per_batch
  answered: list[_Outputs] = []  # of this host
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
        _outputs(number, problems[number], sampled, n, number < config.shown)
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


def evaluate_and_log(
  loop: Loop,
  params: optax.Params,
  key: jax.Array,
  problems: Sequence[Problem],
  *,
  config: EvalConfig,
  **settings: Any,
) -> None:
  """Evaluates a policy after the loop's step on the first of the validation problems.

  Logs and shows the metrics. The arguments are those of `evaluate`.
  """
  values, shown = evaluate(
    params, key, problems[: config.problems], config=config, **settings
  )
  run, step = loop.run, loop.step
  run.log.write('eval', step, split='validation', **values)
  run.log.samples({'phase': 'eval', 'step': step, **sample} for sample in shown)
  run.progress.update('eval', step, loop.steps, values)


class _Outputs(NamedTuple):
  """Measurements of the outputs to one problem."""

  number: int  # of the problem
  length: np.ndarray  # int [G]
  cut_off: np.ndarray  # bool [G]
  fault: np.ndarray  # str [G], of the form; see `parsing.fault`
  reflective: list[bool]
  consensus: int | None  # an output with the most frequent answer
  output: str | None  # the first output if it is shown


def _outputs(
  number: int, problem: Problem, sampled: Rollout, n: int, shown: bool
) -> _Outputs:
  """Returns the measurements of row `n` of a rollout."""
  group = sampled.texts[n]
  return _Outputs(
    number,
    sampled.lengths[n],
    sampled.cut_off[n],
    np.array([parsing.fault(output, problem.form) for output in group], str),
    [parsing.is_reflective(output) for output in group],
    _consensus(problem, group),
    group[0] if shown else None,
  )


def _summary(
  found: Sequence[_Outputs],
  problems: Sequence[Problem],
  values_PG: dict[str, np.ndarray],
  config: EvalConfig,
) -> JsonDict:
  """Returns the metrics, given measurements and rewards of all problems."""
  correct_PG = values_PG['accuracy']
  metrics: JsonDict = {
    'problems': len(found),
    'k': config.samples,
    **dataclasses.asdict(config.draw),
  }
  groups = [tasks.group(problem) for problem in problems]
  count = correct_PG.sum(1).astype(int)
  consensus = [
    0.0 if one.consensus is None else correct_G[one.consensus]
    for one, correct_G in zip(found, correct_PG, strict=True)
  ]
  pass_at_k = statistics.pass_at_k(config.samples, count, config.samples)
  for name, values in (
    ('pass_at_1', correct_PG),
    ('pass_at_k', pass_at_k),
    ('consensus', np.array(consensus, float)),
    ('length', [one.length for one in found]),
    ('cut_off', [one.cut_off for one in found]),
    ('unparsable', [one.fault != '' for one in found]),
    ('endless_thoughts', [one.fault == 'thoughts' for one in found]),
    ('no_answer', [one.fault == 'answer' for one in found]),
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
  metrics['right'] = count.tolist()  # right outputs of k by problem, for paired tests
  metrics['groups'] = groups  # of the problems, for paired tests
  return metrics


def by_task(
  values_PG: np.ndarray, problems: Sequence[Problem]
) -> dict[str, dict[str, float]]:
  """Returns the mean and interval over the problems of each task, as JSON values."""
  found = {}
  for name in dict.fromkeys(problem.task for problem in problems):
    places = [n for n, problem in enumerate(problems) if problem.task == name]
    groups = [tasks.group(problems[n]) for n in places]
    interval = statistics.bootstrap(values_PG[places], seed=0, groups=groups)
    found[name] = interval._asdict()
  return found


def _consensus(problem: Problem, group: Sequence[str]) -> int | None:
  """Returns the index of an output with the group's most frequent answer, or None."""
  parsed = [parsing.parse(output, problem.form) for output in group]
  votes = [part and tasks.answer_key(problem, part.answer) for part in parsed]
  winner = statistics.consensus(votes)
  return None if winner is None else votes.index(winner)
