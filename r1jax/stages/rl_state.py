"""What an RL stage carries from step to step: the policy's state and the reference.

A checkpoint holds both. Before the first step they are made from the parameters that
the stage starts from.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim
from r1jax.grpo import GRPOConfig
from r1jax.model import decoder, lora
from r1jax.optim import TrainState
from r1jax.plain import JsonObject
from r1jax.rollout.policy import Policy
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import Run
from r1jax.sharding.place import abstract_like_params, like_params, replicate
from r1jax.sharding.rules import named_sharding
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig

ENTROPY_STEP = 0.005  # of the bonus' coefficient, each step (Skywork-OR1)


def learner_of(
  policy: Policy,
  mesh: jax.sharding.Mesh,
  config: RLConfig,
  params: Callable[[], optax.Params],
  seed: int,
) -> tuple[Learner, Callable[[], optax.Params]]:
  """Returns a policy's learner, and what returns its learned parameters at the start.

  Args:
    policy: with adapters, these are what is learned.
    mesh: the learner's devices.
    config: see `RLConfig`.
    params: returns the model's parameters to start from, without adapters.
    seed: of the adapters, and of what is random in the optimizer.
  """

  def quantize(params: optax.Params) -> optax.Params:
    return decoder.quantize(lora.merged(params), policy.config)

  learner = Learner(
    policy.functions,
    mesh,
    config,
    policy.matrices,
    quantize=quantize if config.int8_rollout else None,
    round_reference=lambda params: decoder.as_multiplied(params, policy.config),
    seed=seed,
  )
  if not policy.lora.rank:
    return learner, params
  learner = dataclasses.replace(
    learner,
    matrices=None,
    round_reference=None,
    frozen=params(),
    join=functools.partial(lora.attach, scale=policy.lora.scale),
  )
  key = named_key(jax.random.key(seed), 'adapters')
  adapters = lora.init(policy.config, policy.lora, key)
  return learner, functools.partial(replicate, mesh, adapters)


def start(learner: Learner, params: optax.Params) -> dict[str, Any]:
  """Returns the content of a checkpoint before the first step."""
  # A copy, as an update donates the memory of its input state.
  before = {
    'policy': optim.init(jax.tree.map(jnp.copy, params), learner.tx),
    'reference': learner.reference(params),
    **_feedback(learner.config),
  }
  # Placed now, as another sharding in the second step would compile again.
  return like_params(learner.mesh, before, params)


def like(learner: Learner, params: optax.Params) -> dict[str, Any]:
  """Returns shapes and shardings of the result of `start`."""
  shapes = jax.eval_shape(
    lambda params: {
      'policy': optim.init(params, learner.tx),
      'reference': learner.reference(params),
      **_feedback(learner.config),
    },
    params,
  )
  return abstract_like_params(learner.mesh, shapes, params)


class Feedback(NamedTuple):
  """What a step needs of the last one."""

  useful_share: float = 1.0  # of groups with different rewards, for 'replace'
  entropy: float = 0.0  # nats a token, for an entropy target
  entropy_coef: float = 0.0  # of the bonus, if entropy is at most the target

  def after(self, config: GRPOConfig, logged: JsonObject) -> 'Feedback':
    """Returns it after a step with these metrics, rounded as it is saved."""
    share, entropy = 1 - logged['zero_variance_groups'], logged.get('entropy')
    if entropy is None:  # nothing was learned from
      return self._replace(useful_share=float(np.float32(share)))
    step = ENTROPY_STEP if entropy <= config.entropy_target else -ENTROPY_STEP
    coef = min(max(self.entropy_coef + step, 0.0), 1.0)
    rounded = np.array([share, entropy, coef], np.float32)
    return Feedback(*rounded.tolist())

  def bonus(self, config: GRPOConfig) -> float | None:
    """Returns the coefficient of the entropy bonus; None if it is constant.

    Skywork-OR1, 2505.22312: the bonus holds entropy above a target, and only there.
    """
    if not config.entropy_target:
      return None
    return self.entropy_coef if self.entropy <= config.entropy_target else 0.0


def _feedback(config: RLConfig) -> dict[str, jax.Array]:
  """Returns the first feedback as a part of a checkpoint, if the stage uses it."""
  if config.equal_groups != 'replace' and not config.grpo.entropy_target:
    return {}
  return {'feedback': jnp.array(Feedback(entropy_coef=config.grpo.entropy_coef))}


def saved(
  learner: Learner, state: TrainState, reference: optax.Params, feedback: Feedback
) -> dict[str, Any]:
  """Returns the content of a checkpoint."""
  rounded = np.array(feedback, np.float32)
  numbers = jax.device_put(rounded, named_sharding(learner.mesh))
  return {
    'policy': state,
    'reference': reference,
    **dict.fromkeys(_feedback(learner.config), numbers),
  }


def resume(
  learner: Learner, params: Callable[[], optax.Params], run: Run, phase: str
) -> tuple[TrainState, optax.Params, Feedback, int]:
  """Returns state, reference, feedback and step of the last checkpoint, or the start.

  Raises:
    ValueError: the learning rate is too small for the policy to change.
  """
  checkpoints, before = run.checkpoints[phase], params()
  optim.check_learning_rate(before, learner.config.optim, 'rl.optim', learner.matrices)
  first, shapes = checkpoints.step or 0, like(learner, before)
  if 0 < (traced := learner.config.profile_step) <= first:
    run.progress.say(f'Step {traced} is done and can no longer be traced.')
  saved = {} if first else start(learner, before)
  del before  # a large model would not fit a second time
  saved = saved or checkpoints.restore(shapes)
  state = learner.offload_state(saved.pop('policy'))
  reference = learner.offload_reference(saved.pop('reference'))
  numbers = np.asarray(saved['feedback']).tolist() if 'feedback' in saved else []
  return state, reference, Feedback(*numbers), first
