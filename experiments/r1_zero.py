"""R1-Zero in miniature: a base model that babbles reasoning, then pure RL on answers.

Paper: DeepSeek-R1 (arXiv 2501.12948), section 2. A small decoder reads a synthetic web
of people who search, solve, calculate and follow instructions, badly; then GRPO teaches
it reasoning by nothing but checked answers. What it costs and reaches on two CPU cores
stands in README.md.

Curves during training are on problems of the validation split, by which settings are to
be chosen; the row of the stage table at the end is the one use of the test split. The
present settings were chosen before there was a validation split; see `tasks.splits`.
"""

from __future__ import (
  annotations,
)  # fields have the names of the modules they configure

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from r1jax import grpo, report
from r1jax.grpo import GRPOConfig
from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.runtime import cli, compilation, hosts
from r1jax.runtime.run import start, user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.fit import fit_stage_mesh, stage_devices
from r1jax.stages.policy import Policy
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import PretrainConfig
from r1jax.tasks import REASONING
from r1jax.text.tokenizer import check_vocab_size

TEMPLATE = 'plain'


@dataclasses.dataclass(frozen=True)
class R1Zero:
  """R1-Zero in miniature."""

  workdir: str = 'runs/r1_zero'  # all files of the run; it goes on from what is there
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  vocab_size: int = 400  # V, at most, of the tokenizer trained on the web
  accuracy_weight: float = 1.0  # of the accuracy reward
  format_weight: float = 0.0  # of the format reward; measured also with 0
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING` in RL
  tasks: TaskConfigs = TaskConfigs()
  web: CorpusConfig = CorpusConfig()
  model: ModelConfig = ModelConfig(
    # remat: a CPU computes norms and softmax again faster than it loads them.
    d_model=96,
    layers=3,
    heads=3,
    kv_heads=1,
    head_dim=32,
    d_ff=256,
    remat='dots',
  )
  base: PretrainConfig = PretrainConfig(
    # Rows as long as a prompt and its longest output: later positions must be known.
    steps=5000,
    rows_per_step=6,
    row_length=352,
    micro_batches=3,
    checkpoint_every=200,
  )
  base_optim: OptimConfig = OptimConfig(
    learning_rate=1e-2,
    muon_learning_rate=0.015,
    warmup_steps=20,
    schedule='cosine',
    eps=1e-6,  # so tuned, in all stages of the miniature
    balance_rate=0.001,  # DeepSeek-V3's; experts, if there are any, are new here
  )
  rl: RLConfig = RLConfig(steps=60, max_prompt_length=32)
  rl_optim: OptimConfig = OptimConfig(learning_rate=8e-4, schedule='cosine', eps=1e-6)
  grpo: GRPOConfig = dataclasses.replace(
    # The mean over outputs divides the credit of a long search by its length; over
    # tokens it counts in full, and searching longer is learned sooner.
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_high=0.28,
  )
  mesh: MeshConfig = MeshConfig()
  evaluate: EvalConfig = EvalConfig()
  scoreboard: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
    problem_sets.check_seed(self.seed)
    problem_sets.check_folders(self.workdir, self.data_dir)
    check_vocab_size(self.vocab_size)
    rewards(self)  # a weight that is no number is found out here
    problem_sets.check_shares(self.shares, REASONING)
    outputs = max(self.scoreboard.max_length, *(n for _, n in self.rl.max_length))
    longest = self.rl.max_prompt_length + outputs
    if self.base.row_length < longest:
      raise ValueError(
        f'base.row_length: expected at least {longest} = rl.max_prompt_length + '
        f'rl.max_length or scoreboard.max_length, got {self.base.row_length}; at '
        'positions that the base model never saw it writes garbage'
      )


def rewards(config: R1Zero) -> list[Weighted]:
  """What an output is rewarded for.

  Form counts nothing by default: in groups without a right answer the z-score blows up
  any other difference, and with a weight of 0.1 lengths fell from 77 to 38 tokens in 8
  steps. The language is measured, not rewarded.
  """
  return [
    Weighted('accuracy', rules.accuracy, config.accuracy_weight),
    Weighted('format', rules.format_reward, config.format_weight),
    Weighted('language', rules.language_consistency, 0.0),
  ]


def main(config: R1Zero, rewards: Callable[[R1Zero], list[Weighted]] = rewards) -> None:
  """Runs everything from random numbers to the report."""
  compilation.keep_on_disk()
  with hosts.connect(config):
    train(config, rewards(config))


def train(config: R1Zero, rewards: list[Weighted]) -> None:
  """What every host does."""
  where = problem_sets.new_problems(
    config.tasks,
    config.data_dir,
    max_prompt_length=config.rl.max_prompt_length,
    longest=config.base.row_length,
  )
  document = functools.partial(corpus.document, config.web, config.tasks, config.seed)
  file = Path(config.workdir) / artifact.TOKENIZER
  tokenizer = problem_sets.tokenizer(file, document, TEMPLATE, config.vocab_size)
  where.check_prompts(tokenizer, TEMPLATE)
  model = Policy(config.model, tokenizer, TEMPLATE)
  fit_stage_mesh(config, model.names)  # says what does not
  pool = reward_pool(config.rl, rewards)
  facts = {file.name: tokenizer.digest}
  with start(config, phases=('base', 'rl'), facts=facts) as run, pool:
    job = Stage(run, model, where, stage_devices(run, config), config.seed, config.mesh)
    if hosts.is_primary() and not file.exists():
      tokenizer.save(file)
    base = job.pretrain(document, config.base, config.base_optim)
    problems = where.train[: len(REASONING)]
    order = problem_stream(problems, config.shares, config.seed)
    models = {'base': base, 'final': job.reinforce(lambda: base, pool, order, config)}
    job.measure(models, config.scoreboard)
    if hosts.is_primary():
      report.write(run.workdir)
    artifact.finish(run, 'r1_zero', config, model, models)
  if hosts.is_primary():
    print('\n'.join(report.result(config.workdir)))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(R1Zero(), presets={'grpo': grpo.PRESETS}))
