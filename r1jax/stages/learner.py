"""Learns from rollouts: scores their tokens, packs rows, updates the policy."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import grpo, optim, packing
from r1jax.optim import TrainState
from r1jax.rollout.sampler import Rollout
from r1jax.runtime import compilation, hosts
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.mesh import local_shards
from r1jax.sharding.place import (
  feed_rows,
  fetch_rows,
  to_device,
  to_host,
)
from r1jax.sharding.rules import shard_count
from r1jax.stages.learner_program import Join, LearnerProgram, all_learned, offloaded
from r1jax.stages.rl_config import RLConfig
from r1jax.terms.inputs import Outcomes
from r1jax.trees import Matrices, T

# The metrics of a rollout of which nothing is learned from
NOTHING = {'loss': 0.0, 'grad_norm': 0.0, 'update_size': 0.0}


class ScoredRollout(NamedTuple):
  """Log-probs [P, G, T] of a rollout's tokens."""

  old_logp: np.ndarray | None  # of the policy; None if they equal the sampler's
  ref_logp: np.ndarray | None  # of the reference; None without a KL penalty
  seconds: float  # of the device


class Updated(NamedTuple):
  """The result of one rollout's updates."""

  state: TrainState
  metrics: dict[str, float]  # means over the updates, but `drift` is the first's
  device_seconds: float  # from the first update's start to the last one's end
  seconds: float  # with packing


