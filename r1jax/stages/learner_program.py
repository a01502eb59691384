"""The compiled programs of a learner: scoring packed rows, updating the policy."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax import optim, update
from r1jax.optim import Metrics, TrainState
from r1jax.packing import Inputs
from r1jax.runtime import compilation
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.score import score_tokens
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.place import device_sharding, to_device, to_host
from r1jax.sharding.rules import named_sharding
from r1jax.stages.rl_config import RLConfig

Join = Callable[[optax.Params, optax.Params], optax.Params]
Score = Callable[..., tuple[jax.Array, jax.Array]]  # see `score_tokens`


def all_learned(frozen: optax.Params, params: optax.Params) -> optax.Params:
  """Returns the model's parameters if all of them are learned."""
  del frozen
  return params


def offloaded(state: TrainState) -> TrainState:
  """Returns the state with the optimizer's part in host memory."""
  return dataclasses.replace(state, opt_state=to_host(state.opt_state))


@dataclasses.dataclass(frozen=True)
class LearnerProgram:
  """The compiled part of a `Learner`; works on packed rows of token ids.

  Fields:
    model: the decoder's functions.
    mesh: the learner's devices.
    config: see `RLConfig`.
    tx: the optax optimizer.
    join: (frozen, learned) -> the model's parameters.
  """

  model: DecoderFns
  mesh: jax.sharding.Mesh
  config: RLConfig
  tx: optax.GradientTransformation
  join: Join = all_learned

  @functools.cached_property
  def score(self) -> jax.stages.Wrapped:
    """The jitted scoring program: log-probs [N, P, B, T], N micro-batches in a loop."""

    def score(
      params: optax.Params, rows: Inputs, count: jax.Array, temperature: jax.Array
    ) -> jax.Array:
      def one(index: jax.Array, logp: jax.Array) -> jax.Array:
        part = jax.tree.map(lambda x: x[index], rows)
        return logp.at[index].set(
          self._score(params, *part, temperature=temperature)[0]
        )

      return jax.lax.fori_loop(0, count, one, jnp.zeros(rows[2].shape))

    mesh = self.mesh
    place = None if mesh.size == 1 else named_sharding(mesh, None, 'prompt')
    return self._jit(score, place)

  def update(self, state: TrainState, *args: Any) -> tuple[TrainState, Metrics]:
    """One update, by `step` or its `halves`.

    (state, frozen, rollout, count, temperature, and the coefficient of an entropy bonus
    that varies) -> the new state, and metrics. Donates the state.
    """
    if not self.config.offload:
      (step,) = self._compiled_for(state)
      return step(state, *args)
    gradients, apply = self._compiled_for(state)
    grads, metrics = gradients(state.params, *args)
    jax.block_until_ready(grads)  # before that the optimizer's state has no room
    state, more = apply(to_device(state), grads)
    return offloaded(state), metrics | more

  def compile_update(self, state: TrainState, *args: Any) -> None:
    """Compiles `update` for these arguments, without running it.

    Nothing with `offload`: between updates the state is not on the devices.
    """
    if not self.config.offload:
      (step,) = self._compiled_for(state)
      step.lower(state, *args).compile()

  def _compiled_for(self, state: TrainState) -> Sequence[jax.stages.Wrapped]:
    """Returns `step` or `halves` for the shardings of the first state it is given."""
    if not self._made:
      places = jax.tree.map(device_sharding, state)
      large = compilation.is_large(state.params)
      self._made.extend(
        self.halves(places, large)
        if self.config.offload
        else [self.step(places, large)]
      )
    return self._made

  @functools.cached_property
  def lengths(self) -> set[int]:
    """Lengths of outputs that `compile_ahead` has compiled the programs for."""
    return set()

  @functools.cached_property
  def _made(self) -> list[jax.stages.Wrapped]:
    return []

  def step(self, places: TrainState, large: bool = False) -> jax.stages.Wrapped:
    """Returns the jitted `update.step` for these shardings; it donates the state.

    Of a large model it is compiled for little memory: else the optimizer on a CPU holds
    a second tree, of the clipped gradients.
    """

    def step(
      state: TrainState, frozen: optax.Params, *rollout: Any
    ) -> tuple[TrainState, Metrics]:
      return update.step(
        state,
        *rollout,
        score=self._scoring_with(frozen),
        optimizer=self.tx,
        config=self.config.grpo,
        in_place=self._in_place,
      )

    return self._jit(step, (places, None), donated=(0,), little_memory=large)

  def halves(
    self, places: TrainState, large: bool = False
  ) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Returns `step` as two jitted functions: gradient without optimizer, update."""

    def gradients(
      params: optax.Params, frozen: optax.Params, *rollout: Any
    ) -> tuple[optax.Updates, Metrics]:
      return update.gradients(
        params,
        *rollout,
        score=self._scoring_with(frozen),
        config=self.config.grpo,
        in_place=self._in_place,
      )

    def apply(state: TrainState, grads: optax.Updates) -> tuple[TrainState, Metrics]:
      return optim.apply(state, grads, optimizer=self.tx)

    return (
      self._jit(gradients, (places.params, None), little_memory=large),
      self._jit(apply, (places, None), donated=(0,), little_memory=large),
    )

  @property
  def _in_place(self) -> bool:
    """Whether the learned parameters reach the model as they are, boxes and all."""
    return self.join is all_learned

  @functools.cached_property
  def _score(self) -> Score:
    return functools.partial(score_tokens, model=self.model)

  def _scoring_with(self, frozen: optax.Params) -> Score:
    def score(
      params: optax.Params, *rows: jax.Array, temperature: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      return self._score(self.join(frozen, params), *rows, temperature=temperature)

    return score

  def _jit(
    self,
    function: Callable,
    places: object,
    donated: tuple[int, ...] = (),
    little_memory: bool = False,
  ) -> jax.stages.Wrapped:
    mesh = self.mesh
    return jax.jit(
      on_mesh(mesh, function),
      donate_argnums=donated,
      out_shardings=places,
      compiler_options=compilation.options(mesh, little_memory),
    )
