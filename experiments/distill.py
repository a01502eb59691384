"""Distillation in miniature: R1's outputs make a small model reason.

Paper: DeepSeek-R1 (Nature version), distillation: SFT of smaller models on R1's
outputs, and RL straight on such a model for comparison, which stays behind. Here the
student learns in five more ways from the same base: answers without thoughts, RL, and
three token by token from the teacher's probabilities.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments import reasoning_rl
from r1jax import distill, drawing, grpo, mesh, optim
from r1jax.model.config import ModelConfig
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  command,
  compilation,
  evaluate,
  finetune,
  lineage,
  recipe,
  rejection,
  rl,
  scoreboard,
)
from r1jax.stages.run import Run, plain_errors, start
from r1jax.tasks import web

METHODS = ('sft', 'answers', 'rl', 'forward_kl', 'reverse_kl', 'on_policy')


@dataclasses.dataclass(frozen=True)
class Student:
  """A small model and its tokenizer."""

  model: ModelConfig = ModelConfig(
    d_model=48, layers=2, heads=3, kv_heads=1, head_dim=16, d_ff=128, remat='dots'
  )
  vocab_size: int = 0  # of a tokenizer of its own; 0 is the teacher's tokenizer


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
class Distill:
  """A student that learns from R1, and what else could have been done with it."""

  parent: str = 'runs/final_rl'  # the work directory of the teacher
  workdir: str = 'runs/distill'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  student: Student = Student()
  methods: tuple[str, ...] = METHODS[:3]  # some of `METHODS`; the first is handed on
  shares: tuple[float, float, float, float] = (0.4, 0.2, 0.2, 0.2)  # of all tasks
  rejection: rejection.Config = rejection.Config(
    problems=960, draw=drawing.Config(temperature=0.7)
  )
  base: finetune.Config = finetune.Config(
    steps=2000, rows_per_step=6, row_length=352, micro_batches=3, checkpoint_every=500
  )
  base_optim: optim.Config = optim.Config(
    learning_rate=1e-2, muon_learning_rate=0.015, warmup_steps=20, schedule='cosine'
  )
  sft: finetune.Epochs = finetune.Epochs(
    epochs=3,  # R1: 2 to 3
    row_length=400,  # in a tokenizer of its own a text may have 10 % more tokens
  )
  sft_optim: optim.Config = optim.Config(
    learning_rate=3e-3, muon_learning_rate=0.005, warmup_steps=20, schedule='cosine'
  )
  rl: rl.Config = rl.Config(steps=40, evaluate_every=40)
  rl_optim: optim.Config = optim.Config(learning_rate=8e-4, schedule='cosine')
  grpo: grpo.Config = dataclasses.replace(
    grpo.PRESETS['grpo'], mean='tokens', clip_high=10.0
  )
  evaluate: evaluate.Config = evaluate.Config(problems=48)
  on_policy_prompts: int = 16  # problems whose outputs are one update's rows
  scoreboard: scoreboard.Config = scoreboard.Config()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size)
    recipe.check_shares(self.shares, recipe.TASKS)
    known = [name for name in METHODS if name in self.methods]
    if not known or sorted(known) != sorted(self.methods):
      raise ValueError(
        f'methods: expected some of {METHODS}, each once, got {self.methods}'
      )
    if self.on_policy_prompts < 1:
      raise ValueError(
        f'on_policy_prompts: expected 1 or more, got {self.on_policy_prompts}'
      )
    token_level = [name for name in self.methods if name in METHODS[3:]]
    if token_level and self.student.vocab_size:
      raise ValueError(
        f'methods: expected none of {METHODS[3:]} for a student with a tokenizer of '
        f'its own, since they compare probabilities of the same tokens, got '
        f'{token_level}; set student.vocab_size to 0'
      )

  @property
  def own_seed(self) -> int:
    """The seed of this stage alone."""
    return recipe.own_seed(self.seed, 'distill')


@dataclasses.dataclass(frozen=True)
class _Lesson:
  """What all methods share."""

  run: Run
  config: Distill
  teacher: lineage.Stage
  model: lineage.Model  # the student's
  where: recipe.Setting
  kept: list[rejection.Line]  # the teacher's outputs
  mesh: jax.sharding.Mesh

  def examples(self, answers: bool = False) -> list[tuple[str, str]]:
    """Pairs of a question and the teacher's output, or the answer alone."""
    return [
      (line['question'], _answer_only(line['output']) if answers else line['output'])
      for line in self.kept
    ]


