"""The result of many runs in one program: a table, sentences, curves over seeds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from r1jax import statistics
from r1jax.report.ablation import cell
from r1jax.report.chart import ROLES, Curve, CurveFigure
from r1jax.report.comparison import (
  Comparison,
  compare,
  difference_sentence,
  level_sentence,
)
from r1jax.report.words import LEVEL
from r1jax.runtime.workdir import write_whole

METRICS, PAGE = 'metrics.jsonl', 'fused.html'
LAST = 10  # steps, whose mean reward is the result of a run


class Runs(NamedTuple):
  """The metrics of all runs of a program.

  Fields:
    names: of the values.
    first: the first seed.
    metrics: by name, [values, seeds, steps].
    seconds: of the whole program, with its compilation.
  """

  names: Sequence[str]
  first: int
  metrics: dict[str, np.ndarray]
  seconds: float

  @property
  def solved(self) -> np.ndarray:
    """Share of right outputs in the last steps, %, [values, seeds]."""
    return 100 * self.metrics['reward'][..., -LAST:].mean(-1)


def write(workdir: Path, question: str, runs: Runs) -> list[str]:
  """Writes a line for each step of each run, and the page; returns lines to print."""
  lines = []
  for n, name in enumerate(runs.names):
    _, seeds, steps = runs.metrics['reward'].shape
    for seed in range(seeds):
      for step in range(steps):
        values = {key: float(x[n, seed, step]) for key, x in runs.metrics.items()}
        line = {'value': name, 'seed': runs.first + seed, 'step': step + 1, **values}
        lines.append(json.dumps(line, allow_nan=False))
  write_whole(workdir / METRICS, '\n'.join(lines) + '\n')
  result = comparison(question, runs)
  write_whole(workdir / PAGE, result.html)
  return [*result.lines, str(workdir / PAGE)]


def comparison(question: str, runs: Runs) -> Comparison:
  """Returns the comparison of the values, seed by seed."""
  _, seeds, steps = runs.metrics['reward'].shape
  rows = [
    [name, cell(solved), cell(lengths, np.inf)]
    for name, solved, lengths in zip(
      runs.names,
      runs.solved.tolist(),
      runs.metrics['length'][..., -LAST:].mean(-1).tolist(),
      strict=True,
    )
  ]
  head = ['', f'right in the last {min(LAST, steps)} steps, %', 'length, tokens']
  count, minutes = len(runs.names) * seeds, runs.seconds / 60
  return compare(
    question,
    f'{count} runs of {steps} steps in one program, {minutes:.1f} min',
    [head, *rows],
    statements(runs),
    [
      CurveFigure(
        'Right outputs over steps',
        'Of each rollout, the mean over seeds with its 95 % interval.',
        [
          _curve(name, role, reward)
          for name, role, reward in zip(
            runs.names, ROLES, runs.metrics['reward'], strict=False
          )
        ],
        share=True,
      )
    ],
    METRICS,
  )


def statements(runs: Runs) -> list[str]:
  """Returns sentences on how each value differs from the first, seed by seed."""
  if runs.metrics['zero_variance_groups'].min() == 1:
    return ['The rewards of a group differed in no step, so nothing was learned.']
  (first, *others), (base, *rest) = runs.names, runs.solved
  if not others or len(base) < 2:
    return []
  level = LEVEL / len(others)
  found = [level_sentence(len(others), f'by seed ({len(base)} of each value)')]
  for name, solved in zip(others, rest, strict=True):
    test = statistics.seeds_paired(base, solved, 1 - level)
    found.append(
      difference_sentence(name, first, test.difference, 'points', test.p, level)
    )
  return found


def _curve(name: str, role: str, reward: np.ndarray) -> Curve:
  """Returns the mean over seeds [seeds, steps] at each step."""
  steps = reward.shape[1]
  points = [(step + 1, float(reward[:, step].mean())) for step in range(steps)]
  if len(reward) < 2:
    return Curve(name, role, points)
  band = [
    (step + 1, *statistics.seeds_interval(reward[:, step], bounds=(0.0, 1.0))[1:])
    for step in range(steps)
  ]
  return Curve(name, role, points, band)
