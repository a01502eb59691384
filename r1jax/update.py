"""One update of the policy: the gradient of a rollout's loss, and the optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from r1jax import gradient_sums, optim
from r1jax.choice import choose
from r1jax.grpo import GRPOConfig, objective
from r1jax.optim import Metrics, TrainState
from r1jax.packing import PackedRows, unpack
from r1jax.terms.inputs import Totals
from r1jax.terms.selections import SELECTIONS, Seen


def gradients(
  params: optax.Params,
  rollout: PackedRows,
  count: jax.Array,
  temperature: jax.Array,
  entropy_coef: jax.Array | None = None,
  *,
  score: Callable[..., tuple[jax.Array, jax.Array]],
  config: GRPOConfig,
  in_place: bool = False,
) -> tuple[optax.Updates, Metrics]:
  """Returns the gradient of a rollout's loss, and metrics. Pure.

  Args:
    params: of the policy.
    rollout: see `PackedRows`; the gradient is summed over its micro-batches.
    count: int32 [], the number of micro-batches in use; the others are not computed.
    temperature: of sampling; log-probs of policy and reference are at this temperature
      too.
    entropy_coef: of the entropy bonus; None is `config.entropy_coef`.
    score: (params, prompts, prompt_mask, tokens, offsets, documents, temperature=...)
      -> log-probs and entropies [P, B, T]; see `score_tokens`.
    config: the algorithm.
    in_place: whether `score` takes boxed parameters; see `optim.gradients`.

  Returns:
    A tree like the parameters', and the metrics of `objective`, with `loss` and
    `entropy` (nats per token). KL and entropy are at `temperature`; at another one the
    same models have other values.
  """
  shared = jnp.maximum(rollout.group_tokens, 1)
  total = Totals(
    jnp.maximum(jnp.sum(rollout.lengths > 0), 1),
    jnp.maximum(rollout.lengths.sum(), 1),
    # Each output's share of its group; the outputs of one may be in several places.
    jnp.maximum(jnp.round(jnp.sum(rollout.lengths / shared)), 1),
  )

  def loss(
    params: optax.Params, both: tuple[PackedRows, jax.Array | None]
  ) -> tuple[jax.Array, Metrics]:
    part, its_chosen = both
    logp, entropy = score(params, *part.inputs, temperature=temperature)
    logp, old_logp, ref_logp, sampler_logp, its_chosen = jax.tree.map(
      lambda x_PBT: unpack(x_PBT, part.starts),
      # None stays None
      (logp, part.old_logp, part.ref_logp, part.sampler_logp, its_chosen),
    )
    value, metrics = objective(
      logp,
      jnp.asarray(part.advantage),
      jnp.arange(part.tokens.shape[-1])[None, None] < part.lengths[..., None],
      old_logp=old_logp,
      ref_logp=ref_logp,
      sampler_logp=sampler_logp,
      config=config,
      total=total,
      group_tokens=jnp.asarray(part.group_tokens),
      chosen=its_chosen,
    )
    metrics['entropy'] = jnp.sum((part.documents > 0) * entropy) / total.tokens
    if config.entropy_coef or entropy_coef is not None:
      coef = config.entropy_coef if entropy_coef is None else entropy_coef
      value -= coef * metrics['entropy']
    return value, metrics

  chosen = None
  if config.tokens != 'all':
    opened = gradient_sums.opened(params) if not in_place else params
    chosen = choose_tokens(opened, rollout, count, temperature, score, config)
  parts = rollout, chosen
  return optim.gradients(params, parts, loss=loss, count=count, in_place=in_place)


def choose_tokens(
  params: optax.Params,
  rollout: PackedRows,
  count: jax.Array,
  temperature: jax.Array,
  score: Callable[..., tuple[jax.Array, jax.Array]],
  config: GRPOConfig,
) -> jax.Array:
  """Returns which tokens `config.tokens` chooses of a mini-batch, bool [N, P, B, T].

  Arguments as of `gradients`.
  """

  def one(index: jax.Array, found: Seen) -> Seen:
    part = jax.tree.map(lambda x: x[index], rollout)
    logp, entropy = score(params, *part.inputs, temperature=temperature)
    slot = part.documents.reshape(len(part.documents), -1)
    padded = jnp.pad(part.advantage, ((0, 0), (1, 0)))  # slot 0 is padding
    advantage = jnp.take_along_axis(padded, slot, 1).reshape(logp.shape)
    values = logp, entropy, advantage, part.documents > 0
    return Seen(*(x.at[index].set(y) for x, y in zip(found, values, strict=True)))

  shape = rollout.tokens.shape
  zeros = Seen(*(jnp.zeros(shape, d) for d in (float, float, float, bool)))
  seen = jax.lax.fori_loop(0, count, one, zeros)
  return choose(SELECTIONS, config.tokens)(seen, config)


def step(
  state: TrainState,
  rollout: PackedRows,
  count: jax.Array,
  temperature: jax.Array,
  entropy_coef: jax.Array | None = None,
  *,
  score: Callable[..., tuple[jax.Array, jax.Array]],
  optimizer: optax.GradientTransformation,
  config: GRPOConfig,
  in_place: bool = False,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one update on a rollout, and metrics. Pure.

  It is `gradients` followed by `optim.apply`; the metrics are those of both.
  """
  grads, metrics = gradients(
    state.params,
    rollout,
    count,
    temperature,
    entropy_coef,
    score=score,
    config=config,
    in_place=in_place,
  )
  state, more = optim.apply(state, grads, optimizer=optimizer)
  return state, metrics | more
