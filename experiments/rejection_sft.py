"""R1 stage 3: rejection sampling, and SFT of the base model.

  python -m experiments.rejection_sft --parent runs/reasoning_rl

DeepSeek-R1 (Nature version), rejection sampling and SFT: trains the *base* model for
two epochs on the second stage's right and readable outputs to reasoning problems, and
on general data by careful writers, about a quarter of the set. Cost on two CPU cores
and results over seeds: docs/results.md.
"""

import dataclasses
import random
from collections.abc import Sequence

from experiments.cold_start import ColdStart
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig
from r1jax.stages import problem_sets
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import REASONING, Problem


@dataclasses.dataclass(frozen=True)
class RejectionSFT(StageConfig):
  """R1's third stage: SFT of the base model on accepted outputs and general data."""

  parent: str = 'runs/reasoning_rl'  # the work directory of reasoning_rl
  workdir: str = 'runs/rejection_sft'  # all files of the stage
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  general: int = 1000  # examples of general data (R1: 200k, with 600k of reasoning)
  writers: CorpusConfig = corpus.CAREFUL  # of the general data
  rejection: RejectionConfig = RejectionConfig(problems=960)
  sft: SFTConfig = SFTConfig(epochs=2, optim=ColdStart.sft.optim)
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    problem_sets.check_shares(self.shares, REASONING)
    if self.general < 0:
      raise ValueError(f'general: expected 0 or more, got {self.general}')


def general_data(
  config: RejectionSFT, problems: Sequence[Problem], seed: int
) -> list[tuple[str, str]]:
  """Returns pairs of an instruction and a careful writer's output."""
  found = []
  for index in range(config.general):
    problem = problems[index % len(problems)]
    rng = random.Random(f'{seed} {index} general')
    found.append((problem.text, corpus.write(config.writers, problem, rng)))
  return found


def run(stage: Stage, config: RejectionSFT) -> Trained:
  """Samples and filters outputs, and trains the base model on them and general data."""
  zero = stage.parent.ancestor('r1_zero')
  problem_at = stage.problem_stream(config.shares)
  kept = stage.rejection_sample(stage.params(), problem_at, config.rejection)
  pairs = [(line['question'], line['output']) for line in kept]
  pairs += general_data(config, stage.problems.train[-1], stage.seed)
  params = stage.sft(zero.params(stage.mesh, 'base'), pairs, config.sft)
  return Trained({'final': params}, parents=(zero,))


REJECTION_SFT = Experiment(
  'rejection_sft', child_of('reasoning_rl'), run, phases=('sft',)
)

if __name__ == '__main__':
  REJECTION_SFT.main(RejectionSFT())
