"""Supervised training: masked cross-entropy on packed rows. Knows no model, no text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim
from r1jax.optim import TrainState
from r1jax.sampling.logprob import hidden_logp


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['tokens', 'positions', 'documents', 'weights'],
  meta_fields=[],
)
@dataclasses.dataclass
class Batch:
  """Rows of packed documents, each field [B, T]."""

  tokens: jax.Array | np.ndarray  # int32
  positions: jax.Array | np.ndarray  # int32, from 0 in every document
  documents: jax.Array | np.ndarray  # int32, one id a document of the row; 0 is padding
  weights: (
    jax.Array | np.ndarray
  )  # float32, of predicting this token; 0 on first tokens and padding


def cross_entropy(
  params: Any,
  batch: Batch,
  *,
  forward: Callable[..., Any],
  logits: Callable[..., jax.Array],
  total: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the weighted sum of -log p(token | before) over `total`, and no metrics.

  Args:
    params: of the model.
    batch: see `Batch`.
    forward: (params, tokens, positions, documents) -> hidden states [B, T, D], _.
    logits: (params, hidden) -> [B, T, V].
    total: the sum of weights to divide by: the whole batch's for a micro-batch.
  """
  hidden_BTD, _ = forward(
    params, batch.tokens[:, :-1], batch.positions[:, :-1], batch.documents[:, :-1]
  )
  targets_BT = jnp.asarray(batch.tokens)[:, 1:]
  logp_BT, _ = hidden_logp(hidden_BTD, targets_BT, functools.partial(logits, params))
  loss = -jnp.sum(batch.weights[:, 1:] * logp_BT) / total
  return loss, {}


def step(
  state: TrainState,
  batch: Batch,
  *,
  forward: Callable[..., Any],
  logits: Callable[..., jax.Array],
  optimizer: optax.GradientTransformation,
  micro_batches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on a batch; pure. B must divide by `micro_batches`."""
  total = jnp.maximum(batch.weights[:, 1:].sum(), 1.0)
  loss = functools.partial(cross_entropy, forward=forward, logits=logits, total=total)
  parts = optim.split_micro_batches(batch, micro_batches)
  return optim.update(state, parts, loss=loss, optimizer=optimizer)
