"""Programs that are compiled while the first outputs are sampled."""

import jax
import numpy as np
import pytest
import stages

from r1jax.grpo import GRPOConfig
from r1jax.model.lora import LoraConfig
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.stages import rl_state
from r1jax.stages.compile_ahead import compile_ahead
from r1jax.stages.rl_config import RLConfig

SIZES = {
  'prompts_per_step': 4,
  'group_size': 2,
  'max_prompt_length': 24,
  'max_length': ((0, 8), (1, 12)),
  'micro_batch_rows': 4,
  'optim': stages.OPTIM,
}
ADAPTERS = Policy(stages.STUDENT, stages.TOKENIZER, 'plain', 288, LoraConfig(rank=2))


@pytest.fixture
def compiled():
  """Names of the functions that were compiled."""
  names: list[str] = []

  def note(event: str, duration_secs: float, **details: str | int) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      names.append(str(details['fun_name']))

  jax.monitoring.register_event_duration_secs_listener(note)
  yield names
  jax.monitoring.unregister_event_duration_listener(note)


BOTH = ['jit(score)', 'jit(step)']


@pytest.mark.parametrize(
  ('fields', 'policy', 'layout', 'lengths', 'expected'),
  [
    ({}, stages.POLICY, MeshConfig(), (8, 12), BOTH),
    ({'minibatches': 2, 'int8_rollout': True}, stages.POLICY, MeshConfig(), (8,), BOTH),
    ({'offload': True}, stages.POLICY, MeshConfig(), (8,), BOTH[:1]),
    ({'grpo': GRPOConfig(kl_coef=0.0)}, ADAPTERS, MeshConfig(), (8,), BOTH[1:]),
    ({}, stages.POLICY, MeshConfig(data=2, fsdp=2), (8,), BOTH),
  ],
  ids=['two lengths', 'minibatches and int8', 'offload', 'LoRA without KL', 'mesh'],
)
def test_a_step_compiles_nothing_that_was_compiled_ahead(
  fields, policy, layout, lengths, expected, compiled
):
  mesh = make_mesh(jax.devices()[: 4 if layout.fsdp > 1 else 1], layout)
  config = RLConfig(**SIZES | fields)
  learner, start = rl_state.learner_of(
    policy, mesh, config, lambda: stages.put(policy, mesh), seed=0
  )
  saved = rl_state.start(learner, start())
  state = saved['policy']
  sampler = Sampler(policy, 24, mesh)
  for length in lengths:
    del compiled[:]
    compile_ahead(learner, state, saved['reference'], 24, length)
    assert [name for name in compiled if name in BOTH] == expected
    rollout = sampler.sample(
      learner.for_sampling(state.params),
      jax.random.key(1),
      stages.PROBLEMS[:4],
      group_size=2,
      max_length=length,
      draw=SamplingConfig(),
    )
    del compiled[:]
    compile_ahead(learner, state, saved['reference'], 24, length)
    scores = learner.score(state.params, saved['reference'], rollout, 1.0)
    advantage = np.asarray([[1, -1]] * 4, np.float32)
    learned = learner.update(
      state, rollout, advantage, scores, jax.random.key(2), temperature=1.0
    )
    state = learned.state
    assert learned.metrics['grad_norm'] > 0
    assert not set(compiled) & set(BOTH)
