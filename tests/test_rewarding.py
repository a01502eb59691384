"""Rules and a preference model as one reward, both with scores written by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from r1jax.rewards.pool import Scores
from r1jax.rollout import rewarding
from r1jax.rollout.rewarding import Rewards, reward
from r1jax.stages.preference_scoring import PreferenceReward
from r1jax.tasks import Problem

REASONING = Problem('2-3=5', 'countdown', 'make 5 from 2 3', {})
GENERAL = Problem('sort_2_1', 'instructions', 'sort 2 1', {})
# Of each output: accuracy and language.
RULES = np.array([[1, 0.5], [0, 1], [0, 0.25], [1, 1]], np.float32)
TOTAL = RULES @ np.array([1, 2], np.float32)


class Pool:
  """Stands in for a RewardPool."""

  names = ('accuracy', 'language')

  def __init__(self, events):
    self.events = events

  def submit(self, problems, texts):
    self.events.append(('rules', list(texts)))

    def result():
      self.events.append(('result',))
      return Scores(RULES[: len(texts)], TOTAL[: len(texts)], ['one failed'], 2, 1)

    return SimpleNamespace(result=result)


def scored(problems, weight=0.5):
  """The scores of outputs a, b, ..., and what was asked in which order."""
  events: list[Any] = []

  def scorer(problems, texts):
    events.append(('preference', [problem.id for problem in problems], list(texts)))
    return np.array([{'b': -1.0, 'd': 0.75}[text] for text in texts], np.float32)

  pool: Any = Pool(events)
  rewarder = PreferenceReward(pool, scorer, weight)
  assert rewarder.names == ('accuracy', 'language', 'preference')
  pending = rewarder.submit(problems, 'abcd'[: len(problems)])
  return pending.result(), events


def test_the_preference_counts_for_instructions_alone():
  scores, events = scored([REASONING, GENERAL, REASONING, GENERAL])
  np.testing.assert_array_equal(scores.values[:, :2], RULES)
  np.testing.assert_array_equal(scores.values[:, 2], [0, -1, 0, 0.75])
  # accuracy + 2 x language, and half of the preference for b and d
  np.testing.assert_array_equal(scores.total, [2, 2 - 0.5, 0.5, 3 + 0.375])
  assert ('preference', ['sort_2_1', 'sort_2_1'], ['b', 'd']) in events


def test_rules_score_while_the_preference_model_does():
  _, events = scored([REASONING, GENERAL])
  assert [event[0] for event in events] == ['rules', 'preference', 'result']
  assert events[0] == ('rules', ['a', 'b'])  # of all problems


def test_without_instructions_the_preference_model_is_not_asked():
  scores, events = scored([REASONING, REASONING])
  assert [event[0] for event in events] == ['rules', 'result']
  np.testing.assert_array_equal(scores.values[:, 2], 0)
  np.testing.assert_array_equal(scores.total, TOTAL[:2])


def test_failures_are_those_that_the_pool_counts():
  scores, _ = scored([REASONING, GENERAL, REASONING, GENERAL])
  assert (scores.errors, scores.failures, scores.timeouts) == (['one failed'], 2, 1)


def rewards_of(rows):
  """The rewards of one host; every number is that of its problem."""
  number = np.array(rows, np.float32)[:, None]
  flags = number > 1
  return Rewards(
    np.array(rows), number[..., None], number, flags, flags, flags, 1, 2, [], {}
  )


def test_rewards_of_all_hosts_are_in_the_order_of_the_problems(monkeypatch):
  parts = [rewards_of([3, 1]), rewards_of([0, 2])]
  monkeypatch.setattr(rewarding, '_reward_local', lambda *given: parts[0])
  monkeypatch.setattr(rewarding.hosts, 'all_gather', lambda name, local: parts)
  nothing: Any = None  # unused here
  found, seconds = reward(nothing, [], nothing, 0)
  assert found.rows.tolist() == found.total[:, 0].tolist() == [0, 1, 2, 3]
  assert found.cut_off[:, 0].tolist() == [False, False, True, True]
  assert (found.failures, found.timeouts) == (2, 4)
  assert seconds >= 0
