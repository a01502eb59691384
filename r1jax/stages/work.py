"""A stage at work: what R1's stages do with a model, in a run, on the same problems.

A stage of the recipe starts from the work directory of the one before it (`lineage`),
makes or takes a set of examples or problems, trains, and measures its row of the stage
table. Everything that differs between stages is data; it is in `experiments/`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from r1jax import drawing, grpo, optim, sft
from r1jax import mesh as mesh_lib
from r1jax.model import decoder, lora
from r1jax.rewards import Weighted
from r1jax.rewards.pool import RewardPool
from r1jax.stages import (
  compilation,
  evaluate,
  finetune,
  hosts,
  lineage,
  recipe,
  rejection,
  rl,
  scoreboard,
)
from r1jax.stages.generate import Generator, of_all_hosts
from r1jax.stages.run import Run, start
from r1jax.tasks import Problem

STEP_DOCUMENTS = 10_000  # more than a step of base training reads


class Reinforced(Protocol):
  """The part of an experiment's config that RL takes."""

  @property
  def rl(self) -> rl.Config: ...
  @property
  def rl_optim(self) -> optim.Config: ...
  @property
  def grpo(self) -> grpo.Config: ...
  @property
  def evaluate(self) -> evaluate.Config: ...


@dataclasses.dataclass(frozen=True)
class Work:
  """A model in a run."""

  run: Run
  model: lineage.Model
  where: recipe.Setting
  mesh: jax.sharding.Mesh
  seed: int
  layout: mesh_lib.Config = mesh_lib.Config()  # of samplers on it

  @functools.cached_property
  def generator(self) -> Generator:
    """The model's voice."""
    return self.model.generator(self.where.max_prompt_length, self.mesh, self.layout)

  @property
  def sft_step(self) -> Callable[..., Any]:
    """`sft.step` with the model's functions."""
    functions = self.model.functions
    return functools.partial(
      sft.step, forward=functions.forward, logits=functions.logits
    )

  def pretrain(
    self,
    document: Callable[[int], tuple[str, str]],
    config: finetune.Config,
    optimizer: optim.Config,
  ) -> Any:
    """Returns the parameters of a base model, trained from random numbers.

    `document` gives question and output of document 0, 1, … Raises ValueError for a
    learning rate that is too small for the parameters to change.
    """
    params, matrices = self.model.init(self.mesh, self.seed), self.model.matrices
    optim.check_moves(params, optimizer, f'{config.group}_optim', matrices)

    def batch(step: int, params: Any) -> sft.Batch:
      del params

      def ids(index: int) -> list[int]:
        pair = document(step * STEP_DOCUMENTS + index)
        prompt, output = self.model.example_ids(*pair)
        return [*prompt, *output]

      return finetune.pack(ids, config.rows_per_step, config.row_length)

    return finetune.train(
      self.run,
      'base',
      params,
      step=self.sft_step,
      batch=batch,
      steps=config.steps,
      config=config,
      optimizer=optim.make(optimizer, config.steps, matrices, self.seed),
      mesh=self.mesh,
    )

  def passes(
    self, examples: Sequence[tuple[str, str]], config: finetune.Epochs
  ) -> finetune.Passes:
    """Pairs of a question and an output as rows of tokens."""
    ids = [finetune.Example(*self.model.example_ids(*pair)) for pair in examples]
    return finetune.Passes(ids, config, self.seed)

  def imitate(
    self,
    params: Any,
    examples: Sequence[tuple[str, str]],
    config: finetune.Epochs,
    optimizer: optim.Config,
    phase: str = 'sft',
  ) -> Any:
    """Returns the parameters after SFT on pairs of a question and an output.

    Raises ValueError for a learning rate that is too small for them to change.
    """
    matrices = self.model.matrices
    optim.check_moves(params, optimizer, f'{config.group}_optim', matrices)
    passes = self.passes(examples, config)
    return finetune.train(
      self.run,
      phase,
      params,
      step=self.sft_step,
      batch=passes.batch,
      steps=passes.steps,
      config=config,
      optimizer=optim.make(optimizer, passes.steps, matrices, self.seed),
      mesh=self.mesh,
    )

  def collect(
    self, params: Any, order: Callable[[int], Problem], config: rejection.Config
  ) -> list[rejection.Line]:
    """Returns what `rejection.collect` keeps of the model's outputs."""
    return rejection.collect(
      self.run,
      params,
      order,
      generator=self.generator,
      config=config,
      seed=self.seed,
    )

  def own_outputs(
    self,
    order: Callable[[int], Problem],
    *,
    prompts: int,
    max_length: int,
    config: finetune.Epochs,
  ) -> Callable[[int, Any], sft.Batch]:
    """Returns (step, params) -> rows of what these parameters say to the problems.

    All of it: where it takes more rows than `config.rows_per_step`, there are twice or
    three times as many. To leave out what does not fit would favour short outputs.
    """
    key = evaluate.named_key(jax.random.key(self.seed), 'own outputs')
    once = dataclasses.replace(config, epochs=1)

    def batch(step: int, params: Any) -> sft.Batch:
      chosen = [order(index) for index in range((step - 1) * prompts, step * prompts)]
      outputs = self.generator(
        params,
        jax.random.fold_in(key, step),
        chosen,
        group_size=1,
        max_length=max_length,
        draw=drawing.Config(),
      )
      own = [
        finetune.Example(
          outputs.prompts[n][outputs.prompt_mask[n]].tolist(),
          outputs.tokens[n, 0, : outputs.lengths[n, 0]].tolist(),
        )
        for n in range(len(outputs.rows))
      ]
      examples = of_all_hosts(outputs, own)
      return finetune.Passes(examples, once, self.seed + step).whole()

    return batch

  def reinforce(
    self,
    params: Callable[[], Any],
    pool: Any,
    order: Callable[[int], Problem],
    config: Reinforced,
  ) -> Any:
    """Returns the policy after RL on the problems of `order`, rewarded by `pool`.

    `params` makes the parameters to start from. Of a model with adapters these are
    returned; `params` are those of the model without them.
    """

    def quantize(params: Any) -> Any:
      return decoder.quantize(lora.merged(params), self.model.config)

    trainer = rl.Trainer(
      self.generator,
      pool,
      config.rl,
      config.grpo,
      config.rl_optim,
      self.model.matrices,
      quantize if config.rl.int8_rollout else None,
      seed=self.seed,
    )
    note = grpo.PUBLISHED.get(grpo.preset_of(config.grpo) or '')
    if note:
      self.run.progress.say(f'The algorithm is {note}.')
    adapted = self.model.lora
    if adapted.rank:
      trainer = dataclasses.replace(
        trainer,
        matrices=None,
        frozen=params(),
        join=functools.partial(lora.attach, scale=adapted.scale),
      )
      key = evaluate.named_key(jax.random.key(self.seed), 'adapters')
      init = lora.init(self.model.config, adapted, key)
      params = functools.partial(mesh_lib.put_everywhere, self.mesh, init)
    return rl.train(
      self.run,
      'rl',
      params,
      trainer=trainer,
      order=order,
      held_out=self.where.reasoning('validation'),
      evaluate=config.evaluate,
      seed=self.seed,
    )

  def measure(self, params: Mapping[str, Any], config: scoreboard.Config) -> None:
    """Measures a row of the stage table for each of these parameters, by name.

    This is the one place where a stage asks problems of the test split.
    """
    for name, tree in params.items():
      scoreboard.measure(
        self.run,
        tree,
        self.where.reasoning('test'),
        self.where.general('test'),
        generator=self.generator,
        config=config,
        seed=self.seed,
        name=name,
      )

  def finish(
    self, stage: str, config: Any, params: Any, parents: Sequence[lineage.Stage]
  ) -> None:
    """Measures the stage's model and writes its record."""
    final = {'final': params}
    self.measure(final, config.scoreboard)
    lineage.finish(self.run, stage, config, self.model, final, parents)


