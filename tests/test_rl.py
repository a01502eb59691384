"""The RL stage with a sampler, a rewarder and updates that stand for the real ones."""

import collections
import dataclasses
import json
import math
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import algorithms, grpo
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig, TrainState
from r1jax.rewards.pool import Pending, Scores
from r1jax.rollout import replacing
from r1jax.rollout.sampler import Rollout
from r1jax.runtime.errors import TrainingError
from r1jax.runtime.run import start
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import feed_rows, replicate
from r1jax.stages import rl, rl_groups, rl_state
from r1jax.stages.learner import Learner, ScoredRollout, Updated
from r1jax.stages.learner_program import LearnerProgram
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl import train
from r1jax.stages.rl_checks import FLAT, LARGEST_REWARD, short_updates
from r1jax.stages.rl_config import RLConfig, value_at
from r1jax.stages.rl_groups import Actors
from r1jax.tasks import Problem
from r1jax.trees import Head


@pytest.fixture(autouse=True, scope='module')
def nothing_to_compile():
  """The parts that stand for the real ones have no programs."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rl, 'compile_ahead', lambda *args: None)
    yield


def test_a_schedule_has_the_value_of_its_last_pair_that_has_begun():
  schedule = ((0, 256), (100, 512), (300, 1024))
  steps = (0, 99, 100, 299, 300, 9999)
  assert [value_at(schedule, step) for step in steps] == [
    256,
    256,
    512,
    512,
    1024,
    1024,
  ]


def test_every_pass_visits_every_problem_once_in_an_order_of_its_own():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order = problem_stream([problems], [1.0], seed=3)
  first = [order(index).id for index in range(50)]
  second = [order(index).id for index in range(50, 100)]
  assert collections.Counter(first) == collections.Counter(p.id for p in problems)
  assert collections.Counter(second) == collections.Counter(first)
  assert first != second != [p.id for p in problems]


def test_order_is_a_function_of_seed_and_index_alone():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order, again = (problem_stream([problems], [1.0], 3) for _ in range(2))
  assert again(77).id == order(77).id  # asked for out of order
  assert [again(i).id for i in range(50)] == [order(i).id for i in range(50)]
  other = problem_stream([problems], [1.0], 4)
  assert [other(i).id for i in range(50)] != [order(i).id for i in range(50)]


def test_any_stretch_of_the_stream_mixes_tasks_by_their_weights():
  tasks = ('countdown', 'equations', 'arithmetic')
  sources = [[Problem(str(n), task, '', {}) for n in range(30)] for task in tasks]
  order = problem_stream(sources, (2.0, 0.0, 1.0), seed=0)
  drawn = [order(index) for index in range(180)]
  for first in (0, 7, 60):
    stretch = collections.Counter(problem.task for problem in drawn[first : first + 90])
    # 60 and 30: where a stretch begins may cost one.
    assert abs(stretch['countdown'] - 60) <= 1
    assert abs(stretch['arithmetic'] - 30) <= 1
    assert not stretch['equations']
  by_task = {
    task: [problem.id for problem in drawn if problem.task == task][:30]
    for task in ('countdown', 'arithmetic')
  }
  assert sorted(by_task['countdown']) == sorted(by_task['arithmetic'])  # one pass
  assert by_task['countdown'] != by_task['arithmetic']  # in another order


def half_is_the_baseline(outcomes, numbers):
  del numbers
  return outcomes.reward - 0.5


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'group_size': 0}, 'rl.group_size: expected 1 or more, got 0'),
    (
      {'prompts_per_step': 5, 'minibatches': 2},
      r'multiple of 2 \(rl.minibatches\), got 5; .* 6',
    ),
    ({'temperature': ((0, -1.0),)}, 'rl.temperature'),
    ({'temperature': ((0, 0.0),)}, 'rl.temperature: expected values from 0.01'),
    ({'max_length': ()}, 'rl.max_length: expected pairs'),
    (
      {'equal_groups': 'replace', 'most_prompts': 1},
      "rl.most_prompts: expected 2 or more with rl.equal_groups 'replace', got 1",
    ),
    (
      {'equal_groups': 'drop', 'grpo': algorithms.PRESETS['reinforce_pp']},
      "rl.equal_groups: expected 'keep' with rl.grpo.advantage 'batch_whitened'",
    ),
    (
      {'overlong_tokens': 4, 'grpo': algorithms.PRESETS['gdpo']},
      "rl.overlong_tokens: expected 0 with rl.grpo.advantage 'reward_decoupled', which",
    ),
    ({'most_prompts': 0}, 'rl.most_prompts: expected 1 or more, got 0'),
    (
      {'overlong_tokens': 30, 'max_length': ((0, 20), (5, 40))},
      'rl.overlong_tokens: expected at most the least rl.max_length = 20, got 30',
    ),
    (
      {
        'equal_groups': 'drop',
        'group_size': 1,
        'grpo': GRPOConfig(advantage=half_is_the_baseline),
      },
      "rl.equal_groups: expected 'keep' with rl.group_size 1, .* got 'drop'",
    ),
    ({'max_length': ((5, 100),)}, 'rl.max_length: expected pairs'),
    ({'max_length': ((0, 100), (0, 200))}, 'rising steps'),
    ({'max_length': ((0, 0),)}, 'values from 1 to 1048576'),
    ({'reward_timeout': 0.0}, 'rl.reward_timeout: .* above 0, got 0.0'),
    ({'reward_timeout': math.inf}, 'rl.reward_timeout: .* above 0, got inf'),
    ({'temperature': ((0, math.nan),)}, 'rl.temperature: expected values from'),
    ({'max_length': ((0, 2**30),)}, 'rl.max_length: expected values from 1 to'),
    ({'profile_step': 41}, 'rl.profile_step: expected at most rl.steps = 40, got 41'),
    ({'reward_workers': 1000}, 'rl.reward_workers: expected at most 256, got 1000'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    RLConfig(**fields)


def learner_on(devices, config, **fields):
  """A learner without a model."""
  model: Any = None
  return Learner(model, make_mesh(jax.devices()[:devices]), config, **fields)


def test_every_minibatch_takes_other_problems():
  learner = learner_on(1, RLConfig(prompts_per_step=16, minibatches=4))
  parts = learner.minibatches(jax.random.key(0))
  assert parts.shape == (4, 4)
  assert sorted(parts.reshape(-1).tolist()) == list(range(16))
  assert parts.tolist() != learner.minibatches(jax.random.key(1)).tolist()


def test_every_minibatch_takes_equally_many_problems_of_each_shard():
  learner = learner_on(4, RLConfig(prompts_per_step=16, minibatches=4))
  parts = learner.minibatches(jax.random.key(0))
  assert sorted(parts.reshape(-1).tolist()) == list(range(16))
  for minibatch in parts:  # devices have problems 0 to 3, 4 to 7, and so on
    assert sorted((minibatch // 4).tolist()) == [0, 1, 2, 3]


def test_reference_scores_every_output_and_its_rows_stay_sharded():
  # A model that repeats the token before with probability 3/4, of two tokens, on four
  # devices.
  def both(params, prompts, outputs, prompt_mask):
    return prompts[0][..., None], outputs[0][..., None]

  def logits(tokens, hidden):
    return jnp.log(jnp.where(hidden == tokens[None, None], 3.0, 1.0))

  nothing: Any = None  # unused here
  head = Head(lambda params: jnp.arange(2), logits)
  model = DecoderFns(nothing, nothing, nothing, both, head)
  config = RLConfig(prompts_per_step=8, micro_batch_rows=8)
  learner = Learner(model, make_mesh(jax.devices()[:4]), config)
  no_penalty = dataclasses.replace(config, grpo=algorithms.PRESETS['dapo'])
  dapo = dataclasses.replace(learner, config=no_penalty)
  # No penalty and the policy itself as the sampler: nothing is scored.
  assert dapo.score({}, {}, nothing, 1.0)[:2] == (None, None)
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, size=(8, 3)).astype(np.int32)
  tokens = rng.integers(2, size=(8, 4, 5)).astype(np.int32)
  lengths = rng.integers(1, 6, size=(8, 4))
  rollout: Any = SimpleNamespace(
    rows=np.arange(8),
    prompts=prompts,
    prompt_mask=prompts >= 0,
    tokens=tokens,
    lengths=lengths,
    all_lengths=lengths,
  )
  logp = learner.score({}, {}, rollout, 1.0).ref_logp
  assert logp is not None
  last = np.broadcast_to(prompts[:, None, -1:], (8, 4, 1))
  before = np.concatenate([last, tokens[..., :-1]], axis=-1)
  expected = np.log(np.where(before == tokens, 0.75, 0.25))
  real = np.arange(5) < lengths[..., None]
  np.testing.assert_allclose(logp, np.where(real, expected, 0), rtol=1e-6)

  layout = learner.layout(rollout, np.arange(8))
  inputs = layout.inputs(prompts, prompts >= 0, tokens)
  rows = feed_rows(learner.mesh, inputs, axis=1)
  compiled: Any = learner.program.score
  arguments: Any = ({}, rows, jnp.int32(layout.count), jnp.float32(1))
  program = compiled.lower(*arguments).compile().as_text()
  assert 'all-gather' not in program
  assert all(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(rows))


def test_the_policy_that_a_stage_starts_from_stays_as_it_is():
  learner = learner_on(1, RLConfig())
  given = {'x': replicate(learner.mesh, jnp.full(4, 3.0))}
  started = rl_state.start(learner, given)
  double = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x, state), donate_argnums=0)
  double(started['policy'])  # as an update does: the old state's memory is gone
  np.testing.assert_array_equal(given['x'], 3)
  np.testing.assert_array_equal(started['reference']['x'], 3)


def rollout_of(prompts, group_size=2, length=3):
  """Outputs of one word; prompts, tokens and log-probs are numbers of problems."""
  number = np.arange(prompts)[:, None, None]
  said = np.broadcast_to(number, (prompts, group_size, length))
  lengths = np.full((prompts, group_size), length)
  return Rollout(
    rows=np.arange(prompts),
    own=np.ones(prompts, bool),
    prompts=said[:, 0],
    prompt_mask=np.ones((prompts, length), bool),
    tokens=said.astype(np.int32),
    logp=said.astype(np.float32),
    lengths=lengths,
    all_lengths=lengths,
    cut_off=np.zeros((prompts, group_size), bool),
    texts=[['wait'] * group_size] * prompts,
    prompt_texts=[''] * prompts,
    device_seconds=0.0,
    seconds=0.0,
  )


def test_separate_sampler_params_add_a_scoring_pass(monkeypatch):
  def double(params):
    return {'x': 2 * params['x']}

  learner = learner_on(1, RLConfig(grpo=algorithms.PRESETS['dapo']), quantize=double)
  assert learner.for_sampling({'x': jnp.float32(3)}) == {'x': 6}
  monkeypatch.setattr(
    Learner, 'log_probs', lambda self, params, rollout, t: (params['x'] * t, 2.0)
  )
  scores = learner.score({'x': 3.0}, {'x': 5.0}, rollout_of(1), 0.5)
  assert scores == (1.5, None, 2.0)  # of the policy; dapo needs none of the reference


def test_the_penalty_is_measured_against_the_reference(monkeypatch):
  learner = learner_on(1, RLConfig(grpo=GRPOConfig(kl_coef=0.1)))
  monkeypatch.setattr(
    Learner, 'log_probs', lambda self, params, rollout, t: (params['x'] * t, 2.0)
  )
  policy, reference = {'x': jnp.float32(3)}, {'x': jnp.float32(5)}
  scores = learner.score(policy, reference, rollout_of(1), 0.5)
  assert scores == (None, 2.5, 2.0)  # the sampler is the policy, which needs no pass


def test_a_penalty_in_the_reward_is_summed_over_each_output():
  rollout = dataclasses.replace(
    rollout_of(2),
    tokens=np.zeros((2, 2, 3), np.int32),
    logp=np.full((2, 2, 3), -1.0, np.float32),
    lengths=np.array([[3, 1], [2, 3]]),
  )
  scores = ScoredRollout(None, np.full((2, 2, 3), -1.5, np.float32), 0.0)
  config = GRPOConfig(kl='k1', kl_coef=0.1, kl_in='reward')
  got = learner_on(1, RLConfig(grpo=config)).kl_penalty(rollout, scores)
  # 0.1 * 0.5 a token
  np.testing.assert_allclose(got, [[0.15, 0.05], [0.1, 0.15]], rtol=1e-5)
  # Of the policy's own log-probs, if another sampled.
  scores = scores._replace(old_logp=rollout.logp - 0.5)
  got = learner_on(1, RLConfig(grpo=config)).kl_penalty(rollout, scores)
  np.testing.assert_allclose(got, np.zeros((2, 2)), atol=1e-6)
  in_loss = learner_on(1, RLConfig(grpo=GRPOConfig(kl_coef=0.1)))
  assert in_loss.kl_penalty(rollout, scores) is None


def test_a_penalty_in_the_reward_moves_the_advantage(tmp_path, monkeypatch):
  taken = []
  monkeypatch.setattr(
    Learner, 'kl_penalty', lambda *_: np.array([[0.0, 0.25]] * 2, np.float32)
  )

  def take(self, outcomes):
    del self
    taken.append(outcomes)
    return np.zeros_like(outcomes.reward)

  monkeypatch.setattr(Learner, 'advantage', take)
  config = RLConfig(steps=1, prompts_per_step=2, group_size=2, minibatches=1)
  train_written(tmp_path / 'run', config, Right())
  (outcomes,) = taken
  assert outcomes.reward.tolist() == [[1, 0.75]] * 2
  assert outcomes.values.tolist() == [[[1], [1]]] * 2  # each reward as it was
  assert outcomes.weights.tolist() == [1]


def test_quantized_weights_sample_and_the_policy_itself_is_evaluated(tmp_path):
  config = RLConfig(
    steps=2, prompts_per_step=2, group_size=2, minibatches=1, evaluate_every=2
  )

  def quantize(params):
    return {'x': 2 * params['x'] + 10}

  _, sampler, _ = train_written(tmp_path / 'run', config, Right(), quantize)
  assert [asked['policy'] for asked in sampler.rollouts] == [10, 12]
  assert [asked['policy'] for asked in sampler.evaluations] == [0, 2]


def test_updates_get_the_policys_own_log_probs_and_those_of_what_sampled(monkeypatch):
  updates, _ = update(monkeypatch, old=7)
  for arrays in updates:
    order = arrays['prompts']
    assert arrays['old_logp'] == [7 * number for number in order]
    assert arrays['sampler_logp'] == order


def update(monkeypatch, seed=0, old=None, **fields):
  """The problems of each update, by every array that it gets, and the mean metrics."""
  updates = []

  def compiled_update(state, frozen, rollout, count, temperature):
    assert frozen is None  # all parameters are learned
    assert temperature == np.float32(0.7)
    there = rollout.lengths[..., 0] > 0
    updates.append(
      {
        'prompts': rollout.prompts[there][:, 0].tolist(),
        'tokens': rollout.tokens[there][:, 0, 0].tolist(),
        'old_logp': rollout.old_logp[there][:, 0, 0].tolist(),
        'ref_logp': rollout.ref_logp[there][:, 0, 0].tolist(),
        'sampler_logp': None
        if rollout.sampler_logp is None
        else rollout.sampler_logp[there][:, 0, 0].tolist(),
        'advantage': rollout.advantage[there][:, 0].tolist(),
      }
    )
    number = state.params
    state = dataclasses.replace(state, params=number + 1)
    return state, {'drift': number, 'loss': number}

  monkeypatch.setattr(LearnerProgram, 'update', staticmethod(compiled_update))
  algorithm = GRPOConfig(kl_coef=0.1)
  learner = learner_on(
    1, RLConfig(prompts_per_step=8, minibatches=2, grpo=algorithm, **fields)
  )
  policy = TrainState(1.0, None, jnp.int32(0))  # counts its updates
  rollout, key = rollout_of(8), jax.random.key(seed)
  advantage = np.repeat(np.arange(8)[:, None], 2, axis=1)
  old_logp = None if old is None else old * rollout.logp
  scores = ScoredRollout(old_logp, 5 * rollout.logp, 0.0)
  updated = learner.update(policy, rollout, advantage, scores, key, 0.7)
  assert updated.state.params == 1 + len(updates)
  return updates, updated.metrics


def test_each_epoch_splits_a_rollout_into_other_minibatches(monkeypatch):
  updates, _ = update(monkeypatch, epochs=3)
  orders = [arrays['prompts'] for arrays in updates]
  assert [len(order) for order in orders] == [4] * 6
  epochs = [orders[i] + orders[i + 1] for i in (0, 2, 4)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(8))
    assert epoch != list(range(8))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_minibatch_takes_everything_from_the_same_problems(monkeypatch):
  updates, _ = update(monkeypatch)
  for arrays in updates:
    order = arrays['prompts']
    assert arrays['tokens'] == arrays['old_logp'] == arrays['advantage'] == order
    assert arrays['sampler_logp'] is None  # the policy itself
    # Of the reference, 5 times the policy's.
    assert arrays['ref_logp'] == [5 * number for number in order]


def test_metrics_are_means_over_updates_but_drift_is_the_first(monkeypatch):
  _, means = update(monkeypatch, epochs=2)
  assert means == {'drift': 1.0, 'loss': 2.5}  # of 1 2 3 4


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


class Written:
  """Stands for a sampler, and writes down what it is asked."""

  policy = SimpleNamespace(prompt=lambda question: question)
  max_prompt_length = 1

  def __init__(self):
    self.rollouts, self.evaluations = [], []

  def sample(self, params, key, problems, *, group_size, max_length, draw, first=0):
    asked = {
      'first': first,
      'policy': float(params['x']),
      'key': tuple(jax.random.key_data(key).tolist()),
      'problems': [problem.id for problem in problems],
      'max_length': max_length,
      'temperature': draw.temperature,
    }
    (self.evaluations if group_size == 3 else self.rollouts).append(asked)
    rollout = rollout_of(len(problems), group_size)
    return dataclasses.replace(rollout, logp=rollout.logp * 0 + params['x'])


class Right:
  """Stands for a rewarder: every output is right."""

  names = ('accuracy',)
  weights = (1.0,)

  def submit(self, problems, texts):
    one = np.ones(len(texts), np.float32)
    return Pending(lambda: Scores(one[:, None], one, [], 0, 0))


def train_written(workdir, config, rewarder, quantize=None):
  """The policy after the steps, and what they ask of the sampler and of `update`."""
  learned = []

  def score(self, policy, reference, rollout, temperature):
    if quantize is None:
      assert policy['x'] == rollout.logp[0, 0, 0]  # the one that sampled
    return ScoredRollout(None, np.array([reference['x'], temperature]), 0.0)

  def update(self, state, rollout, advantage, scores, key, temperature, coef):
    del coef
    key = tuple(jax.random.key_data(key).tolist())
    reference, its_temperature = scores.ref_logp
    assert its_temperature == temperature
    learned.append((float(reference), key, temperature))
    params = jax.tree.map(lambda x: x + 1, state.params)  # counts the steps
    state = dataclasses.replace(state, params=params)
    return Updated(state, {'loss': 0.0, 'grad_norm': 0.0, 'entropy': 1.0}, 0.0, 0.0)

  sampler: Any = Written()
  learner = learner_on(1, config, quantize=quantize)
  problems = [Problem(str(n), 'gsm8k', '', {'answer': '1'}) for n in range(13)]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Learner, 'update', update)
    patch.setattr(Learner, 'score', score)
    with start(Experiment(str(workdir)), phases=('rl',)) as run:
      policy = train(
        run,
        'rl',
        lambda: {'x': jnp.float32(0)},
        actors=Actors(sampler, rewarder, learner),
        problem_at=problem_stream([problems[:10]], [1.0], 0),
        held_out=problems[10:],
        evals=EvalConfig(problems=2, samples=3, prompts_per_batch=3),
        seed=0,
      )
  return policy, sampler, learned


class SomeDiffer(Right):
  """The two rewards of a group differ for three problems of ten."""

  def __init__(self, fails_at=0):
    self.calls, self.fails_at = 0, fails_at

  def submit(self, problems, texts):
    self.calls += 1
    if self.calls == self.fails_at:
      raise KeyboardInterrupt
    total = np.ones(len(texts), np.float32)
    total[1::2] = [int(p.id) >= 3 for p in problems[1::2]]
    return Pending(lambda: Scores(total[:, None], total, [], 0, 0))


def test_replacing_groups_asks_the_same_after_a_kill(tmp_path):
  config = RLConfig(
    steps=6,
    prompts_per_step=4,
    group_size=2,
    minibatches=1,
    equal_groups='replace',
    evaluate_every=6,
    checkpoint_every=1,
  )
  whole = train_written(tmp_path / 'whole', config, SomeDiffer())
  asked = whole[1].rollouts
  # A call of one problem each, numbered within the step; the first wave has four.
  firsts = [call['first'] for call in asked]
  waves = np.split(np.array(firsts), np.flatnonzero(np.array(firsts) == 0)[1:])
  assert [wave.tolist() for wave in waves] == [list(range(len(w))) for w in waves]
  assert len(waves) == 6
  assert len(waves[0]) > 4
  lines = map(json.loads, (tmp_path / 'whole/metrics.jsonl').read_text().splitlines())
  steps = [line for line in lines if line['phase'] == 'rl']
  assert [line['prompts_asked'] for line in steps] == [len(wave) for wave in waves]
  assert [line['dropped'] for line in steps] == [
    max(0, 1 - round(len(w) * (1 - line['zero_variance_groups'])) / 4)
    for w, line in zip(waves, steps, strict=True)
  ]

  rewarder = SomeDiffer(fails_at=2 + len(waves[0]) + len(waves[1]) + 2)
  with pytest.raises(KeyboardInterrupt):
    train_written(tmp_path / 'killed', config, rewarder)
  again = train_written(tmp_path / 'killed', config, SomeDiffer())
  rest = asked[len(waves[0]) + len(waves[1]) :]
  assert again[1].rollouts == rest
  assert again[2] == whole[2][2:]


def test_mini_batches_without_anything_to_learn_are_skipped(monkeypatch):
  config = RLConfig(prompts_per_step=4, group_size=2, minibatches=4)
  rollout = rollout_of(4)
  dropped = np.ones((4, 2), bool)
  dropped[2] = False
  calls = []

  def step(self, state, *args):
    calls.append(args)
    return state + 1, {'loss': jnp.float32(0.5), 'drift': jnp.float32(0.25)}

  monkeypatch.setattr(LearnerProgram, 'update', step)
  learner = learner_on(1, config)

  def update(dropped):
    given = replacing.without(rollout, dropped), np.zeros((4, 2), np.float32)
    scores = ScoredRollout(None, None, 0.0)
    start: Any = 0
    return learner.update(start, *given, scores, jax.random.key(0), 1.0)

  learned = update(dropped)
  assert (learned.state, len(calls)) == (1, 1)
  assert learned.metrics == {'loss': 0.5, 'drift': 0.25}
  learned = update(np.ones((4, 2), bool))
  assert (learned.state, len(calls)) == (0, 1)
  assert learned.metrics == {'loss': 0.0, 'grad_norm': 0.0, 'update_size': 0.0}
  # The entropy of nothing is not 0.
  before = rl_state.Feedback(0.5, 0.8, 0.02)
  after = before.after(GRPOConfig(entropy_target=0.5), {'zero_variance_groups': 1.0})
  assert after == rl_state.Feedback(0.0, *before[1:])


def test_negative_rewards_are_refused_where_they_turn_the_sign(tmp_path):
  class Negative(Right):
    def submit(self, problems, texts):
      total = np.array([-0.5, 1] * (len(texts) // 2), np.float32)
      return Pending(lambda: Scores(total[:, None], total, [], 0, 0))

  config = RLConfig(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    minibatches=1,
    grpo=algorithms.PRESETS['max_rl'],
  )
  with pytest.raises(TrainingError, match=r'add up to -0.5, expected 0 or more with'):
    train_written(tmp_path / 'run', config, Negative())


def test_the_entropy_bonus_is_held_to_its_target():
  config = GRPOConfig(entropy_target=0.5, entropy_coef=0.008)
  said = []
  feedback = rl_state.Feedback(entropy_coef=0.008)
  for entropy in (0.4, 0.6, 0.7, 0.8, 0.5):
    said.append(feedback.bonus(config))
    feedback = feedback.after(
      config, {'entropy': entropy, 'zero_variance_groups': 0.25}
    )
  # +0.005 at or below the target, else -0.005 down to 0, and off
  assert said == pytest.approx([0.008, 0.013, 0, 0, 0], rel=1e-6)
  assert feedback == pytest.approx((0.75, 0.5, 0.005), rel=1e-6)
  rounded = np.array(feedback, np.float32).tolist()
  assert feedback == rl_state.Feedback(*rounded)  # as it is saved
  assert feedback.bonus(GRPOConfig(entropy_coef=0.1)) is None


def test_equal_groups_and_cut_off_outputs_are_dropped_from_the_update():
  rewards: Any = SimpleNamespace(
    total=np.array([[1.0, 1], [0, 1], [1, 0]]),
    cut_off=np.array([[False, False], [False, True], [False, False]]),
  )

  def dropped(**fields):
    return rl_groups.dropped(RLConfig(**fields), rewards).astype(int).tolist()

  assert dropped() == [[0, 0], [0, 0], [0, 0]]
  assert dropped(equal_groups='drop') == [[1, 1], [0, 0], [0, 0]]
  assert dropped(learn_cut_off=False) == [[0, 0], [0, 1], [0, 0]]
  assert dropped(equal_groups='replace', learn_cut_off=False) == [
    [1, 1],
    [0, 1],
    [0, 0],
  ]


@pytest.mark.parametrize(
  ('share', 'changes', 'weights', 'said'),
  [
    (0.12, {}, 10**14, None),
    # Entries of 0.5 / 1e7 = 5e-8.
    (0.05, {}, 10**14, 'by 5.0% of the learning rate .* rl.optim.eps = 1e-08; lower'),
    (0.05, {'grad_norm': 0.0}, 10**14, None),
    (0.05, {'zero_advantages': 1.0}, 10**14, None),  # nothing to learn from
    # One output a prompt, whose advantage is by batch.
    (0.05, {'zero_variance_groups': 1.0}, 10**14, 'by 5.0% of the learning rate'),
    # Entries of 5e-4: it is most of the mini-batches that had no gradient.
    (0.05, {}, 10**6, None),
    # Of a gradient of norm 1000 that is clipped to 1, 1e-7.
    (0.05, {'grad_norm': 1000.0}, 10**14, 'by 5.0% of the learning rate'),
  ],
)
def test_updates_far_shorter_than_the_learning_rate_are_reported(
  share, changes, weights, said
):
  rates = OptimConfig(learning_rate=3e-6, warmup_steps=3)
  config = RLConfig(steps=5, minibatches=2, optim=rates)
  # The first two updates are at 1/4 and 2/4 of the peak.
  values = {'update_size': share * 1.125e-6, 'grad_norm': 0.5}
  values |= {'zero_variance_groups': 0.3, 'zero_advantages': 0.3}
  found = short_updates(config, 1, values | changes, weights)
  if said is None:
    assert found is None
  else:
    assert found
    assert re.search(said, found)


def test_a_learning_rate_of_0_is_reported():
  config = RLConfig(steps=5, optim=OptimConfig(learning_rate=0.0))
  values = {'update_size': 0.0, 'grad_norm': 0.5, 'zero_advantages': 0.3}
  found = short_updates(config, 1, values, 10**6)
  assert found == 'rl.optim.learning_rate is 0, so nothing is learned; raise that.'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Five steps with schedules: sampler, what was learned, and the run's folder."""
  config = RLConfig(
    steps=5,
    prompts_per_step=2,
    group_size=2,
    minibatches=1,
    max_length=((0, 4), (2, 8), (4, 16)),
    temperature=((0, 1.0), (3, 0.5)),
    reference_every=2,
    evaluate_every=2,
  )
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  policy, sampler, learned = train_written(workdir, config, Right())
  assert policy['x'] == 5
  return sampler, learned, workdir


