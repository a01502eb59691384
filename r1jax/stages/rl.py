"""Reinforcement learning on checked answers: rollout, rewards, advantage, updates.

Everything random in step n comes from (seed, n): the problems from a shuffle with
random access, the samples and the cut into mini-batches from children of one key.
Nothing random is stored, and a killed run goes on to the same bits.
"""

import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from r1jax import optim
from r1jax.optim import TrainState
from r1jax.runtime import hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import Run, TrainingError, check_finite
from r1jax.sharding.place import (
  to_device,
)
from r1jax.stages import evaluation
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.learner import Learner
from r1jax.stages.rewarding import (
  check_advantages,
  check_rewards,
  join_hosts,
  observed,
  reward_local,
)
from r1jax.stages.rl_config import value_at
from r1jax.tasks import Problem

SETTLED = 3  # steps of a run after which nothing should be compiled any more
FLAT = 20  # first steps with no advantage but 0 after which a run ends


def train(
  run: Run,
  phase: str,
  params: Callable[[], Any],
  *,
  trainer: Learner,
  order: Callable[[int], Problem],
  held_out: Sequence[Problem],
  evaluate: EvalConfig,
  seed: int,
) -> Any:
  """Returns the policy after `config.steps` rollouts, from the last checkpoint on.

  Args:
    run: of which `phase` is a part.
    phase: its name in logs and checkpoints.
    params: makes what is learned of the policy to start from, and the first reference.
    trainer: the machinery.
    order: index -> the problem to learn from; see `problem_stream`.
    held_out: the validation split, to be evaluated on and never learned from.
    evaluate: how to evaluate.
    seed: everything random follows from it.

  Raises:
    ValueError: the learning rate is too small for the policy to change.
    RewardError: a reward failed on every output of a step.
    TrainingError: rewards, advantages or the loss are no longer finite, or from the
      first step on every advantage was 0. The last checkpoint stays.
  """
  config = trainer.config
  checkpoints, before = run.checkpoints[phase], params()
  optim.check_moves(before, trainer.optimizer, 'rl_optim', trainer.matrices)
  first, like = checkpoints.step or 0, trainer.like(before)
  saved = {} if first else trainer.start(before)
  del before  # of a large model there is no room for one more
  saved = saved or checkpoints.restore(like)
  state = trainer.waiting(saved.pop('policy'))
  reference = trainer.reference(saved.pop('reference'))
  root = jax.random.key(seed)
  measure = functools.partial(
    _measure, run, trainer=trainer, held_out=held_out, config=evaluate, root=root
  )

  if not first:
    measure(0, trainer.whole(state.params))
  if 0 < config.profile_step <= first:
    run.progress.say(
      f'Step {config.profile_step} is done, so it can no longer be traced.'
    )
  flat = not first  # so far nothing could be learned
  ended = time.monotonic()
  for step in range(first + 1, config.steps + 1):
    batch = range((step - 1) * config.prompts_per_step, step * config.prompts_per_step)
    key = jax.random.fold_in(root, step)
    chosen = [order(index) for index in batch]
    with _profile(run, hosts.is_primary() and step == config.profile_step):
      state, values, samples = _step(trainer, state, reference, chosen, key, step - 1)
    for sentence in values.pop('errors'):
      run.progress.say(f'Step {step}: {sentence}')
    check_finite(phase, step, values, 'rl_optim')
    flat = flat and values['zero_advantages'] == 1
    if flat and step == FLAT:
      raise TrainingError(
        f'in {FLAT} steps of {phase} every advantage was 0, as the rewards that are '
        f'compared were equal (the last mean is {values["reward"]:.3g}), so nothing '
        'was learned; make the problems easier or harder, or the reward finer, in '
        'another --workdir'
      )
    began, ended = ended, time.monotonic()
    seconds = ended - began
    values['time'] |= {
      'seconds': seconds,
      'tokens_per_second': values['time'].pop('tokens') / seconds,
      # Of the time since the last step's end, in which that step was written down.
      'device_waited': max(0.0, 1 - values['time'].pop('device') / seconds),
    }
    run.log.write(phase, step, **values)
    run.log.samples({'phase': phase, 'step': step, **sample} for sample in samples)
    run.progress.update(phase, step, config.steps, values)
    if config.reference_every and step % config.reference_every == 0:
      reference = trainer.reference(jax.tree.map(jnp.copy, state.params))
      run.progress.say(f'Step {step}: the policy is the new reference.')
    if step % config.evaluate_every == 0 or step == config.steps:
      measure(step, trainer.whole(state.params))
      ended = time.monotonic()
    _say_compilations(run, step, step - first, seconds)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    settling = step - first <= SETTLED
    if settling and (said := trainer.short_updates(step, values, weights)):
      run.progress.say(f'Step {step}: {said}')
    due = step % config.checkpoint_every == 0 or step == config.steps
    if run.saves(due):
      run.save(phase, step, to_device({'policy': state, 'reference': reference}))
  return state.params


