"""The preference model: a score per text, learned from chosen and rejected texts.

A decoder with a linear head on the last token's hidden state, trained to score chosen
texts above rejected ones. Rows are padded on the right, so that padding does not change
what a token attends to.

Sources: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim
from r1jax.gradient_sums import opened
from r1jax.optim import Metrics, TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
  """B pairs of texts (chosen, rejected), each field [B, 2, T]."""

  tokens: jax.Array | np.ndarray  # int32
  mask: jax.Array | np.ndarray  # bool, true on the text's tokens, false on padding


def init(decoder_params: optax.Params, width: int) -> dict[str, optax.Params]:
  """Returns initial parameters, which score every text 0.

  They are those of the `decoder`, a `head` [D] and a `bias` [].

  Args:
    decoder_params: copied, since a training step donates its parameters.
    width: D, of the decoder's hidden states.
  """
  return {
    'decoder': jax.tree.map(jnp.copy, decoder_params),
    'head': jnp.zeros(width),
    'bias': jnp.zeros(()),
  }


def score(
  params: optax.Params,
  tokens_BT: jax.Array,
  mask_BT: jax.Array,
  *,
  forward: Callable[..., tuple[jax.Array, object]],
) -> jax.Array:
  """Returns a score per row, float32 [B], from the row's last token.

  Args:
    params: see `init`.
    tokens_BT: padded on the right.
    mask_BT: true on tokens. The score of a row without tokens is undefined.
    forward: the decoder's (params, tokens, positions, documents) -> hidden states
      [B, T, D], _.
  """
  documents_BT = mask_BT.astype(jnp.int32)
  positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
  hidden_BTD, _ = forward(params['decoder'], tokens_BT, positions_BT, documents_BT)
  last_B = jnp.maximum(documents_BT.sum(-1) - 1, 0)
  last_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
  head_D, bias = opened((params['head'], params['bias']))
  score_B = jnp.einsum('bd,d->b', last_BD.astype(jnp.float32), head_D)
  # Differences of scores don't depend on the bias; `standardised` sets it.
  return score_B + jax.lax.stop_gradient(bias)


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """-log sigmoid(chosen - rejected) = -log P(chosen is preferred), nats."""
  return -jax.nn.log_sigmoid(chosen - rejected)


def standardised(params: optax.Params, scores: jax.Array | np.ndarray) -> optax.Params:
  """Returns the parameters of the model whose scores are (score - mean) / std.

  Pairs determine scores only up to a constant, and training fixes no scale.

  Args:
    params: see `init`.
    scores: scores of typical texts under `params`, [N], not all equal.
  """
  mean, std = scores.mean(), scores.std()
  return {
    **params,
    'head': params['head'] / std,
    'bias': (params['bias'] - mean) / std,
  }


def loss(
  params: optax.Params,
  batch: Batch,
  *,
  forward: Callable[..., tuple[jax.Array, object]],
  total: float,
) -> tuple[jax.Array, Metrics]:
  """Returns the sum of Bradley-Terry losses divided by `total`, and metrics.

  Args:
    params: see `init`.
    batch: see `Batch`.
    forward: see `score`.
    total: the number of pairs of the whole batch, also for a micro-batch of it.

  Returns:
    The loss, `accuracy` (the share of pairs whose chosen text scores higher; a tie
    counts as half) and `margin`, the mean of chosen - rejected.
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
  forward: Callable[..., tuple[jax.Array, object]],
  optimizer: optax.GradientTransformation,
  micro_batches: int,
  in_place: bool = False,
) -> tuple[TrainState, Metrics]:
  """Returns the state after one update on a batch, and metrics. Pure.

  B must be a multiple of `micro_batches`. For `in_place` see `optim.gradients`.
  """
  part_loss = functools.partial(loss, forward=forward, total=float(len(batch.tokens)))
  parts = optim.split_micro_batches(batch, micro_batches)
  return optim.update(
    state, parts, loss=part_loss, optimizer=optimizer, in_place=in_place
  )
