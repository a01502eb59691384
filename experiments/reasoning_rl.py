"""R1's second stage in miniature: RL on reasoning, with a reward for one language.

Paper: DeepSeek-R1 (Nature version), first RL stage. As R1-Zero, from the cold start,
with clip ε = 10 and the share of words in the target language added to the accuracy.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import functools
from collections.abc import Callable

from r1jax import grpo, report
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.runtime import cli, hosts
from r1jax.runtime.run import user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets, stage
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import reward_pool
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
  rl: RLConfig = RLConfig(steps=60)
  rl_optim: OptimConfig = OptimConfig(
    # Half of R1-Zero's: 8e-4 cost a model that is often right 13 points in 10 steps.
    learning_rate=4e-4,
    schedule='cosine',
    eps=1e-6,
  )
  grpo: GRPOConfig = dataclasses.replace(
    # clip: R1's ε = 10 on both sides, see `paper.choices`. With two updates a rollout
    # few ratios come near any bound.
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_low=1.0,
    clip_high=10.0,
  )
  mesh: MeshConfig = MeshConfig()
  evaluate: EvalConfig = EvalConfig()
  scoreboard: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
    problem_sets.check_shares(self.shares, REASONING)


def rewards(config: ReasoningRL) -> list[Weighted]:
  """What an output is rewarded for."""
  return [
    Weighted('accuracy', rules.accuracy, config.accuracy_weight),
    Weighted('language', rules.language_consistency, config.language_weight),
    Weighted('readable', rules.readable, 0.0),
  ]


def main(config: ReasoningRL, rewards: Callable[..., list[Weighted]] = rewards) -> None:
  """Reinforces what the cold start has learned."""
  parent = artifact.load(config.parent, 'cold_start')
  pool = reward_pool(config.rl, rewards(config))
  with stage.begin('reasoning_rl', config, parent, phases=('rl',)) as job:
    if job is None:
      return
    problems = job.where.train[: len(REASONING)]
    order = problem_stream(problems, config.shares, job.seed)
    start = functools.partial(parent.params, job.mesh)
    with pool:
      params = job.reinforce(start, pool, order, config)
    if hosts.is_primary():
      report.write(job.run.workdir)
    job.finish('reasoning_rl', config, params, [parent])


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(ReasoningRL(), presets={'grpo': grpo.PRESETS}))
