"""Group Relative Policy Optimization: an algorithm as a row of choices, and its loss.

An algorithm is seven choices, each a small pure function: advantage, ratio, surrogate,
correction, KL estimate, tokens, mean. A choice is a name in a table of `r1jax.terms` or
any function of the same signature. `algorithms.PRESETS` names the published ones.
Arrays are [P, G, T] (prompts, samples of a prompt, positions) or [P, G]; the group is
an axis.

Sources: GRPO DeepSeekMath (arXiv 2402.03300) and DeepSeek-R1; each term has its own.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from r1jax.choice import Choice, Function, checked, choose, label
from r1jax.terms.advantages import ADVANTAGES, UNPENALISED
from r1jax.terms.corrections import CORRECTIONS
from r1jax.terms.inputs import Numbers, Outcomes, Tokens, Totals, exp
from r1jax.terms.kls import KLS, k3
from r1jax.terms.means import MEANS
from r1jax.terms.ratios import RATIOS
from r1jax.terms.selections import SELECTIONS
from r1jax.terms.surrogates import SURROGATES

TABLES: dict[str, Mapping[str, Function]] = {
  'advantage': ADVANTAGES,
  'ratio': RATIOS,
  'surrogate': SURROGATES,
  'correction': CORRECTIONS,
  'kl': KLS,
  'tokens': SELECTIONS,
  'mean': MEANS,
}
# Advantages that compare the outputs of a prompt, and so need two or more of them. Add
# new ones, by name or function; for all others one output per prompt is enough.
WITHIN_GROUP: set[Choice] = {name for name in ADVANTAGES if name != 'batch_whitened'}
# Surrogates that average over an output, or correct for the sampler, by themselves.
_OWN_RATIO = ('geometric_mean', 'gamma_kernel')
_OWN_CORRECTION = ('gamma_kernel',)
_OWN_TOKENS = ('kl_cov',)  # penalises what was chosen, and learns from all


@dataclasses.dataclass(frozen=True)
class GRPOConfig(Numbers):
  """One algorithm: seven choices and their numbers. The default is R1's GRPO."""

  advantage: Choice = 'group_zscore'  # A; a name in terms.advantages
  ratio: Choice = 'token'  # pi / pi_old per token or output; a name in terms.ratios
  surrogate: Choice = 'clip'  # a name in terms.surrogates
  correction: Choice = 'truncate'  # for another sampler; a name in terms.corrections
  kl: Choice = 'k3'  # estimate of KL(pi || pi_ref); a name in terms.kls
  kl_in: Literal['loss', 'reward'] = 'loss'  # of each token, or the sum of an output
  tokens: Choice = 'all'  # that learn; a name in terms.selections
  mean: Choice = 'outputs'  # how tokens are averaged; a name in terms.means

  def __post_init__(self) -> None:
    super().__post_init__()
    for field, table in TABLES.items():
      value = checked(f'grpo.{field}', getattr(self, field), table)
      _check_signature(field, value)
      object.__setattr__(self, field, value)
    _check_kl(self)
    _check_surrogate(self)


def _check_signature(field: str, value: Choice) -> None:
  first = {'advantage': 'outcomes', 'tokens': 'seen'}.get(field, 'tokens')
  takes = f'({first}, numbers)'
  if isinstance(value, str):
    return
  try:
    inspect.signature(value).bind(None, None)
  except TypeError:
    raise ValueError(
      f'grpo.{field}: expected a function of {takes}, see r1jax/terms/inputs.py, got '
      f'{label(value)}{inspect.signature(value)}'
    ) from None


def _check_kl(config: GRPOConfig) -> None:
  _refuse(
    config.kl == 'none' and config.kl_coef > 0,
    f"grpo.kl_coef: expected 0 with grpo.kl 'none', got {config.kl_coef}; set grpo.kl "
    "to 'k3', or the coefficient to 0",
  )
  if config.kl_in == 'reward':
    _check_kl_in_reward(config)


def _check_kl_in_reward(config: GRPOConfig) -> None:
  _refuse(
    config.kl == 'none',
    "grpo.kl_in: expected 'loss' with grpo.kl 'none', got 'reward'; set grpo.kl to "
    "'k1'",
  )
  _refuse(
    not config.kl_coef, "grpo.kl_coef: expected above 0 with grpo.kl_in 'reward', got 0"
  )
  _refuse(
    config.advantage in UNPENALISED,
    f"grpo.kl_in: expected 'loss' with grpo.advantage {label(config.advantage)}, "
    f"{UNPENALISED.get(str(config.advantage))}, got 'reward'",
  )


