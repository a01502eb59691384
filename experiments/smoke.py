"""Smoke test of R1-Zero: runs every part in a minute, learns nothing.

  python -m experiments.smoke

Runs the code of `experiments.r1_zero` with a tiny model and a handful of steps, as a
first check of a machine and in tests that kill runs.
"""

import dataclasses

from experiments.r1_zero import R1_ZERO, R1Zero
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.model.config import ModelConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import PretrainConfig


@dataclasses.dataclass(frozen=True)
class Smoke(R1Zero):
  """R1-Zero at smoke-test size."""

  workdir: str = 'runs/smoke'  # all files of the run; an unfinished run in it resumes
  language_weight: float = 1.0  # such outputs differ in their language only
  model: ModelConfig = ModelConfig(
    d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=64
  )
  base: PretrainConfig = PretrainConfig(
    steps=20,
    rows_per_step=8,
    micro_batches=2,
    checkpoint_every=5,
    log_every=5,
    optim=R1Zero.base.optim,
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
    optim=R1Zero.rl.optim,
    grpo=R1Zero.rl.grpo,
  )
  # Batches have the shape of a rollout, so that the sampler compiles once.
  evals: EvalConfig = EvalConfig(problems=8, samples=4, prompts_per_batch=4)
  suite: SuiteConfig = SuiteConfig(
    reasoning=8, general=4, samples=4, prompts_per_batch=4, max_length=48
  )


if __name__ == '__main__':
  R1_ZERO.main(Smoke())
