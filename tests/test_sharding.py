"""One step of GRPO on meshes of eight devices, compared with one device."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import machines
import numpy as np
import pytest

from r1jax import grpo
from r1jax.model.config import Experts, Latent, ModelConfig, Rope, Sliding
from r1jax.optim import OptimConfig
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import checkpoint
from r1jax.runtime.digest import digest_of
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import named_sharding
from r1jax.stages import rl_state
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer

QWEN = ModelConfig(
  d_model=64, layers=2, heads=4, kv_heads=2, head_dim=16, d_ff=96, qk_norm=True
)
DEEPSEEK = ModelConfig(
  d_model=64,
  layers=2,
  heads=4,
  kv_heads=4,
  head_dim=16,
  d_ff=96,
  tied=False,
  latent=Latent(kv_rank=24, q_rank=32, rope_dim=8, value_dim=12),
  experts=Experts(
    count=8,
    active=2,
    d_ff=32,
    shared=1,
    dense_layers=1,
    scores='sigmoid',
    groups=4,
    active_groups=2,
    scale=2.5,
  ),
)
# All that differs between layers, and norms of all heads together.
PATTERNED = dataclasses.replace(
  QWEN,
  rope=Rope(without=(1,)),
  sliding=Sliding(7, full=(1,), theta=100.0),
  norms='both',
  stored_minus_1=True,
  qk_norm=False,
  qk_norm_joint=True,
  scaled_embedding=True,
)
MODELS = {'qwen': QWEN, 'deepseek': DEEPSEEK, 'patterned': PATTERNED}
MESHES = {
  'fsdp 8': {'fsdp': 8},
  'fsdp 4 tensor 2': {'fsdp': 4, 'tensor': 2},
  'expert 4 fsdp 2': {'expert': 4, 'fsdp': 2, 'sampler_gathers': True},
  'fsdp 4 tensor 2 in slots': {
    'fsdp': 4,
    'tensor': 2,
    'sampler_tensor': 2,
    'sampler_slots': 2,
  },
  'context 2 fsdp 4': {'context': 2, 'fsdp': 4},
  'expert 2 context 2 tensor 2': {'expert': 2, 'context': 2, 'tensor': 2},
  'data 2 expert 2 context 2': {
    'data': 2,
    'expert': 2,
    'context': 2,
    'sampler_tensor': 2,
    'sampler_expert': 2,
  },
}
CORPUS = [f'make {n} from 3 5 2: 3+5={n} <think>x</think>' for n in range(40)]
TOKENIZER = Tokenizer.train(CORPUS, 320)
POLICY = Policy(QWEN, TOKENIZER, 'plain', 288)
PROBLEMS = [Problem(str(n), 'countdown', f'make {n} from 3 5 2', {}) for n in range(8)]
CONFIG = RLConfig(
  prompts_per_step=8,
  group_size=4,
  max_prompt_length=32,
  max_length=((0, 32),),
  minibatches=1,
  micro_batch_rows=16,
  optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-3),
)


@functools.cache
def step(model_name, mesh_name):
  """Rollout, and what one device's rollout gives: scores, metrics, the state after."""
  sizes: dict[str, Any] = MESHES.get(mesh_name, {})
  layout = MeshConfig(**sizes)
  devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
  mesh = make_mesh(devices, layout)
  policy = Policy(MODELS[model_name], TOKENIZER, 'plain', 288)
  sampler = Sampler(policy, CONFIG.max_prompt_length, mesh, layout)
  learner = Learner(policy.functions, mesh, CONFIG)
  before = rl_state.start(learner, policy.init(mesh, 0))
  state, reference = before['policy'], before['reference']
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  key = jax.random.key(1)
  rollout = sampler.sample(
    learner.for_sampling(state.params),
    key,
    PROBLEMS,
    group_size=CONFIG.group_size,
    max_length=32,
    draw=SamplingConfig(1.0),
  )
  learned = step(model_name, 'one')[0] if mesh_name in MESHES else rollout
  reward = (learned.tokens.sum(-1) % 7).astype(np.float32)
  scores = learner.score(state.params, reference, learned, 1.0)
  advantage = learner.advantage(grpo.outcomes(reward))
  updated = learner.update(state, learned, advantage, scores, key, 1.0)
  assert jax.tree.map(lambda leaf: leaf.sharding, updated.state) == shardings
  return rollout, scores, updated.metrics, jax.device_get(updated.state)


