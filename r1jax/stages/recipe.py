"""What the stages of R1 have in common: their problems, imitation, reinforcement.

A stage of the recipe starts from the work directory of the one before it (`lineage`),
makes or takes a set of examples or problems, trains, and measures its row of the stage
table. Everything that differs between stages is data; it is in `experiments/`.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from r1jax import drawing, grpo, optim, sft, text
from r1jax.model import decoder
from r1jax.stages import evaluate, finetune, lineage, rl, scoreboard
from r1jax.stages.generate import Generator
from r1jax.stages.run import Run
from r1jax.tasks import GENERAL, REASONING, Problem, store, web

TASKS = (*REASONING, *GENERAL)
TOKENIZER_DOCUMENTS = 2000  # that a tokenizer is trained on
STEP_DOCUMENTS = 10_000  # more than a step of base training reads


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

  def check_row(self, field: str, row_length: int, max_length: int) -> None:
    """Raises ValueError for rows that a prompt and its output may not fit into."""
    least = self.max_prompt_length + max_length
    if row_length < least:
      raise ValueError(
        f'{field}: expected at least {least}, for prompts of {self.max_prompt_length} '
        f'tokens and outputs of {max_length}, got {row_length}'
      )


def check_shares(shares: Sequence[float], names: Sequence[str]) -> None:
  """Raises ValueError for shares by which no problems of these tasks can be drawn."""
  usable = len(shares) == len(names) and all(0 <= x < math.inf for x in shares)
  if not usable or not sum(shares):
    raise ValueError(
      f'shares: expected {len(names)} finite numbers of 0 or more, not all 0, for '
      f'{", ".join(names)}, got {shares}'
    )


def own_seed(seed: int, stage: str) -> int:
  """A stage's seed: with the same one it would begin with its parent's problems.

  What a parent has learned by heart is no test, and little to learn from.
  """
  return zlib.crc32(f'{seed} {stage}'.encode())


def setting(stage: lineage.Stage, data_dir: str | None) -> Setting:
  """The setting of the lineage that `stage` belongs to."""
  config = stage.ancestor('r1_zero').record['config']
  return new_setting(
    web.tasks_of(config['tasks']),
    data_dir,
    max_prompt_length=config['rl']['max_prompt_length'],
    longest=config['base']['row_length'],
  )


def new_setting(
  difficulty: web.Tasks, data_dir: str | None, *, max_prompt_length: int, longest: int
) -> Setting:
  """A setting with the problems of this difficulty, built on first use."""
  train, held_out = (
    store.sources(TASKS, difficulty, split, data_dir) for split in ('train', 'test')
  )
  return Setting(train, held_out, max_prompt_length, longest)


def tokenizer(
  file: Path,
  document: Callable[[int], tuple[str, str]],
  template: str,
  vocab_size: int,
) -> text.Tokenizer:
  """The run's tokenizer, or for a new run one of the first documents."""
  # Without config.json the folder is new, or somebody else's, which `start` refuses.
  if file.exists() and file.with_name('config.json').exists():
    return text.Tokenizer.load(file)
  pairs = map(document, range(TOKENIZER_DOCUMENTS))
  texts = (f'{text.render(template, question)} {output}' for question, output in pairs)
  return text.Tokenizer.train(texts, vocab_size)


def pretrain(
  run: Run,
  model: lineage.Model,
  document: Callable[[int], tuple[str, str]],
  *,
  config: finetune.Config,
  optimizer: optim.Config,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> Any:
  """Returns the parameters of a base model, trained on documents from random numbers.

  `document` gives question and output of document 0, 1, …
  """

  def batch(step: int, params: Any) -> sft.Batch:
    del params

    def ids(index: int) -> list[int]:
      prompt, output = model.example_ids(*document(step * STEP_DOCUMENTS + index))
      return [*prompt, *output]

    return finetune.pack(ids, config.rows_per_step, config.row_length)

  return finetune.train(
    run,
    'base',
    model.init(mesh, seed),
    step=sft_step(model),
    batch=batch,
    steps=config.steps,
    config=config,
    optimizer=optim.make(optimizer, config.steps, model.matrices),
    mesh=mesh,
  )


def own_outputs(
  generator: Generator,
  order: Callable[[int], Problem],
  *,
  prompts: int,
  config: finetune.Epochs,
  max_length: int,
  seed: int,
) -> Callable[[int, Any], sft.Batch]:
  """Returns (step, params) -> rows of what these parameters say to `prompts` problems.

  What does not fit into the rows of a step is left out.
  """
  root = jax.random.key(seed)

  def batch(step: int, params: Any) -> sft.Batch:
    chosen = [order(index) for index in range((step - 1) * prompts, step * prompts)]
    outputs = generator(
      params,
      jax.random.fold_in(root, step),
      chosen,
      group_size=1,
      max_length=max_length,
      draw=drawing.Config(),
    )
    examples = [
      finetune.Example(
        outputs.prompts[n][outputs.prompt_mask[n]].tolist(),
        outputs.tokens[n, 0, : outputs.lengths[n, 0]].tolist(),
      )
      for n in range(prompts)
    ]
    return finetune.Passes(
      examples, dataclasses.replace(config, epochs=1), seed + step
    ).batch(1)

  return batch


def sft_step(model: lineage.Model) -> Callable[..., Any]:
  """`sft.step` with the model's functions."""
  functions = model.functions
  return functools.partial(sft.step, forward=functions.forward, logits=functions.logits)


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
    step=sft_step(model),
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
  measure(
    run, model, {'final': params}, where=where, scores=scores, mesh=mesh, seed=seed
  )
  lineage.finish(run, stage, config, model, {'final': params}, parents)


def measure(
  run: Run,
  model: lineage.Model,
  params: Mapping[str, Any],
  *,
  where: Setting,
  scores: scoreboard.Config,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> None:
  """Measures a row of the stage table for each of these parameters, by name."""
  generator = model.generator(where.max_prompt_length, mesh)
  for name, tree in params.items():
    scoreboard.measure(
      run,
      tree,
      where.reasoning,
      where.general,
      generator=generator,
      config=scores,
      seed=seed,
      name=name,
    )