class RightOnce(Right):
  """Of one step, the sixth, the first output alone is wrong."""

  steps = 0

  def submit(self, problems, texts):
    scores = super().submit(problems, texts).result()
    self.steps += len(texts) == 4  # not an evaluation
    if self.steps == 6 and len(texts) == 4:
      scores.values[0], scores.total[0] = 0, 0
    return Pending(lambda: scores)


def test_a_reward_that_never_differs_ends_the_run(tmp_path):
  config = RLConfig(
    steps=FLAT + 5,
    prompts_per_step=2,
    group_size=2,
    minibatches=1,
    max_length=((0, 4),),
    evaluate_every=100,
    checkpoint_every=100,
  )
  with pytest.raises(TrainingError, match=r'20 steps of rl .*last mean is 1'):
    train_written(tmp_path / 'flat', config, Right())
  policy, _, _ = train_written(tmp_path / 'once', config, RightOnce())
  assert policy['x'] == FLAT + 5


class ByProblem(Right):
  """The reward depends on the problem alone: 0, 1 or 2 by its number."""

  def submit(self, problems, texts):
    reward = np.array([int(problem.id) % 3 for problem in problems], np.float32)
    right = np.zeros((len(texts), 1), np.float32)  # of the accuracy
    scores = Scores(right, reward, [], 0, 0)
    return Pending(lambda: scores)


