"""What a stage of the paper is: reinforcement learning (`RL`) or examples (`SFT`).

Both hold configs of the project's own stages, so that what is said here is what
`experiments.paper.r1_zero` runs and `scripts.plan` plans. Fields that no paper can
know, such as micro-batches and worker processes, wait for a machine.
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.paper import data
from r1jax.optim import OptimConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import SFTConfig

BASE = 'DeepSeek-V3-Base'
CONTEXT = 32_768  # tokens of a row of examples [N]
MINIBATCHES = 16  # of a rollout: 8,192 outputs in parts of 512, an update each [N]


def rollouts(steps: int) -> int:
  """Returns how many rollouts are sampled in the paper's first `steps` steps.

  The paper counts updates, of which a rollout serves 16; `RLConfig` counts
  rollouts. A rollout belongs to the step that follows it, so a part counts as one:
  10,400 steps are 650 rollouts and 400 are 25, but 8,200 are 512.5, which makes 513
  (the last one is sampled after step 8,192), and 1,700 are 106.25, which makes 107.
  """
  return -(-steps // MINIBATCHES)


class Rewards(NamedTuple):
  """Weights in the sum that is one output's reward; 0 leaves a reward out."""

  accuracy: float = 1.0  # is the answer right; by rules
  format: float = 1.0  # is the form kept; by rules
  language: float = 0.0  # words of the thoughts in the target language / all words
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
  """Returns the stage that reads the examples `epochs` times.

  Args:
    start: the model it starts from.
    examples: how many there are.
    epochs: passes over them.
    rows: the paper's batch, here of rows that are filled with examples up to CONTEXT.
    peak: learning rate, from which a cosine falls to a tenth.
  """
  return SFT(
    start,
    examples,
    SFTConfig(
      epochs=epochs,
      rows_per_step=rows,
      row_length=CONTEXT,
      micro_batches=rows,  # a row each, until a machine is chosen
      optim=OptimConfig(
        learning_rate=peak,
        warmup_steps=0,  # the paper names none
        schedule='cosine',  # [N]
        final_share=0.1,  # 5e-5 to 5e-6; of students, a tenth of the peak [N]
      ),
    ),
  )
