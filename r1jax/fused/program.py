"""The whole run of RL as one function of parameters, seed and numbers.

Rollout, rewards, advantages and updates of all steps are inside one `lax.scan`, so a
seed is an axis: `jax.vmap` trains all of them at once, and with them numbers such as
the learning rate. Sampling, objective and optimizer are those of the ordinary loop, and
so are the random keys; only packing is left out, as it needs the host.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from r1jax import grpo, optim, update
from r1jax.fused import texts, verify
from r1jax.fused.texts import Pieces
from r1jax.fused.verify import Truth
from r1jax.grpo import GRPOConfig
from r1jax.optim import Metrics, TrainState
from r1jax.packing import PackedRows
from r1jax.runtime.keys import named_key
from r1jax.sampling import generate
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens

LEARNING_RATE = 'learning_rate'  # a number that varies, beside those of GRPOConfig


class Problems(NamedTuple):
  """N problems as arrays."""

  prompts: jax.Array  # int32 [N, S], padded on the left
  prompt_mask: jax.Array  # bool [N, S]
  truth: Truth  # [N, ...]


class Step(NamedTuple):
  """What differs between steps."""

  chosen: jax.Array  # int32 [P], the problems
  key: jax.Array  # of everything random
  temperature: jax.Array  # float32 []
  renew: jax.Array  # bool [], whether the policy becomes the reference afterwards


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all runs of a program share."""

  model: DecoderFns
  # learning rate, which may be traced -> optimizer
  optimizer: Callable[[jax.Array | float], optax.GradientTransformation]
  config: GRPOConfig
  group_size: int  # G
  length: int  # T, tokens
  prompts: int  # P
  minibatches: int
  epochs: int
  micro_batch_prompts: int  # whose gradients are computed at a time
  stop_ids: tuple[int, ...]
  learning_rate: float  # unless it varies


class Varied:
  """A config with some numbers replaced, which may be traced."""

  def __init__(self, config: object, numbers: Mapping[str, Any]) -> None:
    self._config, self._numbers = config, dict(numbers)

  def __getattr__(self, name: str) -> Any:
    return self._numbers[name] if name in self._numbers else getattr(self._config, name)


def train(
  params: optax.Params,
  steps: Step,
  numbers: Mapping[str, jax.Array],
  problems: Problems,
  pieces: Pieces,
  settings: Settings,
) -> tuple[optax.Params, Metrics]:
  """Returns the learned parameters, and the metrics of all steps, [steps]. Pure.

  Args:
    params: of the policy at the start, also the first reference.
    steps: arrays with one row a step.
    numbers: fields of GRPOConfig, or `LEARNING_RATE`, to replace the settings' own.
    problems: that the steps choose from.
    pieces: the bytes of the tokens.
    settings: see there.
  """
  numbers = dict(numbers)
  rate = numbers.pop(LEARNING_RATE, settings.learning_rate)
  optimizer = settings.optimizer(rate)
  config: Any = Varied(settings.config, numbers)

  def one(carry: tuple[Any, Any], step: Step) -> tuple[tuple[Any, Any], Metrics]:
    state, reference = carry
    asked = jax.tree.map(lambda x: x[step.chosen], problems)
    found, right = rollout(state.params, asked, step, pieces, settings)
    reward = right
    ref_logp = _reference_logp(reference, asked, found, step, settings)
    if ref_logp is not None and config.kl_in == 'reward':
      logps = found.logp, ref_logp, found.mask
      reward = reward - grpo.kl_penalty(*logps, config=config)
    outcomes = grpo.outcomes(reward, lengths=found.mask.sum(-1))
    advantage = grpo.group_advantage(outcomes, config=config)
    rows = _rows(found, advantage, asked, ref_logp)
    seen = []
    for epoch in range(settings.epochs):
      key = jax.random.fold_in(named_key(step.key, 'minibatch'), epoch)
      for chosen in _minibatches(key, settings):
        part = jax.tree.map(lambda x, chosen=chosen: x[chosen], rows)
        state, metrics = _update(state, part, step, optimizer, config, settings)
        seen.append(metrics)
    metrics = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x)), *seen)
    metrics['drift'] = seen[0]['drift']  # as in the ordinary loop
    reference = jax.tree.map(
      lambda old, new: jnp.where(step.renew, new, old), reference, state.params
    )
    logged = {
      'reward': right.mean(),
      'length': found.mask.sum(-1).mean(),
      'zero_variance_groups': jnp.mean(right.max(1) == right.min(1)),
      **metrics,
    }
    return (state, reference), logged

  start = optim.init(params, optimizer), params
  (state, _), metrics = jax.lax.scan(one, start, steps)
  return state.params, metrics


