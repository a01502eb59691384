"""R1's second stage in miniature: RL on reasoning, with a reward for one language.

Paper: DeepSeek-R1 (Nature version), first RL stage. As R1-Zero, from the cold start,
with clip ε = 10 and the share of words in the target language added to the accuracy.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses

from r1jax import grpo, mesh, optim
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  command,
  compilation,
  evaluate,
  lineage,
  recipe,
  report,
  rl,
  scoreboard,
)
from r1jax.stages.run import plain_errors, start
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
  # Half of R1-Zero's: 8e-4 cost a model that is often right 13 points in 10 steps.
  rl_optim: optim.Config = optim.Config(learning_rate=4e-4, schedule='cosine')
  grpo: grpo.Config = dataclasses.replace(
    # clip: R1's ε. With two updates a rollout few ratios come near any bound.
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_high=10.0,
  )
  evaluate: evaluate.Config = evaluate.Config()
  scoreboard: scoreboard.Config = scoreboard.Config()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size)
    recipe.check_shares(self.shares, REASONING)

  @property
  def own_seed(self) -> int:
    """The seed of this stage alone."""
    return recipe.own_seed(self.seed, 'reasoning_rl')


def rewards(config: ReasoningRL) -> list[Weighted]:
  """What an output is rewarded for."""
  return [
    Weighted('accuracy', rules.accuracy, config.accuracy_weight),
    Weighted('language', rules.language_consistency, config.language_weight),
    Weighted('readable', rules.readable, 0.0),
  ]


def main(config: ReasoningRL) -> None:
  """Reinforces what the cold start has learned."""
  compilation.keep_on_disk()
  parent = lineage.load(config.parent, 'cold_start')
  where = recipe.setting(parent, config.data_dir)
  where.check_length('rl.max_length', max(n for _, n in config.rl.max_length))
  where.check_length('scoreboard.max_length', config.scoreboard.max_length)
  devices = mesh.fitting(
    [
      config.rl.prompts_per_step,
      config.rl.micro_batch_rows,
      config.evaluate.prompts_per_batch,
      config.scoreboard.prompts_per_batch,
    ]
  )
  pool = RewardPool(rewards(config), config.rl.reward_workers, config.rl.reward_timeout)
  with start(config, phases=('rl',), facts=parent.fact) as run:
    if lineage.finished(run):
      return
    with pool:
      params = recipe.reinforce(
        run,
        parent.model,
        parent.params(devices),
        pool=pool,
        order=rl.problem_order(
          where.train[: len(REASONING)], config.shares, config.own_seed
        ),
        where=where,
        config=config.rl,
        algorithm=config.grpo,
        optimizer=config.rl_optim,
        evaluation=config.evaluate,
        mesh=devices,
        seed=config.own_seed,
      )
    recipe.finish(
      run,
      'reasoning_rl',
      config,
      parent.model,
      params,
      where=where,
      parents=[parent],
      scores=config.scoreboard,
      mesh=devices,
      seed=config.own_seed,
    )
    report.write(run.workdir)


if __name__ == '__main__':
  with plain_errors():
    main(command.parse(ReasoningRL(), presets={'grpo': grpo.PRESETS}))
