"""Published algorithms as rows of GRPOConfig, and what each row leaves out."""

import dataclasses

from r1jax.grpo import GRPOConfig

# The objectives of published algorithms, without their other parts, such as DAPO's
# dynamic sampling. A KL penalty is always part of the loss, never of the reward.
PRESETS = {
  'grpo': GRPOConfig(),
  'dr_grpo': GRPOConfig(
    advantage='group_centred', kl='none', mean='constant', kl_coef=0.0
  ),
  'dapo': GRPOConfig(kl='none', mean='tokens', clip_high=0.28, kl_coef=0.0),
  'gspo': GRPOConfig(
    ratio='geometric', kl='none', clip_low=3e-4, clip_high=4e-4, kl_coef=0.0
  ),
  'cispo': GRPOConfig(
    surrogate='clipped_weight', kl='none', mean='tokens', clip_high=0.28, kl_coef=0.0
  ),
  'rloo': GRPOConfig(
    advantage='leave_one_out',
    ratio='sequence',
    surrogate='none',
    kl='none',
    kl_coef=0.0,
  ),
  'reinforce_pp': GRPOConfig(advantage='batch_whitened', kl='k2', mean='tokens'),
}

# How a preset differs from the algorithm that it is named after.
PUBLISHED = {
  'dr_grpo': 'Dr. GRPO (2503.20783), which divides by the maximum length of an output: '
  'set rl.grpo.constant_length to the largest rl.max_length',
  'dapo': 'two of the four parts of DAPO (2503.14476), the higher clip above and the '
  'mean over tokens; without its dynamic sampling (groups of equal rewards are kept, '
  'and give no gradient) and its overlong reward shaping',
  'cispo': 'the objective of CISPO (2506.13585), without its dynamic sampling and '
  "length penalty; the upper bound is DAPO's 0.28, since the paper gives none",
  'rloo': 'RLOO (2402.14740) without its KL penalty, which the paper subtracts from '
  'the reward; here a penalty is part of the loss, see rl.grpo.kl',
  'reinforce_pp': 'REINFORCE++ (2501.03262) with advantages whitened over the batch, '
  'one per output, and the KL as k2 in the loss, as in its variant with a group '
  'baseline; without a baseline the paper subtracts k1 from the reward of each token, '
  'and whitens the result',
}


def preset_of(config: GRPOConfig) -> str | None:
  """Returns the name of the preset that a config equals, ignoring `constant_length`."""
  for name, preset in PRESETS.items():
    if config == dataclasses.replace(preset, constant_length=config.constant_length):
      return name
  return None
