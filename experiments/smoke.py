"""All of R1-Zero's machinery in a minute: nothing is learned, everything is run.

Same code as `experiments.r1_zero` with a tiny model and a handful of steps; for a first
look at a machine, and for tests that kill runs.
"""

from __future__ import (
  annotations,
)  # fields have the names of the modules they configure

import dataclasses

from experiments import r1_zero
from experiments.r1_zero import R1Zero
from r1jax import grpo
from r1jax.model.config import ModelConfig
from r1jax.rewards import Weighted
from r1jax.runtime import cli
from r1jax.runtime.run import user_errors
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Smoke(R1Zero):
  """R1-Zero's machinery in a minute."""

  workdir: str = 'runs/smoke'  # all files of the run; it goes on from what is there
  model: ModelConfig = ModelConfig(
    d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=64
  )
  base: PretrainConfig = PretrainConfig(
    steps=20, rows_per_step=8, micro_batches=2, checkpoint_every=5, log_every=5
  )
  rl: RLConfig = RLConfig(
    steps=12,
    prompts_per_step=4,
    group_size=4,
    max_prompt_length=32,
    max_length=((0, 48),),
    micro_batch_rows=4,
    minibatches=2,
    reference_every=4,
    evaluate_every=6,
    checkpoint_every=2,
  )
  # In batches of the shape of a rollout, so that the sampler is compiled once.
  evaluate: EvalConfig = EvalConfig(problems=8, samples=4, prompts_per_batch=4)
  scoreboard: SuiteConfig = SuiteConfig(
    reasoning=8, general=4, samples=4, prompts_per_batch=4, max_length=48
  )


def rewards(config: R1Zero) -> list[Weighted]:
  """R1-Zero's with the language counted: all that such outputs differ in."""
  return [
    dataclasses.replace(one, weight=1.0) if one.name == 'language' else one
    for one in r1_zero.rewards(config)
  ]


if __name__ == '__main__':
  with user_errors():
    r1_zero.main(cli.parse(Smoke(), presets={'grpo': grpo.PRESETS}), rewards)
