"""Runs of RL as one program beside the ordinary loop, from the same base.

  python -m scripts.fused_beside --parent runs/r1/zero --seeds 5

trains the base of R1-Zero once with `stages.rl.step` and once with `stages.fused`, with
the problems and random keys of each seed, by turns, as the machine's speed varies. It
prints the share of right outputs over the steps with intervals, the difference in the
last steps seed by seed, and seconds a step without compilation.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.r1_zero import R1Zero
from r1jax import statistics
from r1jax.report.fused import LAST
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import Rewarder
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import compilation
from r1jax.runtime.errors import user_errors
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import artifact, fused, problem_sets, rl, rl_state
from r1jax.stages.artifact import Artifact
from r1jax.stages.problem_sets import Problems, problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rl_groups import Actors
from r1jax.stages.stage import reward_pool

SHARES = R1Zero.shares  # of the tasks
PARTS = 6  # of the steps, each a line of the table


class Trained(NamedTuple):
  """The share of right outputs in each step of a run, and the seconds of a step."""

  right: np.ndarray
  seconds: float


class Start(NamedTuple):
  """What both ways start from."""

  parent: Artifact
  params: optax.Params
  problems: Problems
  mesh: jax.sharding.Mesh
  config: RLConfig


def ordinary(start: Start, rewarder: Rewarder, seed: int) -> Trained:
  """Trains with the ordinary loop."""
  policy, config = start.parent.policy, start.config
  learner, params = rl_state.learner_of(
    policy, start.mesh, config, lambda: start.params, seed
  )
  saved = rl_state.start(learner, jax.tree.map(jnp.copy, params()))
  state, reference = saved['policy'], saved['reference']
  sampler = Sampler(policy, config.max_prompt_length, start.mesh)
  actors = Actors(sampler, rewarder, learner)
  problem_at = problem_stream(start.problems.train[: len(SHARES)], SHARES, seed)
  right = []
  with compilation.Compilations() as compilations:
    began = time.monotonic()
    for number in range(1, config.steps + 1):
      problems = [problem_at(n) for n in config.problem_numbers(number)]
      key = jax.random.fold_in(jax.random.key(seed), number)
      state, metrics, _ = rl.step(
        actors, state, reference, problems, key, number, rl_state.Feedback()
      )
      right.append(metrics['reward'])
    seconds = time.monotonic() - began - compilations.since()[1]
  return Trained(np.array(right), seconds / config.steps)


def as_one_program(start: Start, seed: int) -> Trained:
  """Trains with the fused program."""
  with compilation.Compilations() as compilations:
    began = time.monotonic()
    metrics = fused.train(
      start.parent.policy,
      start.params,
      start.config,
      start.problems.train[: len(SHARES)],
      SHARES,
      seeds=[seed],
    )
    seconds = time.monotonic() - began - compilations.since()[1]
  return Trained(metrics['reward'][0, 0], seconds / start.config.steps)


def table(ways: dict[str, list[Trained]]) -> list[str]:
  """Returns the lines to print: means over seeds with intervals, and differences."""
  lines = [f'{"steps":>9}' + ''.join(f'{name:>24}' for name in ways)]
  (steps,) = {len(run.right) for runs in ways.values() for run in runs}
  for part in np.array_split(np.arange(steps), min(PARTS, steps)):
    cells = []
    for runs in ways.values():
      values = [100 * run.right[part].mean() for run in runs]
      mean, low, high = statistics.seeds_interval(values, bounds=(0.0, 100.0))
      cells.append(f'{mean:.1f} ({low:.1f} to {high:.1f}) %')
    name = f'{part[0] + 1}–{part[-1] + 1}'
    lines.append(f'{name:>9}' + ''.join(f'{cell:>24}' for cell in cells))
  first, second = (
    [100 * run.right[-LAST:].mean() for run in runs] for runs in ways.values()
  )
  mean, low, high = statistics.seeds_paired(first, second).difference
  lines.append(
    f'the last {LAST} steps differ by {mean:+.2f} ({low:+.2f} to {high:+.2f}) points'
  )
  for name, runs in ways.items():
    each = ' '.join(f'{run.seconds:.2f}' for run in runs)
    lines.append(f'{name}: {each} s a step')
  return lines


def main() -> None:
  """Trains both ways by turns, and prints the table."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.fused_beside',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--parent', type=Path, required=True, help='a run of r1_zero')
  parser.add_argument('--seeds', type=int, default=5, help='2 or more')
  given = parser.parse_args()
  if given.seeds < 2:
    parser.error(f'--seeds: expected 2 or more, got {given.seeds}')
  with user_errors():
    compilation.keep_on_disk()
    parent = artifact.load(given.parent, 'r1_zero')
    mesh = make_mesh(jax.devices()[:1])
    problems = problem_sets.problems_of(parent, None)
    start = Start(parent, parent.params(mesh, 'base'), problems, mesh, R1Zero.rl)
    ways: dict[str, list[Trained]] = {'ordinary loop': [], 'one program': []}
    rewards = [Weighted('accuracy', rules.accuracy, 1.0)]
    with reward_pool(start.config, rewards) as rewarder:
      for seed in range(given.seeds):
        ways['ordinary loop'].append(ordinary(start, rewarder, seed))
        ways['one program'].append(as_one_program(start, seed))
        for name, runs in ways.items():
          print(f'seed {seed}, {name}: {runs[-1].seconds:.2f} s a step', flush=True)
  print('\n'.join(table(ways)))


if __name__ == '__main__':
  main()
