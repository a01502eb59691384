"""Group Relative Policy Optimization: the paper's equations in order, then the loss.

An algorithm is five choices, each a small pure function: advantage, ratio, surrogate,
KL estimate, mean. A choice is a name in a table below or any function of the same
signature. `algorithms.PRESETS` names the published combinations. Arrays are [P, G, T]
(prompts, samples of a prompt, positions) or [P, G]; the group is an axis.

Sources: GRPO DeepSeekMath (arXiv 2402.03300) and DeepSeek-R1; Dr. GRPO 2503.20783;
DAPO 2503.14476; GSPO 2507.18071; CISPO (MiniMax-M1) 2506.13585; RLOO 2402.14740;
REINFORCE++ 2501.03262; KL estimates Schulman, http://joschu.net/blog/kl-approx.html.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r1jax.choice import Choice, Function, checked, choose, label


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
  """One algorithm: five choices and their numbers. The default is R1's GRPO."""

  advantage: Choice = 'group_zscore'  # A; a name in grpo.ADVANTAGES
  ratio: Choice = 'token'  # pi / pi_old per token or output; a name in grpo.RATIOS
  surrogate: Choice = 'clip'  # a name in grpo.SURROGATES
  kl: Choice = 'k3'  # estimate of KL(pi || pi_ref); a name in grpo.KLS
  mean: Choice = 'outputs'  # how tokens are averaged; a name in grpo.MEANS
  clip_low: float = 0.2  # epsilon below 1
  clip_high: float = 0.2  # epsilon above 1
  kl_coef: float = 0.001  # beta (R1: 0.001), at rl.temperature; 0: no reference pass
  constant_length: int = 1024  # tokens, of mean 'constant' (Dr. GRPO: rl.max_length)
  importance_cap: float = 2.0  # of pi_old / pi_sampler, where the two differ

  def __post_init__(self) -> None:
    for field, table in TABLES.items():
      value = checked(f'grpo.{field}', getattr(self, field), table)
      object.__setattr__(self, field, value)
    if not 0 <= self.clip_low <= 1:
      raise ValueError(f'grpo.clip_low: expected 0 to 1, got {self.clip_low}')
    for field in ('clip_high', 'kl_coef'):
      if not 0 <= getattr(self, field) < math.inf:
        raise ValueError(
          f'grpo.{field}: expected a finite number of 0 or more, got '
          f'{getattr(self, field)}'
        )
    if self.kl == 'none' and self.kl_coef:
      raise ValueError(
        f"grpo.kl_coef: expected 0 with grpo.kl 'none', got {self.kl_coef}; set "
        "grpo.kl to 'k3', or the coefficient to 0"
      )
    if not 0 < self.importance_cap < math.inf:
      raise ValueError(
        'grpo.importance_cap: expected a finite number above 0, got '
        f'{self.importance_cap}'
      )
    if self.constant_length < 1:
      raise ValueError(
        f'grpo.constant_length: expected 1 or more, got {self.constant_length}'
      )


# --- Advantage: rewards [P, G] -> one number an output [P, G] ------------------------

# Added to standard deviations, so that a group of equal rewards gets 0 and not NaN.
STD_EPS = 1e-4


def group_zscore(reward: jax.Array) -> jax.Array:
  """A = (r - mean(r)) / std(r) in the group (DeepSeek-R1, eq. 3).

  The paper leaves std open; this is the unbiased one (ddof 1), as in most code.
  """
  return _over_std(group_centred(reward), reward, axis=1)


def group_centred(reward: jax.Array) -> jax.Array:
  """A = r - mean(r) in the group (Dr. GRPO): no boost for hard or easy ones."""
  return _centred(reward, axis=1)


def leave_one_out(reward: jax.Array) -> jax.Array:
  """A = r - mean of the group's other rewards (RLOO, eq. 8)."""
  group_size = reward.shape[1]
  return group_centred(reward) * (group_size / (group_size - 1))


def batch_whitened(reward: jax.Array) -> jax.Array:
  """A = (r - mean) / std over all outputs of the batch, 2 or more (REINFORCE++)."""
  return _over_std(_centred(reward, axis=None), reward, axis=None)


def _centred(reward: jax.Array, axis: int | None) -> jax.Array:
  # The mean of equal numbers may be off by rounding, which a sign or a division by a
  # small number would blow up.
  equal = jnp.max(reward, axis, keepdims=True) == jnp.min(reward, axis, keepdims=True)
  return jnp.where(equal, 0.0, reward - jnp.mean(reward, axis, keepdims=True))


def _over_std(centred: jax.Array, reward: jax.Array, axis: int | None) -> jax.Array:
  return centred / (jnp.std(reward, axis=axis, keepdims=True, ddof=1) + STD_EPS)


# --- Ratio: log(pi / pi_old) and mask [P, G, T] -> ratio [P, G, T] -------------------

