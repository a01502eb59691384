"""Distillation in miniature: R1's outputs make a small model reason.

Paper: DeepSeek-R1 (Nature version), distillation: SFT of smaller models on R1's
outputs, and RL straight on such a model for comparison, which stays behind. Here the
student learns in five more ways from the same base: answers without thoughts, RL, and
three token by token from the teacher's probabilities.

All ways learn at one temperature, 1: the teacher's outputs are drawn at it, and so are
RL's and the student's own, and divergences are those of the models as they are. It is
the temperature at which students are measured too. Outputs drawn at less would make the
student of SFT alone sharper than the others, which at 1 is counted as skill.
What each way has computed is written to `compute.json`; see `stages.compute`.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments import reasoning_rl
from r1jax import distill, grpo, optim
from r1jax.grpo import GRPOConfig
from r1jax.miniature import corpus
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.runtime import cli, hosts
from r1jax.runtime.log import parse_line
from r1jax.runtime.run import user_errors
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, compute, problem_sets, rejection, stage, supervised
from r1jax.stages.artifact import Artifact, Policy
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, fit_stage_mesh, reward_pool
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
  rejection: RejectionConfig = RejectionConfig(problems=960)  # at the temperature of RL
  base: PretrainConfig = PretrainConfig(
    steps=2000, rows_per_step=6, row_length=352, micro_batches=3, checkpoint_every=500
  )
  base_optim: OptimConfig = OptimConfig(
    learning_rate=1e-2,
    muon_learning_rate=0.015,
    warmup_steps=20,
    schedule='cosine',
    eps=1e-6,  # so tuned, in all stages of the miniature
    balance_rate=0.001,  # DeepSeek-V3's; experts, if there are any, are new here
  )
  sft: SFTConfig = SFTConfig(
    epochs=3,  # R1: 2 to 3
    row_length=400,  # in a tokenizer of its own a text may have 10 % more tokens
  )
  sft_optim: OptimConfig = OptimConfig(
    learning_rate=3e-3,
    muon_learning_rate=0.005,
    warmup_steps=20,
    schedule='cosine',
    eps=1e-6,
  )
  rl: RLConfig = RLConfig(steps=40, evaluate_every=40)
  rl_optim: OptimConfig = OptimConfig(learning_rate=8e-4, schedule='cosine', eps=1e-6)
  grpo: GRPOConfig = dataclasses.replace(
    grpo.PRESETS['grpo'],
    mean='tokens',
    clip_low=1.0,  # R1's ε = 10 on both sides, as in `reasoning_rl`
    clip_high=10.0,
  )
  mesh: MeshConfig = MeshConfig()
  evaluate: EvalConfig = EvalConfig(problems=48)
  scoreboard: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    grpo.check_group_size(self.grpo, self.rl.group_size, self.rl.prompts_per_step)
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

  def _check_temperatures(self) -> None:
    """Raises ValueError where methods would learn at several temperatures."""
    draw = self.rejection.draw
    learned_at = {x for _, x in self.rl.temperature} if 'rl' in self.methods else set()
    learned_at |= {1.0} if set(self.methods) & set(TOKEN_LEVEL) else set()
    others = bool(learned_at)
    if set(self.methods) - {'rl', 'on_policy'}:  # from the teacher's outputs
      learned_at.add(draw.temperature)
    cut = others and draw != SamplingConfig(draw.temperature)
    if len(learned_at) > 1 or cut:
      raise ValueError(
        'rejection.draw and rl.temperature: expected one temperature (1 where '
        f'{", ".join(TOKEN_LEVEL)} are among the methods), and no top-k or top-p, as '
        f'students are compared at one, got {sorted(learned_at)} and {draw}; set them '
        'to the same, or leave some methods out'
      )


@dataclasses.dataclass(frozen=True)
class _Lesson:
  """What all methods share."""

  job: Stage  # the student's
  config: Distill
  teacher: Artifact
  order: Callable[[int], Problem]
  kept: list[rejection.Line]  # the teacher's outputs

  @property
  def examples(self) -> list[tuple[str, str]]:
    """Pairs of a question and the teacher's output."""
    return [(line['question'], line['output']) for line in self.kept]


def _sft(lesson: _Lesson, base: Any) -> Any:
  config = lesson.config
  return lesson.job.imitate(base, lesson.examples, config.sft, config.sft_optim)


def _without_thoughts(
  lesson: _Lesson,
) -> tuple[list[tuple[str, str]], SFTConfig]:
  """The answers alone; they are short, so as many tokens are more epochs."""
  job, config = lesson.job, lesson.config
  answers = [
    (question, '<think></think>' + output.partition('</think>')[2])
    for question, output in lesson.examples
  ]
  whole = job.passes(lesson.examples, config.sft).tokens
  epochs = round(whole / job.passes(answers, config.sft).tokens * config.sft.epochs)
  return answers, dataclasses.replace(config.sft, epochs=epochs)


def _answers(lesson: _Lesson, base: Any) -> Any:
  """SFT on the answers alone."""
  answers, sft = _without_thoughts(lesson)
  return lesson.job.imitate(
    base, answers, sft, lesson.config.sft_optim, phase='answers'
  )


def _rl(lesson: _Lesson, base: Any) -> Any:
  """RL straight on the student, with the rewards of R1's second stage."""
  config = lesson.config
  weighted = reasoning_rl.rewards(reasoning_rl.ReasoningRL())
  with reward_pool(config.rl, weighted) as pool:
    return lesson.job.reinforce(lambda: base, pool, lesson.order, config)


