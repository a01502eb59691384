"""Ablations of RL with many seeds in one program, for the tasks of the miniature.

  python -m experiments.fused --parent runs/zero --seeds 16
  python -m experiments.fused --parent runs/zero --seeds 5 --vary kl_coef --values 0 0.1

Trains the base of R1-Zero by RL with the accuracy reward alone, which is computed on
the device: rollout, reward and updates of all steps and all seeds are one compiled
program. Random keys and problems of a seed are those of the ordinary loop. Nothing is
saved before the end, and a killed run begins again.
"""

import dataclasses
import time

import jax

from experiments.r1_zero import R1Zero
from r1jax import algorithms, tasks
from r1jax.report import fused as page
from r1jax.runtime import cli, compilation
from r1jax.runtime.errors import user_errors
from r1jax.runtime.workdir import machine_settings, open_workdir
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import artifact, fused, problem_sets
from r1jax.stages.rl_config import MACHINE, RLConfig

QUESTION = 'What do seeds and numbers change?'


@dataclasses.dataclass(frozen=True)
class Fused:
  """Seeds, and a number that varies between them."""

  parent: str = 'runs/r1_zero'  # the work directory of R1-Zero
  start: str = 'base'  # the parent's parameters to start from: base or final
  workdir: str = 'runs/fused'  # metrics.jsonl and the page
  seeds: int = 16  # runs of each value: seed, seed + 1, …
  seed: int = 0  # of the first run
  vary: str = ''  # a number of the objective, or learning_rate; empty varies none
  values: tuple[float, ...] = ()  # of it; the first is compared with the others
  # Whether runs are an axis of each operation, as an accelerator wants, or follow one
  # another, with the bits of single runs
  together: bool = False
  data_dir: str | None = dataclasses.field(default=None, metadata=MACHINE)
  shares: tuple[float, float, float] = R1Zero.shares  # of the tasks
  rl: RLConfig = R1Zero.rl

  def __post_init__(self) -> None:
    problem_sets.check_folders(self.workdir, self.data_dir)
    problem_sets.check_seed(self.seed)
    problem_sets.check_shares(self.shares, tasks.REASONING)
    fused.check(self.rl)
    if self.seeds < 1:
      raise ValueError(f'seeds: expected 1 or more, got {self.seeds}')
    if self.start not in ('base', 'final'):
      raise ValueError(f'start: expected base or final, got {self.start!r}')
    fused.check_numbers(self.rl, self.vary, self.values)


def run(config: Fused) -> page.Runs:
  """Trains all runs, and returns their metrics."""
  parent = artifact.load(config.parent, 'r1_zero')
  problems = problem_sets.problems_of(parent, config.data_dir)
  problems.check_length('rl.max_length', config.rl.longest)
  mesh = make_mesh(jax.devices()[:1])
  began = time.monotonic()
  metrics = fused.train(
    parent.policy,
    parent.params(mesh, config.start),
    config.rl,
    problems.train[: len(config.shares)],
    config.shares,
    seeds=range(config.seed, config.seed + config.seeds),
    vary=config.vary,
    values=config.values,
    together=config.together,
  )
  names = [f'{config.vary} {value:g}' for value in config.values] or ['all seeds']
  return page.Runs(names, config.seed, metrics, time.monotonic() - began)


def main(config: Fused) -> None:
  """Trains, writes the metrics and the comparison, and prints it."""
  compilation.keep_on_disk()
  artifact.load(config.parent, 'r1_zero')  # before anything is written
  workdir = open_workdir(config.workdir, config, may_change=machine_settings(config))
  print('\n'.join(page.write(workdir, QUESTION, run(config))))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Fused(), presets={'rl.grpo': algorithms.PRESETS}))
