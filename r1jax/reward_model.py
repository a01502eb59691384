"""The preference model: one number a text, learned from pairs of better and worse.

A decoder whose last hidden state is read by a vector instead of the vocabulary, trained
to score what was chosen above what was rejected. Rows are padded on the right, so that
what a token sees is the same with and without padding. Knows no model and no text.

Sources: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.
"""

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


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['tokens', 'mask'], meta_fields=[]
)
@dataclasses.dataclass
class Batch:
  """B pairs of texts, each field [B, 2, T]; of the 2 the chosen one is first."""

  tokens: jax.Array | np.ndarray  # int32
  mask: jax.Array | np.ndarray  # bool, true on the tokens of a text, then false


def init(decoder_params: Any, width: int) -> dict[str, Any]:
  """Returns the parameters of a model that scores every text 0.

  They are the `decoder`'s, a `head` [D] and a `bias` [].

  Args:
    decoder_params: to start from; copied, since a training step donates what it gets.
    width: D, of the decoder's hidden states.
  """
  return {
    'decoder': jax.tree.map(jnp.copy, decoder_params),
    'head': jnp.zeros(width),
    'bias': jnp.zeros(()),
  }


def score(
  params: Any,
  tokens_BT: jax.Array,
  mask_BT: jax.Array,
  *,
  forward: Callable[..., Any],
) -> jax.Array:
  """Returns a score a row, float32 [B], read where the row's last token stands.

  Args:
    params: see `init`.
    tokens_BT: padded on the right.
    mask_BT: true on tokens. A row without any gets a number without a meaning.
    forward: the decoder's (params, tokens, positions, documents) -> hidden states
      [B, T, D], _.
  """
  documents_BT = mask_BT.astype(jnp.int32)
  positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
  hidden_BTD, _ = forward(params['decoder'], tokens_BT, positions_BT, documents_BT)
  last_B = jnp.maximum(documents_BT.sum(-1) - 1, 0)
  last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
  score_B = jnp.einsum('bd,d->b', last_BD.astype(jnp.float32), params['head'])
  # No pair says anything about it: see `standardised`.
  return score_B + jax.lax.stop_gradient(params['bias'])


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """-log sigmoid(chosen - rejected), nats: -log P(the first one is preferred)."""
  return -jax.nn.log_sigmoid(chosen - rejected)


def standardised(params: Any, scores: jax.Array | np.ndarray) -> Any:
  """Returns the parameters of the model whose scores are (score - mean) / std.

  Pairs fix scores only up to a constant, and training stops at any scale.

  Args:
    params: see `init`.
    scores: that `params` give to texts of the usual kind, [N], not all the same.
  """
  mean, std = scores.mean(), scores.std()
  return {
    **params,
    'head': params['head'] / std,
    'bias': (params['bias'] - mean) / std,
  }


def loss(
  params: Any,
  batch: Batch,
  *,
  forward: Callable[..., Any],
  total: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the sum of Bradley-Terry losses over `total`, and metrics likewise.

  Args:
    params: see `init`.
    batch: see `Batch`.
    forward: see `score`.
    total: the pairs to divide by: the whole batch's for a micro-batch.

  Returns:
    The loss, `accuracy` (pairs whose chosen text has the higher score; a tie is a half)
    and `margin`, the mean of chosen - rejected.
  """
  tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.mask)
  length = tokens.shape[-1]
  flat_scores = score(
    params, tokens.reshape(-1, length), mask.reshape(-1, length), forward=forward
  )
  chosen_B, rejected_B = flat_scores.reshape(-1, 2).T
  margin_B = chosen_B - rejected_B
  metrics = {
    'accuracy': jnp.sum(0.5 + 0.5 * jnp.sign(margin_B)) / total,
    'margin': jnp.sum(margin_B) / total,
  }
  return jnp.sum(bradley_terry(chosen_B, rejected_B)) / total, metrics


def step(
  state: TrainState,
  batch: Batch,
  *,
  forward: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  micro_batches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on a batch; pure. B must divide by `micro_batches`."""
  part_loss = functools.partial(loss, forward=forward, total=float(len(batch.tokens)))
  parts = optim.split_micro_batches(batch, micro_batches)
  return optim.update(state, parts, loss=part_loss, optimizer=optimizer)
