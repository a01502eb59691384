"""The operations of R1's stages on a policy: pretrain, SFT, RL, sampling, evaluation.

`experiments/` holds what differs between stages: data, rewards and settings.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import optax

from r1jax import optim as optimizers
from r1jax import sft
from r1jax.evaluation import suite
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature.judge import JudgeConfig
from r1jax.rewards import Weighted
from r1jax.rewards.pool import Rewarder, RewardPool
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime.run import Run
from r1jax.sft import Batch
from r1jax.sharding.mesh import MeshConfig, local_mesh
from r1jax.stages import (
  examples,
  methods,
  preference,
  problem_sets,
  rejection,
  rl,
  rl_groups,
  rl_state,
  supervised,
)
from r1jax.stages.artifact import Artifact
from r1jax.stages.examples import Epochs, Example
from r1jax.stages.preference import PreferenceConfig
from r1jax.stages.preference_scoring import Scorer
from r1jax.stages.problem_sets import Problems
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import PretrainConfig, SFTConfig, StepFunction
from r1jax.tasks import Problem
from r1jax.text.templates import Question

STEP_DOCUMENTS = 10_000  # more than a step of base training reads


@dataclasses.dataclass(frozen=True)
class Stage:
  """A policy in a run, with the problems of its chain of stages.

  Fields:
    run: the open work directory.
    policy: the model, its tokenizer and template.
    problems: training and held-out problems.
    mesh: the learner's devices.
    seed: of everything random in the stage.
    layout: how the sampler uses the devices.
    parents: the finished stages that this one starts from.
    source: (mesh) -> parameters, for a model that does not come from a stage.
  """

  run: Run
  policy: Policy
  problems: Problems
  mesh: jax.sharding.Mesh
  seed: int
  layout: MeshConfig = MeshConfig()
  parents: tuple[Artifact, ...] = ()
  source: Callable[[jax.sharding.Mesh], optax.Params] | None = None

  @property
  def parent(self) -> Artifact:
    """The finished stage that this one starts from."""
    return self.parents[0]

  @functools.cached_property
  def sampler(self) -> Sampler:
    """Samples outputs of the policy."""
    length = self.problems.max_prompt_length
    return Sampler(self.policy, length, self.mesh, self.layout)

  def params(self, name: str = 'final') -> optax.Params:
    """Returns the parameters that the stage starts from, on the mesh.

    They are those that the parent saved under this name, or those of `source`.
    """
    if self.source is not None:
      return self.source(self.mesh)
    return self.parent.params(self.mesh, name)

  def problem_stream(self, shares: Sequence[float]) -> Callable[[int], Problem]:
    """Returns index -> training problem; `shares` are of the first tasks, in order."""
    sources = self.problems.train[: len(shares)]
    return problem_sets.problem_stream(sources, shares, self.seed)

  def pretrain(
    self, document: Callable[[int], tuple[str, str]], config: PretrainConfig
  ) -> optax.Params:
    """Returns the parameters of a base model, trained from random initialization.

    Args:
      document: returns question and output of document 0, 1, …
      config: see `PretrainConfig`.

    Raises:
      ValueError: the learning rate is too small for the parameters to change.
    """

    def batch(step: int, params: optax.Params) -> Batch:
      del params

      def ids(index: int) -> list[int]:
        pair = document(step * STEP_DOCUMENTS + index)
        prompt, output = self.policy.example_ids(*pair)
        return [*prompt, *output]

      return examples.pack(ids, config.rows_per_step, config.row_length)

    params = self.policy.init(self.mesh, self.seed)
    return self.train('base', params, batch, config.steps, config, 'base.optim')

  def epochs(
    self, pairs: Sequence[tuple[Question, str]], config: SFTConfig
  ) -> examples.Epochs:
    """Returns batches of rows made of pairs of a question and an output."""
    ids = [Example(*self.policy.example_ids(*pair)) for pair in pairs]
    return Epochs(ids, config, self.seed)

  def sft(
    self,
    params: optax.Params,
    pairs: Sequence[tuple[Question, str]],
    config: SFTConfig,
    phase: str = 'sft',
  ) -> optax.Params:
    """Returns the parameters after SFT on pairs of a question and an output.

    Raises:
      ValueError: the learning rate is too small for the parameters to change.
    """
    epochs = self.epochs(pairs, config)
    return self.train(phase, params, epochs.batch, epochs.steps, config, 'sft.optim')

  def train(
    self,
    phase: str,
    params: optax.Params,
    batch: Callable[[int, optax.Params], Batch],
    steps: int,
    config: supervised.RowsConfig,
    optim_field: str,
    *,
    step: StepFunction | None = None,
    constants: tuple[optax.Params, ...] = (),
  ) -> optax.Params:
    """Returns the parameters after supervised training; see `supervised.train`.

    `step` defaults to `sft.step` of the policy.

    Raises:
      ValueError: the learning rate is too small for the parameters to change.
    """
    functions, matrices = self.policy.functions, self.policy.matrices
    optimizers.check_learning_rate(params, config.optim, optim_field, matrices)
    return supervised.train(
      self.run,
      phase,
      params,
      step=step
      or functools.partial(
        sft.step,
        forward=functions.forward,
        head=functions.head,
        in_place=True,
      ),
      batch=batch,
      steps=steps,
      config=config,
      optimizer=optimizers.make(config.optim, steps, matrices, self.seed),
      mesh=self.mesh,
      optim_field=optim_field,
      constants=constants,
    )

  def rejection_sample(
    self,
    params: optax.Params,
    problem_at: Callable[[int], Problem],
    config: RejectionConfig,
  ) -> list[rejection.Line]:
    """Returns the outputs of the policy that `rejection.rejection_sample` keeps."""
    return rejection.rejection_sample(
      self.run,
      params,
      problem_at,
      sampler=self.sampler,
      config=config,
      seed=self.seed,
    )

  def preference_model(
    self,
    params: optax.Params,
    problems: Sequence[Problem],
    judge: JudgeConfig,
    config: PreferenceConfig,
    rl_config: RLConfig,
  ) -> Scorer:
    """Returns a preference model of the judge's ranking of the policy's outputs.

    Args:
      params: of the policy, which samples the outputs; the model starts from them.
      problems: instructions; a multiple of `rl_config.prompts_per_step`.
      judge: how the judge compares.
      config: of the preference model.
      rl_config: sizes of the batches of outputs.

    Raises:
      ValueError: the learning rate is too small for the parameters to change.
    """
    optimizers.check_learning_rate(params, config.optim, 'preference.optim')
    pairs = preference.judged_pairs(
      self.run,
      self.sampler,
      params,
      problems,
      judge=judge,
      prompts=rl_config.prompts_per_step,
      group_size=rl_config.group_size,
      max_length=rl_config.longest,
      seed=self.seed,
    )
    trained = preference.train(
      self.run,
      'preference',
      params,
      policy=self.policy,
      pairs=pairs,
      config=config,
      mesh=self.mesh,
      seed=self.seed,
    )
    return Scorer(trained, self.policy, config.max_length, local_mesh(self.mesh))

  def rl(
    self,
    params: Callable[[], optax.Params],
    rewarder: Rewarder,
    problem_at: Callable[[int], Problem],
    config: RLConfig,
    evals: EvalConfig,
  ) -> optax.Params:
    """Returns the policy after RL.

    For a policy with adapters these are the learned adapters.

    Args:
      params: returns the model's parameters to start from, without adapters.
      rewarder: rewards the outputs.
      problem_at: index -> problem; see `problem_stream`.
      config: of the stage.
      evals: how to evaluate on the validation split during training.
    """
    for note in methods.notes(config):
      self.run.progress.say(note)
    learner, params = rl_state.learner_of(
      self.policy, self.mesh, config, params, self.seed
    )
    return rl.train(
      self.run,
      'rl',
      params,
      actors=rl_groups.Actors(self.sampler, rewarder, learner),
      problem_at=problem_at,
      held_out=self.problems.reasoning('validation'),
      evals=evals,
      seed=self.seed,
    )

  def measure(self, params: Mapping[str, optax.Params], config: SuiteConfig) -> None:
    """Measures a row of the stage table for each of the named parameters.

    Only this method uses problems of the test split.
    """
    for name, tree in params.items():
      suite.measure(
        self.run,
        tree,
        self.problems.reasoning('test'),
        self.problems.general('test'),
        sampler=self.sampler,
        config=config,
        seed=self.seed,
        name=name,
      )


def check_rewards(rewards: Sequence[Weighted], preference_weight: float = 0.0) -> None:
  """Raises ValueError without a reward 'accuracy', or for equal names or no weight.

  Evaluations count the reward 'accuracy'. `preference_weight` is the weight of a reward
  that is added to these.
  """
  if 'accuracy' not in (names := [reward.name for reward in rewards]):
    raise ValueError(
      "rewards: expected one named 'accuracy', which evaluations count, got "
      + ', '.join(names)
    )
  if twice := [name for n, name in enumerate(names) if name in names[:n]]:
    raise ValueError(f'rewards: expected different names, got {twice[0]} twice')
  if not preference_weight and not any(reward.weight for reward in rewards):
    raise ValueError(
      'rewards: expected one with a weight other than 0, as equal sums teach nothing, '
      f'got 0 for {", ".join(names)}'
    )


def reward_pool(
  config: RLConfig,
  rewards: Sequence[Weighted],
  preference_weight: float = 0.0,
  imports: Sequence[str] = (),
  timeout: float = 0.0,
) -> RewardPool:
  """Returns the processes that reward outputs by rules; see `RewardPool`.

  The time limit is that of the config, or `timeout` if that is longer.
  """
  check_rewards(rewards, preference_weight)
  seconds = max(timeout, config.reward_timeout)
  return RewardPool(rewards, config.reward_workers, seconds, imports)