# exp of more is infinite in float32, and the gradient of a clipped infinity NaN.
LARGEST_LOG_RATIO = 80.0


def _exp(log_ratio: jax.Array) -> jax.Array:
  return jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))


def token_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
  """One ratio a token (PPO, and every public GRPO)."""
  del mask
  return _exp(log_ratio)


def sequence_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
  """The ratio of outputs, pi(o|q) / pi_old(o|q) (DeepSeek-R1 in Nature, eq. 1)."""
  total = jnp.sum(log_ratio * mask, axis=-1, keepdims=True)
  return jnp.broadcast_to(_exp(total), log_ratio.shape)


def geometric_ratio(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
  """The whole output's ratio to the power 1 / length (GSPO, eq. 7)."""
  total = jnp.sum(log_ratio * mask, axis=-1, keepdims=True)
  tokens = jnp.maximum(mask.sum(-1, keepdims=True), 1)
  return jnp.broadcast_to(_exp(total / tokens), log_ratio.shape)


# --- Surrogate: (ratio, advantage, logp, config) -> to be maximised [P, G, T] --------


def clipped(
  ratio: jax.Array, advantage: jax.Array, logp: jax.Array, config: GRPOConfig
) -> jax.Array:
  """min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, eq. 7)."""
  del logp
  bounded = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  return jnp.minimum(ratio * advantage, bounded * advantage)


def unclipped(
  ratio: jax.Array, advantage: jax.Array, logp: jax.Array, config: GRPOConfig
) -> jax.Array:
  """ratio A: its gradient on policy is REINFORCE's."""
  del logp, config
  return ratio * advantage


def clipped_weight(
  ratio: jax.Array, advantage: jax.Array, logp: jax.Array, config: GRPOConfig
) -> jax.Array:
  """stop_gradient(min(ratio, 1 + high)) A logp: no token is cut (CISPO, eq. 4)."""
  weight = jax.lax.stop_gradient(jnp.minimum(ratio, 1 + config.clip_high))
  return weight * advantage * logp


# --- KL: (logp, ref_logp) -> nats per token [P, G, T] --------------------------------


def kl_none(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """Zero: no penalty."""
  del ref_logp
  return jnp.zeros_like(logp)


def kl_k2(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """Half the squared log-ratio: biased, low variance, its gradient is the KL's."""
  return jnp.square(logp - ref_logp) / 2


def kl_k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """pi_ref/pi - log(pi_ref/pi) - 1: unbiased, never negative (DeepSeekMath, eq. 4)."""
  log_ratio = ref_logp - logp
  return _exp(log_ratio) - log_ratio - 1


# --- Mean: (mask, totals, config) -> weight of each token in the loss [P, G, T] ------


class Totals(NamedTuple):
  """Counts of the whole batch, also when a micro-batch of it is computed."""

  outputs: int | jax.Array  # P G
  tokens: int | jax.Array  # not masked


def totals(mask: jax.Array) -> Totals:
  """Returns the numbers of outputs and tokens of a batch; mask is [P, G, T]."""
  return Totals(mask.shape[0] * mask.shape[1], jnp.maximum(mask.sum(), 1))


def mean_outputs(mask: jax.Array, total: Totals, config: GRPOConfig) -> jax.Array:
  """1/|o| a token, then the mean of outputs (GRPO): every output counts the same."""
  del config
  return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1) / total.outputs


def mean_tokens(mask: jax.Array, total: Totals, config: GRPOConfig) -> jax.Array:
  """The mean of all tokens of the batch (DAPO): long outputs count more."""
  del config
  return mask / total.tokens


def mean_constant(mask: jax.Array, total: Totals, config: GRPOConfig) -> jax.Array:
  """1/constant a token, then the mean of outputs (Dr. GRPO): no bias by length."""
  return mask / config.constant_length / total.outputs


ADVANTAGES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'group_zscore': group_zscore,
  'group_centred': group_centred,
  'leave_one_out': leave_one_out,
  'batch_whitened': batch_whitened,
}
RATIOS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'token': token_ratio,
  'sequence': sequence_ratio,
  'geometric': geometric_ratio,
}
SURROGATES: dict[str, Callable[..., jax.Array]] = {
  'clip': clipped,
  'none': unclipped,
  'clipped_weight': clipped_weight,
}
KLS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'none': kl_none,
  'k2': kl_k2,
  'k3': kl_k3,
}
MEANS: dict[str, Callable[[jax.Array, Totals, GRPOConfig], jax.Array]] = {
  'outputs': mean_outputs,
  'tokens': mean_tokens,
  'constant': mean_constant,
}
# Advantages that compare the outputs of a prompt, and so need two or more of them. Add
# new ones, by name or function; for all others one output per prompt is enough.
WITHIN_GROUP: set[Choice] = {'group_zscore', 'group_centred', 'leave_one_out'}
TABLES: dict[str, Mapping[str, Function]] = {
  'advantage': ADVANTAGES,
  'ratio': RATIOS,
  'surrogate': SURROGATES,
  'kl': KLS,
  'mean': MEANS,
}


