"""The groups that an RL step learns from: all, useful ones alone, or replaced ones."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from r1jax.plain import JsonDict
from r1jax.rewards.pool import Rewarder
from r1jax.rollout import replacing
from r1jax.rollout.rewarding import Rewards, overlong_penalty, reward
from r1jax.rollout.sampler import Rollout, Sampler
from r1jax.stages.learner import Learner, ScoredRollout
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem
from r1jax.terms.inputs import Outcomes


@dataclasses.dataclass(frozen=True)
class Actors:
  """The parts of an RL step: sampler, rewarder and learner."""

  sampler: Sampler
  rewarder: Rewarder
  learner: Learner


class Groups(NamedTuple):
  """What a step learns from, and what it measured on all that it sampled."""

  rollout: Rollout
  rewards: Rewards
  scores: ScoredRollout
  all_rewards: Rewards  # with those of replaced groups
  all_lengths: np.ndarray
  waited: float  # seconds for rewards


Sample = Callable[..., Rollout]
Score = Callable[[Rollout], Future[ScoredRollout]]


def as_they_are(
  actors: Actors,
  problems: Sequence[Problem],
  sample: Sample,
  score: Score,
  useful_share: float,
) -> Groups:
  """Samples the step's problems; tokens are scored while texts are rewarded."""
  del useful_share
  rollout = sample(problems)
  scoring = score(rollout)
  logged = actors.learner.config.logged_samples
  rewards, waited = reward(actors.rewarder, problems, rollout, logged)
  scores = scoring.result()
  return Groups(rollout, rewards, scores, rewards, rollout.all_lengths, waited)


def replaced(
  actors: Actors,
  problems: Sequence[Problem],
  sample: Sample,
  score: Score,
  useful_share: float,
) -> Groups:
  """Samples until there are enough groups of different rewards; see `replacing`."""
  learner = actors.learner
  found = replacing.collect(
    problems,
    learner.config.prompts_per_step,
    learner.shards,
    useful_share,
    lambda some, first: sample(some, first=first),
    lambda some, rollout: reward(actors.rewarder, some, rollout, len(some)),
  )
  return Groups(
    found.rollout,
    found.rewards,
    score(found.rollout).result(),
    found.asked,
    found.asked_lengths,
    found.waited,
  )


def outcomes(actors: Actors, groups: Groups, length: int) -> Outcomes:
  """Returns what advantages are computed from: rewards with the penalties."""
  learner, rewards = actors.learner, groups.rewards
  total_PG, lengths_PG = rewards.total, groups.rollout.all_lengths
  penalty_PG = learner.kl_penalty(groups.rollout, groups.scores)
  if penalty_PG is not None:
    total_PG = total_PG - penalty_PG
  if soft := learner.config.overlong_tokens:
    total_PG = total_PG + overlong_penalty(lengths_PG, length, soft)
  arrays = total_PG, rewards.values, actors.rewarder.weights, lengths_PG
  return Outcomes(*map(jnp.asarray, arrays))


def dropped(config: RLConfig, rewards: Rewards) -> np.ndarray:
  """Returns which outputs are not learned from, bool [P, G]."""
  dropped = np.zeros(rewards.total.shape, np.bool_)
  if config.equal_groups != 'keep':
    dropped |= ~replacing.is_useful(rewards)[:, None]
  if not config.learn_cut_off:
    dropped |= rewards.cut_off
  return dropped


def counts(config: RLConfig, groups: Groups, dropped_PG: np.ndarray) -> JsonDict:
  """Returns the metrics of settings that leave outputs out, if they are set."""
  found: JsonDict = {}
  if config.equal_groups == 'replace':
    found['prompts_asked'] = len(groups.all_rewards.total)
  if config.equal_groups != 'keep' or not config.learn_cut_off:
    found['dropped'] = float(dropped_PG.mean())
  return found