def _token_level(lesson: _Lesson, base: Any, phase: str) -> Any:
  """Token by token from the teacher, on its outputs or on the student's own."""
  job, config, teacher = lesson.job, lesson.config, lesson.teacher
  matrices = job.model.matrices
  optim.check_learning_rate(base, config.sft_optim, 'sft_optim', matrices)
  passes = job.passes(lesson.examples, config.sft)
  batch: Callable[[int, Any], Any] = passes.batch
  if phase == 'on_policy':
    batch = job.own_outputs(
      lesson.order,
      prompts=config.rl.prompts_per_step,
      max_length=config.rejection.max_length,
      config=config.sft,
    )
  kind = 'forward_kl' if phase == 'forward_kl' else 'reverse_kl'

  def step(state, batch, teacher_params, **how):
    return distill.step(
      state,
      batch,
      teacher_params=teacher_params,
      forward=job.model.functions.forward,
      logits=job.model.functions.logits,
      teacher_forward=teacher.model.functions.forward,
      teacher_logits=teacher.model.functions.logits,
      divergence=distill.DIVERGENCES[kind],
      **how,
    )

  return supervised.train(
    job.run,
    phase,
    base,
    step=step,
    batch=batch,
    steps=passes.steps,
    config=config.sft,
    optimizer=optim.make(config.sft_optim, passes.steps, matrices, job.seed),
    mesh=job.mesh,
    constants=(teacher.params(job.mesh),),
  )


LEARN: dict[str, Callable[[_Lesson, Any], Any]] = {
  'sft': _sft,
  'answers': _answers,
  'rl': _rl,
  **{name: functools.partial(_token_level, phase=name) for name in TOKEN_LEVEL},
}


def spent(
  lesson: _Lesson, method: str, lines: Sequence[Mapping[str, Any]]
) -> compute.Tokens:
  """The tokens of a method that has come to its end; `lines` are of metrics.jsonl."""
  job, config = lesson.job, lesson.config
  if method == 'rl':
    asked = range(config.rl.steps * config.rl.prompts_per_step)
    ids = (
      job.model.tokenizer.prompt_ids(job.model.template, lesson.order(n).question)
      for n in asked
    )
    return compute.of_rl(
      lines,
      prompts=sum(map(len, ids)),
      outputs=config.rl.prompts_per_step * config.rl.group_size,
      epochs=config.rl.epochs,
      passes=bool(config.grpo.kl_coef) + config.rl.int8_rollout,
    )
  passes = job.passes(lesson.examples, config.sft)
  if method == 'on_policy':
    return compute.of_own_outputs(lines, phase=method, steps=passes.steps)
  if method == 'answers':
    passes = job.passes(*_without_thoughts(lesson))
  judged = passes.tokens if method in TOKEN_LEVEL else 0
  return compute.Tokens(learned=passes.tokens, judged=judged)


def _write_compute(lesson: _Lesson, base: Any) -> None:
  """Writes what each method has computed, beside `sft`, to compute.json."""
  workdir = lesson.job.run.workdir
  raw = (workdir / 'metrics.jsonl').read_bytes().splitlines()
  lines = [line for line in map(parse_line, raw) if line is not None]
  tokens = {name: spent(lesson, name, lines) for name in lesson.config.methods}
  student = sum(leaf.size for leaf in jax.tree.leaves(base))
  teacher = lesson.teacher.record['parameters']
  found = compute.compared(tokens, student, teacher, first='sft')
  write_whole(workdir / 'compute.json', json.dumps(found, indent=2) + '\n')


def main(config: Distill) -> None:
  """Samples from the teacher, trains the student's base, then every method on it."""
  teacher = artifact.load(config.parent, 'final_rl', 'rejection_sft', 'reasoning_rl')
  world = teacher.ancestor('r1_zero').record['config']
  writers, difficulty = corpus.config_of(world['web']), corpus.tasks_of(world['tasks'])
  phases = ('base', *config.methods)
  with stage.begin('distill', config, teacher, phases) as asked:  # the teacher at work
    if asked is None:
      return
    document = functools.partial(corpus.document, writers, difficulty, asked.seed)
    model = _student(config, asked, document)
    asked.where.check_prompts(model.tokenizer, model.template)
    fit_stage_mesh(config, model.names)  # says what does not
    order = problem_stream(asked.where.train, config.shares, asked.seed)
    kept = asked.collect(teacher.params(asked.mesh), order, config.rejection)
    job = dataclasses.replace(asked, model=model)
    lesson = _Lesson(job, config, teacher, order, kept)
    job.passes(lesson.examples, config.sft)  # one longer than a row is found out here
    base = job.pretrain(document, config.base, config.base_optim)
    learned = {name: LEARN[name](lesson, base) for name in config.methods}
    models = {'base': base, **learned}
    if hosts.is_primary():
      _write_compute(lesson, base)
    job.measure(models, config.scoreboard)
    models['final'] = learned[config.methods[0]]
    artifact.finish(job.run, 'distill', config, model, models, [teacher])


def _student(
  config: Distill, asked: Stage, document: Callable[[int], tuple[str, str]]
) -> Policy:
  teacher = asked.model
  tokenizer = teacher.tokenizer
  if config.student.vocab_size:
    file = asked.run.workdir / artifact.TOKENIZER
    vocab_size = config.student.vocab_size
    tokenizer = problem_sets.tokenizer(file, document, teacher.template, vocab_size)
  return Policy(config.student.model, tokenizer, teacher.template)


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(Distill(), presets={'grpo': grpo.PRESETS, 'student': STUDENTS}))