def pool(
  config: rl.Config, rewards: Sequence[Weighted], preference_weight: float = 0.0
) -> RewardPool:
  """The processes that reward RL's outputs.

  `preference_weight` is of a reward that is added to theirs; see `panel`. Raises
  ValueError without a reward for the accuracy, which evaluations count, and where all
  weights are 0.
  """
  if 'accuracy' not in (names := [reward.name for reward in rewards]):
    raise ValueError(
      "rewards: expected one named 'accuracy', which evaluations count, got "
      + ', '.join(names)
    )
  if not preference_weight and not any(reward.weight for reward in rewards):
    raise ValueError(
      'rewards: expected one with a weight other than 0, as equal sums teach nothing, '
      f'got 0 for {", ".join(names)}'
    )
  return RewardPool(rewards, config.reward_workers, config.reward_timeout)


@contextlib.contextmanager
def begin(
  stage: str, config: Any, parent: lineage.Stage, phases: tuple[str, ...]
) -> Iterator[Work | None]:
  """Opens the run of a stage that comes after another; None if it is finished.

  Its seed is made of the config's and the stage's name; see `recipe.own_seed`.

  Raises what `hosts.joined`, `Setting.check`, `fitting` and `run.start` raise.
  """
  compilation.keep_on_disk()
  with hosts.joined(config):
    where = recipe.setting(parent, config.data_dir)
    where.check(config)
    fitting(config, parent.model.names)
    with start(config, phases=phases, facts=parent.fact) as run:
      if lineage.finished(run):
        yield None
      else:
        mesh = devices(run, config)
        seed = recipe.own_seed(config.seed, stage)
        yield Work(run, parent.model, where, mesh, seed, config.mesh)


