"""RL of many seeds as one program: what `fused.program` needs from host data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim, tasks
from r1jax.choice import label
from r1jax.fused import texts
from r1jax.fused.program import (
  LEARNING_RATE,
  Problems,
  Settings,
  Step,
  Varied,
  train_all,
)
from r1jax.fused.verify import LARGEST, Truth
from r1jax.report.chart import ROLES
from r1jax.rollout.policy import Policy
from r1jax.runtime.errors import TrainingError
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl_config import RLConfig, value_at
from r1jax.tasks import Problem
from r1jax.text import parsing
from r1jax.text.tokenizer import pad_left

# Settings of RLConfig that only the ordinary loop has, and what they must be
FIXED = {
  'equal_groups': 'keep',
  'learn_cut_off': True,
  'overlong_tokens': 0,
  'int8_rollout': False,
  'offload': False,
}


VARIED = (LEARNING_RATE, 'clip_low', 'clip_high', 'kl_coef')  # numbers that may vary
BOUNDED = (
  'clip',
  'dual_clip',
  'clipped_weight',
  'geometric_mean',
  'dppo_tv',
  'dppo_kl',
)
READ_BY = {'clip_low': BOUNDED, 'clip_high': (*BOUNDED, 'vaco')}  # surrogates


def check(config: RLConfig) -> None:
  """Raises ValueError for settings that a fused run does not have."""
  for name, expected in FIXED.items():
    if (value := getattr(config, name)) != expected:
      raise ValueError(
        f'rl.{name}: expected {expected!r} in a fused run, got {value!r}'
      )
  if len(config.max_length) > 1:
    raise ValueError(
      'rl.max_length: expected one length in a fused run, as it is the shape of its '
      f'arrays, got {config.max_length}'
    )
  if not config.optim.learning_rate:
    raise ValueError('rl.optim.learning_rate: expected above 0 in a fused run, got 0')
  if config.grpo.entropy_target:
    raise ValueError(
      'rl.grpo.entropy_target: expected 0 in a fused run, got '
      f'{config.grpo.entropy_target}'
    )
  if config.grpo.advantage == 'reward_decoupled':
    raise ValueError(
      'rl.grpo.advantage: expected another one in a fused run, which has one reward, '
      "got 'reward_decoupled'"
    )


def check_policy(policy: Policy) -> None:
  """Raises ValueError for a model whose outputs the device cannot judge."""
  if policy.lora.rank:
    raise ValueError(
      f'model.lora.rank: expected 0 in a fused run, got {policy.lora.rank}'
    )
  if parsing.opened(policy.prompt('')):
    raise ValueError(
      f'template: expected one that leaves {parsing.TAGS[0]} to the model in a fused '
      f'run, got {policy.template!r}'
    )


def settings_of(policy: Policy, config: RLConfig) -> Settings:
  """Returns what all runs share."""
  check(config)
  check_policy(policy)
  updates = config.steps * config.epochs * config.minibatches
  group_size = config.group_size
  prompts = config.prompts_per_step // config.minibatches
  most = max(1, config.micro_batch_rows // group_size)

  def optimizer(rate: jax.Array | float) -> optax.GradientTransformation:
    varied: Any = Varied(config.optim, {'learning_rate': rate})
    return optim.make(varied, updates, policy.matrices)

  return Settings(
    model=policy.functions,
    optimizer=optimizer,
    config=config.grpo,
    group_size=group_size,
    length=config.longest,
    prompts=config.prompts_per_step,
    minibatches=config.minibatches,
    epochs=config.epochs,
    micro_batch_prompts=max(n for n in range(1, most + 1) if prompts % n == 0),
    stop_ids=tuple(policy.tokenizer.stop_ids),
    learning_rate=config.optim.learning_rate,
  )


def pieces_of(policy: Policy) -> texts.Pieces:
  """Returns the bytes of the tokenizer's tokens."""
  return texts.pieces(policy.tokenizer.token_bytes())


def problems_of(
  policy: Policy, problems: Sequence[Problem], max_prompt_length: int
) -> Problems:
  """Returns the problems as arrays; raises ValueError for a prompt that is too long."""
  for problem in problems:
    if problem.task not in tasks.REASONING or problem.form != 'tags':
      raise ValueError(
        f'tasks: expected {", ".join(tasks.REASONING)} in a fused run, got '
        f'{problem.task} with the form {problem.form}'
      )
    if max(problem.truth.get('numbers', [0])) > LARGEST:
      raise ValueError(
        f'tasks.countdown.largest: expected at most {LARGEST} in a fused run, got the '
        f'problem {problem.id}'
      )
  tokenizer = policy.tokenizer
  rows = [tokenizer.prompt_ids(policy.template, p.question) for p in problems]
  prompts, mask = pad_left(rows, max_prompt_length, tokenizer.pad_id)
  counts = [
    np.bincount(problem.truth.get('numbers', []), minlength=LARGEST + 1)
    for problem in problems
  ]
  return Problems(
    jnp.asarray(prompts),
    jnp.asarray(mask),
    Truth(
      jnp.array([tasks.REASONING.index(p.task) for p in problems], jnp.int32),
      jnp.array([_result(p) for p in problems], jnp.int32),
      jnp.array(counts, jnp.int32),
    ),
  )


