"""Models and rollouts that benchmarks measure, with their FLOPs and bytes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from r1jax.model.config import ModelConfig


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
  lora_rank: int = 0  # of adapters for the layers' matrices; 0: all weights are trained


SHAPES = {
  'mini': Shape(64, 128, 4, 4, 2, 32, 512, 16, 8, 32, 128, 16),
  'small': Shape(4096, 512, 8, 8, 4, 64, 1536, 4, 8, 32, 128, 16),
  'r1_zero': Shape(400, 96, 3, 3, 1, 32, 256, 16, 16, 32, 320, 16),
  'qwen2.5-0.5b': Shape(151_936, 896, 24, 14, 2, 64, 4864, 8, 16, 128, 512, 16),
  'qwen2.5-1.5b': Shape(151_936, 1536, 28, 12, 2, 128, 8960, 8, 16, 128, 512, 16),
}
HERE = ('mini', 'small', 'r1_zero')  # what a laptop does in minutes


def of_model(config: ModelConfig, vocabulary: int, lora_rank: int = 0) -> Shape:
  """Returns a model's shape, with 4 prompts of 32 tokens and 8 outputs of 128 of each.

  Args:
    config: of the model.
    vocabulary: rows of its embedding.
    lora_rank: of its adapters; 0 is none.

  Raises:
    ValueError: the model has experts or latent attention, whose FLOPs `flops` does not
      count.
  """
  parts = {'experts': config.experts.count, 'latent attention': config.latent.kv_rank}
  if uncounted := [name for name, size in parts.items() if size]:
    raise ValueError(
      'model: expected a decoder with grouped-query attention and one SwiGLU a layer, '
      f'whose FLOPs are counted, got one with {" and ".join(uncounted)}'
    )
  return Shape(
    vocabulary,
    config.d_model,
    config.layers,
    config.heads,
    config.kv_heads,
    config.head_dim,
    config.d_ff,
    prompts=4,
    group_size=8,
    prompt_length=32,
    length=128,
    micro_batch_rows=8,
    dtype=config.dtype,
    lora_rank=lora_rank,
  )


def _matrices(shape: Shape) -> list[tuple[int, int]]:
  """Inputs and outputs of a layer's weight matrices."""
  d, f = shape.d_model, shape.d_ff
  heads, kv_heads = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
  attention = [(d, heads), (d, kv_heads), (d, kv_heads), (heads, d)]
  return [*attention, (d, f), (d, f), (f, d)]


def flops(shape: Shape, attention: bool = True) -> dict[str, float]:
  """Floating-point operations of the model by phase, with each prompt computed once.

  A product counts 2 for each multiply-add, attention its causal triangle, the head the
  sampled tokens alone, a gradient twice the forward pass. Recomputed layers count once.
  Without `attention`, the weights' products are left. With adapters, the gradient of a
  product with weights counts once, as they have none, and the adapters' own products
  count in the update, as a rollout may merge them and the reference has none.
  """
  s = shape
  body = 2 * s.layers * sum(inputs * outputs for inputs, outputs in _matrices(s))
  head = 2 * s.d_model * s.vocabulary
  # A query and a key, scores and values.
  pair = 4 * s.heads * s.head_dim * s.layers if attention else 0

  def triangle(n: int) -> float:
    return pair * n * (n + 1) / 2

  outputs = s.prompts * s.group_size
  read = s.length - 1  # the last token is never read
  tokens = s.prompts * s.prompt_length + outputs * read
  products = body * tokens + head * outputs * s.length
  prompt = triangle(s.prompt_length)
  attended = s.prompts * prompt + outputs * (triangle(s.prompt_length + read) - prompt)
  forward = products + attended
  update = 3 * forward
  if s.lora_rank:
    ends = sum(inputs + outputs for inputs, outputs in _matrices(s))
    adapters = 2 * s.layers * s.lora_rank * ends * tokens
    update = 2 * products + 3 * (attended + adapters)
  return {'rollout': forward, 'reference': forward, 'update': update}


def rollout_bytes(shape: Shape) -> float:
  """What decoding has to read: at each step all weights and what the cache holds."""
  s = shape
  body = sum(inputs * outputs for inputs, outputs in _matrices(s))
  weights = s.layers * body + s.vocabulary * s.d_model
  # A prompt's keys and values once for its group; half of an output's on average.
  cached = s.prompts * (s.prompt_length + s.group_size * s.length / 2)
  cache = 2 * s.layers * s.kv_heads * s.head_dim * cached
  return s.length * (weights + cache) * (2 if s.dtype == 'bfloat16' else 4)