def _say_compilations(run: Run, step: int, done: int, seconds: float) -> None:
  """Says what the first of the `done` steps took, and when a late one compiles."""
  programs, compiling = run.compilations.since()
  if done == 1:
    run.progress.say(
      f'The first step took {seconds:.1f} s; compiling or loading {programs} programs '
      f'took {compiling:.1f} s so far.'
    )
  elif programs and done > SETTLED:
    run.progress.say(
      f'Step {step}: {programs} programs had to be compiled or loaded, in '
      f'{compiling:.1f} s; a shape that changes at many steps costs that each time.'
    )


@contextlib.contextmanager
def _profile(run: Run, wanted: bool) -> Iterator[None]:
  """Writes a trace of what goes on inside, for Perfetto and XProf, if it is wanted."""
  if not wanted:
    yield
    return
  folder = run.workdir / 'profile'
  with jax.profiler.trace(str(folder), create_perfetto_trace=True):
    yield
  run.progress.say(f'The trace of this step is in {folder}.')


def _measure(
  run: Run,
  step: int,
  params: Any,
  *,
  trainer: Learner,
  held_out: Sequence[Problem],
  config: EvalConfig,
  root: jax.Array,
) -> None:
  """Evaluates the policy of `step` and writes down and shows what comes out."""
  last = trainer.config.steps
  values, shown = evaluation.evaluate(
    params,
    named_key(jax.random.fold_in(root, step), 'evaluate'),
    held_out[: config.problems],
    generator=trainer.generator,
    pool=trainer.pool,
    config=config,
    max_length=value_at(trainer.config.max_length, last),
  )
  run.log.write('eval', step, split='validation', **values)
  run.log.samples({'phase': 'eval', 'step': step, **sample} for sample in shown)
  run.progress.update('eval', step, last, values)


def _step(
  trainer: Learner,
  state: TrainState,
  reference: Any,
  problems: Sequence[Problem],
  key: jax.Array,
  rollouts_before: int,
) -> tuple[TrainState, dict[str, Any], list[dict[str, Any]]]:
  """One rollout and its updates: the state, the metrics, some samples."""
  config = trainer.config
  temperature = value_at(config.temperature, rollouts_before)
  began = time.monotonic()
  length = value_at(config.max_length, rollouts_before)
  outputs = trainer.rollout(
    state.params, named_key(key, 'sample'), problems, length, temperature
  )
  sampled = time.monotonic()
  # The worker processes score the texts while the device scores the tokens.
  with concurrent.futures.ThreadPoolExecutor(1) as aside:
    passing = aside.submit(
      trainer.passes, state.params, reference, outputs, temperature
    )
    seen = join_hosts(
      hosts.all_gather('rewards', reward_local(trainer, problems, outputs))
    )
    rewarded = time.monotonic()
    passes = passing.result()
  names = trainer.pool.names
  check_rewards(rollouts_before + 1, seen, names)
  advantage_PG = trainer.advantages(seen.reward)
  check_advantages(rollouts_before + 1, advantage_PG, trainer.algorithm.advantage)
  referred = time.monotonic()
  state, metrics, learning = trainer.learn(
    state,
    outputs,
    passes,
    advantage_PG[outputs.rows],
    named_key(key, 'minibatch'),
    temperature,
  )
  values = {
    **observed(outputs.all_lengths, seen, advantage_PG, names),
    **metrics,
    'temperature': temperature,
    'time': {
      'rollout': sampled - began,
      'reward': rewarded - sampled,
      'reference': passes.seconds,
      'update': time.monotonic() - referred,
      'tokens': int(outputs.all_lengths.sum()),
      'device': outputs.seconds + passes.seconds + learning,
    },
  }
  samples = [
    {**sample, 'advantage': float(advantage_PG[row, 0])}
    for row, sample in sorted(seen.samples.items())
  ]
  return state, values, samples
