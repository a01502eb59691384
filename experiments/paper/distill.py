"""Six students that learn from R1's outputs, and the RL that the paper held beside it.

Paper: [N], the section on distillation. Examples alone, no RL: 2 to 3 epochs, batch 64,
context 32,768, cosine to a tenth. What it reached: `results.STUDENTS`.
"""

import dataclasses

from experiments.paper import data
from experiments.paper.r1_zero import R1_ZERO
from experiments.paper.stage import SFT, rollouts, sft
from r1jax.optim import OptimConfig


def _student(start: str, peak: float) -> SFT:
  # Examples are about 800k [N]: ours are stage 3's. Of 2 to 3 epochs, 2 as there.
  return sft(start, examples=data.SFT.total, epochs=2, rows=64, peak=peak)


STUDENTS = {
  'Qwen-1.5B': _student('Qwen2.5-Math-1.5B', 1e-4),
  'Qwen-7B': _student('Qwen2.5-Math-7B', 8e-5),
  'Qwen-14B': _student('Qwen2.5-14B', 7e-5),
  'Qwen-32B': _student('Qwen2.5-32B', 6e-5),
  'Llama-8B': _student('Llama-3.1-8B', 5e-5),
  'Llama-70B': _student('Llama-3.3-70B-Instruct', 2e-5),
}

# R1-Zero's recipe straight on a model of 32B [N]; `results` says which of the two wins.
RL_32B = dataclasses.replace(
  R1_ZERO,
  start='Qwen2.5-32B',
  rl=dataclasses.replace(
    R1_ZERO.rl,
    steps=rollouts(10_000),  # 625; the paper says over 10K steps [N]
    optim=OptimConfig(learning_rate=2e-6, warmup_steps=0),  # [N]
  ),
)
