"""Estimates of KL(pi || pi_ref): (tokens, numbers) -> nats of each token, [P, G, T].

Names as in Schulman, http://joschu.net/blog/kl-approx.html.
"""

import jax
import jax.numpy as jnp

from r1jax.terms.inputs import Numbers, Term, Tokens, exp


def none(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """Zero: no penalty."""
  del numbers
  return jnp.zeros_like(tokens.logp)


def k1(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """log(pi / pi_ref): unbiased; in a reward its gradient is the KL's, in a loss 0."""
  del numbers
  return tokens.logp - _ref(tokens)


def k2(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """Half the squared log-ratio: biased, low variance, its gradient is the KL's."""
  del numbers
  return jnp.square(tokens.logp - _ref(tokens)) / 2


def k3(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """pi_ref/pi - log(pi_ref/pi) - 1: unbiased, never negative (DeepSeekMath, eq. 4)."""
  del numbers
  log_ratio = _ref(tokens) - tokens.logp
  return exp(log_ratio) - log_ratio - 1


def k3_weighted(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """k3 times the ratio: its gradient is the KL's (DeepSeek-V3.2, 2512.02556)."""
  return tokens.ratio * k3(tokens, numbers)


def _ref(tokens: Tokens) -> jax.Array:
  assert tokens.ref_logp is not None
  return tokens.ref_logp


KLS: dict[str, Term] = {
  'none': none,
  'k1': k1,
  'k2': k2,
  'k3': k3,
  'k3_weighted': k3_weighted,
}
