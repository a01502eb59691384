"""A reward for short ways in reasoning RL: what it does to accuracy and length.

What the thoughts of a trained model are worth is measured by `experiments.thinking`.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
from collections.abc import Callable

from experiments import reasoning_rl
from experiments.ablations import ablation, results
from r1jax import mesh
from r1jax.rewards import Weighted, length
from r1jax.rewards.pool import RewardPool
from r1jax.stages import compilation, lineage, recipe, report, rl
from r1jax.stages.run import start
from r1jax.tasks import REASONING


@dataclasses.dataclass(frozen=True)
class Brief(reasoning_rl.ReasoningRL):
  """Reasoning RL in which the shorter of two right answers may earn more."""

  brevity_weight: float = 1.0  # of `length.shorter`


def brief(weight: float) -> Callable[[reasoning_rl.ReasoningRL], Brief]:
  """The variant with this weight of the reward for short ways."""

  def change(base: reasoning_rl.ReasoningRL) -> Brief:
    fields = {x.name: getattr(base, x.name) for x in dataclasses.fields(base)}
    return Brief(**{**fields, 'brevity_weight': weight})

  return change


def rewards(config: Brief) -> list[Weighted]:
  """Those of reasoning RL, and the one for short ways."""
  shorter = Weighted('shorter', length.shorter, config.brevity_weight)
  return [*reasoning_rl.rewards(config), shorter]


def reinforce(config: Brief) -> None:
  """Reasoning RL with these rewards."""
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
  model, seed = parent.model, config.own_seed
  workers, timeout = config.rl.reward_workers, config.rl.reward_timeout
  with (
    start(config, phases=('rl',), facts=parent.fact) as run,
    RewardPool(rewards(config), workers, timeout) as pool,
  ):
    params = recipe.reinforce(
      run,
      model,
      parent.params(devices),
      pool=pool,
      order=rl.problem_order(where.train[: len(REASONING)], config.shares, seed),
      where=where,
      config=config.rl,
      algorithm=config.grpo,
      optimizer=config.rl_optim,
      evaluation=config.evaluate,
      mesh=devices,
      seed=seed,
    )
    recipe.finish(
      run,
      'brief_rl',
      config,
      model,
      params,
      where=where,
      parents=[parent],
      scores=config.scoreboard,
      mesh=devices,
      seed=seed,
    )
    report.write(run.workdir)


ABLATION = ablation.Ablation(
  question='Does a reward for short ways make thoughts shorter, and at what price?',
  variants={'without': brief(0.0), 'with': brief(1.0)},
  main=reinforce,
  figures=(
    results.PASS_AT_1,
    results.Figure(
      'Mean length over RL steps',
      'Tokens of an output to a held-out reasoning problem.',
      results.evaluated('length'),
    ),
  ),
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/thinking'))
