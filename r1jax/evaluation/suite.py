"""Measures a row of the stage table: a model on held-out problems of every kind.

The paper compares its stages by reasoning, instruction following and preference (Nature
version, table of the stages), and describes their language and readability. All models
answer the same problems of the test split, which is used for nothing else; curves and
choices of settings use the validation split.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import optax

from r1jax.evaluation.evaluate import EvalConfig, evaluate
from r1jax.miniature import baseline
from r1jax.plain import JsonDict, JsonObject
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.rollout.sampler import Sampler
from r1jax.runtime import hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.log import jsonable
from r1jax.runtime.run import Run
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.tasks import Problem

REWARDS = (
  Weighted('accuracy', rules.accuracy, 1.0),
  Weighted('language', rules.language_consistency, 0.0),
  Weighted('readable', rules.readable, 0.0),
  Weighted('preference', baseline.preference, 0.0),
)


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
  """How much to sample for a row of the stage table."""

  reasoning: int = 96  # test problems, the same number of each reasoning task
  general: int = 64  # test instructions
  samples: int = 16  # outputs per problem
  prompts_per_batch: int = 16  # problems sampled at a time
  max_length: int = 320  # T, tokens
  # As in rollouts. The paper's 0.6 and top-p 0.95 remove the random mistakes of a small
  # model, and with them most of the gain of RL.
  draw: SamplingConfig = SamplingConfig()
  shown: int = 12  # problems of each kind whose first output is kept

  def __post_init__(self) -> None:
    for field in ('reasoning', 'general', 'samples', 'prompts_per_batch', 'max_length'):
      if getattr(self, field) < 1:
        raise ValueError(
          f'suite.{field}: expected 1 or more, got {getattr(self, field)}'
        )
    if self.shown < 0:
      raise ValueError(f'suite.shown: expected 0 or more, got {self.shown}')


def file(workdir: Path, name: str) -> Path:
  """Returns the file of a model's row; `name` is that of the parameters."""
  return workdir / f'evaluation-{name}.json'


def measure(
  run: Run,
  params: optax.Params,
  reasoning: Sequence[Problem],
  general: Sequence[Problem],
  *,
  sampler: Sampler,
  config: SuiteConfig,
  workers: int = 2,
  seed: int,
  name: str = 'final',
) -> JsonObject:
  """Returns a model's row; writes it, with some outputs, to `file(workdir, name)`.

  `reasoning` and `general` are problems of the test split.
  """
  root = jax.random.key(seed)
  row: JsonDict = {}
  with RewardPool(REWARDS, workers) as pool:
    for kind, problems, count in (
      ('reasoning', reasoning, config.reasoning),
      ('general', general, config.general),
    ):
      values, shown = evaluate(
        params,
        named_key(root, kind),
        problems[:count],
        sampler=sampler,
        rewarder=pool,
        config=EvalConfig(
          samples=config.samples,
          prompts_per_batch=config.prompts_per_batch,
          draw=config.draw,
          shown=config.shown,
        ),
        max_length=config.max_length,
      )
      row[kind] = {'split': 'test', **values, 'shown': shown}
      mean = values['pass_at_1']['mean']
      run.progress.say(f'{name}, {kind}: pass@1 {mean:.1%}')
  content = json.dumps(jsonable(row), ensure_ascii=False) + '\n'
  if hosts.is_primary():
    write_whole(file(run.workdir, name), content)
  return row