def fitting(config: Any, *models: Any) -> jax.sharding.Mesh:
  """The devices that all portions of a stage's config can be cut over, and its models.

  Of models the parameters' shapes with the names of their axes. Raises MeshError.
  """
  sizes = _portions(config)
  asked = {name: size for name, size in sizes.items() if '.prompts_per_' in name}
  mesh = mesh_lib.fitting(sizes, config.mesh, asked)
  _check_lengths(mesh, config)
  for names in models:
    mesh_lib.places(mesh, names)
    mesh_lib.places(mesh_lib.sampler(mesh, config.mesh), names, 'mesh.sampler_')
  return mesh


def devices(run: Run, config: Any) -> jax.sharding.Mesh:
  """The devices that are `fitting`; says which, where others are left."""
  mesh = fitting(config)
  if mesh.size < jax.device_count():
    run.progress.say(
      f'Using {mesh.size} of {jax.device_count()} devices: that many divide '
      + ', '.join(f'{name} = {size}' for name, size in _portions(config).items())
    )
  return mesh


def _check_lengths(mesh: jax.sharding.Mesh, config: Any) -> None:
  lengths = {}
  for name in ('rl', 'base', 'sft'):
    part = getattr(config, name, None)
    for field in ('max_prompt_length', 'row_length'):
      if hasattr(part, field):
        lengths[f'{name}.{field}'] = getattr(part, field)
    for _, length in getattr(part, 'max_length', ()) if name == 'rl' else ():
      lengths['rl.max_length'] = length
  mesh_lib.check_lengths(mesh, lengths)


def _portions(config: Any) -> dict[str, int]:
  """By name: how many prompts or rows a config has computed at a time."""
  found = {}
  for field in dataclasses.fields(config):
    part = getattr(config, field.name)
    for name in ('prompts_per_step', 'micro_batch_rows', 'prompts_per_batch'):
      if hasattr(part, name):
        found[f'{field.name}.{name}'] = getattr(part, name)
    for name in ('rows_per_step', 'pairs_per_step'):
      if hasattr(part, name):
        rows = getattr(part, name) // part.micro_batches
        found[f'{field.name}.{name} / {field.name}.micro_batches'] = rows
  return found
