"""Methods of distillation: a student learns from a teacher; the compute of each."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from r1jax import distill
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.model.config import ModelConfig
from r1jax.optim import Metrics, TrainState
from r1jax.plain import JsonObject
from r1jax.rewards import Weighted
from r1jax.rollout.sampler import Rollout, of_all_hosts
from r1jax.runtime import hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.log import parse_line
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sft import Batch
from r1jax.stages import compute
from r1jax.stages.artifact import Artifact
from r1jax.stages.examples import Epochs, Example
from r1jax.stages.rejection import Line, RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem
from r1jax.text.templates import Question

TOKEN_LEVEL = ('forward_kl', 'reverse_kl', 'on_policy')


@dataclasses.dataclass(frozen=True)
class Student:
  """A small model and its tokenizer."""

  model: ModelConfig
  vocab_size: int = 0  # of its own tokenizer; 0 is the teacher's tokenizer


@dataclasses.dataclass(frozen=True)
class Lesson:
  """The inputs that all methods share.

  Fields:
    stage: of the student.
    teacher: the finished stage to learn from.
    problem_at: index -> problem.
    kept: outputs of the teacher.
    max_length: T of the student's own outputs in on-policy distillation, tokens.
    sft: settings of all methods but RL.
    rl: of RL; on-policy distillation has its number of prompts.
    rewards: of RL.
    evals: how RL is evaluated during training.

  Raises:
    ValueError: an output of the teacher exceeds a row.
  """

  stage: Stage
  teacher: Artifact
  problem_at: Callable[[int], Problem]
  kept: Sequence[Line]
  max_length: int
  sft: SFTConfig
  rl: RLConfig
  rewards: Sequence[Weighted]
  evals: EvalConfig

  def __post_init__(self) -> None:
    _ = self.epochs  # raises here, not after the training of a base model

  @property
  def pairs(self) -> list[tuple[Question, str]]:
    """Pairs of a question and the teacher's output."""
    return [(line['question'], line['output']) for line in self.kept]

  @functools.cached_property
  def epochs(self) -> Epochs:
    """Batches of rows of these pairs."""
    return self.stage.epochs(self.pairs, self.sft)


def sft(lesson: Lesson, base: optax.Params) -> optax.Params:
  """Returns parameters after SFT on the teacher's outputs."""
  return lesson.stage.sft(base, lesson.pairs, lesson.sft)


def without_thoughts(lesson: Lesson) -> tuple[list[tuple[Question, str]], SFTConfig]:
  """Returns outputs without thoughts, and a config with more epochs of them.

  They are short; the epochs are chosen to train on as many tokens as `sft`.
  """
  found = [
    (question, '<think></think>' + output.partition('</think>')[2])
    for question, output in lesson.pairs
  ]
  short = lesson.stage.epochs(found, lesson.sft)
  epochs = round(lesson.epochs.tokens / short.tokens * lesson.sft.epochs)
  return found, dataclasses.replace(lesson.sft, epochs=epochs)


def answers(lesson: Lesson, base: optax.Params) -> optax.Params:
  """Returns parameters after SFT on the teacher's outputs without thoughts."""
  return lesson.stage.sft(base, *without_thoughts(lesson), phase='answers')


def rl(lesson: Lesson, base: optax.Params) -> optax.Params:
  """Returns parameters after RL on the student."""
  with reward_pool(lesson.rl, lesson.rewards) as rewarder:
    return lesson.stage.rl(
      lambda: base, rewarder, lesson.problem_at, lesson.rl, lesson.evals
    )


def token_level(lesson: Lesson, base: optax.Params, phase: str) -> optax.Params:
  """Returns parameters after minimizing the KL divergence to the teacher.

  The divergence is measured at each token of the teacher's outputs, or of the student's
  own if `phase` is 'on_policy'.
  """
  stage, teacher, epochs = lesson.stage, lesson.teacher, lesson.epochs
  student, teaches = stage.policy.functions, teacher.policy.functions
  batch: Callable[[int, optax.Params], Batch] = epochs.batch
  if phase == 'on_policy':
    batch = own_outputs(
      stage,
      lesson.problem_at,
      prompts=lesson.rl.prompts_per_step,
      max_length=lesson.max_length,
      config=lesson.sft,
    )
  kind = 'forward_kl' if phase == 'forward_kl' else 'reverse_kl'

  def step(
    state: TrainState, batch: Batch, teacher_params: optax.Params, **settings: Any
  ) -> tuple[TrainState, Metrics]:
    return distill.step(
      state,
      batch,
      teacher_params=teacher_params,
      forward=student.forward,
      logits=student.logits,
      teacher_forward=teaches.forward,
      teacher_logits=teaches.logits,
      divergence=distill.DIVERGENCES[kind],
      in_place=True,
      **settings,
    )

  return stage.train(
    phase,
    base,
    batch,
    epochs.steps,
    lesson.sft,
    'sft.optim',
    step=step,
    constants=(teacher.params(stage.mesh),),
  )


# (lesson, parameters of the student's base model) -> parameters, by method
METHODS: dict[str, Callable[[Lesson, optax.Params], optax.Params]] = {
  'sft': sft,
  'answers': answers,
  'rl': rl,
  **{name: functools.partial(token_level, phase=name) for name in TOKEN_LEVEL},
}


def learn(
  lesson: Lesson, base: optax.Params, methods: Sequence[str]
) -> dict[str, optax.Params]:
  """Returns the student's parameters by method; writes the compute of each."""
  learned = {name: METHODS[name](lesson, base) for name in methods}
  write_compute(lesson, methods, base)
  return learned


