"""A stage: what a base model reads, a student's own outputs as rows, its devices."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import cold_start, final_rl, r1_zero, reasoning_rl
from experiments import grpo as grpo_experiment
from r1jax import algorithms
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.rollout.policy import Policy
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import MeshError
from r1jax.stages import (
  artifact,
  distillation,
  methods,
  problem_sets,
  rl,
  stage,
  supervised,
)
from r1jax.stages.experiment import Experiment, Origin, child_of
from r1jax.stages.fit import fit_stage_mesh
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer


def stage_of(policy, seed, run=None):
  """A stage without problems, by default also without a run."""
  problems = Problems([], [], 32, 352)
  return Stage(run, policy, problems, make_mesh(jax.devices()[:1]), seed)


def test_rewards_that_all_weigh_nothing_are_refused():
  rewards = [
    dataclasses.replace(one, weight=0.0) for one in reasoning_rl.ReasoningRL().rewards()
  ]
  expected = 'rewards: expected one with a weight other than 0, .*, got 0 for accuracy,'
  with pytest.raises(ValueError, match=expected):
    reward_pool(RLConfig(), rewards)
  reward_pool(RLConfig(), rewards, preference_weight=0.5)  # is added to them
  # Configs say so before anything is run.
  with pytest.raises(ValueError, match=expected):
    reasoning_rl.ReasoningRL(accuracy_weight=0.0, language_weight=0.0)
  with pytest.raises(ValueError, match=expected):
    grpo_experiment.GRPO(accuracy_weight=0.0, format_weight=0.0)
  unweighted: dict[str, Any] = {'reasoning_weight': 0.0, 'language_weight': 0.0}
  final_rl.FinalRL(**unweighted)
  with pytest.raises(ValueError, match=expected):
    final_rl.FinalRL(**unweighted, preference_weight=0.0)


def test_rewards_without_accuracy_are_refused():
  _, *others = reasoning_rl.ReasoningRL().rewards()
  expected = "rewards: expected one named 'accuracy', .*, got language, readable"
  with pytest.raises(ValueError, match=expected):
    reward_pool(RLConfig(), others)


def test_on_policy_rows_hold_the_outputs_and_no_padding(monkeypatch):
  class Written:
    """Stands in for a Sampler: problem 7 gets 70 71, 8 gets 80 81, ..."""

    def __init__(self):
      self.asked = []

    def sample(self, params, key, problems, *, group_size, max_length, draw):
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

  sampler: Any = Written()
  config = SFTConfig(epochs=9, rows_per_step=2, row_length=12, micro_batches=1)
  monkeypatch.setattr(Stage, 'sampler', sampler)
  batch = distillation.own_outputs(
    stage_of(None, seed=1),
    lambda index: Problem(str(7 + index), 'countdown', '', {}),
    prompts=4,
    config=config,
    max_length=6,
  )
  first, second = batch(1, 'params'), batch(2, 'params')
  assert [numbers for numbers, _ in sampler.asked] == [
    [7, 8, 9, 10],
    [11, 12, 13, 14],
  ]
  assert len({key for _, key in sampler.asked}) == 2
  found: Any = first
  # The outputs to 7, 8, 9 and 10 have 3, 4, 2 and 3 tokens; with prompts of 2 tokens
  # each, 20 of 24 places are taken.
  learned = found.tokens[found.weights == 1]
  assert sorted(learned) == [70, 71, 72, 80, 81, 82, 83, 90, 91, 100, 101, 102]
  assert sorted(found.tokens[(found.weights == 0) & (found.documents > 0)]) == [
    *(7, 7, 8, 8, 9, 9, 10, 10),
  ]
  assert second.tokens.shape == (2, 12)
  # Outputs that fill more rows than those of a step are all there, in twice as many.
  narrow = distillation.own_outputs(
    stage_of(None, seed=1),
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


@pytest.mark.parametrize('name', algorithms.PRESETS)
def test_a_run_says_what_its_preset_leaves_out_of_a_paper(monkeypatch, name):
  said: list[str] = []
  monkeypatch.setattr(Stage, 'sampler', None)
  monkeypatch.setattr(rl, 'train', lambda *_, **how: None)
  policy: Any = SimpleNamespace(functions=None, matrices=None, lora=LoraConfig())
  run: Any = SimpleNamespace(progress=SimpleNamespace(say=said.append))
  config = dataclasses.replace(r1_zero.R1Zero().rl, grpo=algorithms.PRESETS[name])
  nothing: Any = None
  stage_of(policy, 0, run).rl(nothing, nothing, nothing, config, EvalConfig())
  assert said == methods.notes(config)


def test_no_document_is_read_twice_and_a_step_reads_its_own(monkeypatch):
  tokenizer = Tokenizer.train(['a'], 262)
  config = ModelConfig(d_model=8, layers=1, heads=2, kv_heads=1, head_dim=4, d_ff=16)
  policy = Policy(config, tokenizer, 'plain')
  read: list[int] = []

  def document(index):
    read.append(index)
    return 'q', f'<think></think><answer>{index}</answer>'

  def train(run, phase, params, *, batch, steps, **settings):
    del run, params
    assert settings['optim_field'] == 'base.optim'
    assert (phase, steps) == ('base', 2)
    return [batch(step, None) for step in (1, 2)]

  monkeypatch.setattr(supervised, 'train', train)
  batches = stage_of(policy, seed=0).pretrain(
    document,
    PretrainConfig(
      steps=2,
      rows_per_step=2,
      row_length=64,
      micro_batches=1,
      optim=r1_zero.R1Zero().base.optim,
    ),
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
    fit_stage_mesh(config, config.mesh)


def test_a_model_that_samplers_cannot_cut_is_refused():
  config = cold_start.ColdStart(mesh=MeshConfig(sampler_tensor=2))
  tokenizer = Tokenizer.train(['a'], 262)
  policy = Policy(r1_zero.R1Zero().model, tokenizer, 'plain')
  expected = 'mesh.sampler_tensor 2: expected a divisor of 1, the axis kv_heads'
  with pytest.raises(MeshError, match=expected):
    fit_stage_mesh(config, config.mesh, policy.names)


def test_stages_with_one_seed_have_seeds_of_their_own(monkeypatch):
  parent: Any = SimpleNamespace(policy='policy', digests={'stage.json': 'digest'})
  monkeypatch.setattr(artifact, 'load', lambda path, *names: parent)
  monkeypatch.setattr(problem_sets, 'problems_of', lambda stage, data_dir: 'problems')
  config = cold_start.ColdStart(seed=7)
  start, names = child_of('r1_zero'), ('cold_start', 'final_rl')
  origin, run = start(config), cold_start.run
  stages = [Experiment(name, start, run, phases=()) for name in names]
  expected = [problem_sets.own_seed(7, name) for name in names]
  assert [stage.seed(config, origin) for stage in stages] == expected
  assert len({*expected, 7}) == 3
  assert origin.parents == (parent,)
  assert origin.digests == {'stage.json': 'digest'}
  # One that starts from no other stage has the seed that it was given.
  new = Origin(origin.policy, origin.problems, {})
  assert stages[0].seed(config, new) == 7
