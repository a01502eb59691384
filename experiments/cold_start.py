"""R1's first stage in miniature: a readable start from R1-Zero's own right outputs.

Paper: DeepSeek-R1 (Nature version), cold start. R1-Zero's outputs are sampled, kept
where they are right and readable, rewritten by a program; the *base* model learns them.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses

from r1jax import mesh, optim, rewriting
from r1jax.stages import (
  command,
  compilation,
  finetune,
  lineage,
  recipe,
  rejection,
  rl,
  scoreboard,
)
from r1jax.stages.run import plain_errors, start


@dataclasses.dataclass(frozen=True)
class ColdStart:
  """R1's first stage: SFT of the base model on R1-Zero's readable outputs."""

  parent: str = 'runs/r1_zero'  # the work directory of r1_zero
  workdir: str = 'runs/cold_start'  # all files of the stage
  seed: int = 0  # everything random follows from it
  data_dir: str | None = None  # of tensorflow-datasets; None is its own default
  shares: tuple[float, float, float, float] = (0.3, 0.15, 0.15, 0.4)  # of all tasks
  rejection: rejection.Config = rejection.Config(problems=320)
  sft: finetune.Epochs = finetune.Epochs(
    epochs=2,  # R1: 2 to 3
    row_length=400,  # a summary may make an output longer than what was sampled
  )
  sft_optim: optim.Config = optim.Config(
    learning_rate=3e-3, muon_learning_rate=0.005, warmup_steps=20, schedule='cosine'
  )
  scoreboard: scoreboard.Config = scoreboard.Config()

  def __post_init__(self) -> None:
    recipe.check_shares(self.shares, recipe.TASKS)

  @property
  def own_seed(self) -> int:
    """The seed of this stage alone."""
    return recipe.own_seed(self.seed, 'cold_start')


def main(config: ColdStart) -> None:
  """Samples, filters, rewrites, learns."""
  compilation.keep_on_disk()
  zero = lineage.load(config.parent, 'r1_zero')
  where = recipe.setting(zero, config.data_dir)
  where.check_length('rejection.max_length', config.rejection.max_length)
  where.check_length('scoreboard.max_length', config.scoreboard.max_length)
  where.check_row('sft.row_length', config.sft.row_length, config.rejection.max_length)
  devices = mesh.fitting(
    [
      config.rejection.prompts_per_batch,
      config.sft.rows_per_step // config.sft.micro_batches,
      config.scoreboard.prompts_per_batch,
    ]
  )
  model = zero.model
  with start(config, phases=('sft',), facts=zero.fact) as run:
    if lineage.finished(run):
      return
    kept = rejection.collect(
      run,
      zero.params(devices),
      rl.problem_order(where.train, config.shares, config.own_seed),
      generator=model.generator(where.max_prompt_length, devices),
      config=config.rejection,
      seed=config.own_seed,
    )
    problems = {problem.id: problem for source in where.train for problem in source}
    examples = [
      (line['question'], rewriting.rewrite(problems[line['problem']], line['output']))
      for line in kept
    ]
    params = recipe.imitate(
      run,
      model,
      zero.params(devices, 'base'),
      examples,
      config=config.sft,
      optimizer=config.sft_optim,
      mesh=devices,
      seed=config.own_seed,
    )
    recipe.finish(
      run,
      'cold_start',
      config,
      model,
      params,
      where=where,
      parents=[zero],
      scores=config.scoreboard,
      mesh=devices,
      seed=config.own_seed,
    )


if __name__ == '__main__':
  with plain_errors():
    main(command.parse(ColdStart()))
