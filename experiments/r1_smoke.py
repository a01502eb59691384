"""All of R1's machinery in some minutes: hardly anything is learned, everything is run.

Same code as `experiments.r1`, in a world so small that a model which has only learned
the form is often right: equations whose solution is 1 or 2.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
from typing import Any

from experiments import cold_start, distill, final_rl, r1, reasoning_rl, rejection_sft
from experiments.r1 import R1
from experiments.smoke import Smoke
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.miniature.judge import JudgeConfig
from r1jax.model.config import ModelConfig
from r1jax.runtime import cli
from r1jax.runtime.run import user_errors
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.tasks.equations import EquationsConfig

MODEL = ModelConfig(d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=64)
BASE = PretrainConfig(
  steps=300, rows_per_step=8, row_length=128, micro_batches=1, checkpoint_every=50
)
SFT = SFTConfig(epochs=1, row_length=128, micro_batches=1, checkpoint_every=1)
SAMPLED = RejectionConfig(problems=16, samples=4, prompts_per_batch=4, max_length=64)
RL = RLConfig(
  steps=4,
  prompts_per_step=4,
  group_size=4,
  max_prompt_length=32,
  max_length=((0, 64),),
  micro_batch_rows=4,
  minibatches=2,
  evaluate_every=4,
  checkpoint_every=2,
)
EVALUATE = EvalConfig(problems=4, samples=4, prompts_per_batch=4)
SCORES = SuiteConfig(
  reasoning=4, general=4, samples=4, prompts_per_batch=4, max_length=64
)
STUDENT = ModelConfig(d_model=16, layers=1, heads=1, kv_heads=1, head_dim=16, d_ff=32)
LESSON: dict[str, Any] = {
  'shares': (0.0, 0.6, 0.0, 0.4),
  'rejection': SAMPLED,
  'base': BASE,
  'sft': SFT,
  'rl': RL,
  'evaluate': EVALUATE,
  'scoreboard': SCORES,
}
SHARES = (0.0, 1.0, 0.0)  # equations alone
ALL_SHARES = (0.0, 0.6, 0.0, 0.4)  # with instructions


@dataclasses.dataclass(frozen=True)
class R1Smoke(R1):
  """R1's machinery in some minutes."""

  workdir: str = 'runs/r1_smoke'  # a folder for each stage, and the report
  r1_zero: Smoke = Smoke(
    shares=SHARES,
    tasks=TaskConfigs(equations=EquationsConfig(3, 2, 4)),
    web=CorpusConfig(equations=0.6, arithmetic=0.0, instructions=0.4),
    model=MODEL,
    base=BASE,
    rl=RL,
    evaluate=EVALUATE,
    scoreboard=SCORES,
  )
  cold_start: cold_start.ColdStart = cold_start.ColdStart(
    shares=ALL_SHARES, rejection=SAMPLED, sft=SFT, scoreboard=SCORES
  )
  reasoning_rl: reasoning_rl.ReasoningRL = reasoning_rl.ReasoningRL(
    shares=SHARES, rl=RL, evaluate=EVALUATE, scoreboard=SCORES
  )
  rejection_sft: rejection_sft.RejectionSFT = rejection_sft.RejectionSFT(
    shares=SHARES, general=16, rejection=SAMPLED, sft=SFT, scoreboard=SCORES
  )
  final_rl: final_rl.FinalRL = final_rl.FinalRL(
    shares=SHARES,
    general_after=2,
    judged=16,
    judge=JudgeConfig(),
    preference=PreferenceConfig(pairs_per_step=4, checkpoint_every=1, log_every=1),
    rl=dataclasses.replace(RL, temperature=((0, 0.7),)),
    evaluate=EVALUATE,
    scoreboard=SCORES,
  )
  distill_small: distill.Distill = distill.Distill(
    methods=distill.METHODS, student=distill.Student(STUDENT), **LESSON
  )
  distill_tiny: distill.Distill = distill.Distill(
    student=distill.Student(STUDENT, vocab_size=280), **LESSON
  )


if __name__ == '__main__':
  with user_errors():
    r1.main(cli.parse(R1Smoke()))
