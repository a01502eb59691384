"""Random keys of the parts of a stage: no two draws share one."""

import collections
import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.evaluation import suite
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import judge
from r1jax.miniature.judge import JudgeConfig
from r1jax.model.lora import LoraConfig
from r1jax.rewards.pool import Pending, Scores
from r1jax.rollout.sampler import Rollout
from r1jax.runtime.errors import TrainingError
from r1jax.runtime.run import start
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import distillation, preference, problem_sets, rl
from r1jax.stages.learner import Learner, ScoredRollout, Updated
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.problem_sets import Problems, problem_stream
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem

MESH = make_mesh(jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def test_judge_and_preference_model_draw_different_numbers():
  # numpy pads seeds with zeros, so that (5, 0) is 5.
  same = np.random.default_rng(5).permutation(50)
  np.testing.assert_array_equal(np.random.default_rng((5, 0)).permutation(50), same)
  assert preference.permutation(5, 0, 50).tolist() != same.tolist()


class Keys:
  """Every key that something is drawn from, and what for."""

  def __init__(self):
    self.purposes = collections.defaultdict(list)
    self.now = ''

  def note(self, key, what=''):
    self.purposes[tuple(jax.random.key_data(key).tolist())].append(self.now + what)


class Silent:
  """Stands for a sampler: says one word, and notes the key of each problem."""

  policy = SimpleNamespace(prompt=lambda question: question)
  max_prompt_length = 1

  def __init__(self, keys):
    self.keys = keys

  def sample(self, params, key, problems, *, group_size, max_length, draw):
    for row in range(len(problems)):  # as `Sampler` makes them
      self.keys.note(jax.random.fold_in(key, row))
    shape = len(problems), group_size
    one = np.ones(shape, int)
    return Rollout(
      rows=np.arange(len(problems)),
      own=np.ones(len(problems), bool),
      prompts=np.ones((len(problems), 1), np.int32),
      prompt_mask=np.ones((len(problems), 1), bool),
      tokens=np.ones((*shape, 1), np.int32),
      logp=np.zeros((*shape, 1), np.float32),
      lengths=one,
      all_lengths=one,
      cut_off=np.zeros(shape, bool),
      texts=[['word'] * group_size] * len(problems),
      prompt_texts=[''] * len(problems),
      device_seconds=0.0,
      seconds=0.0,
    )


class Pool:
  """Stands for a reward pool."""

  names = ('accuracy',)
  weights = (1.0,)

  def __init__(self, *arguments):
    del arguments

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    pass

  def submit(self, problems, texts):
    one = np.ones((len(texts), 1), np.float32)
    return Pending(lambda: Scores(one, np.arange(len(texts)), [], 0, 0))


class Enough(Exception):
  """Ends a stage once it has sampled."""


def problems(task):
  # Of a task whose problems are held out one by one, by their names alone.
  return [Problem(f'{task}{n}', 'arithmetic', f'{task} {n}', {}) for n in range(16)]


@pytest.fixture
def keys(monkeypatch):
  """Notes the keys that stages draw from, instead of sampling and learning."""
  found = Keys()
  monkeypatch.setattr(rl, 'compile_ahead', lambda *args: None)
  monkeypatch.setattr(Stage, 'sampler', Silent(found))
  monkeypatch.setattr(suite, 'RewardPool', Pool)
  minibatches = Learner.minibatches

  def noted(learner, key):
    found.note(key, ' minibatches')
    return minibatches(learner, key)

  def update(learner, state, rollout, advantage, scores, key, *numbers):
    del numbers
    for epoch in range(learner.config.epochs):
      learner.minibatches(jax.random.fold_in(key, epoch))
    return Updated(state, {'loss': 0.0, 'grad_norm': 0.0, 'entropy': 1.0}, 0.0, 0.0)

  monkeypatch.setattr(Learner, 'reference', lambda _, params: params)
  monkeypatch.setattr(Learner, 'minibatches', noted)
  monkeypatch.setattr(Learner, 'update', update)
  unscored = ScoredRollout(None, None, 0.0)
  monkeypatch.setattr(Learner, 'score', lambda *_: unscored)
  return found


def draw_everything(keys, stage):
  """All that a stage with this seed may sample, one after the other."""
  sampled = RejectionConfig(problems=16, samples=2, prompts_per_batch=4)
  problem_at = problem_stream(stage.problems.train, [1.0] * 4, 0)
  keys.now = 'rejection'
  with pytest.raises(TrainingError, match='none of 32 outputs is kept'):
    stage.rejection_sample({}, problem_at, sampled)
  keys.now = 'own outputs'
  batch = distillation.own_outputs(
    stage, problem_at, prompts=4, max_length=4, config=SFTConfig()
  )
  for step in (1, 2, 3, 4):
    batch(step, {})
  config = RLConfig(
    steps=4, prompts_per_step=4, group_size=2, epochs=2, evaluate_every=2
  )
  evals = EvalConfig(problems=8, samples=2, prompts_per_batch=4)
  keys.now = 'rl'
  stage.rl(lambda: {'x': jnp.zeros(1)}, Pool(), problem_at, config, evals)
  suite = SuiteConfig(reasoning=8, general=8, samples=2, prompts_per_batch=4)
  # Once: all models are measured with the same keys, which no other draw uses.
  keys.now = 'suite'
  stage.measure({'final': {}}, suite)
  keys.now = 'judged'
  asked = stage.problems.train[-1][:16]
  size = RLConfig(prompts_per_step=4)
  with pytest.raises(Enough):
    stage.preference_model({}, asked, JudgeConfig(), PreferenceConfig(), size)


def test_no_two_draws_of_a_stage_share_a_key(keys, tmp_path, monkeypatch):
  def enough(*arguments):
    raise Enough

  monkeypatch.setattr(judge, 'pairs', enough)
  policy: Any = SimpleNamespace(
    matrices=None, lora=LoraConfig(), config=None, functions=None
  )
  four = [problems(task) for task in problem_sets.TASKS]
  there = Problems(four, four, 32, 352, four)
  with start(Experiment(str(tmp_path / 'run')), phases=('rl',)) as run:
    draw_everything(keys, Stage(run, policy, there, MESH, seed=5))
  shared = [names for names in keys.purposes.values() if len(names) > 1]
  assert shared == []
  counts = collections.Counter(name for (name,) in keys.purposes.values())
  assert counts == {
    'rejection': 16,
    'own outputs': 16,
    'rl': 4 * 4 + 3 * 8,  # rollouts, and evaluations before and after 2 and 4 steps
    'rl minibatches': 4 * 2,
    'suite': 16,
    'judged': 16,
  }