def train_all(
  params: optax.Params,
  steps: Step,
  numbers: Mapping[str, jax.Array],
  problems: Problems,
  pieces: Pieces,
  settings: Settings,
  *,
  together: bool,
) -> tuple[optax.Params, Metrics]:
  """Returns the result of `train` for N runs, arrays [N, ...]. Pure.

  Args:
    params: of the policy at the start of each run.
    steps: [N, steps].
    numbers: [N] each.
    problems: of all runs.
    pieces: the bytes of the tokens.
    settings: of all runs.
    together: whether the runs are an axis of each operation, which fills an
      accelerator, and rounds sums otherwise than a single run does. Else one follows
      another, with the same bits as alone; a CPU is filled by one.
  """

  def one(run: tuple[Step, Mapping[str, jax.Array]]) -> tuple[optax.Params, Metrics]:
    return train(params, *run, problems, pieces, settings)

  return (jax.vmap(one) if together else functools.partial(jax.lax.map, one))(
    (steps, numbers)
  )


def rollout(
  params: optax.Params,
  asked: Problems,
  step: Step,
  pieces: Pieces,
  settings: Settings,
) -> tuple[generate.Completions, jax.Array]:
  """Returns outputs [P, G, T] and their rewards [P, G], 1 for a right answer."""
  key = named_key(step.key, 'sample')
  count = len(asked.prompts)
  found = generate.sample(
    params,
    jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count)),
    asked.prompts,
    asked.prompt_mask,
    model=settings.model,
    config=SamplingConfig(),
    group_size=settings.group_size,
    max_length=settings.length,
    stop_ids=settings.stop_ids,
    temperature=step.temperature,
  )
  flat = (
    found.tokens.reshape(-1, settings.length),
    found.mask.reshape(-1, settings.length),
  )
  formed, answers = texts.parse(texts.written(*flat, pieces))
  truth = jax.tree.map(lambda x: jnp.repeat(x, settings.group_size, 0), asked.truth)
  right = formed & verify.right(answers, truth)
  return found, right.reshape(count, -1).astype(jnp.float32)


def _minibatches(key: jax.Array, settings: Settings) -> jax.Array:
  """Returns the problems of each mini-batch, [minibatches, problems]."""
  if settings.minibatches == 1:
    return jnp.arange(settings.prompts)[None]
  order = jax.random.permutation(key, settings.prompts)
  return order.reshape(settings.minibatches, -1)


def _reference_logp(
  reference: optax.Params,
  asked: Problems,
  found: generate.Completions,
  step: Step,
  settings: Settings,
) -> jax.Array | None:
  """Returns the reference's log-probs [P, G, T]; None without a penalty."""
  if not settings.config.kl_coef:
    return None
  return jax.lax.map(
    lambda one: score_tokens(
      reference, *one, model=settings.model, temperature=step.temperature
    )[0][0],
    (asked.prompts[:, None], asked.prompt_mask[:, None], found.tokens[:, None]),
  )


def _rows(
  found: generate.Completions,
  advantage: jax.Array,
  asked: Problems,
  ref_logp: jax.Array | None,
) -> PackedRows:
  """Returns a rollout with each output in a row of its own, arrays [P, ...]."""
  group_size, length = found.tokens.shape[1:]
  lengths, slot = found.mask.sum(-1), jnp.arange(group_size)[None]
  return PackedRows(
    prompts=asked.prompts,
    prompt_mask=asked.prompt_mask,
    tokens=found.tokens,
    offsets=jnp.broadcast_to(jnp.arange(length)[None, None], found.tokens.shape),
    documents=jnp.where(found.mask, slot[..., None] + 1, 0),
    old_logp=found.logp,
    ref_logp=ref_logp,
    sampler_logp=None,
    advantage=advantage,
    group_tokens=jnp.broadcast_to(lengths.sum(1, keepdims=True), lengths.shape),
    starts=jnp.broadcast_to(slot * length, lengths.shape),
    lengths=lengths,
  )


def _update(
  state: TrainState,
  rows: PackedRows,
  step: Step,
  optimizer: optax.GradientTransformation,
  config: GRPOConfig,
  settings: Settings,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one update on some prompts' rows, and metrics."""
  size = settings.micro_batch_prompts
  parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
  return update.step(
    state,
    parts,
    jnp.int32(len(parts.prompts)),
    step.temperature,
    score=functools.partial(score_tokens, model=settings.model),
    optimizer=optimizer,
    config=config,
  )
