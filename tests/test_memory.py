"""Memory of a step of RL besides its state, in multiples of the parameters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.planner import programs
from r1jax.planner.programs import PlannedRun
from r1jax.rollout.sample_program import SampleProgram
from r1jax.runtime import checkpoint, compilation
from r1jax.runtime.checkpoint import Checkpoints
from r1jax.sampling import generate
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import REPLICATED, make_mesh
from r1jax.stages.rl_config import RLConfig

# Weights are nearly all of what there is: 32 tokens in 10 layers of 0.8 million.
MODEL = ModelConfig(
  d_model=256, layers=10, heads=4, kv_heads=4, head_dim=64, d_ff=768, remat='full'
)
STAGE = RLConfig(
  prompts_per_step=2,
  group_size=2,
  max_prompt_length=8,
  max_length=((0, 8),),
  minibatches=1,
  micro_batch_rows=1,
)


@pytest.fixture(scope='module')
def phases():
  work = PlannedRun(MODEL, 64, STAGE, REPLICATED, 'float32')
  found = programs.phases(work, jax.devices()[:1])
  return {phase.name: phase for phase in found if phase.name in ('score', 'update')}


@pytest.fixture(scope='module')
def gradient():
  stage = dataclasses.replace(STAGE, offload=True)
  work = PlannedRun(MODEL, 64, stage, REPLICATED, 'float32')
  found = programs.phases(work, jax.devices()[:1])
  return next(phase for phase in found if phase.name == 'gradient')


def times_the_parameters(phase):
  memory = phase.program.lower(*phase.args).compile().memory_analysis()
  params = phase.arguments['reference' if phase.name == 'score' else 'policy']
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return (memory.temp_size_in_bytes + new) / size


def test_a_gradient_is_summed_without_a_second_tree(gradient):
  # 1.0 is the sum. With a micro-batch's gradient beside it, it was 2.2.
  assert times_the_parameters(gradient) < 1.4


def test_an_update_holds_the_sum_and_the_clipped_gradient(phases):
  # With separate gradients of prompts and outputs it was 3.1.
  assert times_the_parameters(phases['update']) < 2.3


def test_an_update_of_a_large_model_clips_without_a_second_tree(monkeypatch):
  monkeypatch.setattr(compilation, 'LARGE_WEIGHTS', 0)
  work = PlannedRun(MODEL, 64, STAGE, REPLICATED, 'float32')
  found = programs.phases(work, jax.devices()[:1])
  assert times_the_parameters(next(p for p in found if p.name == 'update')) < 1.8


def test_all_loops_of_a_sampler_read_one_copy_of_the_weights():
  functions = decoder.functions(MODEL, 64)
  model = DecoderFns(*functions)
  params = decoder.shapes(MODEL, 64)
  sample = functools.partial(
    generate.sample,
    model=model,
    config=SamplingConfig(),
    group_size=24,
    max_length=8,
    stop_ids=(0,),
  )
  rows = jax.ShapeDtypeStruct((2, 8), jnp.int32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  mask = jax.ShapeDtypeStruct(rows.shape, bool)
  program = jax.jit(sample, compiler_options=compilation.options())
  memory: Any = program.lower(params, keys, rows, mask).compile().memory_analysis()
  size = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
  # 1.0 is the copy in decoding's layout; with one for each of two loops it was 2.4.
  assert memory.temp_size_in_bytes / size < 1.5


def test_products_of_bfloat16_layers_are_kept_in_bfloat16():
  def kept(dtype):
    config = dataclasses.replace(MODEL, remat='dots', dtype=dtype)
    stage = dataclasses.replace(STAGE, max_length=((0, 256),), offload=True)
    work = PlannedRun(config, 64, stage, REPLICATED, 'float32')
    found = programs.phases(work, jax.devices()[:1])
    phase = next(phase for phase in found if phase.name == 'gradient')
    return times_the_parameters(phase) - 1  # besides the sum

  # Rows of 256 tokens keep 0.9 of the parameters in float32, and half in bfloat16.
  assert kept('bfloat16') < 0.75 * kept('float32')


def test_scores_need_no_copy_of_the_parameters(phases):
  assert times_the_parameters(phases['score']) < 0.2


def test_a_large_checkpoint_is_written_before_save_returns(tmp_path, monkeypatch):
  tree = {'w': jnp.arange(6.0)}
  expected = np.arange(6.0, dtype=np.float32)
  for limit, copies in ((0, 0), (checkpoint.COPIED, 1)):
    made: list[jax.Array] = []
    monkeypatch.setattr(checkpoint, 'COPIED', limit)
    monkeypatch.setattr(
      checkpoint.jnp, 'copy', lambda x, made=made: made.append(x) or jnp.array(x)
    )
    saved = Checkpoints(tmp_path / str(limit))
    saved.save(1, tree, {})
    assert len(made) == copies
    if not copies:
      assert any((tmp_path / str(limit) / '1').iterdir())
    saved.wait()
    np.testing.assert_array_equal(saved.restore(tree)['w'], expected)


def test_large_weights_are_sampled_from_by_one_program():
  model: Any = None  # unused here
  program = SampleProgram(model, (), make_mesh(jax.devices()[:1]), REPLICATED, model)
  large = jax.ShapeDtypeStruct((compilation.LARGE_WEIGHTS // 4 + 1,), jnp.float32)
  assert program.parallel_parts(4, {'w': large}) == 1
