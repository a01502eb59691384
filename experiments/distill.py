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
from r1jax.stages.fit import fit_stage_mesh
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import PretrainConfig, SFTConfig

METHODS = tuple(distillation.METHODS)


@dataclasses.dataclass(frozen=True)
class Student:
  """A small model and its tokenizer."""

  model: ModelConfig = ModelConfig(
    d_model=48, layers=2, heads=3, kv_heads=1, head_dim=16, d_ff=128, remat='dots'
  )
  vocab_size: int = 0  # of its own tokenizer; 0 is the teacher's tokenizer


STUDENTS = {
  'small': Student(),
  'tiny': Student(
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
  student: Student = Student()
  methods: tuple[str, ...] = METHODS[:3]  # of `METHODS`; the first gives the result
  shares: tuple[float, float, float, float] = (0.4, 0.2, 0.2, 0.2)  # of the tasks
  rejection: RejectionConfig = RejectionConfig(problems=960)  # at RL's temperature
  base: PretrainConfig = dataclasses.replace(
    R1Zero.base, steps=2000, checkpoint_every=500
  )
  sft: SFTConfig = SFTConfig(
    epochs=3,  # R1: 2 to 3
    row_length=400,  # with its own tokenizer a text may have 10 % more tokens
    optim=ColdStart.sft.optim,
  )
  rl: RLConfig = RLConfig(
    steps=40, evaluate_every=40, optim=R1Zero.rl.optim, grpo=reasoning_rl.GRPO
  )
  evals: EvalConfig = EvalConfig(problems=48)
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, problem_sets.TASKS)
    distillation.check_methods(
      self.methods, self.rejection, self.rl, self.student.vocab_size
    )


def run(stage: Stage, config: Distill) -> Trained:
  """Samples from the teacher, pretrains the student, applies every method to it."""
  teacher = stage.parent
  documents = from_scratch.documents_like(teacher, stage.seed)
  student = from_scratch.student_stage(
    stage, config.student.model, config.student.vocab_size, documents
  )
  fit_stage_mesh(config, config.mesh, student.policy.names)
  problem_at = stage.problem_stream(config.shares)
  lesson = distillation.Lesson(
    student,
    teacher,
    problem_at,
    kept=stage.rejection_sample(stage.params(), problem_at, config.rejection),
    max_length=config.rejection.max_length,
    sft=config.sft,
    rl=config.rl,
    rewards=reasoning_rl.ReasoningRL().rewards(),
    evals=config.evals,
  )
  _ = lesson.epochs  # raises if an example exceeds a row
  base = student.pretrain(documents, config.base)
  learned = {name: distillation.METHODS[name](lesson, base) for name in config.methods}
  distillation.write_compute(lesson, config.methods, base)
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
