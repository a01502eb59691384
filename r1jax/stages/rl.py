"""Reinforcement learning with verifiable rewards: rollout, rewards, advantage, updates.

Everything random in step n is derived from (seed, n): the problems from a shuffle with
random access, the samples and the split into mini-batches from children of one key. No
random state is stored, and a resumed run is bit-for-bit identical.
"""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.choice import label
from r1jax.evaluation.evaluate import EvalConfig, evaluate_and_log
from r1jax.optim import TrainState
from r1jax.plain import JsonDict
from r1jax.rollout import replacing
from r1jax.runtime.keys import named_key
from r1jax.runtime.loop import SETTLED, Loop
from r1jax.runtime.run import Run
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.place import to_device
from r1jax.stages import rl_groups, rl_state
from r1jax.stages.compile_ahead import compile_ahead
from r1jax.stages.rl_checks import (
  FLAT,
  check_advantages,
  check_finite_rewards,
  check_not_negative,
  nothing_learned,
  short_updates,
)
from r1jax.stages.rl_config import value_at
from r1jax.stages.rl_groups import Actors
from r1jax.stages.rl_state import Feedback
from r1jax.tasks import Problem


def step(
  actors: Actors,
  state: TrainState,
  reference: optax.Params,
  problems: Sequence[Problem],
  key: jax.Array,
  number: int,
  feedback: Feedback,
) -> tuple[TrainState, JsonDict, list[JsonDict]]:
  """Makes one rollout and its updates; steps are numbered from 1.

  Returns the new state, the metrics, and lines for samples.jsonl.

  Args:
    actors: see `Actors`.
    state: of the policy.
    reference: its parameters.
    problems: of the step, or candidates; see `RLConfig.problem_numbers`.
    key: of everything random.
    number: of the step.
    feedback: of the last step.
  """
  learner, config, before = actors.learner, actors.learner.config, number - 1
  names, temperature = actors.rewarder.names, value_at(config.temperature, before)
  length = value_at(config.max_length, before)
  with ThreadPoolExecutor(1) as executor:
    compiling = executor.submit(
      compile_ahead,
      learner,
      state,
      reference,
      actors.sampler.max_prompt_length,
      length,
    )
    sample = functools.partial(
      actors.sampler.sample,
      learner.for_sampling(state.params),
      named_key(key, 'sample'),
      group_size=config.group_size,
      max_length=length,
      draw=SamplingConfig(temperature),
    )
    collected = (
      rl_groups.replaced if config.equal_groups == 'replace' else rl_groups.as_they_are
    )
    groups = collected(
      actors,
      problems,
      sample,
      lambda rollout: executor.submit(
        learner.score, state.params, reference, rollout, temperature
      ),
      feedback.useful_share,
    )
    compiling.result()
  rollout, rewards = groups.rollout, groups.rewards
  check_finite_rewards(number, groups.all_rewards, names)
  check_not_negative(number, groups.all_rewards, config.grpo.advantage)
  advantage_PG = learner.advantage(rl_groups.outcomes(actors, groups, length))
  check_advantages(number, advantage_PG, label(config.grpo.advantage))
  dropped_PG = rl_groups.dropped(config, rewards)
  advantage_PG = np.where(dropped_PG, 0.0, advantage_PG)
  learned = learner.update(
    state,
    replacing.without(rollout, dropped_PG) if dropped_PG.any() else rollout,
    advantage_PG[rollout.rows],
    groups.scores,
    named_key(key, 'minibatch'),
    temperature,
    feedback.bonus(config.grpo),
  )
  metrics = {
    **groups.all_rewards.metrics(groups.all_lengths, advantage_PG, names),
    **learned.metrics,
    **rl_groups.counts(config, groups, dropped_PG),
    'temperature': temperature,
    'time': {
      'rollout': rollout.seconds,
      'reward': groups.waited,
      'reference': groups.scores.seconds,
      'update': learned.seconds,
      'device': rollout.device_seconds + groups.scores.seconds + learned.device_seconds,
    },
    'tokens': int(groups.all_lengths.sum()),
  }
  samples = [
    {**sample, 'advantage': float(advantage_PG[row, 0])}
    for row, sample in sorted(rewards.samples.items())
    if row < config.logged_samples
  ]
  return learned.state, metrics, samples


