"""Groups of equal rewards are replaced by those of further prompts, or dropped."""

import dataclasses

import numpy as np
import pytest

from r1jax.rollout import replacing
from r1jax.rollout.rewarding import Rewards, overlong_penalty
from r1jax.rollout.sampler import Rollout
from r1jax.tasks import Problem

WANTED, GROUP, LENGTH = 8, 2, 3


def problems_of(count):
  return [Problem(str(n), '', f'{n}?', {}) for n in range(count)]


class Host:
  """One of the hosts: samples and rewards its shards; a reward says which problem."""

  def __init__(self, useful, shards=1, mine=(0,)):
    self.useful, self.shards, self.mine, self.calls = useful, shards, mine, []

  def sample(self, problems, first):
    numbers = [int(problem.id) for problem in problems]
    assert numbers[0] == first
    self.calls.append(numbers)
    shards = np.array_split(np.arange(len(problems)), self.shards)
    rows = np.concatenate([shards[n] for n in self.mine])
    tokens = np.broadcast_to(
      np.array(numbers)[rows][:, None, None], (len(rows), GROUP, LENGTH)
    )
    lengths = 1 + np.array(numbers)[:, None] % LENGTH + np.zeros((1, GROUP), int)
    return Rollout(
      rows=rows,
      own=np.ones(len(rows), bool),
      prompts=tokens[:, 0],
      prompt_mask=tokens[:, 0] >= 0,
      tokens=tokens,
      logp=-1.0 * tokens,
      lengths=lengths[rows],
      all_lengths=lengths,
      cut_off=tokens[..., 0] < 0,
      texts=[[f'{numbers[row]}!'] * GROUP for row in rows],
      prompt_texts=[f'{numbers[row]}?' for row in rows],
      device_seconds=1.0,
      seconds=2.0,
    )

  def reward(self, problems, rollout):
    del rollout
    numbers = np.array([int(problem.id) for problem in problems], np.float32)
    differs = np.isin(numbers, self.useful)
    total = numbers[:, None] + np.outer(differs, [0.0, 0.5]).astype(np.float32)
    return Rewards(
      rows=np.arange(len(numbers)),
      values=total[..., None],
      total=total,
      cut_off=np.zeros(total.shape, bool),
      fault=np.full(total.shape, ''),
      reflective=np.zeros(total.shape, bool),
      failures=1,
      timeouts=0,
      errors=[f'of {len(self.calls)}'],
      samples={n: {'problem': str(int(x))} for n, x in enumerate(numbers)},
    ), 0.25


def collect(host, share=1.0, most=4):
  problems = problems_of(WANTED * most)
  return replacing.collect(
    problems, WANTED, host.shards, share, host.sample, host.reward
  )


def numbers(found):
  return [int(line['problem']) for _, line in sorted(found.rewards.samples.items())]


def test_nothing_is_asked_again_if_all_groups_are_useful():
  host = Host(useful=range(100))
  found = collect(host)
  assert host.calls == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert numbers(found) == list(range(8))
  assert found.useful_share == 1


def test_groups_of_equal_rewards_are_replaced_by_the_next_useful_ones():
  host = Host(useful=[0, 1, 3, 4, 7, 9, 10, 11, 12])
  found = collect(host)
  # 5 useful of the first 8; 9, then 10 and 11, make 8
  assert host.calls == [[n, n + 1] for n in range(0, 12, 2)]
  assert numbers(found) == [0, 1, 3, 4, 7, 9, 10, 11]
  assert found.useful_share == 8 / 12
  # Everything of a group comes along.
  rollout, rewards = found.rollout, found.rewards
  assert rollout.rows.tolist() == list(range(8))
  for row, number in enumerate(numbers(found)):
    assert rollout.tokens[row].tolist() == [[number] * LENGTH] * GROUP
    assert rollout.logp[row, 0, 0] == -number
    assert rollout.lengths[row].tolist() == [1 + number % LENGTH] * GROUP
    assert rollout.texts[row] == [f'{number}!'] * GROUP
    assert rollout.prompt_texts[row] == f'{number}?'
    assert rewards.total[row].tolist() == [number, number + 0.5]
    assert rewards.samples[row] == {'problem': str(number)}
  np.testing.assert_array_equal(rollout.all_lengths, rollout.lengths)
  assert (rollout.device_seconds, rollout.seconds) == (6, 12)
  # What is logged is of all that was sampled.
  assert found.asked.total[:, 0].tolist() == list(range(12))
  assert found.asked_lengths.shape == (12, GROUP)
  assert (found.asked.failures, len(found.rewards.errors)) == (6, 6)


