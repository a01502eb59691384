"""Rewards by rule from worker processes, and by a preference model from the device.

R1's last stage adds both (Nature version): rules for reasoning, the preference model
for general prompts alone. A panel is used like the pool that it holds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.rewards.pool import Pending, RewardPool, Scores
from r1jax.runtime.run import TrainingError
from r1jax.stages.learner import Learner
from r1jax.stages.rollout import Rollout
from r1jax.tasks import GENERAL, Problem
from r1jax.text import parsing


@dataclasses.dataclass(frozen=True)
class PreferenceReward:
  """A pool of rules and a preference model."""

  pool: RewardPool
  scorer: Callable[[Sequence[Problem], Sequence[str]], np.ndarray]
  weight: float  # of the preference, in the sum

  @property
  def names(self) -> tuple[str, ...]:
    """The pool's rewards, and after them 'preference'."""
    return (*self.pool.names, 'preference')

  def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Pending:
    """Starts to score `texts[i]` as output for `problems[i]`."""
    pending = self.pool.submit(problems, texts)
    general = np.array([problem.task in GENERAL for problem in problems], bool)
    preference = np.zeros(len(texts), np.float32)
    if general.any():
      chosen = np.flatnonzero(general).tolist()
      preference[chosen] = self.scorer(
        [problems[n] for n in chosen], [texts[n] for n in chosen]
      )

    def collect() -> Scores:
      scores = pending.result()
      return dataclasses.replace(
        scores,
        values=np.column_stack([scores.values, preference]),
        total=scores.total + self.weight * preference,
      )

    return Pending(collect)


LARGEST_REWARD = 1e15  # squares of it, and sums of many of them, fit into float32


class Rewards(NamedTuple):
  """What can be seen of a rollout before learning from it, without the outputs."""

  rows: np.ndarray  # int [P], which problems
  rewards: np.ndarray  # float32 [P, G, R], R of them by name
  reward: np.ndarray  # float32 [P, G], the weighted sum
  cut_off: np.ndarray  # bool [P, G]
  unparsable: np.ndarray  # bool [P, G]
  reflective: np.ndarray  # bool [P, G]
  failures: int
  timeouts: int
  errors: list[str]
  samples: dict[int, dict[str, Any]]  # by row, lines of samples.jsonl


def reward_local(
  trainer: Learner, problems: Sequence[Problem], outputs: Rollout
) -> Rewards:
  """Rewards this host's outputs; others may have them too and then do not."""
  mine = np.flatnonzero(outputs.own)
  rows, texts = outputs.rows[mine], [outputs.texts[n] for n in mine]
  shape = len(mine), trainer.config.group_size
  repeated = [problems[row] for row in rows for _ in range(shape[1])]
  flat = [output for group in texts for output in group]
  scores = trainer.pool.submit(repeated, flat).result()
  samples = {
    int(row): {
      'problem': problems[row].id,
      'prompt': trainer.generator.prompt(problems[row]),
      'output': texts[n][0],
      'rewards': dict(
        zip(trainer.pool.names, scores.values[n * shape[1]].tolist(), strict=True)
      ),
      'reward': float(scores.total[n * shape[1]]),
    }
    for n, row in enumerate(rows)
    if row < trainer.config.logged_samples
  }
  return Rewards(
    rows,
    scores.values.reshape(*shape, len(trainer.pool.names)),
    scores.total.reshape(shape),
    outputs.cut_off[mine],
    np.array([parsing.parse(output) is None for output in flat], bool).reshape(shape),
    np.array([parsing.is_reflective(output) for output in flat], bool).reshape(shape),
    scores.failures,
    scores.timeouts,
    scores.errors,
    samples,
  )


def join_hosts(parts: Sequence[Rewards]) -> Rewards:
  """What all hosts have seen, in the order of the problems."""
  order = np.argsort(np.concatenate([part.rows for part in parts]))

  def all_of(*fields: Any) -> Any:
    if isinstance(fields[0], np.ndarray):
      return np.concatenate(fields)[order]
    if isinstance(fields[0], dict):
      return dict(item for field in fields for item in field.items())
    return sum(fields, start=type(fields[0])())

  return Rewards(*map(all_of, *parts))


def check_rewards(step: int, seen: Rewards, names: Sequence[str]) -> None:
  """Raises TrainingError for a weighted sum that advantages can't be computed of."""
  wrong = np.argwhere(~(np.abs(seen.reward) <= LARGEST_REWARD))  # NaN too
  if len(wrong):
    p, g = wrong[0]
    parts = zip(names, seen.rewards[p, g].tolist(), strict=True)
    raise TrainingError(
      f'the rewards of an output of step {step} add up to {seen.reward[p, g]:.3g} ('
      + ', '.join(f'{name} {value:.3g}' for name, value in parts)
      + f'), and {LARGEST_REWARD:g} is the most that advantages are computed of; lower '
      'that reward or its weight, in another --workdir'
    )


def check_advantages(step: int, advantage_PG: np.ndarray, name: str) -> None:
  """Raises TrainingError for advantages that are no numbers."""
  wrong = advantage_PG[~np.isfinite(advantage_PG)]
  if wrong.size:
    raise TrainingError(
      f'the advantage {name!r} is {wrong[0]} for {wrong.size} of {advantage_PG.size} '
      f'outputs of step {step}, whose rewards are all finite; correct the function, or '
      'choose another grpo.advantage, in another --workdir'
    )


def observed(
  length_PG: np.ndarray,
  seen: Rewards,
  advantage_PG: np.ndarray,
  names: Sequence[str],
) -> dict[str, Any]:
  spread = seen.reward.max(1) - seen.reward.min(1)
  return {
    'reward': float(seen.reward.mean()),
    'reward_spread': float(np.ptp(seen.reward)),  # the largest less the smallest
    'rewards': {
      name: float(seen.rewards[..., i].mean()) for i, name in enumerate(names)
    },
    'length': float(length_PG.mean()),
    'zero_variance_groups': float((spread == 0).mean()),
    'zero_advantages': float((advantage_PG == 0).mean()),
    'cut_off': float(seen.cut_off.mean()),
    'unparsable': float(seen.unparsable.mean()),
    'reflective': float(seen.reflective.mean()),
    'reward_errors': seen.failures,
    'reward_timeouts': seen.timeouts,
    'errors': seen.errors,
  }
