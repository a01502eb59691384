"""The benchmark's counts of operations and bytes, compared with counting one by one."""

import jax
import numpy as np
import pytest

from scripts import iteration, shapes
from scripts.shapes import Shape

TINY = Shape(
  vocabulary=7,
  d_model=6,
  layers=2,
  heads=3,
  kv_heads=1,
  head_dim=4,
  d_ff=5,
  prompts=2,
  group_size=3,
  prompt_length=4,
  length=5,
  micro_batch_rows=2,
)


def count(shape, attention):
  """Multiply-adds of one forward pass, a position, a layer and a key at a time."""
  total = 0
  heads = shape.heads * shape.head_dim
  kv_heads = shape.kv_heads * shape.head_dim
  for _ in range(shape.prompts):
    # A prompt once; of each output all but the last token, which is never read.
    rows = [range(shape.prompt_length)] + [
      range(shape.prompt_length, shape.prompt_length + shape.length - 1)
    ] * shape.group_size
    for row in rows:
      for position in row:
        for _ in range(shape.layers):
          total += shape.d_model * (heads + 2 * kv_heads) + heads * shape.d_model
          total += 3 * shape.d_model * shape.d_ff
          if attention:
            total += 2 * heads * (position + 1)
    total += shape.group_size * shape.length * shape.d_model * shape.vocabulary
  return total


@pytest.mark.parametrize('attention', [True, False])
def test_a_multiply_add_counts_as_two_operations(attention):
  work = shapes.flops(TINY, attention)
  forward = 2 * count(TINY, attention)
  assert work == {'rollout': forward, 'reference': forward, 'update': 3 * forward}


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
def test_decoding_reads_all_weights_and_the_cache_at_every_step(dtype, size):
  # query 6x12, key and value 6x4, out 12x6, three of 6x5; two layers; the head 7x6
  weights = 2 * (72 + 2 * 24 + 72 + 90) + 42
  # two layers, keys and values of 4 channels: 4 of a prompt, 2.5 of each output
  cache = 2 * 2 * 4 * 2 * (4 + 3 * 2.5)
  assert (
    shapes.rollout_bytes(TINY._replace(dtype=dtype)) == 5 * (weights + cache) * size
  )


def test_an_iteration_runs_the_programs_of_the_stage():
  stage, before = iteration.of_shape(TINY)
  old = jax.device_get(before['policy'].params)
  state, seconds = iteration.iterate(
    TINY, stage, before['reference'], before['policy'], 1
  )
  assert seconds.keys() == {'rollout', 'reference', 'update'}
  assert int(state.step) == 1
  assert (np.asarray(state.params['embedding']) != old['embedding']).any()


def test_an_update_of_adapters_computes_no_gradient_of_the_weights():
  # inputs and outputs: query 6+12, key and value 6+4, out 12+6, three of 6+5
  ends = 18 + 2 * 10 + 18 + 3 * 11
  tokens = 2 * 4 + 2 * 3 * 4  # the prompts', and all but the last of each output
  adapters = 2 * 2 * 2 * ends * tokens  # operations, layers, rank
  products = 2 * count(TINY, attention=False)
  attention = 2 * count(TINY, attention=True) - products
  work = shapes.flops(TINY._replace(lora_rank=2))
  assert work['rollout'] == work['reference'] == products + attention
  assert work['update'] == 2 * products + 3 * attention + 3 * adapters
