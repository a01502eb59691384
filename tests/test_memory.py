"""Memory of a step of RL besides its state, in multiples of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.config import ModelConfig
from r1jax.planner import programs
from r1jax.planner.programs import PlannedRun
from r1jax.rollout.sample_program import LARGE_WEIGHTS, SampleProgram
from r1jax.runtime import checkpoint
from r1jax.runtime.checkpoint import Checkpoints
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


def times_the_parameters(phase):
  memory = phase.program.lower(*phase.args).compile().memory_analysis()
  params = phase.arguments['policy' if phase.name == 'update' else 'reference']
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return (memory.temp_size_in_bytes + new) / size


def test_an_update_holds_the_sum_and_the_gradient_of_one_micro_batch(phases):
  # With separate gradients of prompts and outputs it was 3.1.
  assert times_the_parameters(phases['update']) < 2.3


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
  large = jax.ShapeDtypeStruct((LARGE_WEIGHTS // 4 + 1,), jnp.float32)

  class Sized:
    nbytes = large.size * large.dtype.itemsize

  assert program.parallel_parts(4, {'w': Sized()}) == 1
