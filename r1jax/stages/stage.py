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

from r1jax import grpo, optim, sft
from r1jax.grpo import GRPOConfig
from r1jax.model import decoder, lora
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import compilation, hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import Run, start
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig, check_lengths, fit_mesh, sampler_mesh
from r1jax.sharding.place import param_shardings, replicate
from r1jax.stages import (
  artifact,
  evaluation_suite,
  problem_sets,
  rejection,
  rl,
  supervised,
)
from r1jax.stages.artifact import Artifact, Policy
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.evaluation_suite import SuiteConfig
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rollout import Sampler, of_all_hosts
from r1jax.stages.supervised import Epochs, PretrainConfig, SFTConfig
from r1jax.tasks import Problem

STEP_DOCUMENTS = 10_000  # more than a step of base training reads


class Reinforced(Protocol):
  """The part of an experiment's config that RL takes."""

  @property
  def rl(self) -> RLConfig: ...
  @property
  def rl_optim(self) -> OptimConfig: ...
  @property
  def grpo(self) -> GRPOConfig: ...
  @property
  def evaluate(self) -> EvalConfig: ...


@dataclasses.dataclass(frozen=True)
class Stage:
  """A model in a run."""

  run: Run
  model: Policy
  where: Problems
  mesh: jax.sharding.Mesh
  seed: int
  layout: MeshConfig = MeshConfig()  # of samplers on it

  @functools.cached_property
  def generator(self) -> Sampler:
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
    config: PretrainConfig,
    optimizer: OptimConfig,
  ) -> Any:
    """Returns the parameters of a base model, trained from random numbers.

    `document` gives question and output of document 0, 1, … Raises ValueError for a
    learning rate that is too small for the parameters to change.
    """
    params, matrices = self.model.init(self.mesh, self.seed), self.model.matrices
    optim.check_learning_rate(params, optimizer, f'{config.group}_optim', matrices)

    def batch(step: int, params: Any) -> sft.Batch:
      del params

      def ids(index: int) -> list[int]:
        pair = document(step * STEP_DOCUMENTS + index)
        prompt, output = self.model.example_ids(*pair)
        return [*prompt, *output]

      return supervised.pack(ids, config.rows_per_step, config.row_length)

    return supervised.train(
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

  def passes(self, examples: Sequence[tuple[str, str]], config: SFTConfig) -> Epochs:
    """Pairs of a question and an output as rows of tokens."""
    ids = [supervised.Example(*self.model.example_ids(*pair)) for pair in examples]
    return Epochs(ids, config, self.seed)

  def imitate(
    self,
    params: Any,
    examples: Sequence[tuple[str, str]],
    config: SFTConfig,
    optimizer: OptimConfig,
    phase: str = 'sft',
  ) -> Any:
    """Returns the parameters after SFT on pairs of a question and an output.

    Raises ValueError for a learning rate that is too small for them to change.
    """
    matrices = self.model.matrices
    optim.check_learning_rate(params, optimizer, f'{config.group}_optim', matrices)
    passes = self.passes(examples, config)
    return supervised.train(
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
    self, params: Any, order: Callable[[int], Problem], config: RejectionConfig
  ) -> list[rejection.Line]:
    """Returns what `rejection.rejection_sample` keeps of the model's outputs."""
    return rejection.rejection_sample(
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
    config: SFTConfig,
  ) -> Callable[[int, Any], sft.Batch]:
    """Returns (step, params) -> rows of what these parameters say to the problems.

    All of it: where it takes more rows than `config.rows_per_step`, there are twice or
    three times as many. To leave out what does not fit would favour short outputs.
    """
    key = named_key(jax.random.key(self.seed), 'own outputs')
    once = dataclasses.replace(config, epochs=1)

    def batch(step: int, params: Any) -> sft.Batch:
      chosen = [order(index) for index in range((step - 1) * prompts, step * prompts)]
      outputs = self.generator(
        params,
        jax.random.fold_in(key, step),
        chosen,
        group_size=1,
        max_length=max_length,
        draw=SamplingConfig(),
      )
      own = [
        supervised.Example(
          outputs.prompts[n][outputs.prompt_mask[n]].tolist(),
          outputs.tokens[n, 0, : outputs.lengths[n, 0]].tolist(),
        )
        for n in range(len(outputs.rows))
      ]
      examples = of_all_hosts(outputs, own)
      return Epochs(examples, once, self.seed + step).whole()

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

    trainer = Learner(
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
      key = named_key(jax.random.key(self.seed), 'adapters')
      init = lora.init(self.model.config, adapted, key)
      params = functools.partial(replicate, self.mesh, init)
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

  def measure(self, params: Mapping[str, Any], config: SuiteConfig) -> None:
    """Measures a row of the stage table for each of these parameters, by name.

    This is the one place where a stage asks problems of the test split.
    """
    for name, tree in params.items():
      evaluation_suite.measure(
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
    self, stage: str, config: Any, params: Any, parents: Sequence[Artifact]
  ) -> None:
    """Measures the stage's model and writes its record."""
    final = {'final': params}
    self.measure(final, config.scoreboard)
    artifact.finish(self.run, stage, config, self.model, final, parents)


def reward_pool(
  config: RLConfig, rewards: Sequence[Weighted], preference_weight: float = 0.0
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
  stage: str, config: Any, parent: Artifact, phases: tuple[str, ...]
) -> Iterator[Stage | None]:
  """Opens the run of a stage that comes after another; None if it is finished.

  Its seed is made of the config's and the stage's name; see `problem_sets.own_seed`.

  Raises what `hosts.connect`, `Setting.check`, `fitting` and `run.start` raise.
  """
  compilation.keep_on_disk()
  with hosts.connect(config):
    where = problem_sets.problems_of(parent, config.data_dir)
    where.check(config)
    fit_stage_mesh(config, parent.model.names)
    with start(config, phases=phases, facts=parent.fact) as run:
      if artifact.finished(run):
        yield None
      else:
        mesh = devices(run, config)
        seed = problem_sets.own_seed(config.seed, stage)
        yield Stage(run, parent.model, where, mesh, seed, config.mesh)


def fit_stage_mesh(config: Any, *models: Any) -> jax.sharding.Mesh:
  """The devices that all portions of a stage's config can be cut over, and its models.

  Of models the parameters' shapes with the names of their axes. Raises MeshError.
  """
  sizes = _portions(config)
  asked = {name: size for name, size in sizes.items() if '.prompts_per_' in name}
  mesh = fit_mesh(sizes, config.mesh, asked)
  _check_lengths(mesh, config)
  for names in models:
    param_shardings(mesh, names)
    param_shardings(sampler_mesh(mesh, config.mesh), names, 'mesh.sampler_')
  return mesh


def devices(run: Run, config: Any) -> jax.sharding.Mesh:
  """The devices that are `fitting`; says which, where others are left."""
  mesh = fit_stage_mesh(config)
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
  check_lengths(mesh, lengths)


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
