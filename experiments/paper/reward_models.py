"""The two neural reward models of stage 4, which judge general prompts [N]."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """What a reward model learns from, and what it is shown."""

  examples: int
  labels: Literal['pairs', 'points']  # which of two is better, or one judged alone
  judges: Literal['summary', 'output']  # what follows the thoughts, or all of it
  learning_rate: float = 6e-6
  batch_size: int = 256  # examples
  epochs: int = 1


# A pair is judged 4 times, in random order, and kept where its scores are more than 1
# apart; its sides are matched in length, so that length is no hint [N].
JUDGEMENTS = 4
LEAST_DIFFERENCE = 1.0

HELPFULNESS = RewardModel(examples=66_000, labels='pairs', judges='summary')
# Its training is ours: as of the other.
SAFETY = RewardModel(examples=106_000, labels='points', judges='output')
