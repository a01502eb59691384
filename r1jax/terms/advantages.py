"""Advantages: (outcomes of a rollout, numbers) -> one number per output, [P, G]."""

import math

import jax
import jax.numpy as jnp

from r1jax.terms.inputs import Advantage, Numbers, Outcomes

# Added to standard deviations, so that a group of equal rewards gets 0 and not NaN.
STD_EPS = 1e-4


def group_zscore(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = (r - mean(r)) / std(r) in the group (DeepSeek-R1, eq. 3).

  The paper leaves std open; this is the unbiased one (ddof 1), as in most code.
  """
  return _over_std(group_centred(outcomes, numbers), outcomes.reward, axis=1)


def group_centred(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = r - mean(r) in the group (Dr. GRPO): no boost for hard or easy ones."""
  del numbers
  return _centred(outcomes.reward, axis=1)


def leave_one_out(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = r - mean of the group's other rewards (RLOO, eq. 8)."""
  group_size = outcomes.reward.shape[1]
  return group_centred(outcomes, numbers) * (group_size / (group_size - 1))


def batch_whitened(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = (r - mean) / std over all outputs of the batch, 2 or more (REINFORCE++)."""
  del numbers
  return _over_std(_centred(outcomes.reward, axis=None), outcomes.reward, axis=None)


def group_centred_batch_std(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = (r - the group's mean) / the batch's std (Lite PPO, 2508.08221)."""
  return _over_std(group_centred(outcomes, numbers), outcomes.reward, axis=None)


def group_centred_whitened(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """r - the group's mean, over the std of these in the batch (REINFORCE++-baseline).

  2501.03262; ScaleRL, 2510.13786. Their mean over the batch is 0 already.
  """
  centred = group_centred(outcomes, numbers)
  return _over_std(centred, centred, axis=None)


def group_relative_to_mean(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = (r - mean(r)) / mean(r) in the group, of rewards >= 0 (MaxRL, 2602.02710).

  With rewards of 0 and 1 it maximises the log of the chance of success. A mean below 0
  would turn the sign.
  """
  mean = jnp.mean(outcomes.reward, axis=1, keepdims=True)
  return group_centred(outcomes, numbers) / (mean + STD_EPS)


def length_weighted_baseline(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = r - sum(length r) / sum(length) in the group (OPO, 2505.23585).

  The baseline of least variance if gradients of tokens are orthogonal and alike.
  """
  del numbers
  reward, lengths = outcomes.reward, outcomes.lengths
  # Of deviations, so that equal rewards give 0 exactly.
  centred = _centred(reward, axis=1)
  share = lengths / jnp.maximum(lengths.sum(1, keepdims=True), 1)
  return centred - jnp.sum(share * centred, axis=1, keepdims=True)


def pass_at_k(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """A = mean of max(r - the best of k - 1 others, 0), over all choices of these.

  The gradient is 1 / k of that of the best reward of k outputs (PKPO, 2505.15201, with
  its baseline of the others). At k = G only the best output counts, by its lead over
  the second (2503.19595).
  """
  reward, k = outcomes.reward, numbers.pass_k
  group_size = reward.shape[1]
  choices = math.comb(group_size - 1, k - 1)
  # The chance that the one with n smaller rewards is the best of the k - 1.
  best = jnp.array([math.comb(n, k - 2) / choices for n in range(group_size)])
  rank = jnp.argsort(jnp.argsort(reward, axis=1), axis=1)
  lead = jnp.maximum(reward[:, :, None] - reward[:, None, :], 0)
  return jnp.sum(lead * best[rank][:, None, :], axis=-1).astype(reward.dtype)


def reward_decoupled(outcomes: Outcomes, numbers: Numbers) -> jax.Array:
  """Each reward's z-score in the group, their weighted sum, over its std (GDPO).

  2601.05242. The std is that of the batch, whose mean is 0 already. A reward that
  hardly varies counts as much as one that varies a lot.
  """
  del numbers
  each = _over_std(_centred(outcomes.values, axis=1), outcomes.values, axis=1)
  summed = each @ outcomes.weights
  return _over_std(summed, summed, axis=None)


def _centred(reward: jax.Array, axis: int | None) -> jax.Array:
  # The mean of equal numbers may be off by rounding, which a sign or a division by a
  # small number would blow up.
  equal = jnp.max(reward, axis, keepdims=True) == jnp.min(reward, axis, keepdims=True)
  return jnp.where(equal, 0.0, reward - jnp.mean(reward, axis, keepdims=True))


def _over_std(centred: jax.Array, reward: jax.Array, axis: int | None) -> jax.Array:
  return centred / (jnp.std(reward, axis=axis, keepdims=True, ddof=1) + STD_EPS)


ADVANTAGES: dict[str, Advantage] = {
  'group_zscore': group_zscore,
  'group_centred': group_centred,
  'leave_one_out': leave_one_out,
  'batch_whitened': batch_whitened,
  'group_centred_batch_std': group_centred_batch_std,
  'group_centred_whitened': group_centred_whitened,
  'group_relative_to_mean': group_relative_to_mean,
  'length_weighted_baseline': length_weighted_baseline,
  'pass_at_k': pass_at_k,
  'reward_decoupled': reward_decoupled,
}
# Of rewards of 0 or more alone
NOT_NEGATIVE = ('group_relative_to_mean',)
# Those that know no penalty on the sum of rewards, and why
UNPENALISED = {
  'reward_decoupled': 'which takes each reward by itself',
  'group_relative_to_mean': 'whose rewards must not be below 0',
}
