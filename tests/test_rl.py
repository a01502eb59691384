"""The parts of the RL stage that need no training."""

import collections

import pytest

from r1jax.stages.rl import Config, at, problem_order
from r1jax.tasks import Problem


def test_schedule_takes_the_last_pair_that_has_begun():
  schedule = ((0, 256), (100, 512), (300, 1024))
  steps = (0, 99, 100, 299, 300, 9999)
  assert [at(schedule, step) for step in steps] == [256, 256, 512, 512, 1024, 1024]


def test_every_pass_visits_every_problem_once_in_an_order_of_its_own():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order = problem_order(problems, seed=3)
  first = [order(index).id for index in range(50)]
  second = [order(index).id for index in range(50, 100)]
  assert collections.Counter(first) == collections.Counter(p.id for p in problems)
  assert collections.Counter(second) == collections.Counter(first)
  assert first != second != [p.id for p in problems]


def test_order_is_a_function_of_seed_and_index_alone():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order, again = problem_order(problems, 3), problem_order(problems, 3)
  assert again(77).id == order(77).id  # asked for out of order
  assert [again(i).id for i in range(50)] == [order(i).id for i in range(50)]
  other = problem_order(problems, 4)
  assert [other(i).id for i in range(50)] != [order(i).id for i in range(50)]


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'group_size': 0}, 'rl.group_size: expected 1 or more, got 0'),
    ({'prompts_per_step': 5, 'minibatches': 2, 'micro_batches': 2}, 'set it to 8'),
    ({'temperature': ((0, -1.0),)}, 'rl.temperature'),
    ({'temperature': ((0, 0.0),)}, 'rl.temperature: expected above 0'),
    ({'max_length': ()}, 'rl.max_length: expected pairs'),
    ({'max_length': ((5, 100),)}, 'rl.max_length: expected pairs'),
    ({'max_length': ((0, 100), (0, 200))}, 'rising steps'),
    ({'max_length': ((0, 0),)}, 'values of 1 or more'),
    ({'reward_timeout': 0.0}, 'rl.reward_timeout'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    Config(**fields)
