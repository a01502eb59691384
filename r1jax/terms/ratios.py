"""Ratios pi / pi_old: (tokens, numbers) -> [P, G, T]."""

import jax
import jax.numpy as jnp

from r1jax.terms.inputs import Numbers, Term, Tokens, exp, output_mean, output_sum


def token_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """One ratio a token (PPO, and every public GRPO)."""
  del numbers
  return exp(tokens.logp - tokens.old_logp)


def sequence_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The ratio of outputs, pi(o|q) / pi_old(o|q) (DeepSeek-R1 in Nature, eq. 1)."""
  del numbers
  log_ratio = tokens.logp - tokens.old_logp
  return jnp.broadcast_to(exp(output_sum(log_ratio, tokens)), log_ratio.shape)


def geometric_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The whole output's ratio to the power 1 / length (GSPO, eq. 7)."""
  del numbers
  log_ratio = tokens.logp - tokens.old_logp
  return jnp.broadcast_to(exp(output_mean(log_ratio, tokens)), log_ratio.shape)


RATIOS: dict[str, Term] = {
  'token': token_ratio,
  'sequence': sequence_ratio,
  'geometric': geometric_ratio,
}