def _answer_only(output: str) -> str:
  return '<think></think>' + output.partition('</think>')[2]


def _sft(lesson: _Lesson, base: Any, phase: str, answers: bool = False) -> Any:
  """SFT on the teacher's outputs, or on their answers for as many tokens."""
  config = lesson.config.sft
  passes = _passes(lesson, config, answers)
  if answers:  # short examples: the same compute is more epochs
    epochs = round(_passes(lesson, config).tokens / passes.tokens * config.epochs)
    config = dataclasses.replace(config, epochs=epochs)
  return recipe.imitate(
    lesson.run,
    lesson.model,
    base,
    lesson.examples(answers),
    config=config,
    optimizer=lesson.config.sft_optim,
    mesh=lesson.mesh,
    seed=lesson.config.own_seed,
    phase=phase,
  )


def _passes(
  lesson: _Lesson, config: finetune.Epochs, answers: bool = False
) -> finetune.Passes:
  ids = lesson.model.example_ids
  examples = [finetune.Example(*ids(*x)) for x in lesson.examples(answers)]
  return finetune.Passes(examples, config, lesson.config.own_seed)


def _rl(lesson: _Lesson, base: Any, phase: str) -> Any:
  """RL straight on the student, with the rewards of R1's second stage."""
  del phase  # RL's is always the same
  config, settings = lesson.config, lesson.config.rl
  weighted = reasoning_rl.rewards(reasoning_rl.ReasoningRL())
  pool = RewardPool(weighted, settings.reward_workers, settings.reward_timeout)
  with pool:
    return recipe.reinforce(
      lesson.run,
      lesson.model,
      base,
      pool=pool,
      order=rl.problem_order(lesson.where.train, config.shares, config.own_seed),
      where=lesson.where,
      config=settings,
      algorithm=config.grpo,
      optimizer=config.rl_optim,
      evaluation=config.evaluate,
      mesh=lesson.mesh,
      seed=config.own_seed,
    )


def _token_level(
  lesson: _Lesson, base: Any, phase: str, divergence: str, on_policy: bool = False
) -> Any:
  """Token by token from the teacher, on its outputs or on the student's own."""
  config = lesson.config
  passes = _passes(lesson, config.sft)
  batch: Callable[[int, Any], Any] = passes.batch
  if on_policy:
    batch = recipe.own_outputs(
      lesson.model.generator(lesson.where.max_prompt_length, lesson.mesh),
      rl.problem_order(lesson.where.train, config.shares, config.own_seed),
      prompts=config.on_policy_prompts,
      config=config.sft,
      max_length=config.rejection.max_length,
      seed=config.own_seed,
    )
  student, teacher = lesson.model.functions, lesson.teacher.model.functions

  def step(state, batch, teacher_params, **how):
    return distill.step(
      state,
      batch,
      teacher_params=teacher_params,
      forward=student.forward,
      logits=student.logits,
      teacher_forward=teacher.forward,
      teacher_logits=teacher.logits,
      divergence=distill.DIVERGENCES[divergence],
      **how,
    )

  return finetune.train(
    lesson.run,
    phase,
    base,
    step=step,
    batch=batch,
    steps=passes.steps,
    config=config.sft,
    optimizer=optim.make(config.sft_optim, passes.steps, lesson.model.matrices),
    mesh=lesson.mesh,
    constants=(lesson.teacher.params(lesson.mesh),),
  )


