"""Published algorithms as rows of GRPOConfig, with what each row leaves out.

docs/algorithms.md shows these rows; `scripts.algorithm_page` writes it.
"""

import dataclasses
from typing import Any

from r1jax.grpo import GRPOConfig


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """An objective by the name of its paper.

  What papers set beside it, such as DAPO's dynamic sampling, is in `stages.methods`.
  """

  config: GRPOConfig
  paper: str  # name and arXiv number
  difference: str  # from GRPO, in one line
  checked: str  # what its losses and gradients are compared with in tests
  note: str = ''  # how the row differs from the paper, as the end of "The algorithm is"


# Who computed the numbers that tests compare with
TRL = 'TRL 1.16'
FORMULA = "the paper's formula in torch"
HAND = 'numbers worked out by hand'


def _free(**fields: Any) -> GRPOConfig:
  """A row without a KL penalty."""
  return GRPOConfig(**{'kl': 'none', 'kl_coef': 0.0, **fields})


ALGORITHMS = {
  'grpo': Algorithm(
    GRPOConfig(),
    'GRPO, 2402.03300; DeepSeek-R1, 2501.12948',
    '—',
    f'{TRL}; {FORMULA}',
  ),
  'dr_grpo': Algorithm(
    _free(advantage='group_centred', mean='constant'),
    'Dr. GRPO, 2503.20783',
    'no std, and a constant instead of the length: no bias by difficulty or length',
    f'{TRL}; {FORMULA}',
    'Dr. GRPO (2503.20783), which divides by the maximum length of an output: set '
    'rl.grpo.constant_length to the largest rl.max_length',
  ),
  'dapo': Algorithm(
    _free(mean='tokens', clip_high=0.28),
    'DAPO, 2503.14476',
    'a wider clip above, the mean over all tokens',
    f'{TRL}; {FORMULA}',
  ),
  'gspo': Algorithm(
    _free(ratio='geometric', clip_low=3e-4, clip_high=4e-4),
    'GSPO, 2507.18071',
    'one ratio an output, the geometric mean of its tokens',
    f'{TRL}; {FORMULA}',
  ),
  'cispo': Algorithm(
    _free(surrogate='clipped_weight', mean='tokens', clip_low=1.0, clip_high=0.28),
    'CISPO (MiniMax-M1), 2506.13585',
    'the weight is clipped and not the gain, so that no token loses its gradient',
    f'{TRL}; {FORMULA}',
    "CISPO (2506.13585) with DAPO's upper bound of 0.28, since the paper gives none",
  ),
  'scale_rl': Algorithm(
    _free(
      advantage='group_centred_whitened',
      surrogate='clipped_weight',
      mean='prompts',
      clip_low=1.0,
      clip_high=4.0,
    ),
    'ScaleRL, 2510.13786',
    "CISPO, advantages over their std in the batch, the mean of prompts' tokens",
    FORMULA,
    'that of ScaleRL (2510.13786), with weights of at most 5, without its float32 '
    'head, the dropping of problems that are solved nine times in ten, asynchronous '
    'rollouts and a limit on thoughts',
  ),
  'rloo': Algorithm(
    _free(advantage='leave_one_out', ratio='sequence', surrogate='none'),
    'RLOO, 2402.14740',
    "REINFORCE with the mean of the group's others as the baseline",
    FORMULA,
    'RLOO (2402.14740) without its KL penalty, which the paper subtracts from the '
    "reward: that is rl.grpo.kl 'k1' with rl.grpo.kl_in 'reward' and a coefficient",
  ),
  'reinforce_pp': Algorithm(
    GRPOConfig(advantage='batch_whitened', kl='k2', mean='tokens'),
    'REINFORCE++, 2501.03262',
    'no group: mean and std of the batch',
    FORMULA,
    'REINFORCE++ (2501.03262) with advantages whitened over the batch, one per '
    'output, and the KL as k2 in the loss, as in its variant with a group baseline; '
    'without a baseline the paper subtracts k1 from the reward of each token, and '
    'whitens the result',
  ),
  'reinforce_pp_baseline': Algorithm(
    GRPOConfig(advantage='group_centred_whitened', kl='k2', mean='tokens'),
    'REINFORCE++-baseline, 2501.03262',
    "the group's mean, then whitened over the batch",
    HAND,
  ),
  'lite_ppo': Algorithm(
    _free(advantage='group_centred_batch_std', mean='tokens'),
    'Lite PPO, 2508.08221',
    "the group's mean, the batch's std, the mean over all tokens",
    TRL,
  ),
  'max_rl': Algorithm(
    _free(advantage='group_relative_to_mean', surrogate='none', mean='tokens'),
    'MaxRL, 2602.02710',
    'divides by the chance of success: maximises its log',
    FORMULA,
  ),
  'opo': Algorithm(
    _free(advantage='length_weighted_baseline', surrogate='none', mean='tokens'),
    'OPO, 2505.23585',
    'the baseline is weighted by length, exactly on policy',
    FORMULA,
  ),
  'gdpo': Algorithm(
    GRPOConfig(advantage='reward_decoupled'),
    'GDPO, 2601.05242',
    'each reward is normalised in its group before they are summed',
    f"{TRL}'s lines",
    'the advantage of GDPO (2601.05242) with the rest of GRPO; with one reward it is '
    'the z-score of the group, whitened over the batch',
  ),
  'pkpo': Algorithm(
    _free(advantage='pass_at_k'),
    'PKPO, 2505.15201; at k = G 2503.19595',
    'rewards the best of k outputs instead of each',
    'all choices of k outputs, one by one',
    'the advantage of PKPO (2505.15201) with the rest of GRPO; the best of '
    'rl.grpo.pass_k outputs counts',
  ),
  'top_entropy': Algorithm(
    _free(mean='tokens', clip_high=0.28, tokens='top_entropy'),
    '80/20 rule, 2506.01939',
    'DAPO on the fifth of tokens of the highest entropy',
    TRL,
  ),
  'clip_cov': Algorithm(
    _free(mean='tokens', tokens='clip_cov', token_share=2e-4),
    'Clip-Cov, 2505.22617',
    'a few tokens of large covariance of log-prob and advantage do not learn',
    HAND,
    'Clip-Cov (2505.22617), where the tokens are drawn among all, not among those '
    'that the clip leaves',
  ),
  'kl_cov': Algorithm(
    _free(
      surrogate='kl_cov',
      mean='tokens',
      tokens='top_covariance',
      token_share=2e-4,
      log_ratio_coef=1.0,
    ),
    'KL-Cov, 2505.22617',
    'a KL to the old policy for the tokens of the largest covariance, and no clip',
    FORMULA,
  ),
  'dual_clip': Algorithm(
    GRPOConfig(surrogate='dual_clip'),
    'dual clip, 1912.09729; two-sided clip, 2505.07291',
    'bounds the push of bad tokens too',
    TRL,
  ),
  'sapo': Algorithm(
    _free(surrogate='soft_gate'),
    'SAPO, 2511.20347',
    'a sigmoid of the ratio instead of the clip',
    TRL,
  ),
  'gmpo': Algorithm(
    _free(surrogate='geometric_mean', clip_low=0.4, clip_high=0.4),
    'GMPO, 2507.20673',
    'the geometric mean of clipped ratios instead of the mean',
    FORMULA,
  ),
  'luspo': Algorithm(
    _free(ratio='geometric', mean='sums', clip_low=3e-4, clip_high=4e-4),
    'LUSPO, 2602.05261',
    "GSPO, an output's gain times its length",
    TRL,
  ),
  'vespo': Algorithm(
    _free(surrogate='gamma_kernel', correction='none', mean='tokens'),
    'VESPO, 2602.10693',
    "a smooth weight of the whole output's ratio",
    TRL,
  ),
  'dppo': Algorithm(
    _free(surrogate='dppo_tv', ratio_cap=20.0, mean='tokens'),
    'DPPO, 2602.04879',
    'stops a token by the difference of its probabilities, not their ratio',
    FORMULA,
    'DPPO with total variation (2602.04879); its bounds on the difference of '
    'probabilities are 0.2 here, rl.grpo.clip_low and rl.grpo.clip_high',
  ),
  'vaco': Algorithm(
    _free(surrogate='vaco'),
    'VACO, 2603.01365',
    'drops tokens that widen the gap of outputs that are far from the policy',
    FORMULA,
    'the filter of VACO (2603.01365) by outputs, as in Open-Instruct, without its '
    'realigned advantages; the bound is 0.2 here, rl.grpo.clip_high',
  ),
  'icepop': Algorithm(
    _free(correction='mask', importance_floor=0.5, importance_cap=5.0),
    'IcePop, 2510.18855',
    'drops tokens whose probabilities in sampler and learner are far apart',
    TRL,
    'IcePop (2510.18855), which differs from GRPO only if the sampler differs from '
    'the policy, as with rl.int8_rollout',
  ),
  'deepseek_v32': Algorithm(
    GRPOConfig(kl='k3_weighted', correction='off_policy_mask'),
    'DeepSeek-V3.2, 2512.02556',
    'an unbiased KL; bad outputs that the policy left are dropped',
    TRL,
    'two of the four changes of DeepSeek-V3.2 (2512.02556) to GRPO, the KL weighted by '
    'the ratio and the mask of outputs that the policy left; without keeping the '
    'experts and the top-p of the rollout',
  ),
}
PRESETS = {name: algorithm.config for name, algorithm in ALGORITHMS.items()}


def preset_of(config: GRPOConfig) -> str | None:
  """Returns the name of the preset that a config equals, ignoring `constant_length`."""
  for name, preset in PRESETS.items():
    if config == dataclasses.replace(preset, constant_length=config.constant_length):
      return name
  return None