def train(
  run: Run,
  phase: str,
  params: Callable[[], optax.Params],
  *,
  actors: Actors,
  problem_at: Callable[[int], Problem],
  held_out: Sequence[Problem],
  evals: EvalConfig,
  seed: int,
) -> optax.Params:
  """Trains a policy; resumes from the last checkpoint.

  Returns its learned parameters after `config.steps` rollouts.

  Args:
    run: the open run.
    phase: name in logs and checkpoints.
    params: returns the learned parameters to start from, also the first reference.
    actors: see `Actors`.
    problem_at: index -> problem; see `problem_stream`.
    held_out: problems of the validation split, for evaluation.
    evals: how to evaluate.
    seed: of everything random.

  Raises:
    ValueError: the learning rate is too small for the policy to change.
    RewardError: a reward failed on every output of a step.
    TrainingError: rewards, advantages or the loss are not finite, or every advantage of
      the first `FLAT` steps was 0. The last checkpoint is kept.
    CheckpointError, Interruption: see `Loop.save`.
  """
  learner, config = actors.learner, actors.learner.config
  state, reference, feedback, first = rl_state.resume(learner, params, run, phase)
  root = jax.random.key(seed)
  loop = Loop(
    run,
    phase,
    config.steps,
    first=first,
    save_every=config.checkpoint_every,
    optim='rl.optim',
  )

  def measure() -> None:
    _evaluate(loop, learner.whole(state.params), held_out, actors, evals, root)

  if not first:
    measure()
  weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  # Whether every advantage so far was 0; of a resumed run that is not known.
  flat = not first
  loop.restart_clock()
  for number in loop:
    problems = [problem_at(n) for n in config.problem_numbers(number)]
    key = jax.random.fold_in(root, number)
    with loop.traced(config.profile_step):
      state, metrics, samples = step(
        actors, state, reference, problems, key, number, feedback
      )
    for sentence in metrics.pop('errors'):
      loop.say(sentence)
    device = metrics['time'].pop('device')
    tokens = metrics.pop('tokens')
    logged = loop.log(metrics, tokens=tokens, device=device, samples=samples)
    flat = flat and logged['zero_advantages'] == 1
    feedback = feedback.after(config.grpo, logged)
    if flat and number == FLAT:
      raise nothing_learned(phase, logged['reward'])
    if config.reference_every and number % config.reference_every == 0:
      copy = jax.tree.map(jnp.copy, state.params)  # an update donates its input
      reference = learner.offload_reference(learner.reference(copy))
      loop.say('the policy is the new reference.')
    if loop.due(config.evaluate_every):
      measure()
      loop.restart_clock()
    loop.say_compilations(logged['time']['seconds'])
    settling = number - first <= SETTLED
    if settling and (warning := short_updates(config, number, logged, weights)):
      loop.say(warning)
    if loop.must_save():
      loop.save(to_device(rl_state.saved(learner, state, reference, feedback)))
  return state.params


def _evaluate(
  loop: Loop,
  params: optax.Params,
  held_out: Sequence[Problem],
  actors: Actors,
  config: EvalConfig,
  root: jax.Array,
) -> None:
  """Evaluates the policy after the loop's step; logs and shows the result."""
  evaluate_and_log(
    loop,
    params,
    named_key(jax.random.fold_in(root, loop.step), 'evaluate'),
    held_out,
    sampler=actors.sampler,
    rewarder=actors.rewarder,
    config=config,
    max_length=value_at(actors.learner.config.max_length, loop.steps),
  )