def check_group_size(config: GRPOConfig, group_size: int, prompts: int) -> None:
  """Raises ValueError if the rollout is too small for the advantage to compare."""
  if group_size < 2 and config.advantage in WITHIN_GROUP:
    raise ValueError(
      f'rl.group_size: the advantage {label(config.advantage)} compares the samples '
      f'of a prompt and needs 2 or more, got {group_size}; raise rl.group_size, or set '
      "rl.grpo.advantage to 'batch_whitened'"
    )
  if group_size * prompts < 2 and config.advantage == 'batch_whitened':
    raise ValueError(
      "rl.prompts_per_step: the advantage 'batch_whitened' compares the outputs of a "
      'rollout and needs 2 or more, got 1; raise rl.prompts_per_step or rl.group_size'
    )


def group_advantage(reward: jax.Array, *, config: GRPOConfig) -> jax.Array:
  """Returns one advantage per output, [P, G], from rewards [P, G]."""
  prompts, group_size = reward.shape
  check_group_size(config, group_size, prompts)
  advantage = choose(ADVANTAGES, config.advantage)(reward)
  if advantage.shape != reward.shape:
    raise ValueError(
      f'rl.grpo.advantage: expected {label(config.advantage)} to return one number '
      f'per output, {reward.shape}, got {advantage.shape}; fix the function'
    )
  return advantage


@jax.named_scope('objective')
def objective(
  logp: jax.Array,
  advantage: jax.Array,
  mask: jax.Array,
  *,
  old_logp: jax.Array,
  ref_logp: jax.Array | None,
  sampler_logp: jax.Array | None = None,
  config: GRPOConfig,
  total: Totals | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the loss to minimise, -E[surrogate - beta KL], and its metrics.

  Args:
    logp: of the tokens under the current policy, [P, G, T], nats.
    advantage: [P, G].
    mask: true on the outputs' tokens, [P, G, T].
    old_logp: under the policy before its updates, [P, G, T].
    ref_logp: under the reference, [P, G, T]; None: no penalty and no metric `kl`.
    sampler_logp: under the sampler, [P, G, T], if it differs from the policy, e.g. int8
      weights: each token's gain is multiplied by min(pi_old / pi_sampler,
      importance_cap) (truncated importance sampling; Ionides 2008, Yao et al. 2025).
    config: the algorithm.
    total: counts of the whole batch if these P prompts are a part of it; losses and
      metrics of the parts then add up to the batch's.

  Returns:
    The loss, and means over tokens: `ratio`, `drift` (|logp - sampler's logp|) and `kl`
    (k3, at the temperature of the log-probs). With the surrogate 'clip' also the shares
    of tokens clipped above and below, `clip_up` and `clip_down`; with `sampler_logp`
    the weight `importance` and the share `importance_capped`.
  """
  if total is None:
    total = totals(mask)
  # Values after an output's end must not reach exp: 0 * inf is NaN, and so is its
  # gradient.
  logp, old_logp = jnp.where(mask, logp, 0.0), jnp.where(mask, old_logp, 0.0)
  log_ratio = logp - old_logp
  advantage = advantage[..., None]
  ratio = choose(RATIOS, config.ratio)(log_ratio, mask)
  gain = choose(SURROGATES, config.surrogate)(ratio, advantage, logp, config)
  counted = mask.astype(logp.dtype)
  share = counted / total.tokens
  drift = log_ratio
  metrics = {'ratio': jnp.sum(share * ratio)}
  if sampler_logp is not None:
    sampler_logp = jnp.where(mask, sampler_logp, 0.0)
    drift = logp - sampler_logp
    importance = _exp(old_logp - sampler_logp)
    capped = importance > config.importance_cap
    importance = jnp.minimum(importance, config.importance_cap)
    gain *= importance
    metrics['importance'] = jnp.sum(share * importance)
    metrics['importance_capped'] = jnp.sum(share * capped)
  metrics['drift'] = jnp.sum(share * jnp.abs(drift))
  if config.surrogate == 'clip':
    up = (ratio > 1 + config.clip_high) & (advantage > 0)
    down = (ratio < 1 - config.clip_low) & (advantage < 0)
    metrics |= {'clip_up': jnp.sum(share * up), 'clip_down': jnp.sum(share * down)}
  if ref_logp is not None:
    ref_logp = jnp.where(mask, ref_logp, 0.0)
    gain -= config.kl_coef * choose(KLS, config.kl)(logp, ref_logp)
    metrics['kl'] = jnp.sum(share * kl_k3(logp, ref_logp))
  weight = choose(MEANS, config.mean)(counted, total, config)
  return -jnp.sum(weight * gain), metrics
