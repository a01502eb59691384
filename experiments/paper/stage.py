"""Types of the paper's stages: reinforcement learning (`RL`) and examples (`SFT`).

Both hold the configs of r1jax's own stages, which `experiments.paper.r1_zero` runs and
`scripts.plan` plans. Fields that depend on the machine, such as micro-batches and
worker processes, have placeholder values.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.paper import data
from r1jax.optim import OptimConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import SFTConfig

BASE = 'DeepSeek-V3-Base'
CONTEXT = 32_768  # tokens of a row of examples [N]
MINIBATCHES = 16  # per rollout: 8,192 outputs in 16 updates of 512 [N]


def rollouts(steps: int) -> int:
  """Returns the number of rollouts in the paper's first `steps` steps, rounded up.

  A step of the paper is an update, and a rollout serves 16 updates; `RLConfig` counts
  rollouts. 10,400 steps are 650 rollouts, 400 are 25. 8,200 are 512.5, rounded up to
  513 (the last one is sampled after step 8,192), and 1,700 are 106.25, rounded up to
  107.
  """
  return -(-steps // MINIBATCHES)


class Rewards(NamedTuple):
  """Weights of the rewards in their sum; 0 leaves a reward out."""

  accuracy: float = 1.0  # whether the answer is right, by rules
  format: float = 1.0  # whether the format is kept, by rules
  language: float = 0.0  # share of the thoughts' words in the target language
  helpfulness: float = 0.0  # `reward_models.HELPFULNESS`, on general prompts
  safety: float = 0.0  # `reward_models.SAFETY`, on general prompts


@dataclasses.dataclass(frozen=True)
class RL:
  """A stage of GRPO. Schedules are pairs (after this many rollouts, value)."""

  start: str  # the model it starts from, also its first reference
  rl: RLConfig
  rewards: tuple[tuple[int, Rewards], ...]
  data: tuple[tuple[int, data.Mix], ...]

  def __post_init__(self) -> None:
    for field in ('rewards', 'data'):
      self._check_schedule(field, getattr(self, field))

  def _check_schedule(self, field: str, schedule: tuple[tuple[int, Any], ...]) -> None:
    starts = [start for start, _ in schedule]
    if starts[:1] != [0] or starts != sorted(set(starts)):
      raise ValueError(
        f'{field}: expected pairs (rollouts, value) from 0 on with rising rollouts, '
        f'got {starts}'
      )
    if starts[-1] >= self.rl.steps:
      raise ValueError(
        f'{field}: expected changes before rl.steps = {self.rl.steps} rollouts, got '
        f'one at {starts[-1]}'
      )


@dataclasses.dataclass(frozen=True)
class SFT:
  """A stage of supervised training on examples."""

  start: str  # the model it starts from
  examples: int
  sft: SFTConfig

  def __post_init__(self) -> None:
    if self.examples < 1:
      raise ValueError(f'examples: expected 1 or more, got {self.examples}')


def sft(start: str, *, examples: int, epochs: int, rows: int, peak: float) -> SFT:
  """Returns a stage of SFT.

  Args:
    start: the model it starts from.
    examples: number of examples.
    epochs: passes over them.
    rows: the paper's batch size, here in rows of CONTEXT tokens filled with examples.
    peak: learning rate, which a cosine lowers to a tenth.
  """
  return SFT(
    start,
    examples,
    SFTConfig(
      epochs=epochs,
      rows_per_step=rows,
      row_length=CONTEXT,
      micro_batches=rows,  # one row each; depends on the machine
      optim=OptimConfig(
        learning_rate=peak,
        warmup_steps=0,  # the paper names none
        schedule='cosine',  # [N]
        final_share=0.1,  # 5e-5 to 5e-6; of students, a tenth of the peak [N]
      ),
    ),
  )