def _check_surrogate(config: GRPOConfig) -> None:
  surrogate = label(config.surrogate)
  _refuse(
    config.surrogate in _OWN_RATIO and config.ratio != 'token',
    f"grpo.ratio: expected 'token' with grpo.surrogate {surrogate}, which takes the "
    f'ratio of outputs by itself, got {label(config.ratio)}',
  )
  _refuse(
    config.surrogate in _OWN_CORRECTION and config.correction != 'none',
    f"grpo.correction: expected 'none' with grpo.surrogate {surrogate}, which corrects "
    f'by itself, got {label(config.correction)}',
  )
  _check_tokens(config)


def _check_tokens(config: GRPOConfig) -> None:
  surrogate = label(config.surrogate)
  _refuse(
    (config.surrogate in _OWN_TOKENS) != (config.tokens == 'top_covariance'),
    "grpo.tokens: expected 'top_covariance' with grpo.surrogate 'kl_cov', and with no "
    f'other, got {label(config.tokens)} with {surrogate}',
  )
  least = 1 + config.clip_high
  _refuse(
    config.surrogate == 'dual_clip' and config.ratio_cap < least,
    'grpo.ratio_cap: expected at least 1 + grpo.clip_high with grpo.surrogate '
    f"'dual_clip', {least}, got {config.ratio_cap}",
  )


def _refuse(wrong: bool, sentence: str) -> None:
  if wrong:
    raise ValueError(sentence)


def check_group_size(config: GRPOConfig, group_size: int, prompts: int) -> None:
  """Raises ValueError if the rollout is too small for the advantage to compare."""
  _refuse(
    group_size < 2 and config.advantage in WITHIN_GROUP,
    f'rl.group_size: the advantage {label(config.advantage)} compares the samples of a '
    f'prompt and needs 2 or more, got {group_size}; raise rl.group_size, or set '
    "rl.grpo.advantage to 'batch_whitened'",
  )
  _refuse(
    config.advantage == 'pass_at_k' and config.pass_k > group_size,
    f'rl.grpo.pass_k: expected at most rl.group_size = {group_size}, got '
    f'{config.pass_k}',
  )
  _refuse(
    group_size * prompts < 2 and config.advantage == 'batch_whitened',
    "rl.prompts_per_step: the advantage 'batch_whitened' compares the outputs of a "
    'rollout and needs 2 or more, got 1; raise rl.prompts_per_step or rl.group_size',
  )


def group_advantage(outcomes: Outcomes, *, config: GRPOConfig) -> jax.Array:
  """Returns one advantage per output, [P, G]."""
  prompts, group_size = outcomes.reward.shape
  check_group_size(config, group_size, prompts)
  advantage = choose(ADVANTAGES, config.advantage)(outcomes, config)
  if advantage.shape != outcomes.reward.shape:
    raise ValueError(
      f'rl.grpo.advantage: expected {label(config.advantage)} to return one number '
      f'per output, {outcomes.reward.shape}, got {advantage.shape}; fix the function'
    )
  return advantage


def outcomes(
  reward: jax.Array,
  values: jax.Array | None = None,
  weights: jax.Array | None = None,
  lengths: jax.Array | None = None,
) -> Outcomes:
  """Returns `Outcomes`; by default of one reward [P, G] and outputs of equal length."""
  return Outcomes(
    reward,
    reward[..., None] if values is None else values,
    jnp.ones(1 if values is None else values.shape[-1]) if weights is None else weights,
    jnp.ones_like(reward) if lengths is None else lengths,
  )


def kl_penalty(
  logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, *, config: GRPOConfig
) -> jax.Array:
  """Returns what `kl_in` 'reward' takes off each reward, beta KL of outputs [P, G].

  With k1 it is RLOO's, beta log(pi(o|q) / pi_ref(o|q)) (2402.14740).

  Args:
    logp: under the policy that sampled, [P, G, T], nats.
    ref_logp: under the reference, [P, G, T].
    mask: true on the outputs' tokens, [P, G, T].
    config: the algorithm.
  """
  zeros = jnp.zeros(logp.shape[:2], logp.dtype)
  tokens = tokens_of(logp, zeros, mask, old_logp=logp, ref_logp=ref_logp)
  penalty = choose(KLS, config.kl)(tokens, config)
  return config.kl_coef * jnp.sum(tokens.mask * penalty, axis=-1)


def totals(mask: jax.Array) -> Totals:
  """Returns the counts of a whole batch; mask is [P, G, T]."""
  prompts, group_size, _ = mask.shape
  return Totals(prompts * group_size, jnp.maximum(mask.sum(), 1), prompts)


