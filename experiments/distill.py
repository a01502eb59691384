"""Distillation: trains a small model on R1's outputs, and compares other methods.

  python -m experiments.distill --parent runs/final_rl --student tiny

DeepSeek-R1 (Nature version), distillation: SFT of Qwen and Llama on R1's outputs,
compared with RL on the small model. Added here: SFT on answers without thoughts, and
token-level KL divergence from the teacher. Cost on two CPU cores and results over
seeds: docs/results.md.
"""

import dataclasses

from experiments import reasoning_rl
from experiments.cold_start import ColdStart
from experiments.r1_zero import R1Zero
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.model.config import ModelConfig
from r1jax.stages import distillation, from_scratch, problem_sets
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import PretrainConfig, SFTConfig

STUDENTS = {
  'small': distillation.Student(
    ModelConfig(
      d_model=48, layers=2, heads=3, kv_heads=1, head_dim=16, d_ff=128, remat='dots'
    )
  ),
  'tiny': distillation.Student(
    ModelConfig(
      d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=96, remat='dots'
    ),
    vocab_size=320,
  ),
}


@dataclasses.dataclass(frozen=True)
class Distill(StageConfig):
  """A student trained from R1 by several methods, each from the same base."""

  parent: str = 'runs/final_rl'  # the work directory of the teacher
  workdir: str = 'runs/distill'  # all files of the stage
  student: distillation.Student = STUDENTS['small']
  # of `METHODS`; the first gives the result
  methods: tuple[str, ...] = ('sft', 'answers', 'rl')
  shares: tuple[float, float, float, float] = (0.4, 0.2, 0.2, 0.2)  # of the tasks
  rejection: RejectionConfig = RejectionConfig(problems=960)  # at RL's temperature
  base: PretrainConfig = dataclasses.replace(
    R1Zero.base, steps=2000, checkpoint_every=500
  )
  sft: SFTConfig = dataclasses.replace(
    ColdStart.sft,  # rows of 400: its own tokenizer may give 10 % more tokens
    epochs=3,  # R1: 2 to 3
  )
  rl: RLConfig = RLConfig(
    steps=40, evaluate_every=40, optim=R1Zero.rl.optim, grpo=reasoning_rl.GRPO
  )
  evals: EvalConfig = EvalConfig(problems=48)
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, problem_sets.TASKS)
    distillation.check_methods(self.methods, self.rejection, self.rl, self.student)
    if self.rl.equal_groups == 'replace':
      raise ValueError(
        "rl.equal_groups: expected 'keep' or 'drop' in distillation, where methods get "
        "the same outputs, got 'replace'"
      )


def run(stage: Stage, config: Distill) -> Trained:
  """Samples from the teacher, pretrains the student, applies every method to it."""
  student, documents = from_scratch.student(stage, config)
  problem_at = stage.problem_stream(config.shares)
  lesson = distillation.Lesson(
    student,
    stage.parent,
    problem_at,
    kept=stage.rejection_sample(stage.params(), problem_at, config.rejection),
    max_length=config.rejection.max_length,
    sft=config.sft,
    rl=config.rl,
    rewards=reasoning_rl.ReasoningRL().rewards(),
    evals=config.evals,
  )
  base = student.pretrain(documents, config.base)
  learned = distillation.learn(lesson, base, config.methods)
  final = learned[config.methods[0]]
  return Trained({'base': base, **learned, 'final': final}, student.policy)


DISTILL = Experiment(
  'distill',
  child_of('final_rl', 'rejection_sft', 'reasoning_rl'),
  run,
  phases=lambda config: ('base', *config.methods),
)

if __name__ == '__main__':
  DISTILL.main(Distill(), presets={'student': STUDENTS})
