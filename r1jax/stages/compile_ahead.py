"""Compiles a learner's programs while the first outputs are sampled."""

import jax
import numpy as np
import optax

from r1jax.optim import TrainState
from r1jax.rollout.sampler import Rollout, local_rows
from r1jax.stages.learner import Learner, ScoredRollout


def compile_ahead(
  learner: Learner,
  state: TrainState,
  reference: optax.Params,
  prompt_length: int,
  length: int,
) -> None:
  """Compiles scoring and update for rollouts of this length, unless they are compiled.

  When the learner calls its programs, JAX finds them compiled. With `offload` the
  update is not among them.

  Args:
    learner: of the stage.
    state: to be updated.
    reference: to be scored with.
    prompt_length: S, tokens.
    length: T, tokens.
  """
  config, program = learner.config, learner.program
  if length in program.lengths:
    return
  program.lengths.add(length)
  rollout = _blank(learner, prompt_length, length)
  scalar = np.float32(1)
  scorers = [state.params] if learner.quantize is not None else []
  scorers += [reference] if config.grpo.kl_coef else []
  if scorers:
    layout, rows = learner.scored(rollout)
    for params in scorers:
      whole, count = learner.whole(params), np.int32(layout.count)
      program.score.lower(whole, rows, count, scalar).compile()
  scores = ScoredRollout(
    old_logp=None if learner.quantize is None else rollout.logp,
    ref_logp=rollout.logp if config.grpo.kl_coef else None,
    seconds=0.0,
  )
  (chosen, *_) = learner.minibatches(jax.random.key(0))
  advantage = np.zeros(rollout.lengths.shape, np.float32)
  packed, count = learner.packed(rollout, chosen, advantage, scores)
  numbers = [scalar, scalar] if config.grpo.entropy_target else [scalar]
  program.compile_update(state, learner.frozen, learner.feed(packed), count, *numbers)


def _blank(learner: Learner, prompt_length: int, length: int) -> Rollout:
  """Returns a rollout with arrays of full size, in which every output is one token."""
  problems, group_size = learner.config.prompts_per_step, learner.config.group_size
  rows, own = local_rows(learner.mesh, problems)
  prompts = np.zeros((len(rows), prompt_length), np.int32)
  tokens = np.zeros((len(rows), group_size, length), np.int32)
  return Rollout(
    rows=rows,
    own=own,
    prompts=prompts,
    prompt_mask=np.ones(prompts.shape, np.bool_),
    tokens=tokens,
    logp=np.zeros(tokens.shape, np.float32),
    lengths=np.ones(tokens.shape[:2], int),
    all_lengths=np.ones((problems, group_size), int),
    cut_off=np.zeros(tokens.shape[:2], np.bool_),
    texts=[],
    prompt_texts=[],
    device_seconds=0.0,
    seconds=0.0,
  )