@pytest.mark.parametrize(('share', 'calls'), [(1.0, 4), (0.8, 5), (0.5, 8), (0.0, 16)])
def test_the_first_wave_is_as_large_as_the_last_share_says(share, calls):
  host = Host(useful=range(100))
  assert collect(host, share)._replace(waited=0).asked.total.shape[0] == 2 * calls
  assert numbers(collect(host, share)) == list(range(8))


def test_the_problems_of_a_step_are_the_bound():
  host = Host(useful=[1, 30])
  found = collect(host)
  assert len(host.calls) == 16
  # The useful ones, then the first of the others, which are dropped.
  assert numbers(found) == [1, 30, 0, 2, 3, 4, 5, 6]
  assert replacing.is_useful(found.rewards).tolist() == [True] * 2 + [False] * 6


def test_a_group_stays_on_the_shard_that_sampled_it():
  # Calls of 8, as 2 are not a multiple of 4 shards; two hosts with two shards each.
  useful = [0, 1, 2, 3, 4, 5, 8, 9, 14, 15, 22, 23]
  hosts = [Host(useful, 4, (0, 1)), Host(useful, 4, (2, 3))]
  one, two = (collect(host) for host in hosts)
  # shards hold 0 1, 2 3, 4 5, 6 7 of each call
  assert numbers(one) == numbers(two) == [0, 1, 2, 3, 4, 5, 14, 15]
  assert one.rollout.rows.tolist() == [0, 1, 2, 3]
  assert two.rollout.rows.tolist() == [4, 5, 6, 7]
  assert two.rollout.tokens[:, 0, 0].tolist() == [4, 5, 14, 15]
  np.testing.assert_array_equal(one.rollout.all_lengths, two.rollout.all_lengths)
  # With one more shard full, another call is needed for the last alone.
  three = collect(Host([*useful[:8], 22, 23], 4, (3,)))
  assert three.rollout.tokens[:, 0, 0].tolist() == [22, 23]


@pytest.mark.parametrize(
  ('wanted', 'shards', 'size'),
  [(16, 1, 4), (16, 4, 4), (16, 8, 16), (6, 1, 6), (4, 1, 1), (512, 64, 128)],
)
def test_calls_are_a_quarter_if_the_shards_divide_it(wanted, shards, size):
  assert replacing.prompts_of_a_call(wanted, shards) == size


def test_what_is_dropped_has_no_tokens_on_any_host():
  rollout = Host([0]).sample(problems_of(4), 0)
  rollout = dataclasses.replace(
    rollout, rows=rollout.rows[2:], lengths=rollout.lengths[2:]
  )
  dropped = np.array([[True, False], [False] * 2, [False, True], [True] * 2])
  got = replacing.without(rollout, dropped)
  assert got.all_lengths.tolist() == [[0, 1], [2, 2], [3, 0], [0, 0]]
  assert got.lengths.tolist() == [[3, 0], [0, 0]]


def test_the_overlong_penalty_is_that_of_dapo():
  # 2503.14476, eq. 13 with L_max 100 and L_cache 20
  lengths = np.array([[1, 80, 85], [90, 100, 99]])
  got = overlong_penalty(lengths, 100, 20)
  np.testing.assert_allclose(got, [[0, 0, -0.25], [-0.5, -1, -0.95]], atol=1e-7)
  assert got.dtype == np.float32
