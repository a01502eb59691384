"""Models and rollouts that benchmarks measure, with their FLOPs and bytes."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Shape(NamedTuple):
  """A model and a rollout."""

  vocabulary: int
  d_model: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  d_ff: int
  prompts: int
  group_size: int
  prompt_length: int
  length: int
  micro_batch_rows: int
  dtype: Literal['float32', 'bfloat16'] = 'float32'


SHAPES = {
  'mini': Shape(64, 128, 4, 4, 2, 32, 512, 16, 8, 32, 128, 16),
  'small': Shape(4096, 512, 8, 8, 4, 64, 1536, 4, 8, 32, 128, 16),
  'r1_zero': Shape(400, 96, 3, 3, 1, 32, 256, 16, 16, 32, 320, 16),
  'qwen2.5-0.5b': Shape(151_936, 896, 24, 14, 2, 64, 4864, 8, 16, 128, 512, 16),
  'qwen2.5-1.5b': Shape(151_936, 1536, 28, 12, 2, 128, 8960, 8, 16, 128, 512, 16),
}
HERE = ('mini', 'small', 'r1_zero')  # what a laptop does in minutes


def flops(shape: Shape, attention: bool = True) -> dict[str, float]:
  """Floating-point operations of the model by phase, with each prompt computed once.

  A product counts 2 for each multiply-add, attention its causal triangle, the head the
  sampled tokens alone, a gradient twice the forward pass. Recomputed layers count once.
  Without `attention`, the weights' products are left.
  """
  s = shape
  body = s.d_model * s.head_dim * (2 * s.heads + 2 * s.kv_heads)
  body = 2 * s.layers * (body + 3 * s.d_model * s.d_ff)
  head = 2 * s.d_model * s.vocabulary
  # A query and a key, scores and values.
  pair = 4 * s.heads * s.head_dim * s.layers if attention else 0

  def triangle(n: int) -> float:
    return pair * n * (n + 1) / 2

  prompt = s.prompts * (body * s.prompt_length + triangle(s.prompt_length))
  outputs = s.prompts * s.group_size
  read = s.length - 1  # the last token is never read
  attended = triangle(s.prompt_length + read) - triangle(s.prompt_length)
  forward = prompt + outputs * (body * read + head * s.length + attended)
  return {'rollout': forward, 'reference': forward, 'update': 3 * forward}


def rollout_bytes(shape: Shape) -> float:
  """What decoding has to read: at each step all weights and what the cache holds."""
  s = shape
  body = s.d_model * s.head_dim * (2 * s.heads + 2 * s.kv_heads)
  weights = s.layers * (body + 3 * s.d_model * s.d_ff) + s.vocabulary * s.d_model
  # A prompt's keys and values once for its group; half of an output's on average.
  cached = s.prompts * (s.prompt_length + s.group_size * s.length / 2)
  cache = 2 * s.layers * s.kv_heads * s.head_dim * cached
  return s.length * (weights + cache) * (2 if s.dtype == 'bfloat16' else 4)
