"""Supervised training: weighted cross-entropy on packed rows."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim
from r1jax.optim import Metrics, TrainState
from r1jax.sampling.logprob import hidden_logp
from r1jax.trees import Head

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
  """Rows of packed documents, each field [B, T]."""

  tokens: Array  # int32
  positions: Array  # int32, from 0 in every document
  documents: Array  # int32, an id per document of the row; 0 is padding
  # float32, of the loss of predicting this token; 0 on first tokens and padding.
  weights: Array


def cross_entropy(
  params: optax.Params,
  batch: Batch,
  *,
  forward: Callable[..., tuple[jax.Array, object]],
  head: Head,
  total: jax.Array,
) -> tuple[jax.Array, Metrics]:
  """Returns the sum of weight * -log p(token | before), divided by `total`; no metrics.

  Args:
    params: of the model.
    batch: see `Batch`.
    forward: (params, tokens, positions, documents) -> hidden states [B, T, D], _.
    head: of the model.
    total: the sum of the weights of the whole batch, also for a micro-batch of it.
  """
  hidden_BTD, _ = forward(
    params, batch.tokens[:, :-1], batch.positions[:, :-1], batch.documents[:, :-1]
  )
  targets_BT = jnp.asarray(batch.tokens)[:, 1:]
  logp_BT, _ = hidden_logp(hidden_BTD, targets_BT, params, head=head)
  loss = -jnp.sum(batch.weights[:, 1:] * logp_BT) / total
  return loss, {}


def step(
  state: TrainState,
  batch: Batch,
  *,
  forward: Callable[..., tuple[jax.Array, object]],
  head: Head,
  optimizer: optax.GradientTransformation,
  micro_batches: int,
  in_place: bool = False,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one update on a batch, and metrics. Pure.

  B must be a multiple of `micro_batches`. For `in_place` see `optim.gradients`.
  """
  total = jnp.maximum(batch.weights[:, 1:].sum(), 1.0)
  loss = functools.partial(cross_entropy, forward=forward, head=head, total=total)
  parts = optim.split_micro_batches(batch, micro_batches)
  return optim.update(state, parts, loss=loss, optimizer=optimizer, in_place=in_place)
