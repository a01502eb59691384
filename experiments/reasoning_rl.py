"""R1's second stage in miniature: RL on reasoning, with a reward for one language.

Paper: DeepSeek-R1 (Nature version), first RL stage. As R1-Zero, from the cold start,
with clip ε = 10 and the share of words in the target language added to the accuracy.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import functools
from collections.abc import Callable

from r1jax import grpo, mesh, optim
from r1jax.rewards import Weighted, rules
from r1jax.stages import (
  command,
  evaluate,
  hosts,
  lineage,
  recipe,
  report,
  rl,
  scoreboard,
  work,
)
from r1jax.stages.run import plain_errors
from r1jax.tasks import REASONING


@dataclasses.dataclass(frozen=True)
class ReasoningRL:
  """R1's second stage: RL on reasoning problems with the language reward."""

  parent: str = 'runs/cold_start'  # the work directory of cold_start
  workdir: str = 'runs/reasoning_rl'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  accuracy_weight: float = 1.0  # of the accuracy reward
  language_weight: float = 1.0  # of the language-consistency reward (R1: 1)
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  rl: rl.Config = rl.Config(steps=60)
  rl_optim: optim.Config = optim.Config(
    # Half of R1-Zero's: 8e-4 cost a model that is often right 13 points in 10 steps.
    learning_rate=4e-4,
    schedule='cosine',
    eps=1e-6,
  )
  grpo: grpo.Config = dataclasses.replace(
    # clip: R1's ε = 10 on both sides, see `paper.choices`. With two updates a rollout
    # few ratios come near any bound.
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_low=1.0,
    clip_high=10.0,
  )
  mesh: mesh.Config = mesh.Config()
  evaluate: evaluate.Config = evaluate.Config()
  scoreboard: scoreboard.Config = scoreboard.Config()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
    recipe.check_shares(self.shares, REASONING)


def rewards(config: ReasoningRL) -> list[Weighted]:
  """What an output is rewarded for."""
  return [
    Weighted('accuracy', rules.accuracy, config.accuracy_weight),
    Weighted('language', rules.language_consistency, config.language_weight),
    Weighted('readable', rules.readable, 0.0),
  ]


def main(config: ReasoningRL, rewards: Callable[..., list[Weighted]] = rewards) -> None:
  """Reinforces what the cold start has learned."""
  parent = lineage.load(config.parent, 'cold_start')
  pool = work.pool(config.rl, rewards(config))
  with work.begin('reasoning_rl', config, parent, phases=('rl',)) as job:
    if job is None:
      return
    problems = job.where.train[: len(REASONING)]
    order = rl.problem_order(problems, config.shares, job.seed)
    start = functools.partial(parent.params, job.mesh)
    with pool:
      params = job.reinforce(start, pool, order, config)
    if hosts.first():
      report.write(job.run.workdir)
    job.finish('reasoning_rl', config, params, [parent])


if __name__ == '__main__':
  with plain_errors():
    main(command.parse(ReasoningRL(), presets={'grpo': grpo.PRESETS}))
