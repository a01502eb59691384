"""R1 in four stages, each named after the model it produces.

Paper: [N], the section on R1 and its methods. The cold start makes the thoughts
readable, RL restores the reasoning that this costs, SFT on a larger set adds everything
else, and a last RL stage human preferences; see `results.STAGES`.
"""

import dataclasses

from experiments.paper import data
from experiments.paper.r1_zero import R1_ZERO
from experiments.paper.stage import BASE, RL, SFT, Rewards, rollouts, sft

# Stage 1. Examples are R1-Zero's outputs at temperature 1.0 that are right, readable,
# and without repetition or mixed language; rewritten in the first person [N].
COLD_START = sft(
  BASE,
  examples=data.COLD_START_EXAMPLES,
  epochs=3,  # 2 to 3 [N]
  rows=128,  # [N]
  peak=5e-5,  # [N]
)

# Stage 2: like R1-Zero, with another clip range and one more reward [N].
REASONING = dataclasses.replace(
  R1_ZERO,
  start='Dev1',
  rl=dataclasses.replace(
    R1_ZERO.rl,
    grpo=dataclasses.replace(
      R1_ZERO.rl.grpo,
      # Epsilon is 10 [N]. Below, 1 - 10 bounds nothing, as no ratio is negative; a
      # lower bound of 0 says the same.
      clip_low=1.0,
      clip_high=10.0,
    ),
  ),
  rewards=((0, Rewards(language=1.0)),),  # added to the others [N]
)

# Stage 3: from the base again, on right samples and other data [N]. Batch and learning
# rate are ours: those of stage 1. At 5,355 tokens per example these are 2,055 updates,
# or a few more, as no row is completely full.
REJECTION = sft(
  BASE,
  examples=data.SFT.total,
  epochs=2,  # [N]
  rows=128,
  peak=5e-5,
)

# The preference reward is used in the last 400 of 1,700 steps, as more led to reward
# hacking [N]. 1,300 steps are 81.25 rollouts, so it starts after 82 of 107 rollouts.
# The other 25 are 400 steps.
GENERAL_AFTER = rollouts(1_700 - 400)

# Stage 4. Settings that the paper does not give are ours: those of stage 2.
ALL_SCENARIOS = dataclasses.replace(
  REASONING,
  start='Dev3',
  rl=dataclasses.replace(
    REASONING.rl,
    steps=rollouts(1_700),  # 107, which are 1,712 updates [N]
    max_length=((0, 32_768),),  # ours: where stage 2 begins
    temperature=((0, 0.7),),  # [N]
  ),
  rewards=(
    (0, Rewards(language=1.0)),
    (GENERAL_AFTER, Rewards(language=1.0, helpfulness=1.0, safety=1.0)),
  ),
  data=((0, data.REASONING), (GENERAL_AFTER, data.RL)),
)

STAGES: dict[str, RL | SFT] = {
  'Dev1': COLD_START,
  'Dev2': REASONING,
  'Dev3': REJECTION,
  'R1': ALL_SCENARIOS,
}
