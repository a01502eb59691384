"""Losses and gradients in float64: TRL's trainer, or the paper's formula in torch.

`vectors/trl_losses.py` says how TRL's were computed; the arrays are those of
`test_grpo_oracle`: eight outputs of up to 12 tokens in two groups.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from r1jax import algorithms, grpo
from r1jax.grpo import GRPOConfig, objective
from r1jax.terms.inputs import Numbers
from r1jax.terms.selections import SELECTIONS, Seen

HERE = pathlib.Path(__file__).parent / 'vectors'
INPUTS = dict(np.load(HERE / 'grpo_family.npz', allow_pickle=False))
TRL = dict(np.load(HERE / 'trl_losses.npz', allow_pickle=False))
MASK = INPUTS['mask/ragged']
LENGTHS = MASK.sum(-1)
gradient = jax.jit(
  jax.value_and_grad(objective, has_aux=True), static_argnames='config'
)
PPO = dataclasses.replace(algorithms.PRESETS['grpo'], clip_high=0.28, kl_coef=0.0)


def changed(preset, **fields):
  return dataclasses.replace(algorithms.PRESETS[preset], **fields)


def loss_of(config, sampler=None, entropies=None):
  """Our loss and gradient [8, 12] of the eight outputs."""
  chosen = None
  with jax.enable_x64(True):

    def groups(array):
      return None if array is None else jnp.asarray(array).reshape(2, 4, -1)

    if config.tokens != 'all':
      some = np.zeros(MASK.shape) if entropies is None else entropies
      outputs = np.broadcast_to(INPUTS['advantages'][:, None], MASK.shape)
      arrays = (groups(x) for x in (INPUTS['policy'], some, outputs, MASK > 0))
      chosen = SELECTIONS[config.tokens](Seen(*arrays), config)
    (loss, _), slope = gradient(
      groups(INPUTS['policy']),
      jnp.asarray(INPUTS['advantages']).reshape(2, 4),
      groups(MASK).astype(bool),
      old_logp=groups(INPUTS['old']),
      ref_logp=groups(INPUTS['ref']) if config.kl_coef else None,
      sampler_logp=groups(sampler),
      config=config,
      chosen=chosen,
    )
  assert loss.dtype == slope.dtype == np.float64
  return np.asarray(loss), np.asarray(slope).reshape(8, 12)


def equal(got, expected):
  # sums of up to 96 float64 numbers near 1, in another order
  for ours, theirs in zip(got, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def masks(**fields):
  return dataclasses.replace(PPO, **fields)


WITH_SAMPLER = {
  'off_policy_mask': masks(
    correction='off_policy_mask', importance_cap=float(np.exp(0.01))
  ),
  'token_truncate': masks(correction='truncate', importance_cap=1.5),
  'token_mask': masks(correction='mask', importance_floor=0.5, importance_cap=1.5),
  'sequence_truncate': masks(correction='sequence_truncate', importance_cap=1.2),
  'sequence_mask': masks(
    correction='sequence_mask', importance_floor=0.5, importance_cap=2.0
  ),
}
BY_TRL = {
  'sapo': algorithms.PRESETS['sapo'],
  'luspo': changed('luspo', clip_low=0.2, clip_high=0.28),
  'vespo': algorithms.PRESETS['vespo'],
  'delta': dataclasses.replace(PPO, surrogate='dual_clip', ratio_cap=1.5),
  'k3_weighted': dataclasses.replace(PPO, kl='k3_weighted', kl_coef=0.04),
  'k3_weighted_sequence': dataclasses.replace(
    PPO, kl='k3_weighted', kl_coef=0.04, ratio='geometric'
  ),
  'top_entropy': algorithms.PRESETS['top_entropy'],
  **WITH_SAMPLER,
}


def test_every_case_of_trls_is_compared():
  assert {key.split('/')[0] for key in TRL} == {'sampler', 'entropies', *BY_TRL}


@pytest.mark.parametrize('name', BY_TRL)
def test_loss_and_gradient_equal_trls(name):
  sampler = TRL['sampler'] if name in WITH_SAMPLER else None
  got = loss_of(BY_TRL[name], sampler, TRL['entropies'])
  equal(got, (TRL[f'{name}/value'], TRL[f'{name}/grad']))
  if name in WITH_SAMPLER:  # which changes something
    plain = loss_of(dataclasses.replace(BY_TRL[name], correction='none'), sampler)
    assert abs(got[0] - plain[0]) > 1e-3


def torch_loss(formula):
  """The loss of a formula, and its gradient; `formula(policy, old, A, m)` -> loss."""
  policy, old, advantage, mask = (
    torch.tensor(INPUTS[name], dtype=torch.float64)
    for name in ('policy', 'old', 'advantages', 'mask/ragged')
  )
  policy.requires_grad_()
  loss = formula(policy, old, advantage[:, None], mask)
  (slope,) = torch.autograd.grad(loss, policy)
  return loss.detach().numpy(), slope.numpy()


def mean_of_tokens(gain, mask):
  return -(gain * mask).sum() / mask.sum()


def gmpo(policy, old, advantage, mask):
  # 2507.20673: the product of clipped ratios to the power 1/|o|, by the sign of A
  ratio = (policy - old).exp()
  low, high = np.exp(-0.4), np.exp(0.4)
  good = torch.minimum(ratio, torch.tensor(high))
  bad = torch.maximum(ratio, torch.tensor(low))
  kept = torch.where(advantage > 0, good, bad).where(mask > 0, torch.tensor(1.0))
  return -(kept.prod(-1) ** (1 / mask.sum(-1)) * advantage[:, 0]).mean()


def dppo_tv(policy, old, advantage, mask):
  # 2602.04879: REINFORCE with a truncated weight, where the policy may still move
  moved = policy.exp() - old.exp()
  stopped = ((advantage > 0) & (moved > 0.1)) | ((advantage <= 0) & (moved < -0.1))
  weight = ((policy - old).exp().clamp(max=1.3) * ~stopped).detach()
  return mean_of_tokens(weight * advantage * policy, mask)


def dppo_kl(policy, old, advantage, mask):
  # 2602.04879: Bernoulli(old) to Bernoulli(policy), which differ by `this token or not`
  chance = [torch.where(mask > 0, x.exp(), torch.tensor(0.5)) for x in (old, policy)]
  binary = torch.distributions.kl_divergence(
    *map(torch.distributions.Bernoulli, chance)
  )
  outward = torch.where(advantage > 0, policy > old, policy < old)
  weight = ((policy - old).exp() * ~((binary > 0.01) & outward)).detach()
  return mean_of_tokens(weight * advantage * policy, mask)


def vaco(policy, old, advantage, mask):
  # 2603.01365: no token that widens the total variation, where that is large
  ratio = (policy - old).exp()
  far = ((ratio - 1).abs() * mask).sum(-1) / mask.sum(-1) > 0.2
  keep = ~(far[:, None] & ((advantage * (ratio - 1)) > 0))
  gain = ratio * advantage * keep
  return -((gain * mask).sum(-1) / mask.sum(-1)).mean()


def kimi(policy, old, advantage, mask):
  # 2602.02276: the squared log-ratio, without the mask by log-ratio
  gain = (policy - old).exp() * advantage - 0.1 * (policy - old) ** 2
  return mean_of_tokens(gain, mask)


def scale_rl(policy, old, advantage, mask):
  # 2510.13786: CISPO, the mean of a prompt's tokens, then of prompts
  weight = (policy - old).exp().clamp(max=1.1).detach()
  gain = (weight * advantage * policy * mask).view(2, -1).sum(-1)
  return -(gain / mask.view(2, -1).sum(-1)).mean()


def opo(policy, old, advantage, mask):
  # 2505.23585: REINFORCE
  return mean_of_tokens((policy - old).exp() * advantage, mask)


def kl_cov(policy, old, advantage, mask):
  # 2505.22617: |log ratio| on the tokens of the largest covariance, a tenth of 60
  def centred(x):
    return x - (x * mask).sum() / mask.sum()

  covariance = (centred(policy) * centred(advantage.expand(8, 12))).detach()
  places = torch.where(mask > 0, covariance, -torch.inf).flatten().topk(6).indices
  chosen = torch.zeros(96).index_fill(0, places, 1.0).view(8, 12)
  gain = (policy - old).exp() * advantage - chosen * (policy - old).abs()
  return mean_of_tokens(gain, mask)


@pytest.mark.parametrize(
  ('formula', 'config'),
  [
    (kl_cov, changed('kl_cov', token_share=0.1)),
    (gmpo, algorithms.PRESETS['gmpo']),
    (dppo_tv, changed('dppo', clip_low=0.1, clip_high=0.1, ratio_cap=1.3)),
    (
      dppo_kl,
      changed('dppo', surrogate='dppo_kl', clip_low=0.01, clip_high=0.01),
    ),
    (vaco, algorithms.PRESETS['vaco']),
    (
      kimi,
      changed('dapo', surrogate='squared_log_ratio', log_ratio_coef=0.1),
    ),
    (scale_rl, changed('scale_rl', clip_high=0.1)),
    (opo, algorithms.PRESETS['opo']),
    (opo, algorithms.PRESETS['max_rl']),
  ],
)
def test_loss_and_gradient_equal_the_papers_formula(formula, config):
  equal(loss_of(config), torch_loss(formula))


def by_group(reward, function):
  return np.stack([function(group) for group in reward])


def std(x):
  return x.std(ddof=1) + 1e-4


LENGTHS_24 = LENGTHS.reshape(2, 4)
PARTS = np.random.default_rng(0).normal(size=(2, 4, 3)) * [1, 10, 0.1]
WEIGHTS = np.array([1.0, 0.5, -2.0])
ADVANTAGES = {
  'group_centred_batch_std': lambda r: by_group(r, lambda g: g - g.mean()) / std(r),
  'group_centred_whitened': lambda r: (
    by_group(r, lambda g: g - g.mean()) / std(by_group(r, lambda g: g - g.mean()))
  ),
  'group_relative_to_mean': lambda r: by_group(
    r, lambda g: (g - g.mean()) / (g.mean() + 1e-4)
  ),
  'length_weighted_baseline': lambda r: (
    r - ((LENGTHS_24 * r).sum(1) / LENGTHS_24.sum(1))[:, None]
  ),
  # 2503.19595 at k = G: the best output, by its lead
  'pass_at_k': lambda r: by_group(
    r, lambda g: np.where(g == g.max(), np.sort(g)[-1] - np.sort(g)[-2], 0)
  ),
}


@pytest.mark.parametrize('name', ADVANTAGES)
def test_advantages_equal_their_formulas(name):
  reward = np.random.default_rng(1).uniform(size=(2, 4))
  with jax.enable_x64(True):
    outcomes = grpo.outcomes(jnp.asarray(reward), lengths=jnp.asarray(LENGTHS_24))
    got = grpo.group_advantage(outcomes, config=GRPOConfig(advantage=name))
  assert Numbers().pass_k == 4
  np.testing.assert_allclose(got, ADVANTAGES[name](reward), rtol=1e-12, atol=1e-14)


def test_the_decoupled_advantage_equals_trls_lines():
  # GRPOTrainer, multi_objective_aggregation 'normalize_then_sum'
  grouped = torch.tensor(PARTS)
  each = (grouped - grouped.mean(1, keepdim=True)) / (
    grouped.std(1, keepdim=True) + 1e-4
  )
  summed = (each.view(-1, 3) * torch.tensor(WEIGHTS)).sum(1)
  expected = (summed - summed.mean()) / (summed.std() + 1e-4)
  with jax.enable_x64(True):
    outcomes = grpo.outcomes(
      jnp.asarray(PARTS @ WEIGHTS), jnp.asarray(PARTS), jnp.asarray(WEIGHTS)
    )
    config = GRPOConfig(advantage='reward_decoupled')
    got = grpo.group_advantage(outcomes, config=config)
  np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-12, atol=1e-14)


def test_the_penalty_in_the_reward_is_the_log_ratio_of_outputs():
  policy, ref = INPUTS['policy'].reshape(2, 4, -1), INPUTS['ref'].reshape(2, 4, -1)
  mask = MASK.reshape(2, 4, -1).astype(bool)
  config = GRPOConfig(kl='k1', kl_in='reward', kl_coef=0.05)
  with jax.enable_x64(True):
    got = grpo.kl_penalty(jnp.asarray(policy), jnp.asarray(ref), mask, config=config)
  expected = 0.05 * ((policy - ref) * mask).sum(-1)
  np.testing.assert_allclose(got, expected, rtol=1e-12)
