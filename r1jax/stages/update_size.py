"""Reports updates that are far shorter than the learning rate."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from r1jax import optim
from r1jax.stages.rl_config import RLConfig

SHORT = 0.1  # of the learning rate; shorter updates are reported
LARGE = 100  # times Adam's eps; an rms gradient above this is not slowed by eps


def short_updates(
  config: RLConfig, number: int, metrics: Mapping[str, Any], weights: int
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
