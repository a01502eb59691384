"""Corrections for a sampler that is not the policy: (tokens, numbers) -> [P, G, T].

The gain of a token is multiplied by the weight. The sampler's log-probs differ from the
policy's if it rounds otherwise (int8 weights, bfloat16) or is older.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from r1jax.terms.inputs import Numbers, Term, Tokens, exp, output_mean, output_sum


def uncorrected(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """One."""
  del numbers
  return jnp.ones_like(tokens.logp)


def truncated(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """min(pi_old / pi_sampler, cap) of a token (TIS; Ionides 2008, Yao et al. 2025)."""
  return jnp.minimum(exp(_log_importance(tokens)), numbers.importance_cap)


def masked(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """A token's pi_old / pi_sampler, 0 outside of floor and cap (MIS; IcePop).

  IcePop: 2510.18855, with a floor of 0.5 and a cap of 5.
  """
  return _within(exp(_log_importance(tokens)), numbers)


def sequence_truncated(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """min(the output's pi_old / pi_sampler, cap)."""
  return jnp.minimum(_of_output(tokens), numbers.importance_cap)


def sequence_masked(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The output's pi_old / pi_sampler, 0 outside of floor and cap."""
  return _within(_of_output(tokens), numbers)


def geometric_masked(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """1, or 0 where the output's ratio ^ (1 / length) is outside of floor and cap."""
  mean = exp(output_mean(_log_importance(tokens), tokens))
  kept = _within(mean, numbers) > 0
  return jnp.broadcast_to(kept.astype(mean.dtype), tokens.logp.shape)


def off_policy_masked(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """1, or 0 for outputs with A < 0 that the policy left (DeepSeek-V3.2, 2512.02556).

  It left an output if the mean of log(pi_sampler / pi) is above log(cap): that counts
  the updates since, too.
  """
  gap = stop_gradient(output_mean(tokens.sampler_logp - tokens.logp, tokens))
  left = (gap > jnp.log(numbers.importance_cap)) & (tokens.advantage < 0)
  return jnp.where(left, 0.0, jnp.ones_like(tokens.logp))


def _log_importance(tokens: Tokens) -> jax.Array:
  return tokens.old_logp - tokens.sampler_logp


def _of_output(tokens: Tokens) -> jax.Array:
  ratio = exp(output_sum(_log_importance(tokens), tokens))
  return jnp.broadcast_to(ratio, tokens.logp.shape)


def _within(ratio: jax.Array, numbers: Numbers) -> jax.Array:
  low, high = numbers.importance_floor, numbers.importance_cap
  return jnp.where((ratio < low) | (ratio > high), 0.0, ratio)


CORRECTIONS: dict[str, Term] = {
  'none': uncorrected,
  'truncate': truncated,
  'mask': masked,
  'sequence_truncate': sequence_truncated,
  'sequence_mask': sequence_masked,
  'geometric_mask': geometric_masked,
  'off_policy_mask': off_policy_masked,
}
