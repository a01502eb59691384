"""Writes trl_losses.npz: losses and gradients that TRL's own trainer computes.

  python tests/vectors/trl_losses.py

It needs trl==1.16.0 beside what tests need. `GRPOTrainer._compute_loss` runs as is; a
plain object holds the settings, and the log-probs of grpo_family.npz stand for the
model. Keys are `<case>/value` and `<case>/grad`, d value / d policy, [8, 12].
"""

import collections
import functools
import pathlib
import types
from typing import Any

import numpy as np
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

HERE = pathlib.Path(__file__).parent
INPUTS = {
  name: torch.as_tensor(array)
  for name, array in np.load(HERE / 'grpo_family.npz', allow_pickle=False).items()
  if name in ('policy', 'old', 'ref', 'advantages', 'mask/ragged')
}
# The sampler's log-probs: the old policy's, moved by up to 0.8 nats.
ENTROPIES = 1 + torch.sin(7 * torch.arange(96.0, dtype=torch.float64)).view(8, 12)
SAMPLER = INPUTS['old'] + 0.8 * torch.sin(torch.arange(96.0, dtype=torch.float64)).view(
  8, 12
)
DEFAULTS: dict[str, Any] = {
  'loss_type': 'grpo',
  'importance_sampling_level': 'token',
  'delta': None,
  'beta': 0.0,
  'use_bias_correction_kl': False,
  'off_policy_mask_threshold': None,
  'mode': None,
  'top_entropy_quantile': 1.0,
  'clip_min': None,
  'clip_max': 2.0,
}
CASES: dict[str, dict[str, Any]] = {
  'sapo': {'loss_type': 'sapo'},
  'top_entropy': {'loss_type': 'bnpo', 'top_entropy_quantile': 0.2},
  'luspo': {'loss_type': 'luspo', 'importance_sampling_level': 'sequence'},
  'vespo': {'loss_type': 'vespo'},
  'delta': {'delta': 1.5},
  'k3_weighted': {'beta': 0.04, 'use_bias_correction_kl': True},
  'k3_weighted_sequence': {
    'beta': 0.04,
    'use_bias_correction_kl': True,
    'importance_sampling_level': 'sequence',
  },
  'off_policy_mask': {'off_policy_mask_threshold': 0.01},
  'token_truncate': {'mode': 'token_truncate', 'clip_max': 1.5},
  'token_mask': {'mode': 'token_mask', 'clip_min': 0.5, 'clip_max': 1.5},
  'sequence_truncate': {'mode': 'sequence_truncate', 'clip_max': 1.2},
  'sequence_mask': {'mode': 'sequence_mask', 'clip_min': 0.5, 'clip_max': 2.0},
}


class Accelerator:
  """One process."""

  num_processes = 1
  sync_gradients = True

  def gather(self, x: torch.Tensor) -> torch.Tensor:
    return x

  def pad_across_processes(self, x: torch.Tensor, **how: int) -> torch.Tensor:
    del how
    return x

  def reduce(self, x: torch.Tensor, reduction: str) -> torch.Tensor:
    del reduction
    return x


def importance(settings: dict) -> torch.Tensor:
  """pi_old / pi_sampler as the trainer's rollout would hand it to the loss."""
  mask = INPUTS['mask/ragged']
  difference = (INPUTS['old'] - SAMPLER) * mask
  if settings['mode'].startswith('sequence'):
    difference = difference.sum(-1, keepdim=True)
  ratio = torch.exp(difference)
  if settings['mode'].endswith('truncate'):
    return ratio.clamp(min=settings['clip_min'], max=settings['clip_max'])
  outside = (ratio < settings['clip_min']) | (ratio > settings['clip_max'])
  return ratio.masked_fill(outside, 0.0)


def trainer(settings: dict, policy: torch.Tensor) -> types.SimpleNamespace:
  """What `_compute_loss` reads of a trainer."""
  return types.SimpleNamespace(
    args=types.SimpleNamespace(
      delta=settings['delta'],
      use_bias_correction_kl=settings['use_bias_correction_kl'],
      sapo_temperature_pos=1.0,
      sapo_temperature_neg=1.05,
      vespo_k_pos=2.0,
      vespo_lambda_pos=3.0,
      vespo_k_neg=3.0,
      vespo_lambda_neg=2.0,
      steps_per_generation=1,
    ),
    loss_type=settings['loss_type'],
    importance_sampling_level=settings['importance_sampling_level'],
    beta=settings['beta'],
    epsilon_low=0.2,
    epsilon_high=0.28,
    off_policy_mask_threshold=settings['off_policy_mask_threshold'],
    use_vllm=settings['mode'] is not None,
    vllm_importance_sampling_correction=True,
    max_completion_length=16,
    top_entropy_quantile=settings['top_entropy_quantile'],
    aux_loss_enabled=False,
    _entropy_bonus_enabled=False,
    current_gradient_accumulation_steps=1,
    accelerator=Accelerator(),
    model=types.SimpleNamespace(training=True),
    get_gamma_weights=GRPOTrainer.get_gamma_weights,
    get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
    _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
      policy,
      ENTROPIES,
      None,
    ),
    get_high_entropy_mask=functools.partial(
      GRPOTrainer.get_high_entropy_mask,
      types.SimpleNamespace(accelerator=Accelerator()),
    ),
    _metrics={'train': collections.defaultdict(list)},
  )


def main() -> None:
  torch.set_default_dtype(torch.float64)  # of the temperatures of sapo, too
  found: dict[str, Any] = {
    'sampler': SAMPLER.numpy(),
    'entropies': ENTROPIES.numpy(),
  }
  mask = INPUTS['mask/ragged']
  for name, changes in CASES.items():
    settings = DEFAULTS | changes
    policy = INPUTS['policy'].clone().requires_grad_()
    inputs = {
      'prompt_ids': torch.zeros(8, 1, dtype=torch.long),
      'prompt_mask': torch.ones(8, 1, dtype=torch.long),
      'completion_ids': torch.zeros(8, 12, dtype=torch.long),
      'completion_mask': mask,
      'advantages': INPUTS['advantages'],
      'old_per_token_logps': INPUTS['old'],
      'ref_per_token_logps': INPUTS['ref'],
      'num_items_in_batch': mask.sum(),
    }
    if name == 'off_policy_mask':
      inputs['sampling_per_token_logps'] = SAMPLER
    if settings['mode']:
      inputs['importance_sampling_ratio'] = importance(settings)
    loss = GRPOTrainer._compute_loss(trainer(settings, policy), None, inputs)
    (gradient,) = torch.autograd.grad(loss, policy)
    found |= {f'{name}/value': loss.detach().numpy(), f'{name}/grad': gradient.numpy()}
  np.savez(HERE / 'trl_losses.npz', **found)


if __name__ == '__main__':
  main()
