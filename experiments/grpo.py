"""GRPO on a model of the hub: reward its right answers, and keep it near what it was.

  python -m experiments.grpo --model.path ~/models/Qwen2.5-0.5B --task gsm8k

The folder is as on the hub: config.json, safetensors, tokenizer.json, chat template.
`python -m scripts.convert WORKDIR --to hf OUT` writes what was learned in the same
layout. Without a checkpoint at hand, `experiments.r1_zero` makes a model from nothing.

All evaluations are on the validation split; the test split is left to whoever measures
what comes out, once no setting is to be chosen any more.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import functools
from collections.abc import Callable

from r1jax import grpo, report, tasks
from r1jax.grpo import GRPOConfig
from r1jax.hub import families
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.runtime import cli, compilation, hosts
from r1jax.runtime.run import start, user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, from_hub, problem_sets, stage
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rl import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, fit_stage_mesh, reward_pool
from r1jax.tasks import splits, store


@dataclasses.dataclass(frozen=True)
class Grpo:
  """GRPO on a pretrained model."""

  workdir: str = 'runs/grpo'  # all files of the run; it goes on from what is there
  seed: int = 0  # everything random follows from it
  task: str = 'countdown'  # a module of r1jax.tasks, at its own difficulty
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  accuracy_weight: float = 1.0  # of the accuracy reward
  format_weight: float = 1.0  # of the format reward (R1-Zero: the same)
  model: HubConfig = HubConfig(template='r1_zero')
  rl: RLConfig = RLConfig(
    steps=200,
    prompts_per_step=8,
    group_size=8,
    max_prompt_length=384,
    max_length=((0, 512),),
    micro_batch_rows=4,
    evaluate_every=50,
    checkpoint_every=50,
  )
  rl_optim: OptimConfig = OptimConfig(
    learning_rate=1e-6, warmup_steps=0, schedule='constant'
  )
  grpo: GRPOConfig = grpo.PRESETS['grpo']
  mesh: MeshConfig = MeshConfig()
  evaluate: EvalConfig = EvalConfig(problems=64, samples=4, prompts_per_batch=8)

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
    problem_sets.check_seed(self.seed)
    problem_sets.check_folders(self.workdir, self.data_dir)
    if self.model.lora.rank and self.rl_optim.muon_learning_rate:
      raise ValueError(
        'rl_optim.muon_learning_rate: expected 0 with model.lora.rank, as adapters are '
        f'no matrices to orthogonalise, got {self.rl_optim.muon_learning_rate}'
      )
    tasks.module(self.task)  # says which there are
    rewards(self)  # a weight that is no number is found out here


def rewards(config: Grpo) -> list[Weighted]:
  """What an output is rewarded for: R1-Zero's accuracy and format."""
  return [
    Weighted('accuracy', rules.accuracy, config.accuracy_weight),
    Weighted('format', rules.format_reward, config.format_weight),
  ]


def setting(config: Grpo, longest: int) -> Problems:
  """The problems of the task, and how long the model's texts may be."""
  difficulty = tasks.module(config.task).SETTINGS()
  train, validation, test = (
    store.load(config.task, difficulty, split, config.data_dir)
    for split in splits.SPLITS
  )
  return Problems([train], [validation], config.rl.max_prompt_length, longest, [test])


def main(config: Grpo, rewards: Callable[[Grpo], list[Weighted]] = rewards) -> None:
  """Reads the checkpoint, trains, and writes what `scripts.convert` needs."""
  compilation.keep_on_disk()
  with hosts.connect(config):
    train(config, rewards(config))


def train(config: Grpo, rewards: list[Weighted]) -> None:
  """What every host does."""
  found = from_hub.look_up(config.model, from_hub.began(config.workdir))
  where = setting(config, families.max_positions(found.checkpoint.raw))
  where.check(config)
  where.check_prompts(found.model.tokenizer, found.model.template)
  fit_stage_mesh(config, found.model.names)  # says what does not
  pool = reward_pool(config.rl, rewards)
  with start(config, phases=('rl',), facts=found.facts) as run, pool:
    if artifact.finished(run):
      return
    for remark in found.model.tokenizer.remarks:
      run.progress.say(remark)
    if hosts.is_primary():
      found.keep(run.workdir)
    job = Stage(
      run, found.model, where, stage.devices(run, config), config.seed, config.mesh
    )
    order = problem_stream(where.train, [1.0], config.seed)
    read = functools.partial(found.params, job.mesh)
    params = job.reinforce(read, pool, order, config)
    if hosts.is_primary():
      report.write(run.workdir)
    artifact.finish(run, 'grpo', config, found.model, {'final': params})
  if hosts.is_primary():
    print('\n'.join(report.result(config.workdir)))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Grpo(), presets={'grpo': grpo.PRESETS}))
