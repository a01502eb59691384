"""A stage at work: what base models read, and a student's own outputs as rows."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import cold_start, r1_zero, reasoning_rl
from r1jax import grpo
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import MeshError
from r1jax.stages import rl, stage, supervised
from r1jax.stages.fit import fit_stage_mesh
from r1jax.stages.policy import Policy
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer


def at_work(model, seed):
  """Work without a run, which these tests do not reach."""
  run: Any = None
  where = Problems([], [], 32, 352)
  return Stage(run, model, where, make_mesh(jax.devices()[:1]), seed)


def test_rewards_that_all_weigh_nothing_are_refused():
  config = reasoning_rl.ReasoningRL(accuracy_weight=0.0, language_weight=0.0)
  rewards = reasoning_rl.rewards(config)
  with pytest.raises(ValueError, match='rewards: expected one with a weight other'):
    reward_pool(RLConfig(), rewards)
  reward_pool(RLConfig(), rewards, preference_weight=0.5)  # is added to them


def test_on_policy_rows_hold_what_the_model_said_and_no_padding(monkeypatch):
  class Written:
    """Stands in for a Generator: 7 says 70 71, 8 says 80 81, ... by its number."""

    def __init__(self):
      self.asked = []

    def __call__(self, params, key, problems, *, group_size, max_length, draw):
      assert (params, group_size, max_length) == ('params', 1, 6)
      assert (draw.temperature, draw.top_p) == (1, 1)  # the policy itself
      numbers = np.array([int(problem.id) for problem in problems])
      self.asked.append((numbers.tolist(), tuple(jax.random.key_data(key).tolist())))
      lengths = 2 + numbers % 3
      said = np.arange(6)
      return SimpleNamespace(
        rows=np.arange(len(numbers)),
        own=np.ones(len(numbers), bool),
        prompts=np.stack([0 * numbers, numbers, numbers], axis=1),
        prompt_mask=np.array([[False, True, True]] * len(numbers)),
        tokens=np.where(
          said < lengths[:, None], 10 * numbers[:, None] + said, 0
        )[:, None],
        lengths=lengths[:, None],
      )  # fmt: skip

  generator: Any = Written()
  config = SFTConfig(epochs=9, rows_per_step=2, row_length=12, micro_batches=1)
  monkeypatch.setattr(Stage, 'generator', generator)
  batch = at_work(model=None, seed=1).own_outputs(
    lambda index: Problem(str(7 + index), 'countdown', '', {}),
    prompts=4,
    config=config,
    max_length=6,
  )
  first, second = batch(1, 'params'), batch(2, 'params')
  assert [numbers for numbers, _ in generator.asked] == [
    [7, 8, 9, 10],
    [11, 12, 13, 14],
  ]
  assert len({key for _, key in generator.asked}) == 2
  found: Any = first
  # 7, 8, 9 and 10 say 3, 4, 2 and 3 tokens: with their prompts of 2 that is 20 of 24.
  learned = found.tokens[found.weights == 1]
  assert sorted(learned) == [70, 71, 72, 80, 81, 82, 83, 90, 91, 100, 101, 102]
  assert sorted(found.tokens[(found.weights == 0) & (found.documents > 0)]) == [
    *(7, 7, 8, 8, 9, 9, 10, 10),
  ]
  assert second.tokens.shape == (2, 12)
  # Outputs that fill more rows than those of a step are all there, in twice as many.
  narrow = at_work(model=None, seed=1).own_outputs(
    lambda index: Problem(str(7 + index), 'countdown', '', {}),
    prompts=4,
    config=dataclasses.replace(config, rows_per_step=1),
    max_length=6,
  )
  more: Any = narrow(1, 'params')
  assert more.tokens.shape == (2, 12)
  assert sorted(more.tokens[more.weights == 1]) == sorted(learned)
  # Asked out of order, as after a kill: the same.
  again: Any = batch(1, 'params')
  np.testing.assert_array_equal(again.tokens, found.tokens)


@pytest.mark.parametrize('name', grpo.PRESETS)
def test_a_run_says_what_its_preset_leaves_out_of_an_algorithm(monkeypatch, name):
  said: list[str] = []
  monkeypatch.setattr(Stage, 'generator', None)
  monkeypatch.setattr(rl, 'train', lambda *_, **how: None)
  model: Any = SimpleNamespace(matrices=None, lora=LoraConfig())
  job = at_work(model, seed=0)
  run: Any = SimpleNamespace(progress=SimpleNamespace(say=said.append))
  config = dataclasses.replace(r1_zero.R1Zero(), grpo=grpo.PRESETS[name])
  nothing: Any = None
  dataclasses.replace(job, run=run).reinforce(nothing, nothing, nothing, config)
  told = name in grpo.PUBLISHED
  assert said == ([f'The algorithm is {grpo.PUBLISHED[name]}.'] if told else [])


def test_no_document_is_read_twice_and_a_step_reads_its_own(monkeypatch):
  tokenizer = Tokenizer.train(['a'], 262)
  config = ModelConfig(d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16)
  model = Policy(config, tokenizer, 'plain')
  read: list[int] = []

  def document(index):
    read.append(index)
    return 'q', f'<think></think><answer>{index}</answer>'

  def train(run, phase, params, *, batch, steps, **how):
    del run, params, how
    assert (phase, steps) == ('base', 2)
    return [batch(step, None) for step in (1, 2)]

  monkeypatch.setattr(supervised, 'train', train)
  batches = at_work(model, seed=0).pretrain(
    document,
    PretrainConfig(steps=2, rows_per_step=2, row_length=64, micro_batches=1),
    r1_zero.R1Zero().base_optim,
  )
  assert len(set(read)) == len(read)
  for step, batch in enumerate(batches, start=1):
    own = [index for index in read if index // stage.STEP_DOCUMENTS == step]
    assert own == list(range(own[0], own[0] + len(own)))
    assert own[0] == step * stage.STEP_DOCUMENTS
    shown = tokenizer.decode(batch.tokens[0])
    assert shown.startswith(f'User: q\nAssistant: <think></think><answer>{own[0]}<')


@pytest.mark.parametrize(
  ('fields', 'layout', 'expected'),
  [
    ({}, {'fsdp': 4}, 'sft.rows_per_step / .* of 4, .* got 2; the next is 4'),
    ({'row_length': 36}, {'context': 8}, 'sft.row_length: .* got 36; the next is 40'),
  ],
)
def test_rows_that_cannot_be_cut_are_named_with_the_next_size(fields, layout, expected):
  config = cold_start.ColdStart(sft=SFTConfig(**fields), mesh=MeshConfig(**layout))
  with pytest.raises(MeshError, match=expected):
    fit_stage_mesh(config)


def test_a_model_that_samplers_cannot_cut_is_refused():
  config = cold_start.ColdStart(mesh=MeshConfig(sampler_tensor=2))
  tokenizer = Tokenizer.train(['a'], 262)
  model = Policy(r1_zero.R1Zero().model, tokenizer, 'plain')
  expected = 'mesh.sampler_tensor 2: expected a divisor of 1, the axis kv_heads'
  with pytest.raises(MeshError, match=expected):
    fit_stage_mesh(config, model.names)
