"""Losses, gradients and advantages against those that TRL's own trainer computed.

`vectors/grpo_family.npz`: TRL 1.16.0, float64, two groups of four outputs, up to 12
tokens each; keys `loss/<type>/<level>/beta<b>/<mask>[/<variant>]/<what>`. Its cispo
without a variant caps the weight at 0.28, which is below 1 and no `clip_high` of ours.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import algorithms, grpo
from r1jax.grpo import GRPOConfig, objective

VECTORS = np.load(
  pathlib.Path(__file__).parent / 'vectors/grpo_family.npz', allow_pickle=False
)
gradient = jax.jit(
  jax.value_and_grad(objective, has_aux=True), static_argnames='config'
)
# TRL's name -> our preset; bnpo is GRPO with the mean over tokens.
TYPES = {
  'grpo': algorithms.PRESETS['grpo'],
  'bnpo': dataclasses.replace(algorithms.PRESETS['grpo'], mean='tokens'),
  'dr_grpo': algorithms.PRESETS['dr_grpo'],
  'dapo': algorithms.PRESETS['dapo'],
  'cispo': algorithms.PRESETS['cispo'],  # without a lower bound
}
# Ours -> TRL's, which round to float32.
METRICS = {
  'clip_up': 'clip_ratio/high_mean',
  'clip_down': 'clip_ratio/low_mean',
  'kl': 'kl',
}
CASES = sorted(
  key.removesuffix('/value')
  for key in VECTORS.files
  if key.endswith('/value') and (not key.startswith('loss/cispo') or 'epshigh' in key)
)


def groups(name):
  """An array of all eight outputs as two groups of four."""
  return jnp.asarray(VECTORS[name]).reshape(2, 4, -1)


def settings(case):
  """The config that a case's name means, the mask's name and the variant."""
  _, kind, level, beta, mask, *variant = case.split('/')
  config = TYPES[kind]
  if level == 'sequence':
    config = (
      algorithms.PRESETS['gspo']
      if kind == 'grpo'
      else dataclasses.replace(config, ratio='geometric')
    )
  high = float(VECTORS['epsilon_high'])
  if variant and variant[0].startswith('epshigh'):
    high = float(variant[0].removeprefix('epshigh')) - 1
  config = dataclasses.replace(
    config,
    kl='k3',
    kl_coef=float(beta.removeprefix('beta')),
    clip_low=1.0 if kind == 'cispo' else float(VECTORS['epsilon_low']),
    clip_high=high,
    constant_length=int(VECTORS['max_completion_length']),
  )
  return config, mask, variant


def test_the_cases_cover_every_type_and_level():
  # grpo, bnpo, dr_grpo, dapo at 2 levels and 2 betas; 2 of cispo; 2 on-policy
  assert len(CASES) == 4 * 2 * 2 + 2 + 2


@pytest.mark.parametrize('case', CASES)
def test_loss_gradient_and_metrics_equal_trls(case):
  config, mask, variant = settings(case)
  with jax.enable_x64(True):
    policy = groups('policy')
    old_logp = policy if variant == ['onpolicy'] else groups('old')
    (loss, metrics), slope = gradient(
      policy,
      jnp.asarray(VECTORS['advantages']).reshape(2, 4),
      groups(f'mask/{mask}').astype(bool),
      old_logp=old_logp,
      ref_logp=groups('ref') if config.kl_coef else None,
      config=config,
    )
  assert loss.dtype == slope.dtype == np.float64
  # sums of up to 96 float64 numbers near 1, in another order
  np.testing.assert_allclose(loss, VECTORS[f'{case}/value'], rtol=1e-12)
  expected = VECTORS[f'{case}/grad'].reshape(2, 4, -1)
  np.testing.assert_allclose(slope, expected, rtol=1e-12, atol=1e-15)
  for ours, theirs in METRICS.items():
    if f'{case}/metric/{theirs}' in VECTORS:
      value = VECTORS[f'{case}/metric/{theirs}']
      np.testing.assert_allclose(metrics[ours], value, atol=3e-8)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    ('group_zscore', 'group'),
    ('group_centred', 'none'),
    ('group_centred_batch_std', 'batch'),
  ],
)
def test_advantages_equal_trls(ours, theirs):
  with jax.enable_x64(True):
    reward = jnp.asarray(VECTORS['adv/random/rewards']).reshape(2, 4)
    given = grpo.outcomes(reward)
    got = grpo.group_advantage(given, config=GRPOConfig(advantage=ours))
  expected = VECTORS[f'adv/random/{theirs}'].reshape(2, 4)
  # 4e-8: TRL rounds to float32 on the way
  np.testing.assert_allclose(got, expected, atol=4e-8)
