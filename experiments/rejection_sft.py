"""R1's third stage in miniature: rejection sampling, and SFT from the base model.

Paper: DeepSeek-R1 (Nature version), rejection sampling and SFT. The second stage's
right and readable outputs to reasoning problems, and general data by careful writers,
about a quarter of the set; the *base* model learns them in two epochs.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import random

from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig
from r1jax.optim import OptimConfig
from r1jax.runtime import cli
from r1jax.runtime.run import user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets, stage
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import REASONING, Problem


@dataclasses.dataclass(frozen=True)
class RejectionSFT:
  """R1's third stage: SFT of the base on the outputs that pass, and general data."""

  parent: str = 'runs/reasoning_rl'  # the work directory of reasoning_rl
  workdir: str = 'runs/rejection_sft'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING`
  general: int = 1000  # examples of general data (R1: 200k beside 600k)
  writers: CorpusConfig = corpus.CAREFUL  # of the general data
  rejection: RejectionConfig = RejectionConfig(problems=960)
  sft: SFTConfig = SFTConfig(epochs=2)
  sft_optim: OptimConfig = OptimConfig(
    learning_rate=3e-3,
    muon_learning_rate=0.005,
    warmup_steps=20,
    schedule='cosine',
    eps=1e-6,
  )
  mesh: MeshConfig = MeshConfig()
  scoreboard: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    problem_sets.check_shares(self.shares, REASONING)
    if self.general < 0:
      raise ValueError(f'general: expected 0 or more, got {self.general}')


def general_data(
  config: RejectionSFT, problems: list[Problem], seed: int
) -> list[tuple[str, str]]:
  """Pairs of an instruction and a careful writer's output."""
  found = []
  for index in range(config.general):
    problem = problems[index % len(problems)]
    rng = random.Random(f'{seed} {index} general')
    found.append((problem.question, corpus.write(config.writers, problem, rng)))
  return found


def main(config: RejectionSFT) -> None:
  """Samples, filters, learns."""
  parent = artifact.load(config.parent, 'reasoning_rl')
  zero = parent.ancestor('r1_zero')
  with stage.begin('rejection_sft', config, parent, phases=('sft',)) as job:
    if job is None:
      return
    *reasoning, instructions = job.where.train
    order = problem_stream(reasoning, config.shares, job.seed)
    kept = job.collect(parent.params(job.mesh), order, config.rejection)
    examples = [(line['question'], line['output']) for line in kept]
    examples += general_data(config, instructions, job.seed)
    base = zero.params(job.mesh, 'base')
    params = job.imitate(base, examples, config.sft, config.sft_optim)
    job.finish('rejection_sft', config, params, [parent, zero])


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(RejectionSFT()))
