"""What the stages of R1 have in common: their problems, imitation, reinforcement.

A stage of the recipe starts from the work directory of the one before it (`lineage`),
makes or takes a set of examples or problems, trains, and measures its row of the stage
table. Everything that differs between stages is data; it is in `experiments/`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from r1jax import grpo, optim
from r1jax.model import decoder
from r1jax.stages import evaluate, finetune, lineage, rl, scoreboard
from r1jax.stages.run import Run
from r1jax.tasks import GENERAL, REASONING, Problem, store, web

TASKS = (*REASONING, *GENERAL)


@dataclasses.dataclass(frozen=True)
class Setting:
  """The world of a lineage: what its first stage was asked, learned from and measured.

  Fields:
    train: problems to learn from, a list for each of `TASKS`.
    held_out: problems for evaluations, likewise.
    max_prompt_length: S, tokens.
    longest: positions that the base model has seen, T of its training.
  """

  train: list[list[Problem]]
  held_out: list[list[Problem]]
  max_prompt_length: int
  longest: int

  @property
  def reasoning(self) -> list[Problem]:
    """Held-out reasoning problems, a task after the other by turns."""
    return store.by_turns(self.held_out[: len(REASONING)])

  @property
  def general(self) -> list[Problem]:
    """Held-out instructions."""
    return store.by_turns(self.held_out[len(REASONING) :])

  def check_length(self, field: str, max_length: int) -> None:
    """Raises ValueError for outputs at positions that the base model never saw."""
    most = self.longest - self.max_prompt_length
    if max_length > most:
      raise ValueError(
        f'{field}: expected at most {most}, as the base model was trained on rows of '
        f'{self.longest} tokens with prompts of {self.max_prompt_length}, got '
        f'{max_length}'
      )


def setting(stage: lineage.Stage, data_dir: str | None) -> Setting:
  """The setting of the lineage that `stage` belongs to."""
  config = stage.ancestor('r1_zero').record['config']
  difficulty = web.tasks_of(config['tasks'])
  train, held_out = (
    store.sources(TASKS, difficulty, split, data_dir) for split in ('train', 'test')
  )
  return Setting(
    train, held_out, config['rl']['max_prompt_length'], config['base']['row_length']
  )


def imitate(
  run: Run,
  model: lineage.Model,
  params: Any,
  examples: Sequence[tuple[str, str]],
  *,
  config: finetune.Epochs,
  optimizer: optim.Config,
  mesh: jax.sharding.Mesh,
  seed: int,
  phase: str = 'sft',
) -> Any:
  """Returns the parameters after SFT on pairs of a question and an output."""
  passes = finetune.Passes(
    [finetune.Example(*model.example_ids(*example)) for example in examples],
    config,
    seed,
  )
  return finetune.train(
    run,
    phase,
    params,
    model=model.functions,
    batch=passes.batch,
    steps=passes.steps,
    config=config,
    optimizer=optim.make(optimizer, passes.steps, model.matrices),
    mesh=mesh,
  )


def reinforce(
  run: Run,
  model: lineage.Model,
  params: Any,
  *,
  pool: Any,
  order: Callable[[int], Problem],
  where: Setting,
  config: rl.Config,
  algorithm: grpo.Config,
  optimizer: optim.Config,
  evaluation: evaluate.Config,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> Any:
  """Returns the policy after RL on the problems of `order`."""
  quantize = functools.partial(decoder.quantize, config=model.config)
  return rl.train(
    run,
    'rl',
    params,
    trainer=rl.Trainer(
      model.generator(where.max_prompt_length, mesh),
      pool,
      config,
      algorithm,
      optimizer,
      model.matrices,
      quantize if config.int8_rollout else None,
    ),
    order=order,
    held_out=where.reasoning,
    evaluate=evaluation,
    seed=seed,
  )


def finish(
  run: Run,
  stage: str,
  config: Any,
  model: lineage.Model,
  params: Any,
  *,
  where: Setting,
  parents: Sequence[lineage.Stage],
  scores: scoreboard.Config,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> None:
  """Measures a stage's row of the stage table and writes its record."""
  scoreboard.measure(
    run,
    params,
    where.reasoning,
    where.general,
    generator=model.generator(where.max_prompt_length, mesh),
    config=scores,
    seed=seed,
  )
  lineage.finish(run, stage, config, model, {'final': params}, parents)
