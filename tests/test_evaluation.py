"""Evaluation of a policy whose outputs are fixed."""

import types
from typing import cast

import jax
import numpy as np
import pytest

from r1jax.evaluation.evaluate import EvalConfig, evaluate
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.sampler import SamplingConfig
from r1jax.tasks import Problem


def say(answer: str) -> str:
  return f'<think>wait</think><answer>{answer}</answer>'


PROBLEMS = [
  Problem('a', 'countdown', 'make 5 from 2 3', {'numbers': [2, 3], 'target': 5}),
  Problem('b', 'countdown', 'make 6 from 2 3', {'numbers': [2, 3], 'target': 6}),
  Problem('c', 'arithmetic', '7-2', {'left': 7, 'sign': '-', 'right': 2, 'result': 5}),
]
OUTPUTS = {
  'a': [say('2+3'), say('3+2'), say('2*3'), 'garbage'],  # 2 right, and they agree
  'b': [say('2+3'), say('3+2'), say('2*3'), say('2')],  # 1 right, outvoted
  'c': ['garbage', 'garbage', say('I give up'), say('2-')],  # none, and no vote
}
LENGTHS = {'a': [10, 20, 30, 40], 'b': [20, 40, 60, 80], 'c': [30, 60, 90, 120]}
CUT_OFF = {'a': [0, 0, 1, 0], 'b': [1, 0, 1, 0], 'c': [0, 0, 0, 0]}


class Written:
  """Stands for a sampler."""

  policy = types.SimpleNamespace(prompt=lambda question: f'? {question}')

  def __init__(self):
    self.keys = []

  def sample(self, params, key, problems, *, group_size, max_length, draw):
    assert (group_size, max_length, draw.temperature) == (4, 100, 0.5)
    assert len(problems) == 2  # one shape, also for the last batch
    self.keys.append(tuple(jax.random.key_data(key).tolist()))
    return types.SimpleNamespace(
      rows=np.arange(2),
      own=np.ones(2, bool),
      texts=[OUTPUTS[problem.id] for problem in problems],
      lengths=np.array([LENGTHS[problem.id] for problem in problems]),
      cut_off=np.array([CUT_OFF[problem.id] for problem in problems], bool),
    )


@pytest.fixture(scope='module')
def evaluated():
  sampler = Written()
  config = EvalConfig(samples=4, prompts_per_batch=2, draw=SamplingConfig(0.5), shown=2)
  rewards = [
    Weighted('format', rules.format_reward, 0.5),
    Weighted('accuracy', rules.accuracy, 1.0),
    Weighted('language', rules.language_consistency, 0.0),
  ]
  with RewardPool(rewards, workers=1) as rewarder:
    metrics, shown = evaluate(
      None,
      jax.random.key(0),
      PROBLEMS,
      sampler=cast(Sampler, sampler),
      rewarder=rewarder,
      config=config,
      max_length=100,
    )
  return metrics, shown, sampler


def test_metrics_are_those_of_the_three_problems(evaluated):
  metrics, _, _ = evaluated
  assert metrics['problems'] == 3
  assert metrics['k'] == 4
  assert metrics['pass_at_1']['mean'] == pytest.approx(3 / 12)  # 2, 1 and 0 of 4
  assert metrics['pass_at_k']['mean'] == pytest.approx(2 / 3)
  assert metrics['consensus']['mean'] == pytest.approx(1 / 3)  # 'b' is outvoted 2 to 1
  assert metrics['right'] == [2, 1, 0]
  assert metrics['length']['mean'] == 50  # 25, 50 and 75
  assert metrics['cut_off']['mean'] == 0.25  # 1, 2 and 0 of 4
  assert metrics['unparsable']['mean'] == pytest.approx(3 / 12)
  assert metrics['reflective']['mean'] == pytest.approx(9 / 12)


def test_other_rewards_are_measured_too_and_weights_do_not_matter(evaluated):
  metrics, *_ = evaluated
  assert list(metrics['rewards']) == ['format', 'language']  # accuracy is pass@1
  assert metrics['rewards']['format']['mean'] == pytest.approx(9 / 12)
  # Nine times the thoughts are 'wait'; without an end to them all of an output is
  # thoughts, and 'garbage' is in no list of English words.
  assert metrics['rewards']['language']['mean'] == pytest.approx(9 / 12)


def test_accuracy_is_also_given_by_task(evaluated):
  metrics, *_ = evaluated
  assert list(metrics['tasks']) == ['countdown', 'arithmetic']
  assert metrics['tasks']['countdown']['mean'] == pytest.approx(3 / 8)
  assert metrics['tasks']['arithmetic']['mean'] == 0


def test_intervals_contain_their_means(evaluated):
  metrics, _, _ = evaluated
  for name in ('pass_at_1', 'pass_at_k', 'consensus'):
    assert metrics[name]['low'] <= metrics[name]['mean'] <= metrics[name]['high']
    assert metrics[name]['low'] < metrics[name]['high']


def test_the_first_outputs_of_the_first_problems_are_shown(evaluated):
  _, shown, _ = evaluated
  assert shown == [
    {
      'problem': 'a',
      'prompt': '? make 5 from 2 3',
      'output': say('2+3'),
      'correct': True,
      'cut_off': False,
    },
    {
      'problem': 'b',
      'prompt': '? make 6 from 2 3',
      'output': say('2+3'),
      'correct': False,
      'cut_off': True,
    },
  ]


def test_every_batch_has_another_key(evaluated):
  _, _, sampler = evaluated
  assert len(sampler.keys) == 2
  assert len(set(sampler.keys)) == 2
