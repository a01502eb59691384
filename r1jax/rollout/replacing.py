"""Replaces groups of equal rewards by those of further prompts (DAPO, 2503.14476).

Such a group gives no gradient. All calls of the sampler ask the same number of prompts,
so its program is compiled once. A problem's outputs depend on its number in the step
alone, and so does which groups are taken: a resumed run has the same bits.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from r1jax.rollout.rewarding import Rewards
from r1jax.rollout.sampler import Rollout
from r1jax.tasks import Problem

CALLS = 4  # of the sampler for `wanted` prompts, if these divide
LEAST_SHARE = 0.1  # of useful groups; a first wave is at most 1 / this too large

Place = tuple[int, int]  # number of the call, and of the prompt in it


class Collected(NamedTuple):
  """The groups to learn from, and all that were sampled for them."""

  rollout: Rollout
  rewards: Rewards
  asked: Rewards  # of all sampled groups
  asked_lengths: np.ndarray  # int [asked, G]
  useful_share: float  # of all sampled groups
  waited: float  # seconds for rewards, while nothing was sampled


def is_useful(rewards: Rewards) -> np.ndarray:
  """Returns which groups have different rewards, bool [P]."""
  return rewards.total.max(1) > rewards.total.min(1)


def prompts_of_a_call(wanted: int, shards: int) -> int:
  """Returns how many prompts each call of the sampler asks."""
  return wanted // CALLS if wanted % (CALLS * shards) == 0 else wanted


def collect(
  problems: Sequence[Problem],
  wanted: int,
  shards: int,
  share: float,
  sample: Callable[[Sequence[Problem], int], Rollout],
  reward: Callable[[Sequence[Problem], Rollout], tuple[Rewards, float]],
) -> Collected:
  """Returns `wanted` groups, useful ones if there are enough.

  The first wave is as large as the share of useful groups says. Then calls follow one
  by one until each shard has its part of useful groups, or the problems are used up;
  the first groups of others fill the rest.

  Args:
    problems: candidates of the step in order, a multiple of `wanted`.
    wanted: groups.
    shards: of prompts over devices; a group stays where it was sampled.
    share: of useful groups in the last step.
    sample: (problems, the first one's number) -> outputs of this host.
    reward: (problems, outputs of this host) -> rewards of all hosts, and seconds.
  """
  size = prompts_of_a_call(wanted, shards)
  calls = [problems[n : n + size] for n in range(0, len(problems), size)]
  wave = math.ceil(wanted / max(share, LEAST_SHARE) / size)
  found: list[tuple[Rollout, Rewards]] = []
  waited = 0.0
  with ThreadPoolExecutor(1) as executor:
    while len(found) < len(calls):
      pending = []
      for number in range(len(found), min(len(found) + wave, len(calls))):
        rollout = sample(calls[number], number * size)
        pending.append((rollout, executor.submit(reward, calls[number], rollout)))
      for rollout, scoring in pending:
        began = time.monotonic()
        found.append((rollout, scoring.result()[0]))
        waited += time.monotonic() - began
      places = _choose([is_useful(x) for _, x in found], wanted, shards)
      if all(is_useful(found[call][1])[row] for call, row in places):
        break
      wave = 1
  asked = _joined([rewards for _, rewards in found])
  return Collected(
    _merged([rollout for rollout, _ in found], places),
    _taken([rewards for _, rewards in found], places),
    asked,
    np.concatenate([rollout.all_lengths for rollout, _ in found]),
    float(is_useful(asked).mean()),
    waited,
  )


def _choose(useful: Sequence[np.ndarray], wanted: int, shards: int) -> list[Place]:
  """Returns where the groups come from, in the order of the devices.

  Args:
    useful: of each call, bool [prompts].
    wanted: groups.
    shards: a call's prompts, and the groups, are split evenly over these.
  """
  size, chosen = len(useful[0]) // shards, []
  for shard in range(shards):
    mine = range(shard * size, (shard + 1) * size)
    places = [(call, row) for call in range(len(useful)) for row in mine]
    places.sort(key=lambda place: not useful[place[0]][place[1]])  # stable
    chosen += places[: wanted // shards]
  return chosen


def _merged(rollouts: Sequence[Rollout], places: Sequence[Place]) -> Rollout:
  """Returns the groups at these places that this host holds, as one rollout."""
  at = [{int(row): n for n, row in enumerate(x.rows)} for x in rollouts]
  rows = [n for n, (call, row) in enumerate(places) if row in at[call]]
  mine = [(call, at[call][row]) for call, row in (places[n] for n in rows)]

  def taken(name: str) -> np.ndarray:
    return np.stack([getattr(rollouts[call], name)[n] for call, n in mine])

  return Rollout(
    rows=np.array(rows),
    all_lengths=np.stack([rollouts[call].all_lengths[row] for call, row in places]),
    texts=[rollouts[call].texts[n] for call, n in mine],
    prompt_texts=[rollouts[call].prompt_texts[n] for call, n in mine],
    device_seconds=sum(x.device_seconds for x in rollouts),
    seconds=sum(x.seconds for x in rollouts),
    **{name: taken(name) for name in ARRAYS},
  )


ARRAYS = ('own', 'prompts', 'prompt_mask', 'tokens', 'logp', 'lengths', 'cut_off')


def _taken(found: Sequence[Rewards], places: Sequence[Place]) -> Rewards:
  """Returns the rewards at these places; failures are those of all calls."""
  arrays = {
    name: np.stack([getattr(found[call], name)[row] for call, row in places])
    for name in ('values', 'total', 'cut_off', 'fault', 'reflective')
  }
  samples = {
    n: found[call].samples[row]
    for n, (call, row) in enumerate(places)
    if row in found[call].samples
  }
  joined = _joined(found)._asdict()
  return Rewards(
    **joined | arrays | {'rows': np.arange(len(places)), 'samples': samples}
  )


def _joined(found: Sequence[Rewards]) -> Rewards:
  """Returns the rewards of all calls as one, without samples."""
  arrays = {
    name: np.concatenate([getattr(x, name) for x in found])
    for name in ('values', 'total', 'cut_off', 'fault', 'reflective')
  }
  return Rewards(
    rows=np.arange(len(arrays['total'])),
    failures=sum(x.failures for x in found),
    timeouts=sum(x.timeouts for x in found),
    errors=[error for x in found for error in x.errors],
    samples={},
    **arrays,
  )


def without(rollout: Rollout, dropped: np.ndarray) -> Rollout:
  """Returns a rollout in which some outputs have no tokens to learn from.

  Args:
    rollout: outputs of this host.
    dropped: which outputs of all hosts, bool [all, G].
  """
  return dataclasses.replace(
    rollout,
    lengths=np.where(dropped[rollout.rows], 0, rollout.lengths),
    all_lengths=np.where(dropped, 0, rollout.all_lengths),
  )
