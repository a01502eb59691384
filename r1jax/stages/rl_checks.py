"""Checks an RL step: finite rewards and advantages, something to learn, its size."""

from collections.abc import Sequence

import numpy as np

from r1jax import optim
from r1jax.choice import Choice, label
from r1jax.plain import JsonObject
from r1jax.rollout.rewarding import Rewards
from r1jax.runtime.errors import TrainingError
from r1jax.stages.rl_config import RLConfig
from r1jax.terms.advantages import NOT_NEGATIVE

LARGEST_REWARD = 1e15  # sums of its squares over a batch fit into float32
FLAT = 20  # a run ends if every advantage of its first 20 steps was 0
SHORT = 0.1  # of the learning rate; shorter updates are reported
LARGE = 100  # times Adam's eps; an rms gradient above this is not slowed by eps


def short_updates(
  config: RLConfig, number: int, metrics: JsonObject, weights: int
) -> str | None:
  """Returns a warning if a step's updates are far shorter than the learning rate.

  Returns None if not, or if they are short because most mini-batches have no gradient,
  which does not depend on Adam's eps.

  Args:
    config: of the stage.
    number: of the step.
    metrics: of the step.
    weights: number of learned parameters.
  """
  rates, each = config.optim, config.epochs * config.minibatches
  # Not by groups: an advantage may compare the outputs of several prompts.
  learns = metrics['grad_norm'] > 0 and metrics['zero_advantages'] < 1
  if rates.muon_learning_rate or not learns:
    return None
  rate = optim.schedule(rates, rates.learning_rate, config.steps * each)
  updates = range((number - 1) * each, number * each)
  mean = np.mean([float(rate(n)) for n in updates])
  if not mean:
    return 'rl.optim.learning_rate is 0, so nothing is learned; raise that.'
  entry = min(metrics['grad_norm'], rates.max_grad_norm) / weights**0.5
  if metrics['update_size'] >= SHORT * mean or entry > LARGE * rates.eps:
    return None
  return (
    f'An update moved a weight by {metrics["update_size"] / mean:.1%} of the learning '
    f'rate on average: the gradient is smaller than rl.optim.eps = {rates.eps:g}; '
    'lower that.'
  )


def check_finite_rewards(step: int, rewards: Rewards, names: Sequence[str]) -> None:
  """Raises TrainingError for a weighted sum that is too large for float32."""
  wrong = np.argwhere(~(np.abs(rewards.total) <= LARGEST_REWARD))  # NaN too
  if len(wrong):
    p, g = wrong[0]
    parts = zip(names, rewards.values[p, g].tolist(), strict=True)
    raise TrainingError(
      f'the rewards of an output of step {step} add up to {rewards.total[p, g]:.3g} ('
      + ', '.join(f'{name} {value:.3g}' for name, value in parts)
      + f'), expected at most {LARGEST_REWARD:g}; lower that reward or its weight, in '
      'another --workdir'
    )


def check_not_negative(step: int, rewards: Rewards, advantage: Choice) -> None:
  """Raises TrainingError for rewards below 0 with an advantage that takes none."""
  if advantage in NOT_NEGATIVE and (least := rewards.total.min()) < 0:
    raise TrainingError(
      f'the rewards of an output of step {step} add up to {least:.3g}, expected 0 or '
      f'more with the advantage {label(advantage)}; raise that reward, or choose '
      'another rl.grpo.advantage, in another --workdir'
    )


def check_advantages(step: int, advantage_PG: np.ndarray, name: str) -> None:
  """Raises TrainingError for advantages that are not finite."""
  wrong = advantage_PG[~np.isfinite(advantage_PG)]
  if wrong.size:
    raise TrainingError(
      f'the advantage {name} is {wrong[0]} for {wrong.size} of {advantage_PG.size} '
      f'outputs of step {step}, whose rewards are all finite; correct the function, or '
      'choose another rl.grpo.advantage, in another --workdir'
    )


def nothing_learned(phase: str, mean_reward: float) -> TrainingError:
  """Returns the error of a run whose first steps had no advantage but 0."""
  return TrainingError(
    f'in the first {FLAT} steps of {phase} every advantage was 0, as all rewards that '
    f'are compared were equal (last mean is {mean_reward:.3g}), so nothing was '
    'learned; use easier or harder problems, or a finer reward, and a new --workdir'
  )
