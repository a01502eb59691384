"""What the terms of the objective are computed from, and their numbers."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Fields, what they may be, and that in words
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
  (('clip_low',), lambda x: 0 <= x <= 1, '0 to 1'),
  (
    (
      *('clip_high', 'log_ratio_coef', 'kl_coef', 'importance_floor'),
      *('entropy_coef', 'entropy_target'),
    ),
    lambda x: 0 <= x < math.inf,
    'a finite number of 0 or more',
  ),
  (
    ('ratio_cap', 'importance_cap'),
    lambda x: 0 < x < math.inf,
    'a finite number above 0',
  ),
  (('token_share',), lambda x: 0 < x <= 1, 'above 0, at most 1'),
  (('constant_length',), lambda x: x >= 1, '1 or more'),
  (('pass_k',), lambda x: x >= 2, '2 or more'),
)


@dataclasses.dataclass(frozen=True)
class Numbers:
  """The numbers of an algorithm. Which terms read one is said beside it."""

  clip_low: float = 0.2  # epsilon below 1; of dppo_tv, dppo_kl and gmpo their own bound
  clip_high: float = 0.2  # epsilon above 1; of those and of vaco their own bound
  ratio_cap: float = 3.0  # largest ratio of surrogates dual_clip, dppo_tv, dppo_kl
  log_ratio_coef: float = 0.001  # of surrogates squared_log_ratio and kl_cov
  token_share: float = 0.2  # of a mini-batch's tokens, for the choice of tokens
  entropy_coef: float = 0.0  # of the entropy bonus, at the start if there is a target
  # Nats a token, below which the bonus grows by 0.005 a step; above it falls and is off
  entropy_target: float = 0.0  # 0: a constant bonus
  kl_coef: float = 0.001  # beta (R1: 0.001), at rl.temperature; 0: no reference pass
  constant_length: int = 1024  # tokens, of mean 'constant' (Dr. GRPO: rl.max_length)
  importance_floor: float = 0.0  # of corrections that mask: less is 0
  importance_cap: float = 2.0  # of pi_old / pi_sampler, where the two differ
  pass_k: int = 4  # outputs of which the best counts, of advantage 'pass_at_k'

  def __post_init__(self) -> None:
    for fields, allowed, expected in _RANGES:
      for field in fields:
        if not allowed(value := getattr(self, field)):
          raise ValueError(f'grpo.{field}: expected {expected}, got {value}')
    if self.importance_floor >= self.importance_cap:
      raise ValueError(
        'grpo.importance_floor: expected less than grpo.importance_cap = '
        f'{self.importance_cap}, got {self.importance_floor}'
      )


class Outcomes(NamedTuple):
  """What became of the outputs of a rollout: input of an advantage."""

  reward: jax.Array  # [P, G], the weighted sum
  values: jax.Array  # [P, G, R], each reward by itself
  weights: jax.Array  # [R]
  lengths: jax.Array  # [P, G], tokens


class Totals(NamedTuple):
  """Counts of the whole batch, also when a micro-batch of it is computed."""

  outputs: int | jax.Array  # P G
  tokens: int | jax.Array  # not masked
  prompts: int | jax.Array  # P


class Tokens(NamedTuple):
  """The tokens of outputs, [P, G, T]: input of all terms but the advantage.

  After an output's end all numbers are finite, and have no effect.
  """

  logp: jax.Array  # under the current policy, nats
  old_logp: jax.Array  # under the policy before its updates
  sampler_logp: jax.Array  # under the sampler; `old_logp` if they are the same
  ref_logp: jax.Array | None  # under the reference; None without a penalty
  advantage: jax.Array  # of the output, the same for all its tokens
  mask: jax.Array  # 1.0 on tokens of the output, 0.0 after its end
  group_tokens: jax.Array  # [P, G, 1], tokens of all outputs to the same prompt
  chosen: jax.Array  # 1.0 on tokens that the term `tokens` chose
  total: Totals
  ratio: jax.Array  # pi / pi_old by the term `ratio`, whose own input has 1 here


# (tokens, numbers) -> [P, G, T]
Term = Callable[[Tokens, Numbers], jax.Array]
Advantage = Callable[[Outcomes, Numbers], jax.Array]  # -> [P, G]

# exp of more is infinite in float32, and the gradient of a clipped infinity NaN.
LARGEST_LOG_RATIO = 80.0


def exp(log_ratio: jax.Array) -> jax.Array:
  """Returns the ratio, at most exp(`LARGEST_LOG_RATIO`)."""
  return jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))


def output_sum(x: jax.Array, tokens: Tokens) -> jax.Array:
  """Returns the sum over each output's tokens, [P, G, 1]."""
  return jnp.sum(x * tokens.mask, axis=-1, keepdims=True)


def output_mean(x: jax.Array, tokens: Tokens) -> jax.Array:
  """Returns the mean over each output's tokens, [P, G, 1]; 0 for no token."""
  length = jnp.maximum(tokens.mask.sum(-1, keepdims=True), 1)
  return output_sum(x, tokens) / length
