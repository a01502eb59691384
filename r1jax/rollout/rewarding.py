"""Rewards a rollout: submits its outputs, and gathers the rewards of all hosts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from r1jax.plain import JsonDict, JsonObject
from r1jax.rewards.pool import Rewarder
from r1jax.rollout.sampler import Rollout
from r1jax.runtime import hosts
from r1jax.tasks import Problem
from r1jax.text import parsing


class Rewards(NamedTuple):
  """Rewards of a rollout, and other measurements of its texts.

  P counts the problems of one host, or of all hosts after gathering.
  """

  rows: np.ndarray  # int [P], which problems
  values: np.ndarray  # float32 [P, G, R], R of them by name
  total: np.ndarray  # float32 [P, G], the weighted sum
  cut_off: np.ndarray  # bool [P, G]
  fault: np.ndarray  # str [P, G], of the form; see `parsing.fault`
  reflective: np.ndarray  # bool [P, G]
  failures: int
  timeouts: int
  errors: list[str]
  samples: Mapping[int, JsonObject]  # by row, lines of samples.jsonl

  def metrics(
    self, lengths_PG: np.ndarray, advantage_PG: np.ndarray, names: Sequence[str]
  ) -> JsonDict:
    """Returns the metrics of a step's outputs for metrics.jsonl.

    Args:
      lengths_PG: tokens of these outputs.
      advantage_PG: of the outputs that are learned from.
      names: of the rewards.
    """
    spread = self.total.max(1) - self.total.min(1)
    return {
      'reward': float(self.total.mean()),
      'reward_spread': float(np.ptp(self.total)),  # the largest less the smallest
      'rewards': {
        name: float(self.values[..., i].mean()) for i, name in enumerate(names)
      },
      'length': float(lengths_PG.mean()),
      'zero_variance_groups': float((spread == 0).mean()),
      'zero_advantages': float((advantage_PG == 0).mean()),
      'cut_off': float(self.cut_off.mean()),
      'unparsable': float((self.fault != '').mean()),
      'endless_thoughts': float((self.fault == 'thoughts').mean()),
      'no_answer': float((self.fault == 'answer').mean()),
      'reflective': float(self.reflective.mean()),
      'reward_errors': self.failures,
      'reward_timeouts': self.timeouts,
      'errors': self.errors,
    }


def overlong_penalty(
  lengths: np.ndarray, max_length: int, soft_tokens: int
) -> np.ndarray:
  """Returns 0 to -1, in the last tokens before the limit (DAPO, 2503.14476, eq. 13).

  It falls in a line from 0 at `max_length - soft_tokens` to -1 at `max_length`.
  """
  over = lengths - (max_length - soft_tokens)
  return -np.clip(over / soft_tokens, 0, 1).astype(np.float32)


def reward(
  rewarder: Rewarder, problems: Sequence[Problem], rollout: Rollout, logged: int
) -> tuple[Rewards, float]:
  """Returns the rewards of all hosts' outputs, and the seconds spent.

  Args:
    rewarder: see `Rewarder`.
    problems: of the step, on all hosts.
    rollout: outputs of this host.
    logged: number of problems whose first output becomes a line of samples.jsonl.
  """
  began = time.monotonic()
  local = _reward_local(rewarder, problems, rollout, logged)
  gathered = _in_order(hosts.all_gather('rewards', local))
  return gathered, time.monotonic() - began


def _reward_local(
  rewarder: Rewarder, problems: Sequence[Problem], rollout: Rollout, logged: int
) -> Rewards:
  """Returns the rewards of the outputs that this host owns."""
  mine = np.flatnonzero(rollout.own)
  rows, texts = rollout.rows[mine], [rollout.texts[n] for n in mine]
  shape = len(mine), rollout.tokens.shape[1]
  repeated = [problems[row] for row in rows for _ in range(shape[1])]
  flat = [output for group in texts for output in group]
  scores = rewarder.submit(repeated, flat).result()
  faults = [parsing.fault(x, p.form) for p, x in zip(repeated, flat, strict=True)]
  samples = {
    int(row): {
      'problem': problems[row].id,
      'prompt': rollout.prompt_texts[mine[n]],
      'output': texts[n][0],
      'rewards': dict(
        zip(rewarder.names, scores.values[n * shape[1]].tolist(), strict=True)
      ),
      'reward': float(scores.total[n * shape[1]]),
    }
    for n, row in enumerate(rows)
    if row < logged
  }
  return Rewards(
    rows,
    scores.values.reshape(*shape, len(rewarder.names)),
    scores.total.reshape(shape),
    rollout.cut_off[mine],
    np.array(faults, str).reshape(shape),
    np.array([parsing.is_reflective(output) for output in flat], bool).reshape(shape),
    scores.failures,
    scores.timeouts,
    scores.errors,
    samples,
  )


def _in_order(parts: Sequence[Rewards]) -> Rewards:
  """Returns the rewards of all hosts as one, in the order of the problems."""
  order = np.argsort(np.concatenate([part.rows for part in parts]))

  def all_of(*fields: Any) -> Any:
    if isinstance(fields[0], np.ndarray):
      return np.concatenate(fields)[order]
    if isinstance(fields[0], dict):
      return dict(item for field in fields for item in field.items())
    return sum(fields, start=type(fields[0])())

  return Rewards(*map(all_of, *parts))
