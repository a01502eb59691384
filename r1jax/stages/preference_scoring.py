"""Scores texts with the preference model, and rewards outputs with the scores.

Like the paper's helpfulness reward model it reads the prompt and the text shown to the
user, never the thoughts.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from r1jax import reward_model
from r1jax.miniature.judge import Pair
from r1jax.rewards.pool import Pending, RewardPool, Scores
from r1jax.rollout.policy import Policy
from r1jax.runtime import compilation
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.place import put_batch
from r1jax.tasks import GENERAL, Problem
from r1jax.text import parsing
from r1jax.text.tokenizer import Tokenizer

ROWS = 64  # texts scored at a time, rounded up to a multiple of the devices
LOWEST = -1.0  # reward of an output without shown text; the lower limit of tanh


def encode(
  problems: Sequence[Problem],
  outputs: Sequence[str],
  *,
  tokenizer: Tokenizer,
  template: str,
  max_length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens int32 [N, T] and mask bool [N, T] of the model's input.

  A row is the prompt, the shown text (truncated at the right if too long), an end of
  sequence, where the score is read, and padding.

  Raises:
    ValueError: a prompt leaves no room for a token of the text.
  """
  tokens = np.full((len(outputs), max_length), tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, np.bool_)
  for row, (problem, output) in enumerate(zip(problems, outputs, strict=True)):
    prompt = tokenizer.prompt_ids(template, problem.question)
    if len(prompt) + 2 > max_length:
      raise ValueError(
        f'preference.max_length: expected at least {len(prompt) + 2}, the tokens of '
        f'the prompt of {problem.id!r} and 2 more, got {max_length}'
      )
    shown = tokenizer.encode_after(parsing.visible(output))
    ids = [*(prompt + shown)[: max_length - 1], tokenizer.eos_id]
    tokens[row, : len(ids)] = ids
    mask[row, : len(ids)] = True
  return tokens, mask


def encode_pairs(pairs: Sequence[Pair], **encoding: Any) -> reward_model.Batch:
  """Returns both sides of each pair, [N, 2, T]; `encoding` is for `encode`."""
  problems = [pair.problem for pair in pairs for _ in range(2)]
  outputs = [output for pair in pairs for output in (pair.chosen, pair.rejected)]
  tokens, mask = encode(problems, outputs, **encoding)
  shape = (len(pairs), 2, -1)
  return reward_model.Batch(tokens.reshape(shape), mask.reshape(shape))


Scoring = Callable[[optax.Params, np.ndarray, np.ndarray], np.ndarray]


def scoring(model: DecoderFns, mesh: jax.sharding.Mesh) -> Scoring:
  """Returns (params, tokens [N, T], mask [N, T]) -> scores [N], in fixed batches.

  `mesh` has devices of this host alone, each with a copy of the parameters: hosts score
  different texts, or the same ones without waiting for each other.
  """
  rows = -(-ROWS // mesh.size) * mesh.size
  function = jax.jit(
    on_mesh(mesh, functools.partial(reward_model.score, forward=model.forward)),
    compiler_options=compilation.options(mesh),
  )

  def score(
    params: optax.Params, tokens_NT: np.ndarray, mask_NT: np.ndarray
  ) -> np.ndarray:
    scores_N = np.zeros(len(tokens_NT), np.float32)
    for first in range(0, len(tokens_NT), rows):
      part = slice(first, first + rows)
      missing = max(0, first + rows - len(tokens_NT))
      batch = tuple(
        np.pad(x_NT[part], ((0, missing), (0, 0))) for x_NT in (tokens_NT, mask_NT)
      )
      got_B = jax.device_get(function(params, *put_batch(mesh, batch)))
      scores_N[part] = got_B[: rows - missing]
    return scores_N

  return score


def score_pairs(
  score: Scoring, params: optax.Params, pairs: reward_model.Batch
) -> np.ndarray:
  """Returns scores [N, 2] of the chosen texts and of the rejected ones."""
  tokens, mask = (np.asarray(x) for x in (pairs.tokens, pairs.mask))
  length = tokens.shape[-1]
  flat = score(params, tokens.reshape(-1, length), mask.reshape(-1, length))
  return flat.reshape(-1, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """The preference reward of outputs, from -1 to 1.

  It is the tanh of the standardised score. Tanh keeps the order and bounds the score of
  outputs unlike the training texts: they earn no more than a right answer (1) and
  cannot set the scale of a whole group. An output without shown text gets -1, the
  lowest reward.
  """

  params: optax.Params  # from `train`
  policy: Policy  # that the model was trained from
  max_length: int  # T; longer texts are truncated
  mesh: jax.sharding.Mesh  # devices of this host, each with a copy

  @functools.cached_property
  def _score(self) -> Scoring:
    return scoring(self.policy.functions, self.mesh)

  def __call__(self, problems: Sequence[Problem], outputs: Sequence[str]) -> np.ndarray:
    """Returns a reward for each output, float32 [N].

    Raises ValueError for a prompt that leaves no room for the text.
    """
    shows = np.array([bool(parsing.visible(output)) for output in outputs], np.bool_)
    tokens, mask = encode(
      problems,
      outputs,
      tokenizer=self.policy.tokenizer,
      template=self.policy.template,
      max_length=self.max_length,
    )
    rewards = np.full(len(outputs), LOWEST, np.float32)
    rewards[shows] = np.tanh(self._score(self.params, tokens[shows], mask[shows]))
    return rewards


@dataclasses.dataclass(frozen=True)
class PreferenceReward:
  """Rewards outputs by rules, and to general prompts also by a preference model."""

  pool: RewardPool
  scorer: Callable[[Sequence[Problem], Sequence[str]], np.ndarray]
  weight: float  # of the preference reward in the sum

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the pool's rewards, then 'preference'."""
    return (*self.pool.names, 'preference')

  @property
  def weights(self) -> tuple[float, ...]:
    """Their weights in the sum, in the order of `names`."""
    return (*self.pool.weights, self.weight)

  def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Pending:
    """Starts to score `texts[i]` as output for `problems[i]`."""
    pending = self.pool.submit(problems, texts)
    general = np.array([problem.task in GENERAL for problem in problems], bool)
    preference = np.zeros(len(texts), np.float32)
    if general.any():
      chosen = np.flatnonzero(general).tolist()
      preference[chosen] = self.scorer(
        [problems[n] for n in chosen], [texts[n] for n in chosen]
      )

    def collect() -> Scores:
      scores = pending.result()
      return dataclasses.replace(
        scores,
        values=np.column_stack([scores.values, preference]),
        total=scores.total + self.weight * preference,
      )

    return Pending(collect)
