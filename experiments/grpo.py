"""GRPO on a checkpoint of the hub, rewarded for right answers.

  python -m experiments.grpo --model.path ~/models/Qwen2.5-0.5B --task gsm8k
  python -m experiments.grpo --model.path ~/models/Qwen2.5-0.5B --data problems.jsonl
  python -m experiments.grpo --model.path ~/models/Qwen2.5-0.5B --data tfds:gsm8k …
  python -m experiments.grpo --model.path ~/models/Qwen2.5-0.5B \
    --task reasoning_gym:chain_sum --task-settings '{"max_terms": 3}'

The folder has config.json, safetensors, tokenizer.json and a chat template.
`python -m scripts.convert WORKDIR --to hf OUT` writes the trained model in the same
layout. Without a checkpoint, `experiments.r1_zero` trains a model from scratch.

Evaluations use the validation split. The test split is left for the evaluation of the
final model, when no setting will be chosen any more.
"""

import dataclasses
from collections.abc import Sequence

from r1jax import tasks
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules, weighted
from r1jax.stages import from_hub
from r1jax.stages.experiment import Experiment, StageConfig, Trained
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, check_rewards, reward_pool
from r1jax.tasks import settings, verifiers
from r1jax.tasks.data import DataConfig
from r1jax.text import templates


@dataclasses.dataclass(frozen=True)
class GRPO(StageConfig):
  """GRPO on a pretrained model."""

  workdir: str = 'runs/grpo'  # all files of the run; an existing run is resumed
  task: str = 'countdown'  # a module of r1jax.tasks, or reasoning_gym:NAME
  # Its difficulty in JSON: {"numbers": 4}; '' is its own
  task_settings: str = ''
  data: DataConfig = DataConfig()  # problems of your own, instead of a task's
  accuracy_weight: float = 1.0  # weight of the accuracy reward
  format_weight: float = 1.0  # weight of the format reward (R1-Zero: the same)
  rewards: tuple[str, ...] = ()  # more: package.module:function=weight
  model: HubConfig = HubConfig(template='r1_zero', dtype='auto')
  rl: RLConfig = RLConfig(
    steps=200,
    prompts_per_step=8,
    group_size=8,
    max_prompt_length=384,
    max_length=((0, 512),),
    micro_batch_rows=4,
    evaluate_every=50,
    checkpoint_every=50,
    optim=OptimConfig(learning_rate=1e-6, warmup_steps=0, schedule='constant'),
  )
  evals: EvalConfig = EvalConfig(problems=64, samples=4, prompts_per_batch=8)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.model.lora.rank and self.rl.optim.muon_learning_rate:
      raise ValueError(
        'rl.optim.muon_learning_rate: expected 0 with model.lora.rank, as adapters are '
        f'no matrices to orthogonalise, got {self.rl.optim.muon_learning_rate}'
      )
    if self.data.path and self.task != type(self).task:
      raise ValueError(f'task: expected none with --data, got {self.task!r}')
    if self.data.path and self.task_settings:
      raise ValueError(
        f'task_settings: expected none with --data, got {self.task_settings!r}'
      )
    programs = self.data.path and self.data.verify == 'python'
    if programs and templates.form(self.model.template) not in ('code', 'tags'):
      raise ValueError(
        'model.template: expected chat_code, or one for tags, with --data.verify '
        f'python, got {self.model.template!r}, whose answers are no programs'
      )
    if self.task == tasks.OWN:
      raise ValueError('task: expected --data FILE for your own problems, got none')
    settings.read(self.task, self.task_settings)  # says which there are
    check_rewards(self.all_rewards())

  def task_names(self) -> Sequence[str]:
    """Returns the task whose problems the stage asks."""
    return [tasks.OWN if self.data.path else self.task]

  def all_rewards(self) -> list[Weighted]:
    """Returns R1-Zero's rewards, accuracy and format, and those of `rewards`."""
    return [
      Weighted('accuracy', rules.accuracy, self.accuracy_weight),
      Weighted('format', rules.format_reward, self.format_weight),
      *map(weighted, self.rewards),
    ]


def run(stage: Stage, config: GRPO) -> Trained:
  """Reads the checkpoint and trains it."""
  problem_at = stage.problem_stream([1.0])
  imports, timeout = tasks.imports(config.task), 0.0
  if verify := config.data.path and config.data.verify:
    imports, timeout = verifiers.imports(verify), verifiers.timeout(verify)
  rewards = config.all_rewards()
  with reward_pool(config.rl, rewards, imports=imports, timeout=timeout) as rewarder:
    params = stage.rl(stage.params, rewarder, problem_at, config.rl, config.evals)
  return Trained({'final': params})


EXPERIMENT = Experiment('grpo', from_hub.origin, run, phases=('rl',), report=True)

if __name__ == '__main__':
  EXPERIMENT.main(GRPO())
