"""Smoke test of the whole R1 pipeline: runs every stage in some minutes.

  python -m experiments.r1_smoke

Runs the code of `experiments.r1` on equations whose solution is 1 or 2, so that a model
which has only learned the format is often right. It learns little else.
"""

import dataclasses
from typing import Any

from experiments import r1
from experiments.cold_start import ColdStart
from experiments.distill import Distill
from experiments.final_rl import FinalRL
from experiments.r1 import R1
from experiments.r1_zero import R1Zero
from experiments.reasoning_rl import ReasoningRL
from experiments.rejection_sft import RejectionSFT
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.model.config import ModelConfig
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.stages import distillation
from r1jax.stages.distillation import Student
from r1jax.stages.experiment import algorithm_presets
from r1jax.stages.rejection import RejectionConfig
from r1jax.tasks.equations import EquationsConfig

MODEL = ModelConfig(d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=64)
STUDENT = ModelConfig(d_model=16, layers=1, heads=1, kv_heads=1, head_dim=16, d_ff=32)
SHARES = (0.0, 1.0, 0.0)  # equations alone
ALL_SHARES = (0.0, 0.6, 0.0, 0.4)  # equations and instructions
SAMPLED = RejectionConfig(problems=16, samples=4, prompts_per_batch=4, max_length=64)
EVALS = EvalConfig(problems=4, samples=4, prompts_per_batch=4)
SUITE = SuiteConfig(
  reasoning=4, general=4, samples=4, prompts_per_batch=4, max_length=64
)


def small(config: Any, **changes: Any) -> Any:
  """Returns a stage's config with the sizes of this experiment.

  Learning rates and other settings stay unchanged.
  """
  replace = dataclasses.replace
  sizes: dict[str, Any] = {
    'base': {
      'steps': 300,
      'rows_per_step': 8,
      'row_length': 128,
      'micro_batches': 1,
      'checkpoint_every': 50,
    },
    'sft': {'epochs': 1, 'row_length': 128, 'micro_batches': 1, 'checkpoint_every': 1},
    'rl': {
      'steps': 4,
      'prompts_per_step': 4,
      'group_size': 4,
      'max_prompt_length': 32,
      'max_length': ((0, 64),),
      'micro_batch_rows': 4,
      'minibatches': 2,
      'evaluate_every': 4,
      'checkpoint_every': 2,
    },
    'preference': {
      'epochs': 1,
      'pairs_per_step': 4,
      'checkpoint_every': 1,
      'log_every': 1,
    },
  }
  fields = {field.name for field in dataclasses.fields(config)}
  parts = {
    name: replace(getattr(config, name), **size)
    for name, size in sizes.items()
    if name in fields
  }
  whole = {'rejection': SAMPLED, 'evals': EVALS, 'suite': SUITE}
  parts |= {name: part for name, part in whole.items() if name in fields}
  return replace(config, **parts, **changes)


@dataclasses.dataclass(frozen=True)
class R1Smoke(R1):
  """The R1 pipeline at smoke-test size."""

  workdir: str = 'runs/r1_smoke'  # a folder for each stage, and the report
  r1_zero: R1Zero = small(
    R1Zero(),
    shares=SHARES,
    tasks=TaskConfigs(equations=EquationsConfig(3, 2, 4)),
    web=CorpusConfig(equations=0.6, arithmetic=0.0, instructions=0.4),
    model=MODEL,
  )
  cold_start: ColdStart = small(ColdStart(), shares=ALL_SHARES)
  reasoning_rl: ReasoningRL = small(ReasoningRL(), shares=SHARES)
  rejection_sft: RejectionSFT = small(RejectionSFT(), shares=SHARES, general=16)
  final_rl: FinalRL = small(FinalRL(), shares=SHARES, general_after=2, judged=16)
  distill_small: Distill = small(
    Distill(),
    shares=ALL_SHARES,
    methods=tuple(distillation.METHODS),
    student=Student(STUDENT),
  )
  distill_tiny: Distill = small(
    Distill(), shares=ALL_SHARES, student=Student(STUDENT, vocab_size=280)
  )


if __name__ == '__main__':
  with user_errors():
    r1.main(cli.parse(R1Smoke(), presets=algorithm_presets(R1Smoke())))
