"""Distillation: the paper's six students, and RL on a small model for comparison.

Paper: [N], the section on distillation. SFT only, no RL: 2 to 3 epochs, batch 64,
context 32,768, cosine to a tenth. Results: `results.STUDENTS`.
"""

import dataclasses

from experiments.paper import data
from experiments.paper.r1_zero import R1_ZERO
from experiments.paper.stage import SFT, rollouts, sft
from r1jax.optim import OptimConfig


def _student(start: str, peak: float) -> SFT:
  # About 800k examples [N]; ours: stage 3's. 2 to 3 epochs [N]; ours: 2, as in stage 3.
  return sft(start, examples=data.SFT.total, epochs=2, rows=64, peak=peak)


STUDENTS = {
  'Qwen-1.5B': _student('Qwen2.5-Math-1.5B', 1e-4),
  'Qwen-7B': _student('Qwen2.5-Math-7B', 8e-5),
  'Qwen-14B': _student('Qwen2.5-14B', 7e-5),
  'Qwen-32B': _student('Qwen2.5-32B', 6e-5),
  'Llama-8B': _student('Llama-3.1-8B', 5e-5),
  'Llama-70B': _student('Llama-3.3-70B-Instruct', 2e-5),
}

# R1-Zero's recipe on a 32B model [N]; compare `results.RL_32B` with its student.
RL_32B = dataclasses.replace(
  R1_ZERO,
  start='Qwen2.5-32B',
  rl=dataclasses.replace(
    R1_ZERO.rl,
    steps=rollouts(10_000),  # 625; the paper says over 10K steps [N]
    optim=OptimConfig(learning_rate=2e-6, warmup_steps=0),  # [N]
  ),
)
