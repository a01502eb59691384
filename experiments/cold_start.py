"""R1's first stage in miniature: a readable start from R1-Zero's own right outputs.

Paper: DeepSeek-R1 (Nature version), cold start. R1-Zero's outputs are sampled, kept
where they are right and readable, rewritten by a program; the *base* model learns them.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses

from r1jax.miniature import rewriting
from r1jax.optim import OptimConfig
from r1jax.runtime import cli
from r1jax.runtime.run import user_errors
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets, stage
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.supervised import SFTConfig


@dataclasses.dataclass(frozen=True)
class ColdStart:
  """R1's first stage: SFT of the base model on R1-Zero's readable outputs."""

  parent: str = 'runs/r1_zero'  # the work directory of r1_zero
  workdir: str = 'runs/cold_start'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  shares: tuple[float, float, float, float] = (0.3, 0.15, 0.15, 0.4)  # of all tasks
  rejection: RejectionConfig = RejectionConfig(problems=320)
  sft: SFTConfig = SFTConfig(
    epochs=2,  # R1: 2 to 3
    row_length=400,  # a summary may make an output longer than what was sampled
  )
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
    problem_sets.check_shares(self.shares, problem_sets.TASKS)


def main(config: ColdStart) -> None:
  """Samples, filters, rewrites, learns."""
  zero = artifact.load(config.parent, 'r1_zero')
  with stage.begin('cold_start', config, zero, phases=('sft',)) as job:
    if job is None:
      return
    train = job.where.train
    order = problem_stream(train, config.shares, job.seed)
    kept = job.collect(zero.params(job.mesh), order, config.rejection)
    problems = {problem.id: problem for source in train for problem in source}
    examples = [
      (line['question'], rewriting.rewrite(problems[line['problem']], line['output']))
      for line in kept
    ]
    base = zero.params(job.mesh, 'base')
    params = job.imitate(base, examples, config.sft, config.sft_optim)
    job.finish('cold_start', config, params, [zero])


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(ColdStart()))