def own_outputs(
  stage: Stage,
  problem_at: Callable[[int], Problem],
  *,
  prompts: int,
  max_length: int,
  config: SFTConfig,
) -> Callable[[int, optax.Params], Batch]:
  """Returns (step, params) -> rows of outputs sampled with these parameters.

  If they do not fit into `config.rows_per_step` rows, the batch has a multiple of that:
  leaving out outputs that do not fit would favour short ones.

  Args:
    stage: of the policy to sample from.
    problem_at: index -> problem.
    prompts: problems per step.
    max_length: T, tokens.
    config: rows per step.
  """
  key = named_key(jax.random.key(stage.seed), 'own outputs')
  once = dataclasses.replace(config, epochs=1)

  def batch(step: int, params: optax.Params) -> Batch:
    chosen = [problem_at(n) for n in range((step - 1) * prompts, step * prompts)]
    rollout = stage.sampler.sample(
      params,
      jax.random.fold_in(key, step),
      chosen,
      group_size=1,
      max_length=max_length,
      draw=SamplingConfig(),
    )
    found = of_all_hosts(rollout, _examples(rollout))
    return Epochs(found, once, stage.seed + step).whole()

  return batch


def _examples(rollout: Rollout) -> list[Example]:
  """Returns the first output to each problem of this host, with its prompt."""
  return [
    Example(
      rollout.prompts[n][rollout.prompt_mask[n]].tolist(),
      rollout.tokens[n, 0, : rollout.lengths[n, 0]].tolist(),
    )
    for n in range(len(rollout.rows))
  ]


def check_methods(
  methods: Sequence[str], rejection: RejectionConfig, rl: RLConfig, student: Student
) -> None:
  """Raises ValueError for methods that are unknown or that can't be compared.

  Args:
    methods: names in `METHODS`, each once.
    rejection: how the teacher's outputs are sampled.
    rl: of RL on the student.
    student: with or without a tokenizer of its own.
  """
  known = [name for name in METHODS if name in methods]
  if not known or sorted(known) != sorted(methods):
    raise ValueError(
      f'methods: expected some of {tuple(METHODS)}, each once, got {methods}'
    )
  _check_temperatures(methods, rejection.draw, rl)
  token_level = [name for name in methods if name in TOKEN_LEVEL]
  if token_level and student.vocab_size:
    raise ValueError(
      f'methods: expected none of {TOKEN_LEVEL} for a student with a tokenizer of '
      f'its own, since they compare probabilities of the same tokens, got '
      f'{token_level}; set student.vocab_size to 0'
    )


def _check_temperatures(
  methods: Sequence[str], draw: SamplingConfig, rl: RLConfig
) -> None:
  """Raises ValueError if methods would learn at different temperatures."""
  learned_at = {x for _, x in rl.temperature} if 'rl' in methods else set()
  learned_at |= {1.0} if set(methods) & set(TOKEN_LEVEL) else set()
  others = bool(learned_at)
  if set(methods) - {'rl', 'on_policy'}:  # from the teacher's outputs
    learned_at.add(draw.temperature)
  cut = others and draw != SamplingConfig(draw.temperature)
  if len(learned_at) > 1 or cut:
    raise ValueError(
      'rejection.draw and rl.temperature: expected the same temperature (1 with the '
      f'methods {", ".join(TOKEN_LEVEL)}) and no top-k or top-p, so that methods can '
      f'be compared, got {sorted(learned_at)} and {draw}; set them to the same, or '
      'remove some methods'
    )


def tokens_of(
  lesson: Lesson, method: str, lines: Sequence[JsonObject]
) -> compute.Tokens:
  """Returns the tokens that a method used, given the lines of metrics.jsonl."""
  config, policy = lesson.rl, lesson.stage.policy
  if method == 'rl':
    ids = (
      policy.tokenizer.prompt_ids(policy.template, lesson.problem_at(n).question)
      for n in range(config.steps * config.prompts_per_step)
    )
    return compute.of_rl(
      lines,
      prompts=sum(map(len, ids)),
      outputs=config.prompts_per_step * config.group_size,
      epochs=config.epochs,
      passes=bool(config.grpo.kl_coef)
      + config.int8_rollout
      + config.epochs * (config.grpo.tokens != 'all'),
    )
  epochs = lesson.epochs
  if method == 'on_policy':
    return compute.of_own_outputs(lines, phase=method, steps=epochs.steps)
  if method == 'answers':
    epochs = lesson.stage.epochs(*without_thoughts(lesson))
  judged = epochs.tokens if method in TOKEN_LEVEL else 0
  return compute.Tokens(learned=epochs.tokens, judged=judged)


def write_compute(lesson: Lesson, methods: Sequence[str], base: optax.Params) -> None:
  """Writes the compute of each method, relative to `sft`, to compute.json."""
  if not hosts.is_primary():
    return
  workdir = lesson.stage.run.workdir
  raw = (workdir / 'metrics.jsonl').read_bytes().splitlines()
  lines = [line for line in map(parse_line, raw) if line is not None]
  tokens = {name: tokens_of(lesson, name, lines) for name in methods}
  student = sum(leaf.size for leaf in jax.tree.leaves(base))
  teacher = lesson.teacher.record['parameters']
  found = compute.compared(tokens, student, teacher, first='sft')
  write_whole(workdir / 'compute.json', json.dumps(found, indent=2) + '\n')