@pytest.mark.parametrize(
  ('model_name', 'mesh_name'),
  [
    ('qwen', 'fsdp 8'),
    ('qwen', 'fsdp 4 tensor 2'),
    ('qwen', 'fsdp 4 tensor 2 in slots'),
    ('qwen', 'context 2 fsdp 4'),
    ('patterned', 'expert 2 context 2 tensor 2'),
    ('deepseek', 'data 2 expert 2 context 2'),
    ('deepseek', 'expert 4 fsdp 2'),
    ('deepseek', 'expert 2 context 2 tensor 2'),
  ],
)
def test_a_step_on_a_mesh_equals_a_step_on_one_device(model_name, mesh_name):
  expected, expected_scores, numbers, after = step(model_name, 'one')
  found, scores, metrics, state = step(model_name, mesh_name)
  same = found.tokens == expected.tokens
  # Sums of probabilities in another order: where two neighbours of the vocabulary meet,
  # a draw may be either, and its output goes on from there.
  other = [
    (*row, same[row].argmin()) for row in zip(*np.where(~same.all(-1)), strict=True)
  ]
  assert len(other) <= 1
  assert all(abs(int(found.tokens[at]) - expected.tokens[at]) == 1 for at in other)
  same = same.cumprod(-1).astype(bool)
  np.testing.assert_allclose(found.logp[same], expected.logp[same], rtol=0, atol=1e-5)
  ref_logp = expected_scores.ref_logp
  np.testing.assert_allclose(scores.ref_logp, ref_logp, rtol=0, atol=1e-5)
  assert numbers.keys() == metrics.keys()
  for name in ('loss', 'grad_norm', 'kl', 'entropy'):
    assert metrics[name] == pytest.approx(numbers[name], rel=1e-5, abs=1e-5), name
  assert metrics.get('expert_load') == numbers.get('expert_load')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5),
    state.params,
    after.params,
  )


@pytest.mark.parametrize('devices', [1, 2, 4, 8])
def test_a_checkpoint_is_restored_bit_for_bit_on_other_devices(devices, tmp_path):
  def state(devices, layout):
    mesh = make_mesh(jax.devices()[:devices], layout)
    learner = Learner(POLICY.functions, mesh, CONFIG)
    return rl_state.start(learner, POLICY.init(mesh, 0))

  before = state(8, MeshConfig(fsdp=4, tensor=2))
  before['policy'].params['embedding'] += 1
  saved = checkpoint.Checkpoints(tmp_path / 'a')
  saved.save(3, before, {})
  saved.wait()
  fresh = state(devices, MeshConfig(fsdp=devices))
  found, step = checkpoint.Checkpoints(tmp_path / 'a').resume(fresh)
  assert step == 3
  shardings = [leaf.sharding for leaf in jax.tree.leaves(fresh)]
  assert [leaf.sharding for leaf in jax.tree.leaves(found)] == shardings
  jax.tree.map(np.testing.assert_array_equal, found, before)


def test_a_checkpoint_of_eight_devices_is_read_by_sixteen(tmp_path):
  place = make_mesh(config=MeshConfig(fsdp=4, tensor=2))
  state = {'w': jax.random.normal(jax.random.key(0), (32, 48)), 'n': jax.numpy.int32(7)}
  state['w'] = jax.device_put(state['w'], named_sharding(place, 'embed', 'mlp'))
  saved = checkpoint.Checkpoints(tmp_path / 'a')
  saved.save(3, state, {})
  saved.wait()
  script = """
    import pathlib, sys
    import jax
    from r1jax.runtime import checkpoint
    from r1jax.sharding.mesh import MeshConfig, make_mesh
    from r1jax.sharding.rules import named_sharding
    place = named_sharding(make_mesh(config=MeshConfig(fsdp=16)), 'embed', None)
    like = {
      'w': jax.ShapeDtypeStruct((32, 48), 'float32', sharding=place),
      'n': jax.ShapeDtypeStruct((), 'int32'),
    }
    found, step = checkpoint.Checkpoints(pathlib.Path(sys.argv[1])).resume(like)
    assert len(found['w'].addressable_shards) == 16
    assert found['w'].addressable_shards[0].data.shape == (2, 48)
    print(step, checkpoint.digest_of(found))
  """
  command = [sys.executable, '-c', textwrap.dedent(script), str(tmp_path / 'a')]
  flags = machines.cpus(16)
  done = subprocess.run(
    command, capture_output=True, text=True, env={**os.environ, 'XLA_FLAGS': flags}
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ['3', digest_of(state)]