LEARN: dict[str, Callable[[_Lesson, Any, str], Any]] = {
  'sft': _sft,
  'answers': functools.partial(_sft, answers=True),
  'rl': _rl,
  'forward_kl': functools.partial(_token_level, divergence='forward_kl'),
  'reverse_kl': functools.partial(_token_level, divergence='reverse_kl'),
  'on_policy': functools.partial(_token_level, divergence='reverse_kl', on_policy=True),
}


def main(config: Distill) -> None:
  """Samples from the teacher, trains the student's base, then every method on it."""
  compilation.keep_on_disk()
  teacher = lineage.load(config.parent, 'final_rl', 'rejection_sft', 'reasoning_rl')
  zero = teacher.ancestor('r1_zero')
  where = recipe.setting(teacher, config.data_dir)
  _check_lengths(config, where)
  world = zero.record['config']
  document = functools.partial(
    web.document,
    web.config_of(world['web']),
    web.tasks_of(world['tasks']),
    config.own_seed,
  )
  devices = mesh.fitting(
    [
      config.rejection.prompts_per_batch,
      config.base.rows_per_step // config.base.micro_batches,
      config.sft.rows_per_step // config.sft.micro_batches,
      config.rl.prompts_per_step,
      config.rl.micro_batch_rows,
      config.evaluate.prompts_per_batch,
      config.on_policy_prompts,
      config.scoreboard.prompts_per_batch,
    ]
  )
  phases = ('base', *config.methods)
  with start(config, phases=phases, facts=teacher.fact) as run:
    if lineage.finished(run):
      return
    model = _student(config, teacher, document, run.workdir)
    speaks = model.generator(where.max_prompt_length, devices)
    for problems in [*where.train, *where.held_out]:
      speaks.encode(problems)  # too long in a tokenizer of its own: found out here
    kept = rejection.collect(
      run,
      teacher.params(devices),
      rl.problem_order(where.train, config.shares, config.own_seed),
      generator=teacher.model.generator(where.max_prompt_length, devices),
      config=config.rejection,
      seed=config.own_seed,
    )
    lesson = _Lesson(run, config, teacher, model, where, kept, devices)
    _passes(lesson, config.sft)  # an example longer than a row is found out here
    base = recipe.pretrain(
      run,
      model,
      document,
      config=config.base,
      optimizer=config.base_optim,
      mesh=devices,
      seed=config.own_seed,
    )
    learned = {'base': base}
    for name in config.methods:
      learned[name] = LEARN[name](lesson, base, name)
    recipe.measure(
      run,
      model,
      learned,
      where=where,
      scores=config.scoreboard,
      mesh=devices,
      seed=config.own_seed,
    )
    final = {'final': learned[config.methods[0]]}
    lineage.finish(run, 'distill', config, model, {**learned, **final}, [teacher])


def _check_lengths(config: Distill, where: recipe.Setting) -> None:
  """Raises ValueError for outputs too long for the teacher, the student or a row."""
  sampled, scored = config.rejection.max_length, config.scoreboard.max_length
  where.check_length('rejection.max_length', sampled)
  where.check_row('sft.row_length', config.sft.row_length, sampled)
  said = max(scored, *(n for _, n in config.rl.max_length))
  where.check_row('base.row_length', config.base.row_length, said)


def _student(
  config: Distill,
  teacher: lineage.Stage,
  document: Callable[[int], tuple[str, str]],
  workdir: Path,
) -> lineage.Model:
  tokenizer = teacher.model.tokenizer
  if config.student.vocab_size:
    tokenizer = recipe.tokenizer(
      workdir / lineage.TOKENIZER,
      document,
      teacher.model.template,
      config.student.vocab_size,
    )
  return lineage.Model(config.student.model, tokenizer, teacher.model.template)


if __name__ == '__main__':
  with plain_errors():
    main(command.parse(Distill(), presets={'grpo': grpo.PRESETS, 'student': STUDENTS}))
