"""The whole of R1 in miniature: from random numbers to distilled students, one command.

  python -m experiments.r1

DeepSeek-R1 (Nature version): R1-Zero, the four stages of R1, distillation. Each stage
is a module that takes the work directory of the one before. A finished stage is not run
again, and a changed setting reruns the stages that depend on it. Every stage is
measured on test problems once, at its end; its curves are on validation problems. Cost
and results: docs/results.md.
"""

import dataclasses

from experiments import distill
from experiments.cold_start import COLD_START, ColdStart
from experiments.distill import DISTILL, Distill
from experiments.final_rl import FINAL_RL, FinalRL
from experiments.paper.results import PAPER
from experiments.r1_zero import R1_ZERO, R1Zero
from experiments.reasoning_rl import REASONING_RL, ReasoningRL
from experiments.rejection_sft import REJECTION_SFT, RejectionSFT
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.stages import pipeline
from r1jax.stages.experiment import Experiment, StageConfig, algorithm_presets
from r1jax.stages.pipeline import PlannedStage

STAGES: dict[str, Experiment] = {
  'r1_zero': R1_ZERO,
  'cold_start': COLD_START,
  'reasoning_rl': REASONING_RL,
  'rejection_sft': REJECTION_SFT,
  'final_rl': FINAL_RL,
  'distill_small': DISTILL,
  'distill_tiny': DISTILL,
}


@dataclasses.dataclass(frozen=True)
class R1(StageConfig):
  """The whole of R1 in miniature."""

  workdir: str = 'runs/r1'  # a folder for each stage, and the report
  r1_zero: R1Zero = R1Zero()
  cold_start: ColdStart = ColdStart()
  reasoning_rl: ReasoningRL = ReasoningRL()
  rejection_sft: RejectionSFT = RejectionSFT()
  final_rl: FinalRL = FinalRL()
  distill_small: Distill = Distill(student=distill.STUDENTS['small'])
  distill_tiny: Distill = Distill(student=distill.STUDENTS['tiny'])

  def __post_init__(self) -> None:
    super().__post_init__()
    pipeline.check_planned(self, STAGES)


def plan(config: R1) -> list[PlannedStage]:
  """Returns the stages; both students are distilled from the last stage of R1."""
  return pipeline.plan(config, STAGES, childless=('distill_small', 'distill_tiny'))


def main(config: R1) -> None:
  """Runs the unfinished stages in order; see `pipeline.run`."""
  pipeline.run(config, plan(config), PAPER)


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(R1(), presets=algorithm_presets(R1())))
