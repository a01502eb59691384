"""Learns from rollouts: scores tokens, packs rows, updates the policy."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import grpo, optim, packing, update
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig, TrainState
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import compilation
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import local_shards
from r1jax.sharding.place import (
  abstract_like_params,
  device_sharding,
  feed_rows,
  fetch_rows,
  like_params,
  to_device,
  to_host,
)
from r1jax.sharding.rules import named_sharding, shard_count
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rollout import Rollout, Sampler
from r1jax.tasks import Problem

SHORT = 0.1  # of the learning rate; shorter updates are said to be
LARGE = 100  # times Adam's eps; no longer small beside a gradient of such an rms


class ScoredRollout(NamedTuple):
  """Log-probs [P, G, T] of a rollout's tokens, and the device's seconds for them."""

  old_logp: np.ndarray | None  # of the policy; None if the sampler was the policy
  ref_logp: np.ndarray | None  # of the reference; None if no penalty needs it
  seconds: float


def learned_alone(frozen: Any, params: Any) -> Any:
  """The model's parameters where all of them are learned."""
  del frozen
  return params


@dataclasses.dataclass(frozen=True)
class Learner:
  """What does not change during a stage."""

  generator: Sampler
  pool: RewardPool
  config: RLConfig
  algorithm: GRPOConfig
  optimizer: OptimConfig
  matrices: Any = None  # of the model, for Muon; see `optim.make`
  # What rollouts are sampled with in the place of the policy's parameters, say their
  # `decoder.quantize`; None is the policy itself.
  sampler_params: Callable[[Any], Any] | None = None
  # Parameters that nothing is learned of, and how they make up the model's with those
  # that are; see `model.lora`.
  frozen: Any = None
  join: Callable[[Any, Any], Any] = learned_alone
  seed: int = 0  # of what is random about bfloat16 parameters; see `optim.make`

  @functools.cached_property
  def chain(self) -> Any:
    """The optimizer over all updates of the stage."""
    config = self.config
    updates = config.steps * config.epochs * config.minibatches
    return optim.make(self.optimizer, updates, self.matrices, self.seed)

  def start(self, params: Any) -> dict[str, Any]:
    """What a checkpoint holds, before the first step."""
    # A copy: an update takes the memory of the state before it.
    before = {
      'policy': optim.init(jax.tree.map(jnp.copy, params), self.chain),
      'reference': params,
    }
    # Placed now: another layout in the second step would compile again.
    return like_params(self.generator.mesh, before, params)

  def like(self, params: Any) -> dict[str, Any]:
    """The shapes of what `start` returns, and where they lie."""
    shapes = jax.eval_shape(
      lambda params: {'policy': optim.init(params, self.chain), 'reference': params},
      params,
    )
    return abstract_like_params(self.generator.mesh, shapes, params)

  @functools.cached_property
  def _score(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return functools.partial(score_tokens, model=self.generator.model)

  def program(self, places: Any) -> Any:
    """`update.step` for `jax.jit`; the old state's memory is used for the new one.

    `places` is where the state lies, before and after.
    """

    def step(state: TrainState, frozen: Any, *rollout: Any) -> Any:
      score = self._scoring_with(frozen)
      return update.step(
        state, *rollout, score=score, optimizer=self.chain, config=self.algorithm
      )

    return self._jit(step, (places, None), donated=(0,))

  def halves(self, places: Any) -> tuple[Any, Any]:
    """`program` in two: what gives the gradient, and what makes the update of it.

    The first one does without the optimizer's state.
    """

    def gradients(params: Any, frozen: Any, *rollout: Any) -> Any:
      score = self._scoring_with(frozen)
      return update.gradients(params, *rollout, score=score, config=self.algorithm)

    def apply(state: TrainState, grads: Any) -> Any:
      return optim.apply(state, grads, optimizer=self.chain)

    return (
      self._jit(gradients, (places.params, None)),
      self._jit(apply, (places, None), donated=(0,)),
    )

  def _scoring_with(self, frozen: Any) -> Callable[..., Any]:
    def score(params: Any, *rows: Any, **settings: Any) -> Any:
      return self._score(self.join(frozen, params), *rows, **settings)

    return score

  def _jit(self, function: Any, places: Any, donated: tuple[int, ...] = ()) -> Any:
    mesh = self.generator.mesh
    return jax.jit(
      on_mesh(mesh, function),
      donate_argnums=donated,
      out_shardings=places,
      compiler_options=compilation.options(mesh),
    )

  @functools.cached_property
  def update(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One update, by `program` or its `halves`, compiled for where the state lies."""
    made: list[Any] = []

    def update(state: TrainState, *args: Any) -> Any:
      if not made:
        places = jax.tree.map(device_sharding, state)
        made.append((self.halves if self.config.offload else self.program)(places))
      if not self.config.offload:
        return made[0](state, *args)
      gradients, apply = made[0]
      grads, metrics = gradients(state.params, *args)
      jax.block_until_ready(grads)  # the optimizer's state has room only now
      state, more = apply(to_device(state), grads)
      return self.waiting(state), metrics | more

    return update

  def short_updates(
    self, step: int, values: Mapping[str, Any], weights: int
  ) -> str | None:
    """What to say of a step whose updates are far shorter than the learning rate.

    `weights` is how many are learned. Updates are short too where most mini-batches
    have no gradient; that is not the doing of Adam's eps, and not said.
    """
    config, each = self.optimizer, self.config.epochs * self.config.minibatches
    # Not by groups: an advantage may compare the outputs of several prompts.
    learns = values['grad_norm'] > 0 and values['zero_advantages'] < 1
    if config.muon_learning_rate or not learns:
      return None
    last = self.config.steps * each
    rate = optim.schedule(config, config.learning_rate, last)
    mean = np.mean([float(rate(n)) for n in range((step - 1) * each, step * each)])
    if not mean:
      return 'rl_optim.learning_rate is 0, so nothing is learned; raise that.'
    entry = min(values['grad_norm'], config.max_grad_norm) / weights**0.5
    if values['update_size'] >= SHORT * mean or entry > LARGE * config.eps:
      return None
    return (
      f'An update moved a weight by {values["update_size"] / mean:.1%} of the learning '
      f'rate on average: the gradient is smaller than rl_optim.eps = {config.eps:g}; '
      'lower that.'
    )

  def waiting(self, state: TrainState) -> TrainState:
    """The state as it lies between updates."""
    if not self.config.offload:
      return state
    aside = to_host(state.opt_state)
    return dataclasses.replace(state, opt_state=aside)

  def reference(self, params: Any) -> Any:
    """The parameters of a reference as they lie until they are needed."""
    return to_host(params) if self.config.offload else params

  def whole(self, params: Any) -> Any:
    """The model's parameters, of those that are learned."""
    return self.join(self.frozen, params)

  @functools.cached_property
  def _sampler_params(self) -> Callable[[Any], Any]:
    if self.sampler_params is None:
      return lambda params: params
    return jax.jit(self.sampler_params, compiler_options=compilation.options())

  def rollout(
    self,
    params: Any,
    key: jax.Array,
    problems: Sequence[Problem],
    max_length: int,
    temperature: float,
  ) -> Rollout:
    """Samples the group of each problem."""
    return self.generator(
      self._sampler_params(self.whole(params)),
      key,
      problems,
      group_size=self.config.group_size,
      max_length=max_length,
      draw=SamplingConfig(temperature),
    )

  @functools.cached_property
  def scoring(self) -> Any:
    """Log-probs [N, P, B, T], a micro-batch at a time, compiled."""

    def score(params: Any, rows: Any, count: jax.Array, temperature: jax.Array):
      def one(index: jax.Array, logp: jax.Array) -> jax.Array:
        part = jax.tree.map(lambda x: x[index], rows)
        return logp.at[index].set(
          self._score(params, *part, temperature=temperature)[0]
        )

      return jax.lax.fori_loop(0, count, one, jnp.zeros(rows[2].shape))

    mesh = self.generator.mesh
    place = None if mesh.size == 1 else named_sharding(mesh, None, 'prompt')
    return self._jit(score, place)

  def passes(
    self, policy: Any, reference: Any, outputs: Rollout, temperature: float
  ) -> ScoredRollout:
    """Log-probs that the update needs beside the sampler's."""
    old_logp, ref_logp, first, second = None, None, 0.0, 0.0
    if self.sampler_params is not None:
      old_logp, first = self.logp(policy, outputs, temperature)
    if self.algorithm.kl_coef:
      reference = to_device(reference)
      ref_logp, second = self.logp(reference, outputs, temperature)
    return ScoredRollout(old_logp, ref_logp, first + second)

  def logp(
    self, params: Any, outputs: Rollout, temperature: float
  ) -> tuple[np.ndarray, float]:
    """Log-probs of the outputs' tokens, [P, G, T], and the device's seconds."""
    layout = self._plan(outputs, np.arange(len(outputs.all_lengths)))
    rows = (
      layout.by_prompt(outputs.prompts),
      layout.by_prompt(outputs.prompt_mask),
      layout.by_token(outputs.tokens),
      layout.offsets,
      layout.documents,
    )
    count, scalar = np.int32(layout.count), np.float32(temperature)
    rows = self._feed(rows)
    began = time.monotonic()
    logp = self.scoring(self.whole(params), rows, count, scalar)
    logp = fetch_rows(self.generator.mesh, logp, axis=1)
    seconds = time.monotonic() - began
    return layout.undo(logp, outputs.tokens.shape), seconds

  def advantages(self, reward_PG: np.ndarray) -> np.ndarray:
    """`grpo.group_advantage` on the host's numbers."""
    return np.asarray(
      grpo.group_advantage(jnp.asarray(reward_PG), config=self.algorithm)
    )

  def learn(
    self,
    state: TrainState,
    outputs: Rollout,
    passes: ScoredRollout,
    advantage_PG: np.ndarray,
    key: jax.Array,
    temperature: float,
  ) -> tuple[TrainState, dict[str, float], float]:
    """All updates of one rollout.

    `advantage_PG` is of the outputs that this host has, as they and their passes are.
    Returns the state, the updates' mean metrics, and the seconds that the device took.
    """
    old_logp, sampler_logp = outputs.logp, None
    if passes.old_logp is not None:
      old_logp, sampler_logp = passes.old_logp, outputs.logp
    values, began = [], None
    for epoch in range(self.config.epochs):
      for chosen in self._minibatches(jax.random.fold_in(key, epoch)):
        layout = self._plan(outputs, chosen)
        rollout = packing.pack(
          layout,
          prompts=outputs.prompts,
          prompt_mask=outputs.prompt_mask,
          tokens=outputs.tokens,
          old_logp=old_logp,
          ref_logp=passes.ref_logp,
          sampler_logp=sampler_logp,
          advantage=advantage_PG,
        )
        began = began or time.monotonic()
        count = np.int32(layout.count)
        state, metrics = self.update(
          state, self.frozen, self._feed(rollout), count, np.float32(temperature)
        )
        values.append(metrics)  # not fetched: the next part is packed meanwhile
    values = jax.device_get(values)
    seconds = time.monotonic() - (began or 0.0)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    # Before the first update the learner is what sampled, but for rounding.
    means['drift'] = float(values[0]['drift'])
    return state, means, seconds

  def _minibatches(self, key: jax.Array) -> np.ndarray:
    """Which problems each mini-batch takes, [minibatches, problems].

    Of each part that devices have as many, as far as the numbers allow.
    """
    prompts, minibatches = self.config.prompts_per_step, self.config.minibatches
    if minibatches == 1:
      return np.arange(prompts)[None]
    order = np.asarray(jax.random.permutation(key, prompts))
    of_part = order // (prompts // self._shards)
    dealt = order[np.argsort(of_part, kind='stable')].reshape(self._shards, -1)
    return dealt.T.reshape(minibatches, -1)

  def _plan(self, outputs: Rollout, chosen: np.ndarray) -> packing.Layout:
    """A layout of the chosen problems' outputs, of those that this host has.

    Of as many micro-batches as the fullest part of any host needs.
    """
    prompts, group_size = outputs.all_lengths.shape
    parts, length = self._shards, outputs.tokens.shape[-1]
    rows = self.config.micro_batch_rows
    prompt_rows = packing.rows_of_a_prompt(
      group_size, outputs.prompts.shape[1], length, rows, parts
    )
    by_part = [chosen[chosen // (prompts // parts) == n] for n in range(parts)]
    held = local_shards(self.generator.mesh)
    layout = packing.plan(
      outputs.lengths,
      length,
      rows // parts * len(held),
      prompt_rows,
      # Rows are in order: where a problem stands among those that this host has.
      [np.searchsorted(outputs.rows, by_part[n]).tolist() for n in held],
      room=-(-len(chosen) // parts),
    )
    elsewhere = [
      packing.slots(outputs.all_lengths[by_part[n]], length, prompt_rows)
      for n in set(range(parts)) - set(held)
    ]
    at_a_time = rows // parts // prompt_rows
    count = max([layout.count, *(-(-used // at_a_time) for used in elsewhere)])
    return dataclasses.replace(layout, count=count)

  @property
  def _shards(self) -> int:
    return shard_count(self.generator.mesh, 'prompt')

  def _feed(self, parts: Any) -> Any:
    return feed_rows(self.generator.mesh, parts, axis=1)
