"""R1's last stage in miniature: RL for all scenarios, with a preference model.

Paper: DeepSeek-R1 (Nature version), second RL stage. Rules reward reasoning, the words
in the target language reward everything; instructions and the preference model come in
only at the end of it, since longer leads to reward hacking. Temperature 0.7.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from r1jax import grpo, optim, report
from r1jax.grpo import GRPOConfig
from r1jax.miniature import judge
from r1jax.miniature.judge import JudgeConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.runtime import cli, hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import user_errors
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, local_mesh
from r1jax.stages import artifact, preference, problem_sets, stage
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.preference import PreferenceConfig, Scorer
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rewarding import PreferenceReward
from r1jax.stages.rl import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rollout import of_all_hosts
from r1jax.stages.stage import Stage, reward_pool
from r1jax.tasks import REASONING, Problem


@dataclasses.dataclass(frozen=True)
class FinalRL:
  """R1's last stage: RL on reasoning, then on instructions too, by preference."""

  parent: str = 'runs/rejection_sft'  # the work directory of rejection_sft
  workdir: str = 'runs/final_rl'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  reasoning_weight: float = 1.0  # of the accuracy on reasoning problems
  language_weight: float = 1.0  # of the language-consistency reward
  preference_weight: float = 1.0  # of the preference model's reward on instructions
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  general_share: float = 0.5  # of instructions, once they come in
  general_after: int = 16  # steps on reasoning alone (R1: 1,300 of 1,700)
  judged: int = 640  # instructions whose outputs the judge compares
  judge: JudgeConfig = JudgeConfig()
  preference: PreferenceConfig = PreferenceConfig(epochs=4)  # R1: 1, of 66k pairs
  preference_optim: OptimConfig = OptimConfig(
    learning_rate=2e-3, schedule='cosine', eps=1e-6
  )
  rl: RLConfig = RLConfig(steps=40, temperature=((0, 0.7),))
  rl_optim: OptimConfig = OptimConfig(learning_rate=3e-4, schedule='cosine', eps=1e-6)
  grpo: GRPOConfig = dataclasses.replace(
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_low=1.0,  # R1's ε = 10 on both sides, as in `reasoning_rl`
    clip_high=10.0,
  )
  mesh: MeshConfig = MeshConfig()
  evaluate: EvalConfig = EvalConfig()
  scoreboard: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
    problem_sets.check_shares(self.shares, REASONING)
    if not 0 <= self.general_share <= 1:
      raise ValueError(f'general_share: expected 0 to 1, got {self.general_share}')
    if not 0 <= self.general_after <= self.rl.steps:
      raise ValueError(
        f'general_after: expected 0 to rl.steps = {self.rl.steps}, got '
        f'{self.general_after}'
      )
    if self.judged < 1 or self.judged % self.rl.prompts_per_step:
      raise ValueError(
        f'judged: expected a multiple of rl.prompts_per_step = '
        f'{self.rl.prompts_per_step}, got {self.judged}'
      )


def rewards(config: FinalRL) -> list[Weighted]:
  """The rules; accuracy on all problems is measured and not rewarded."""
  return [
    Weighted('accuracy', rules.accuracy, 0.0),
    Weighted('reasoning', rules.reasoning, config.reasoning_weight),
    Weighted('language', rules.language_consistency, config.language_weight),
    Weighted('readable', rules.readable, 0.0),
  ]


def order(config: FinalRL, where: Problems, seed: int) -> Callable[[int], Problem]:
  """Reasoning problems, from a step on mixed with instructions.

  None is asked twice before all of its kind have been asked.
  """
  reasoning = problem_stream(where.train[: len(REASONING)], config.shares, seed)
  first = config.general_after * config.rl.prompts_per_step
  asked = Counter(reasoning(index).task for index in range(first))
  share = config.general_share
  shares = [(1 - share) * x / sum(config.shares) for x in config.shares]
  everything = problem_stream(
    where.train, [*shares, share], seed, [asked[task] for task in problem_sets.TASKS]
  )

  def problem(index: int) -> Problem:
    return reasoning(index) if index < first else everything(index - first)

  return problem


def preference_model(job: Stage, config: FinalRL, params: Any) -> Scorer:
  """Trained on what the judge says of the parent's outputs to instructions."""
  optim.check_learning_rate(params, config.preference_optim, 'preference_optim')
  *_, instructions = job.where.train
  problems = instructions[: config.judged]
  size, key = config.rl.prompts_per_step, jax.random.key(job.seed)
  outputs: list[list[str]] = []
  for begin in range(0, len(problems), size):
    sampled = job.generator(
      params,
      jax.random.fold_in(named_key(key, 'judged'), begin),
      problems[begin : begin + size],
      group_size=config.rl.group_size,
      max_length=max(n for _, n in config.rl.max_length),
      draw=SamplingConfig(),
    )
    outputs += of_all_hosts(sampled, sampled.texts)
  pairs, counts = judge.pairs(problems, outputs, job.seed, config.judge)
  content = json.dumps(dataclasses.asdict(counts)) + '\n'
  if hosts.is_primary():
    write_whole(job.run.workdir / 'pairs.json', content)
  voice: dict[str, Any] = {
    'model': job.model.functions,
    'tokenizer': job.model.tokenizer,
    'template': job.model.template,
  }
  trained = preference.train(
    job.run,
    'preference',
    params,
    **voice,
    pairs=pairs,
    config=config.preference,
    optimizer=optim.make(
      config.preference_optim,
      preference.updates(pairs, config.preference),
      seed=job.seed,
    ),
    mesh=job.mesh,
    seed=job.seed,
  )
  return Scorer(
    trained,
    **voice,
    max_length=config.preference.max_length,
    mesh=local_mesh(job.mesh),
  )


def main(config: FinalRL) -> None:
  """Trains the preference model, then reinforces."""
  parent = artifact.load(config.parent, 'rejection_sft')
  pool = reward_pool(config.rl, rewards(config), config.preference_weight)
  with stage.begin('final_rl', config, parent, phases=('preference', 'rl')) as job:
    if job is None:
      return
    with pool:
      before = parent.params(job.mesh)
      scorer = preference_model(job, config, before)
      panel = PreferenceReward(pool, scorer, config.preference_weight)
      params = job.reinforce(
        lambda: before, panel, order(config, job.where, job.seed), config
      )
    if hosts.is_primary():
      report.write(job.run.workdir)
    job.finish('final_rl', config, params, [parent])


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(FinalRL(), presets={'grpo': grpo.PRESETS}))
