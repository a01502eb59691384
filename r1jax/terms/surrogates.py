"""Surrogates: (tokens, numbers) -> the gain of each token, [P, G, T], to be maximised.

Sources: clip PPO 1707.06347; CISPO 2506.13585; dual clip 1912.09729, two-sided clip
INTELLECT-2 2505.07291; SAPO 2511.20347; GMPO 2507.20673; VESPO 2602.10693; DPPO
2602.04879; VACO 2603.01365; squared log-ratio Kimi K2.5 2602.02276; KL-Cov 2505.22617.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from r1jax.terms.inputs import Numbers, Term, Tokens, exp, output_mean, output_sum

# SAPO: temperatures of its gate for good and for bad outputs
SAPO_UP, SAPO_DOWN = 1.0, 1.05
# VESPO: (k, lambda) of its kernel for good and for bad outputs
VESPO_UP, VESPO_DOWN = (2.0, 3.0), (3.0, 2.0)
VESPO_LOG_RATIOS = (-18.4, 20.0)  # of outputs; its kernel is 0 long before


def clipped(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, eq. 7)."""
  ratio, advantage = tokens.ratio, tokens.advantage
  bounded = jnp.clip(ratio, 1 - numbers.clip_low, 1 + numbers.clip_high)
  return jnp.minimum(ratio * advantage, bounded * advantage)


def dual_clipped(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """`clipped` with min(ratio, cap): a bad token's push is bounded too (dual clip).

  The two-sided clip of INTELLECT-2 is the same function, its delta the cap.
  """
  capped = jnp.minimum(tokens.ratio, numbers.ratio_cap)
  return clipped(tokens._replace(ratio=capped), numbers)


def unclipped(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """ratio A: its gradient on policy is REINFORCE's."""
  del numbers
  return tokens.ratio * tokens.advantage


def clipped_weight(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """stop_gradient(clip(ratio, 1 - low, 1 + high)) A logp (CISPO, eq. 4).

  No token is cut. The lower bound is off with clip_low 1.
  """
  weight = jnp.clip(tokens.ratio, 1 - numbers.clip_low, 1 + numbers.clip_high)
  return stop_gradient(weight) * tokens.advantage * tokens.logp


def soft_gate(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """4 / tau sigmoid(tau (ratio - 1)) A, tau by the sign of A (SAPO)."""
  del numbers
  tau = jnp.where(tokens.advantage > 0, SAPO_UP, SAPO_DOWN)
  return 4 / tau * jax.nn.sigmoid(tau * (tokens.ratio - 1)) * tokens.advantage


def geometric_mean(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """A times the geometric mean of token ratios, clipped in logs (GMPO).

  Each log-ratio is cut at -low where A < 0 and at high where A > 0. The output's gain
  stands at each of its tokens.
  """
  log_ratio, sign = tokens.logp - tokens.old_logp, jnp.sign(tokens.advantage)
  bounded = jnp.clip(log_ratio, -numbers.clip_low, numbers.clip_high)
  kept = sign * jnp.minimum(sign * log_ratio, sign * bounded)
  return exp(output_mean(kept, tokens)) * tokens.advantage


def gamma_kernel(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """stop_gradient(w^k exp(lambda (1 - w))) A logp, w the output's ratio (VESPO).

  w is pi / pi_sampler, so there is nothing left to correct.
  """
  del numbers
  good = tokens.advantage >= 0
  k = jnp.where(good, VESPO_UP[0], VESPO_DOWN[0])
  rate = jnp.where(good, VESPO_UP[1], VESPO_DOWN[1])
  log_w = jnp.clip(
    output_sum(tokens.logp - tokens.sampler_logp, tokens), *VESPO_LOG_RATIOS
  )
  weight = jnp.exp(k * log_w + rate * (1 - jnp.exp(log_w)))
  return stop_gradient(weight) * tokens.advantage * tokens.logp


def dppo_tv(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """min(ratio, cap) A logp, 0 once pi - pi_old is beyond low or high (DPPO).

  The difference of a token's two probabilities bounds their total variation.
  """
  difference = jnp.exp(tokens.logp) - jnp.exp(tokens.old_logp)
  good, bad = difference <= numbers.clip_high, difference >= -numbers.clip_low
  return _capped_where(good, bad, tokens, numbers)


def dppo_kl(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """As `dppo_tv`, by the KL from pi_old to pi of "this token or another" (DPPO)."""
  # A rounded log-prob may be above 0.
  old, new = (jnp.minimum(jnp.exp(x), 1) for x in (tokens.old_logp, tokens.logp))
  others = jnp.log((1 - old + 1e-8) / (1 - new + 1e-8))
  divergence = old * (tokens.old_logp - tokens.logp) + (1 - old) * others
  good = (divergence <= numbers.clip_high) | (new <= old)
  bad = (divergence <= numbers.clip_low) | (new >= old)
  return _capped_where(good, bad, tokens, numbers)


def _capped_where(
  good: jax.Array, bad: jax.Array, tokens: Tokens, numbers: Numbers
) -> jax.Array:
  kept = jnp.where(tokens.advantage > 0, good, bad)
  weight = stop_gradient(kept * jnp.minimum(tokens.ratio, numbers.ratio_cap))
  return weight * tokens.advantage * tokens.logp


def vaco(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """ratio A, 0 at tokens that widen a gap above high, of outputs (VACO).

  The gap of an output is its mean |ratio - 1|, twice the total variation. A token
  widens it if A (ratio - 1) > 0.
  """
  far = output_mean(jnp.abs(tokens.ratio - 1), tokens) > numbers.clip_high
  widens = tokens.advantage * (tokens.ratio - 1) > 0
  return jnp.where(far & widens, 0.0, tokens.ratio * tokens.advantage)


def squared_log_ratio(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """ratio A - coef log(ratio)^2: the regulariser of Kimi K2.5, without its mask."""
  log_ratio = tokens.logp - tokens.old_logp
  return tokens.ratio * tokens.advantage - numbers.log_ratio_coef * log_ratio**2


def kl_cov(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """ratio A - coef |log ratio| on tokens of the largest covariance, else ratio A."""
  log_ratio = tokens.logp - tokens.old_logp
  # Not jnp.abs, whose slope at 0, where a policy has not moved yet, is 1.
  distance = log_ratio * stop_gradient(jnp.sign(log_ratio))
  penalty = numbers.log_ratio_coef * distance
  return tokens.ratio * tokens.advantage - tokens.chosen * penalty


SURROGATES: dict[str, Term] = {
  'clip': clipped,
  'dual_clip': dual_clipped,
  'none': unclipped,
  'clipped_weight': clipped_weight,
  'soft_gate': soft_gate,
  'geometric_mean': geometric_mean,
  'gamma_kernel': gamma_kernel,
  'dppo_tv': dppo_tv,
  'dppo_kl': dppo_kl,
  'vaco': vaco,
  'squared_log_ratio': squared_log_ratio,
  'kl_cov': kl_cov,
}