@dataclasses.dataclass(frozen=True)
class Learner:
  """Scores rollouts and updates the policy on them. Holds no parameters.

  Fields:
    model: the decoder's functions.
    mesh: the learner's devices.
    config: see `RLConfig`.
    matrices: of the model, for Muon; see `optim.make`.
    frozen: parameters that are not learned, such as the weights under adapters.
    join: (frozen, learned) -> the model's parameters.
    quantize: model's parameters -> the sampler's; None is the identity.
    round_reference: learned parameters -> those of a reference, which only scores; None
      is the identity.
    seed: of stochastic rounding of bfloat16 parameters; see `optim.make`.
  """

  model: DecoderFns
  mesh: jax.sharding.Mesh
  config: RLConfig
  matrices: Matrices = None
  frozen: optax.Params | None = None
  join: Join = all_learned
  quantize: Callable[[optax.Params], optax.Params] | None = None
  round_reference: Callable[[optax.Params], optax.Params] | None = None
  seed: int = 0

  @functools.cached_property
  def tx(self) -> optax.GradientTransformation:
    """The optax optimizer; its schedule covers all updates of the stage."""
    config = self.config
    updates = config.steps * config.epochs * config.minibatches
    return optim.make(self.config.optim, updates, self.matrices, self.seed)

  @functools.cached_property
  def program(self) -> LearnerProgram:
    """The part that runs on the devices."""
    return LearnerProgram(self.model, self.mesh, self.config, self.tx, self.join)

  def offload_state(self, state: TrainState) -> TrainState:
    """Returns the state for the time between updates: offloaded if `config.offload`."""
    return offloaded(state) if self.config.offload else state

  def reference(self, params: optax.Params) -> optax.Params:
    """Returns the parameters of a reference that scores like these."""
    return params if self.round_reference is None else self.round_reference(params)

  def offload_reference(self, params: optax.Params) -> optax.Params:
    """Returns a reference's parameters: offloaded if `config.offload`."""
    return to_host(params) if self.config.offload else params

  def whole(self, params: optax.Params) -> optax.Params:
    """Returns all parameters of the model, given the learned ones."""
    return self.join(self.frozen, params)

  def for_sampling(self, params: optax.Params) -> optax.Params:
    """Returns the sampler's parameters: the policy's, quantized if asked for."""
    return self._quantize(self.whole(params))

  @functools.cached_property
  def _quantize(self) -> Callable[[optax.Params], optax.Params]:
    if self.quantize is None:
      return lambda params: params
    return jax.jit(self.quantize, compiler_options=compilation.options())

  def score(
    self,
    policy: optax.Params,
    reference: optax.Params,
    rollout: Rollout,
    temperature: float,
  ) -> ScoredRollout:
    """Returns the log-probs that an update needs besides the sampler's."""
    old_logp, ref_logp, first, second = None, None, 0.0, 0.0
    if self.quantize is not None:
      old_logp, first = self.log_probs(policy, rollout, temperature)
    if self.config.grpo.kl_coef:
      reference = to_device(reference)
      ref_logp, second = self.log_probs(reference, rollout, temperature)
    return ScoredRollout(old_logp, ref_logp, first + second)

  def log_probs(
    self, params: optax.Params, rollout: Rollout, temperature: float
  ) -> tuple[np.ndarray, float]:
    """Returns log-probs [P, G, T] of a rollout's tokens, and the device's seconds."""
    layout, rows = self.scored(rollout)
    count, scalar = np.int32(layout.count), np.float32(temperature)
    began = time.monotonic()
    logp = self.program.score(self.whole(params), rows, count, scalar)
    logp = fetch_rows(self.mesh, logp, axis=1)
    seconds = time.monotonic() - began
    return layout.undo(logp, rollout.tokens.shape), seconds

  def scored(self, rollout: Rollout) -> tuple[packing.Layout, packing.Inputs]:
    """Returns the packing of all outputs, and the rows that a model scores."""
    layout = self.layout(rollout, np.arange(len(rollout.all_lengths)))
    inputs = layout.inputs(rollout.prompts, rollout.prompt_mask, rollout.tokens)
    return layout, self.feed(inputs)

  def advantage(self, outcomes: Outcomes) -> np.ndarray:
    """Returns `grpo.group_advantage` [P, G] in host memory."""
    return np.asarray(grpo.group_advantage(outcomes, config=self.config.grpo))

  def kl_penalty(self, rollout: Rollout, scores: ScoredRollout) -> np.ndarray | None:
    """Returns `grpo.kl_penalty` of all hosts' outputs; None if no reward has it."""
    config = self.config.grpo
    if config.kl_in == 'loss' or scores.ref_logp is None:
      return None
    logp = rollout.logp if scores.old_logp is None else scores.old_logp
    mask = np.arange(logp.shape[-1]) < rollout.lengths[..., None]
    arrays = (jnp.asarray(x) for x in (logp, scores.ref_logp, mask))
    found = np.asarray(grpo.kl_penalty(*arrays, config=config))
    own = list(zip(rollout.rows[rollout.own], found[rollout.own], strict=True))
    pairs = [pair for part in hosts.all_gather('penalties', own) for pair in part]
    return np.stack([penalty for _, penalty in sorted(pairs, key=lambda x: x[0])])

  def update(
    self,
    state: TrainState,
    rollout: Rollout,
    advantage_PG: np.ndarray,
    scores: ScoredRollout,
    key: jax.Array,
    temperature: float,
    entropy_coef: float | None = None,
  ) -> Updated:
    """Makes all updates of one rollout: `epochs` passes of `minibatches` each.

    Args:
      state: to update; its memory is donated.
      rollout: outputs of this host.
      advantage_PG: of the outputs of this host.
      scores: log-probs of the outputs of this host.
      key: of the split into mini-batches.
      temperature: of the rollout.
      entropy_coef: of the bonus, if it varies.
    """
    numbers = [np.float32(temperature)]
    if entropy_coef is not None:
      numbers.append(np.float32(entropy_coef))
    began, first, values = time.monotonic(), None, []
    for epoch in range(self.config.epochs):
      for chosen in self.minibatches(jax.random.fold_in(key, epoch)):
        packed, count = self.packed(rollout, chosen, advantage_PG, scores)
        if not count:
          continue  # nothing of it is learned from
        first = first or time.monotonic()
        state, metrics = self.program.update(
          state, self.frozen, self.feed(packed), count, *numbers
        )
        values.append(metrics)  # fetched later: the next mini-batch is packed meanwhile
    values = jax.device_get(values)
    ended = time.monotonic()
    if not values:
      return Updated(state, dict(NOTHING), 0.0, ended - began)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    # Before the first update, learner and sampler differ by rounding alone.
    means['drift'] = float(values[0]['drift'])
    return Updated(state, means, ended - (first or ended), ended - began)

  def packed(
    self,
    rollout: Rollout,
    chosen: np.ndarray,
    advantage_PG: np.ndarray,
    scores: ScoredRollout,
  ) -> tuple[packing.PackedRows, np.int32]:
    """Returns the outputs to the chosen problems in rows, and the micro-batches."""
    layout = self.layout(rollout, chosen)
    old_logp, sampler_logp = rollout.logp, None
    if scores.old_logp is not None:
      old_logp, sampler_logp = scores.old_logp, rollout.logp
    packed = packing.pack(
      layout,
      prompts=rollout.prompts,
      prompt_mask=rollout.prompt_mask,
      tokens=rollout.tokens,
      old_logp=old_logp,
      ref_logp=scores.ref_logp,
      sampler_logp=sampler_logp,
      advantage=advantage_PG,
    )
    return packed, np.int32(layout.count)

  def minibatches(self, key: jax.Array) -> np.ndarray:
    """Returns the problems of each mini-batch, [minibatches, problems].

    A mini-batch takes the same number of problems from every shard, as far as possible.
    """
    prompts, minibatches = self.config.prompts_per_step, self.config.minibatches
    if minibatches == 1:
      return np.arange(prompts)[None]
    order = np.asarray(jax.random.permutation(key, prompts))
    of_part = order // (prompts // self.shards)
    dealt = order[np.argsort(of_part, kind='stable')].reshape(self.shards, -1)
    return dealt.T.reshape(minibatches, -1)

  def layout(self, rollout: Rollout, chosen: np.ndarray) -> packing.Layout:
    """Returns the packing of this host's outputs to the chosen problems."""
    return packing.plan_for_host(
      rollout.lengths,
      rollout.rows,
      rollout.all_lengths,
      chosen,
      length=rollout.tokens.shape[-1],
      prompt_length=rollout.prompts.shape[1],
      micro_batch_rows=self.config.micro_batch_rows,
      shards=self.shards,
      held=local_shards(self.mesh),
    )

  @property
  def shards(self) -> int:
    """Number of devices, or groups of them, that prompts are sharded over."""
    return shard_count(self.mesh, 'prompt')

  def feed(self, parts: T) -> T:
    return feed_rows(self.mesh, parts, axis=1)
