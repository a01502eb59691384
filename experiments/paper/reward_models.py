"""The two neural reward models of stage 4, for general prompts [N]."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """The training data and the input of a reward model."""

  examples: int
  labels: Literal['pairs', 'points']  # which of two is better, or a label for each
  judges: Literal['summary', 'output']  # input: text after the thoughts, or all text
  learning_rate: float = 6e-6
  batch_size: int = 256  # examples
  epochs: int = 1


# A pair is judged 4 times, in random order, and kept if its scores differ by more than
# 1. Both sides have similar lengths, so that length is no cue [N].
JUDGEMENTS = 4
LEAST_DIFFERENCE = 1.0

HELPFULNESS = RewardModel(examples=66_000, labels='pairs', judges='summary')
# Its training settings are ours: those of the helpfulness model.
SAFETY = RewardModel(examples=106_000, labels='points', judges='output')
