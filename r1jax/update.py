"""The gradient of a rollout, and one update of the policy."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r1jax import optim
from r1jax.grpo import GRPOConfig, Totals, objective
from r1jax.optim import TrainState


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    'prompts',
    'prompt_mask',
    'tokens',
    'offsets',
    'documents',
    'old_logp',
    'ref_logp',
    'sampler_logp',
    'advantage',
    'starts',
    'lengths',
  ],
  meta_fields=[],
)
@dataclasses.dataclass
class PackedRows:
  """What an update learns from: N micro-batches, as a `Layout` lays them out.

  P counts the prompts of a micro-batch, the layout's P'.
  """

  prompts: Any  # int32 [N, P, S], padded on the left
  prompt_mask: Any  # bool [N, P, S]
  tokens: Any  # int32 [N, P, B, T], outputs of one prompt side by side
  offsets: Any  # int32 [N, P, B, T], position of a token within its output
  documents: Any  # int32 [N, P, B, T], differs between outputs; 0 is padding
  old_logp: Any  # float32 [N, P, B, T], under the policy before its updates
  ref_logp: Any  # float32 [N, P, B, T], or None
  sampler_logp: Any  # float32 [N, P, B, T]; None where the sampler was that policy
  advantage: Any  # float32 [N, P, O]
  starts: Any  # int32 [N, P, O], of an output in the B * T positions
  lengths: Any  # int32 [N, P, O], 0 where no output is


def unpack(x_PBT: jax.Array, starts: jax.Array) -> jax.Array:
  """Returns rows of outputs side by side as one output a row, [P, O, T].

  Undoes `Layout.by_token` on a micro-batch and on the device. Behind the end of an
  output stands what follows it in the rows, to be masked.

  Args:
    x_PBT: a number a token.
    starts: int32 [P, O], where an output begins in the B * T positions.
  """
  prompts, rows, length = x_PBT.shape
  place_POT = starts[..., None] + jnp.arange(length)[None, None]
  place_PX = jnp.minimum(place_POT, rows * length - 1).reshape(prompts, -1)
  x_PX = jnp.take_along_axis(x_PBT.reshape(prompts, -1), place_PX, axis=1)
  return x_PX.reshape(place_POT.shape)


def gradients(
  params: Any,
  rollout: PackedRows,
  count: jax.Array,
  temperature: jax.Array,
  *,
  score: Callable[..., tuple[jax.Array, jax.Array]],
  config: GRPOConfig,
) -> tuple[Any, dict[str, jax.Array]]:
  """The gradient of a rollout's loss; pure, for `jax.jit` or a mesh.

  Args:
    params: of the policy.
    rollout: see `PackedRows`; the gradient is summed over its micro-batches.
    count: int32 [], how many micro-batches hold something; the rest costs nothing.
    temperature: of the policy that sampled; log-probs of policy and reference are
      those at this temperature too.
    score: (params, prompts, prompt_mask, tokens, offsets, documents, temperature=...)
      -> log-probs and entropies [P, B, T]; see `score_tokens`.
    config: the algorithm.

  Returns:
    A tree like the parameters', and the metrics of `objective` with `loss` and
    `entropy` (nats a token). KL and entropy are those of the models at `temperature`,
    from which outputs are drawn: at another one the same models have other values.
  """
  total = Totals(
    jnp.maximum(jnp.sum(rollout.lengths > 0), 1),
    jnp.maximum(rollout.lengths.sum(), 1),
  )

  def loss(params: Any, part: PackedRows) -> Any:
    logp, entropy = score(
      params,
      part.prompts,
      part.prompt_mask,
      part.tokens,
      part.offsets,
      part.documents,
      temperature=temperature,
    )

    def by_output(x_PBT: jax.Array) -> jax.Array:
      return unpack(x_PBT, part.starts)

    def by_output_if_given(x_PBT: jax.Array | None) -> jax.Array | None:
      return None if x_PBT is None else by_output(x_PBT)

    value, metrics = objective(
      by_output(logp),
      part.advantage,
      jnp.arange(part.tokens.shape[-1])[None, None] < part.lengths[..., None],
      old_logp=by_output(part.old_logp),
      ref_logp=by_output_if_given(part.ref_logp),
      sampler_logp=by_output_if_given(part.sampler_logp),
      config=config,
      total=total,
    )
    metrics['entropy'] = jnp.sum((part.documents > 0) * entropy) / total.tokens
    return value, metrics

  return optim.gradients(params, rollout, loss=loss, count=count)


def step(
  state: TrainState,
  rollout: PackedRows,
  count: jax.Array,
  temperature: jax.Array,
  *,
  score: Callable[..., tuple[jax.Array, jax.Array]],
  optimizer: optax.GradientTransformation,
  config: GRPOConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update of the policy on a rollout: `gradients`, and `optim.apply` of them.

  Returns:
    The new state, and the metrics of both.
  """
  grads, metrics = gradients(
    state.params, rollout, count, temperature, score=score, config=config
  )
  state, more = optim.apply(state, grads, optimizer=optimizer)
  return state, metrics | more
