"""R1 stage 1, cold start: SFT of the base model on R1-Zero's own readable outputs.

  python -m experiments.cold_start --parent runs/r1_zero

DeepSeek-R1 (Nature version), cold start: samples R1-Zero's outputs, keeps those that
are right and readable, rewrites them (here with a program) and trains the *base* model
on them. Cost on two CPU cores and results over seeds: docs/results.md.
"""

import dataclasses
from collections.abc import Sequence

from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import rewriting
from r1jax.optim import OptimConfig
from r1jax.stages import problem_sets, rejection
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem


@dataclasses.dataclass(frozen=True)
class ColdStart(StageConfig):
  """R1's first stage: SFT of the base model on R1-Zero's readable outputs."""

  parent: str = 'runs/r1_zero'  # the work directory of r1_zero
  workdir: str = 'runs/cold_start'  # all files of the stage
  shares: tuple[float, float, float, float] = (0.3, 0.15, 0.15, 0.4)  # of the tasks
  rejection: RejectionConfig = RejectionConfig(problems=320)
  sft: SFTConfig = SFTConfig(
    epochs=2,  # R1: 2 to 3
    row_length=400,  # with a summary an output may be longer than when sampled
    optim=OptimConfig(
      learning_rate=3e-3,
      muon_learning_rate=0.005,
      warmup_steps=20,
      schedule='cosine',
      eps=1e-6,
    ),
  )
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, problem_sets.TASKS)


def examples(
  kept: Sequence[rejection.Line], sources: Sequence[Sequence[Problem]]
) -> list[tuple[str, str]]:
  """Returns the questions and rewritten outputs to train on."""
  problems = {problem.id: problem for source in sources for problem in source}
  return [
    (line['question'], rewriting.rewrite(problems[line['problem']], line['output']))
    for line in kept
  ]


def run(stage: Stage, config: ColdStart) -> Trained:
  """Samples, filters and rewrites outputs, and trains the base model on them."""
  problem_at = stage.problem_stream(config.shares)
  kept = stage.rejection_sample(stage.params(), problem_at, config.rejection)
  pairs = examples(kept, stage.problems.train)
  return Trained({'final': stage.sft(stage.params('base'), pairs, config.sft)})


COLD_START = Experiment('cold_start', child_of('r1_zero'), run, phases=('sft',))

if __name__ == '__main__':
  COLD_START.main(ColdStart())
