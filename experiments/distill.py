"""Distillation: trains a small model on R1's outputs, and compares other methods.

  python -m experiments.distill --parent runs/final_rl --student tiny

DeepSeek-R1 (Nature version), distillation: SFT of Qwen and Llama on R1's outputs,
compared with RL on the small model. Added here: SFT on answers without thoughts, and
token-level KL divergence from the teacher. Cost on two CPU cores and results over
seeds: docs/results.md.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from experiments import reasoning_rl
from experiments.cold_start import ColdStart
from experiments.r1_zero import R1Zero
from r1jax import distill
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.model.config import ModelConfig
from r1jax.runtime import hosts
from r1jax.runtime.log import parse_line
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import compute, from_scratch, problem_sets, rejection
from r1jax.stages.artifact import Artifact
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.fit import fit_stage_mesh
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.tasks import Problem

TOKEN_LEVEL = ('forward_kl', 'reverse_kl', 'on_policy')
METHODS = ('sft', 'answers', 'rl', *TOKEN_LEVEL)


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
    steps=40,
    evaluate_every=40,
    optim=R1Zero.rl.optim,
    grpo=reasoning_rl.GRPO,
  )
  evals: EvalConfig = EvalConfig(problems=48)
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, problem_sets.TASKS)
    known = [name for name in METHODS if name in self.methods]
    if not known or sorted(known) != sorted(self.methods):
      raise ValueError(
        f'methods: expected some of {METHODS}, each once, got {self.methods}'
      )
    self._check_temperatures()
    token_level = [name for name in self.methods if name in TOKEN_LEVEL]
    if token_level and self.student.vocab_size:
      raise ValueError(
        f'methods: expected none of {TOKEN_LEVEL} for a student with a tokenizer of '
        f'its own, since they compare probabilities of the same tokens, got '
        f'{token_level}; set student.vocab_size to 0'
      )

  def check(self, problems: problem_sets.Problems) -> None:
    """Raises ValueError for settings that do not fit these problems."""
    super().check(problems)
    longest = max(self.suite.max_length, self.rl.longest)
    problems.check_row('base.row_length', self.base.row_length, longest)

  def _check_temperatures(self) -> None:
    """Raises ValueError if methods would learn at different temperatures."""
    draw = self.rejection.draw
    learned_at = {x for _, x in self.rl.temperature} if 'rl' in self.methods else set()
    learned_at |= {1.0} if set(self.methods) & set(TOKEN_LEVEL) else set()
    others = bool(learned_at)
    if set(self.methods) - {'rl', 'on_policy'}:  # from the teacher's outputs
      learned_at.add(draw.temperature)
    cut = others and draw != SamplingConfig(draw.temperature)
    if len(learned_at) > 1 or cut:
      raise ValueError(
        'rejection.draw and rl.temperature: expected the same temperature (1 with the '
        f'methods {", ".join(TOKEN_LEVEL)}) and no top-k or top-p, so that methods can '
        f'be compared, got {sorted(learned_at)} and {draw}; set them to the same, or '
        'remove some methods'
      )


@dataclasses.dataclass(frozen=True)
class Lesson:
  """The inputs that all methods share."""

  stage: Stage  # of the student
  config: Distill
  teacher: Artifact
  problem_at: Callable[[int], Problem]
  kept: list[rejection.Line]  # outputs of the teacher

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Pairs of a question and the teacher's output."""
    return [(line['question'], line['output']) for line in self.kept]


def sft(lesson: Lesson, base: optax.Params) -> Any:
  """Returns parameters after SFT on the teacher's outputs."""
  return lesson.stage.sft(base, lesson.pairs, lesson.config.sft)


def without_thoughts(lesson: Lesson) -> tuple[list[tuple[str, str]], SFTConfig]:
  """Returns outputs without thoughts, and a config with more epochs of them.

  They are short; the epochs are chosen to train on as many tokens as `sft`.
  """
  stage, config = lesson.stage, lesson.config
  found = [
    (question, '<think></think>' + output.partition('</think>')[2])
    for question, output in lesson.pairs
  ]
  whole = stage.epochs(lesson.pairs, config.sft).tokens
  epochs = round(whole / stage.epochs(found, config.sft).tokens * config.sft.epochs)
  return found, dataclasses.replace(config.sft, epochs=epochs)


def answers(lesson: Lesson, base: optax.Params) -> Any:
  """Returns parameters after SFT on the teacher's outputs without thoughts."""
  return lesson.stage.sft(base, *without_thoughts(lesson), phase='answers')


def rl(lesson: Lesson, base: optax.Params) -> Any:
  """Returns parameters after RL on the student, with the rewards of R1's stage 2."""
  config = lesson.config
  with reward_pool(config.rl, reasoning_rl.ReasoningRL().rewards()) as rewarder:
    return lesson.stage.rl(
      lambda: base, rewarder, lesson.problem_at, config.rl, config.evals
    )