def tokens_of(
  logp: jax.Array,
  advantage: jax.Array,
  mask: jax.Array,
  old_logp: jax.Array,
  ref_logp: jax.Array | None = None,
  sampler_logp: jax.Array | None = None,
  total: Totals | None = None,
  group_tokens: jax.Array | None = None,
  chosen: jax.Array | None = None,
) -> Tokens:
  """Returns the terms' input; arguments as of `objective`. Its ratio is still 1.

  Values after an output's end become 0, as they must not reach exp: 0 * inf is NaN, and
  so is its gradient.
  """

  def inside(x: jax.Array | None, otherwise: Any = None) -> Any:
    return otherwise if x is None else jnp.where(mask, x, 0.0)

  if group_tokens is None:
    group_tokens = jnp.broadcast_to(mask.sum((1, 2))[:, None], advantage.shape)
  return Tokens(
    logp=inside(logp),
    old_logp=inside(old_logp),
    sampler_logp=inside(sampler_logp, inside(old_logp)),
    ref_logp=inside(ref_logp),
    advantage=advantage[..., None],
    mask=mask.astype(logp.dtype),
    group_tokens=group_tokens[..., None],
    chosen=(mask if chosen is None else chosen & mask).astype(logp.dtype),
    total=totals(mask) if total is None else total,
    ratio=jnp.ones_like(logp),
  )


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
  group_tokens: jax.Array | None = None,
  chosen: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the loss to minimise, -E[correction surrogate - beta KL], and its metrics.

  Args:
    logp: of the tokens under the current policy, [P, G, T], nats.
    advantage: [P, G].
    mask: true on the outputs' tokens, [P, G, T].
    old_logp: under the policy before its updates, [P, G, T].
    ref_logp: under the reference, [P, G, T]; None: no penalty and no metric `kl`.
    sampler_logp: under the sampler, [P, G, T], if it differs from the policy, e.g. int8
      weights; see `terms.corrections`.
    config: the algorithm.
    total: counts of the whole batch if these P prompts are a part of it; losses and
      metrics of the parts then add up to the batch's.
    group_tokens: [P, G], tokens of all outputs to the same prompt, if some of them are
      in other parts.
    chosen: [P, G, T], true on tokens that `config.tokens` chose; None is all.

  Returns:
    The loss, and means over tokens: `ratio`, `drift` (|logp - sampler's logp|) and `kl`
    (k3, at the temperature of the log-probs). With the surrogate 'clip' or 'dual_clip'
    also the shares of tokens clipped above and below, `clip_up` and `clip_down`; with
    `sampler_logp` the weight `importance`, and `importance_capped`, the share of tokens
    whose own pi_old / pi_sampler is above the cap.
  """
  tokens = tokens_of(
    *(logp, advantage, mask, old_logp, ref_logp, sampler_logp),
    *(total, group_tokens, chosen),
  )
  tokens = tokens._replace(ratio=choose(RATIOS, config.ratio)(tokens, config))
  gain = choose(SURROGATES, config.surrogate)(tokens, config)
  correction = choose(CORRECTIONS, config.correction)(tokens, config)
  gain *= correction
  if config.surrogate not in _OWN_TOKENS:
    gain *= tokens.chosen
  if ref_logp is not None and config.kl_in == 'loss':
    gain -= config.kl_coef * choose(KLS, config.kl)(tokens, config)
  weight = choose(MEANS, config.mean)(tokens, config)
  seen = None if sampler_logp is None else correction
  return -jnp.sum(weight * gain), _metrics(tokens, seen, config)


def _metrics(
  tokens: Tokens, correction: jax.Array | None, config: GRPOConfig
) -> dict[str, jax.Array]:
  """Returns the metrics of `objective`; a correction if another sampler drew."""

  def mean(x: jax.Array) -> jax.Array:
    return jnp.sum(tokens.mask / tokens.total.tokens * x)

  metrics = {
    'ratio': mean(tokens.ratio),
    'drift': mean(jnp.abs(tokens.logp - tokens.sampler_logp)),
  }
  if correction is not None:
    importance = exp(tokens.old_logp - tokens.sampler_logp)
    metrics['importance'] = mean(correction)
    metrics['importance_capped'] = mean(importance > config.importance_cap)
  if config.surrogate in ('clip', 'dual_clip'):
    metrics |= {name: mean(x) for name, x in _clipped(tokens, config).items()}
  if tokens.ref_logp is not None:
    metrics['kl'] = mean(k3(tokens, config))
  return metrics


def _clipped(tokens: Tokens, config: GRPOConfig) -> dict[str, jax.Array]:
  """Returns where a bound of the ratio stops a token."""
  up = (tokens.ratio > 1 + config.clip_high) & (tokens.advantage > 0)
  down = (tokens.ratio < 1 - config.clip_low) & (tokens.advantage < 0)
  return {'clip_up': up, 'clip_down': down}