def _result(problem: Problem) -> int:
  truth = problem.truth
  return truth[{'countdown': 'target', 'equations': 'x'}.get(problem.task, 'result')]


def steps_of(config: RLConfig, seed: int, number_at: Callable[[int], int]) -> Step:
  """Returns the steps of a run, those of the ordinary loop with this seed.

  Args:
    config: of the stage.
    seed: of everything random.
    number_at: index of a problem that the stage asks -> its number in the arrays.
  """
  root, numbers = jax.random.key(seed), range(1, config.steps + 1)
  chosen = [[number_at(n) for n in config.problem_numbers(step)] for step in numbers]
  every = config.reference_every
  return Step(
    chosen=jnp.array(chosen, jnp.int32),
    key=jax.vmap(functools.partial(jax.random.fold_in, root))(
      jnp.arange(1, config.steps + 1)
    ),
    temperature=jnp.array(
      [value_at(config.temperature, step - 1) for step in numbers], jnp.float32
    ),
    renew=jnp.array([bool(every) and step % every == 0 for step in numbers]),
  )


def check_numbers(config: RLConfig, vary: str, values: Sequence[float]) -> None:
  """Raises ValueError for a number that cannot vary, or values that it can't have."""
  if vary and vary not in VARIED:
    raise ValueError(f'vary: expected one of {", ".join(VARIED)}, got {vary!r}')
  if bool(vary) != bool(values):
    raise ValueError(
      f'values: expected values of {vary or "no number, as vary is empty"}, got '
      f'{" ".join(map(str, values)) or "none"}'
    )
  if vary == 'kl_coef' and not config.grpo.kl_coef:
    raise ValueError(
      'rl.grpo.kl_coef: expected above 0 where it varies, as with 0 the reference is '
      'not computed'
    )
  if vary and not 2 <= len(set(values)) == len(values) <= len(ROLES):
    raise ValueError(
      f'values: expected 2 to {len(ROLES)} different values of {vary}, got '
      f'{" ".join(map(str, values))}'
    )
  surrogate = config.grpo.surrogate
  if surrogate not in READ_BY.get(vary, (surrogate,)):
    raise ValueError(
      f'vary: expected a number that rl.grpo.surrogate {label(surrogate)} reads, got '
      f'{vary!r}'
    )
  if vary == LEARNING_RATE and config.optim.muon_learning_rate:
    raise ValueError(
      'rl.optim.muon_learning_rate: expected 0 where learning_rate varies, as that is '
      f'not of the weight matrices, got {config.optim.muon_learning_rate}'
    )
  for value in values:
    if vary == LEARNING_RATE:
      dataclasses.replace(config.optim, learning_rate=value)
    else:
      change: dict[str, Any] = {vary: value}
      dataclasses.replace(config.grpo, **change)


def train(
  policy: Policy,
  params: optax.Params,
  config: RLConfig,
  sources: Sequence[Sequence[Problem]],
  shares: Sequence[float],
  *,
  seeds: Sequence[int],
  vary: str = '',
  values: Sequence[float] = (),
  together: bool = False,
) -> dict[str, np.ndarray]:
  """Trains all seeds with each value; returns metrics [values, seeds, steps].

  Args:
    policy: the model, its tokenizer and template.
    params: that all runs start from.
    config: of the stage; see `check`.
    sources: training problems of each task.
    shares: of the tasks.
    seeds: of everything random.
    vary: a field of GRPOConfig, or `LEARNING_RATE`; empty varies none.
    values: of it; none counts as one.
    together: see `program.train_all`.
  """
  problems = [problem for source in sources for problem in source]
  place = {(p.task, p.id): n for n, p in enumerate(problems)}

  def steps(seed: int) -> Step:
    at = problem_stream(sources, shares, seed)
    return steps_of(config, seed, lambda index: place[at(index).task, at(index).id])

  repeats = max(1, len(values))
  runs = [steps(seed) for seed in seeds]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *(runs * repeats))
  numbers = {vary: jnp.repeat(jnp.float32(values), len(seeds))} if vary else {}
  program = functools.partial(
    train_all,
    problems=problems_of(policy, problems, config.max_prompt_length),
    pieces=pieces_of(policy),
    settings=settings_of(policy, config),
    together=together,
  )
  _, metrics = jax.jit(program)(params, stacked, numbers)
  found = {
    name: np.asarray(x).reshape(repeats, len(seeds), -1) for name, x in metrics.items()
  }
  for name in ('loss', 'grad_norm'):
    for value, seed, step in np.argwhere(~np.isfinite(found[name])).tolist():
      what = f'{vary} {values[value]:g}, ' if vary else ''
      raise TrainingError(
        f'{name} is {found[name][value, seed, step]} at step {step + 1} with '
        f'{what}seed {seeds[seed]}; lower rl.optim.learning_rate'
      )
  return found