def token_level(lesson: Lesson, base: optax.Params, phase: str) -> Any:
  """Returns parameters after minimizing the KL divergence to the teacher.

  The divergence is measured at each token of the teacher's outputs, or of the student's
  own if `phase` is 'on_policy'.
  """
  stage, config, teacher = lesson.stage, lesson.config, lesson.teacher
  student, teaches = stage.policy.functions, teacher.policy.functions
  epochs = stage.epochs(lesson.pairs, config.sft)
  batch: Callable[[int, Any], Any] = epochs.batch
  if phase == 'on_policy':
    batch = stage.own_outputs(
      lesson.problem_at,
      prompts=config.rl.prompts_per_step,
      max_length=config.rejection.max_length,
      config=config.sft,
    )
  kind = 'forward_kl' if phase == 'forward_kl' else 'reverse_kl'

  def step(state: Any, batch: Any, teacher_params: Any, **settings: Any) -> Any:
    return distill.step(
      state,
      batch,
      teacher_params=teacher_params,
      forward=student.forward,
      logits=student.logits,
      teacher_forward=teaches.forward,
      teacher_logits=teaches.logits,
      divergence=distill.DIVERGENCES[kind],
      **settings,
    )

  constants = (teacher.params(stage.mesh),)
  return stage.train(
    phase,
    base,
    batch,
    epochs.steps,
    config.sft,
    'sft.optim',
    step=step,
    constants=constants,
  )


LEARN: dict[str, Callable[[Lesson, Any], Any]] = {
  'sft': sft,
  'answers': answers,
  'rl': rl,
  **{name: functools.partial(token_level, phase=name) for name in TOKEN_LEVEL},
}


def spent(
  lesson: Lesson, method: str, lines: Sequence[Mapping[str, Any]]
) -> compute.Tokens:
  """Returns the tokens that a method used, given the lines of metrics.jsonl."""
  stage, config = lesson.stage, lesson.config
  if method == 'rl':
    asked = range(config.rl.steps * config.rl.prompts_per_step)
    policy = stage.policy
    ids = (
      policy.tokenizer.prompt_ids(policy.template, lesson.problem_at(n).question)
      for n in asked
    )
    return compute.of_rl(
      lines,
      prompts=sum(map(len, ids)),
      outputs=config.rl.prompts_per_step * config.rl.group_size,
      epochs=config.rl.epochs,
      passes=bool(config.rl.grpo.kl_coef) + config.rl.int8_rollout,
    )
  epochs = stage.epochs(lesson.pairs, config.sft)
  if method == 'on_policy':
    return compute.of_own_outputs(lines, phase=method, steps=epochs.steps)
  if method == 'answers':
    epochs = stage.epochs(*without_thoughts(lesson))
  judged = epochs.tokens if method in TOKEN_LEVEL else 0
  return compute.Tokens(learned=epochs.tokens, judged=judged)


def write_compute(lesson: Lesson, base: optax.Params) -> None:
  """Writes the compute of each method, relative to `sft`, to compute.json."""
  workdir = lesson.stage.run.workdir
  raw = (workdir / 'metrics.jsonl').read_bytes().splitlines()
  lines = [line for line in map(parse_line, raw) if line is not None]
  tokens = {name: spent(lesson, name, lines) for name in lesson.config.methods}
  student = sum(leaf.size for leaf in jax.tree.leaves(base))
  teacher = lesson.teacher.record['parameters']
  found = compute.compared(tokens, student, teacher, first='sft')
  write_whole(workdir / 'compute.json', json.dumps(found, indent=2) + '\n')


def run(stage: Stage, config: Distill) -> Trained:
  """Samples from the teacher, pretrains the student, applies every method to it."""
  teacher = stage.parent
  documents = from_scratch.documents_like(teacher, stage.seed)
  student = from_scratch.student_stage(
    stage, config.student.model, config.student.vocab_size, documents
  )
  fit_stage_mesh(config, config.mesh, student.policy.names)
  problem_at = stage.problem_stream(config.shares)
  kept = stage.rejection_sample(stage.params(), problem_at, config.rejection)
  lesson = Lesson(student, config, teacher, problem_at, kept)
  student.epochs(lesson.pairs, config.sft)  # raises if an example exceeds a row
  base = student.pretrain(documents, config.base)
  learned = {name: LEARN[name](lesson, base) for name in config.methods}
  if hosts.is_primary():
    write_compute(lesson, base)
  final = learned[config.methods[0]]
  return Trained({'base': base, **learned, 'final': final}, student.policy)


DISTILL = Experiment(
  'distill',
  child_of('distill', 'final_rl', 'rejection_sft', 'reasoning_rl'),
  run,
  phases=lambda config: ('base', *config.methods),
)

if __name__ == '__main__':
  DISTILL.main(Distill(), presets={'student': STUDENTS})