def steps_of(count, group_size, algorithm=algorithms.PRESETS['grpo']):
  return RLConfig(
    steps=count,
    prompts_per_step=4,
    group_size=group_size,
    minibatches=1,
    max_length=((0, 4),),
    evaluate_every=100,
    checkpoint_every=100,
    grpo=algorithm,
  )


@pytest.mark.parametrize('group_size', [1, 2])
@pytest.mark.parametrize('advantage', ['batch_whitened', 'own'])
def test_rewards_that_differ_between_problems_alone_are_learned_from(
  tmp_path, monkeypatch, capsys, advantage, group_size
):
  monkeypatch.setitem(grpo.ADVANTAGES, 'own', half_is_the_baseline)
  config = steps_of(FLAT + 2, group_size, GRPOConfig(advantage=advantage))
  policy, *_ = train_written(tmp_path / 'run', config, ByProblem())
  assert policy['x'] == FLAT + 2
  lines = map(json.loads, (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
  values = [line for line in lines if line['phase'] == 'rl']
  assert {line['zero_variance_groups'] for line in values} == {1}
  assert values[0]['zero_advantages'] < 1
  assert 'nothing is learned' not in capsys.readouterr().out


@pytest.mark.parametrize('advantage', ['group_zscore', 'leave_one_out'])
def test_rewards_that_differ_between_problems_alone_teach_nothing_within_groups(
  tmp_path, capsys, advantage
):
  config = steps_of(FLAT, 2, GRPOConfig(advantage=advantage))
  expected = '20 steps of rl every advantage was 0, .* easier or harder problems'
  with pytest.raises(TrainingError, match=expected):
    train_written(tmp_path / 'run', config, ByProblem())
  # It is said at once, with what to change.
  said = capsys.readouterr().out
  expected = r'Step 1: The advantage of 100% of the outputs is 0, .* make the problems'
  assert re.search(expected, said)


class Rewarded(Right):
  """The first output has this reward; all others have none."""

  def __init__(self, value):
    self.value = value

  def submit(self, problems, texts):
    reward = np.zeros(len(texts), np.float32)
    reward[0] = self.value
    right = np.zeros((len(texts), 1), np.float32)
    scores = Scores(right, reward, [], 0, 0)
    return Pending(lambda: scores)


@pytest.mark.parametrize('value', [math.inf, -math.inf, math.nan, 3e38, 1e30])
def test_a_reward_beyond_float32_is_not_blamed_on_the_learning_rate(tmp_path, value):
  # The z-score of 1e30 divides by a square that is infinite, and would be 0.
  expected = (
    rf'rewards of an output of step 1 add up to {value:.3g} \(accuracy .*lower that '
    'reward or its weight'
  ).replace('+', r'\+')
  with pytest.raises(TrainingError, match=expected) as error:
    train_written(tmp_path / 'run', steps_of(2, 2), Rewarded(value))
  assert 'learning' not in str(error.value)


@pytest.mark.parametrize('name', ['group_zscore', 'batch_whitened'])
def test_the_largest_reward_allowed_still_has_an_advantage(name):
  reward = jnp.zeros((2, 4)).at[0, 0].set(LARGEST_REWARD)
  outcomes = grpo.outcomes(reward)
  got = grpo.group_advantage(outcomes, config=GRPOConfig(advantage=name))
  outputs = reward.size if name == 'batch_whitened' else 4
  # One of n: mean 1/n, variance (1 - 1/n) / (n - 1) = 1/n
  expected = (1 - 1 / outputs) * math.sqrt(outputs)
  np.testing.assert_allclose(got[0, 0], expected, rtol=1e-5)


def infinite(outcomes, numbers):
  del numbers
  return outcomes.reward / 0.0


def test_an_infinite_advantage_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(grpo.ADVANTAGES, 'own', infinite)
  config = steps_of(2, 2, GRPOConfig(advantage='own'))
  with pytest.raises(TrainingError, match=r"advantage 'own' is inf for 8 of 8 outputs"):
    train_written(tmp_path / 'run', config, Right())


def test_every_step_samples_from_the_policy_by_its_schedules(trained):
  sampler, learned, _ = trained
  rollouts = sampler.rollouts
  assert [asked['policy'] for asked in rollouts] == [0, 1, 2, 3, 4]
  assert [asked['max_length'] for asked in rollouts] == [4, 4, 8, 8, 16]
  temperatures = [1.0, 1.0, 1.0, 0.5, 0.5]
  assert [asked['temperature'] for asked in rollouts] == temperatures
  assert [temperature for _, _, temperature in learned] == temperatures
  # Five steps of two are one pass over the ten problems.
  seen = [problem for asked in rollouts for problem in asked['problems']]
  assert sorted(seen) == [str(n) for n in range(10)]


def test_the_learner_compiles_for_each_length_while_it_is_sampled(
  tmp_path, monkeypatch
):
  asked = []
  monkeypatch.setattr(rl, 'compile_ahead', lambda *given: asked.append(given[3:]))
  config = dataclasses.replace(steps_of(2, 2), steps=3, max_length=((0, 4), (2, 8)))
  train_written(tmp_path / 'run', config, Right())
  assert asked == [(1, 4), (1, 4), (1, 8)]  # prompts of one token


def test_a_program_that_does_not_compile_ends_the_step(tmp_path, monkeypatch):
  def fails(*args):
    raise MemoryError('no room to compile')

  monkeypatch.setattr(rl, 'compile_ahead', fails)
  with pytest.raises(MemoryError, match='no room to compile'):
    train_written(tmp_path / 'run', steps_of(2, 2), Right())


def test_the_policy_becomes_the_reference_every_reference_every_steps(trained):
  _, learned, _ = trained
  assert [reference for reference, _, _ in learned] == [0, 0, 2, 2, 4]


def test_evaluations_use_the_last_length_and_the_first_held_out_problems(trained):
  sampler, *_ = trained
  evaluations = sampler.evaluations
  assert [asked['policy'] for asked in evaluations] == [0, 2, 4, 5]
  assert [asked['max_length'] for asked in evaluations] == [16] * 4
  # A batch of 3 is filled with its last problem.
  assert [asked['problems'] for asked in evaluations] == [['10', '11', '11']] * 4


def test_a_device_that_was_never_busy_waited_all_the_time(trained):
  *_, workdir = trained
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  clocks = [line['time'] for line in lines if line['phase'] == 'rl']
  assert len(clocks) == 5
  for clock in clocks:
    assert clock['device_waited'] == 1
    assert clock['rollout'] + clock['update'] <= clock['seconds']


def test_no_key_is_used_twice(trained):
  sampler, learned, _ = trained
  keys = [asked['key'] for asked in sampler.rollouts + sampler.evaluations]
  keys += [key for _, key, _ in learned]
  assert len(set(keys)) == len(keys) == 5 + 4 + 5
