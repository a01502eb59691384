"""One GRPO iteration of a shape or a checkpoint, with a stage's own machinery.

Prompts are random tokens and outputs have one length, so that every iteration is the
same work. A stage's other parts, from problems to rewards, are left out.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from r1jax import grpo
from r1jax.grpo import GRPOConfig
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.optim import TrainState
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import fit_mesh
from r1jax.stages import from_hub, rl_state
from r1jax.stages.compile_ahead import compile_ahead
from r1jax.stages.from_hub import HubConfig, Pretrained
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem
from scripts.shapes import Shape


class RandomPrompts:
  """A tokenizer whose prompts are random; no token ends a completion."""

  pad_id = 0

  def __init__(self, shape: Shape) -> None:
    self.shape, self.stop_ids = shape, (shape.vocabulary,)

  def prompt(self, template: str, question: str) -> str:
    del template
    return question

  def prompt_ids(self, template: str, question: str) -> list[int]:
    rng = np.random.default_rng(len(self.prompt(template, question)))
    return rng.integers(2, self.shape.vocabulary, self.shape.prompt_length).tolist()

  def decode_batch(self, rows: Any) -> list[str]:
    return [''] * len(rows)


class Machinery(NamedTuple):
  """What a stage of RL works with."""

  sampler: Sampler
  learner: Learner


def of_shape(shape: Shape) -> tuple[Machinery, dict[str, Any]]:
  """Returns the machinery of a model with random weights, and what it starts from."""
  s = shape
  config = ModelConfig(
    s.d_model,
    s.layers,
    s.heads,
    s.kv_heads,
    s.head_dim,
    s.d_ff,
    remat='dots',
    dtype=s.dtype,
  )
  tokenizer: Any = RandomPrompts(s)
  lora = LoraConfig(s.lora_rank)
  policy = Policy(config, tokenizer, 'plain', s.vocabulary, lora)
  return _started(shape, policy, functools.partial(policy.init, seed=0))


def look_up(
  path: str, dtype: Literal['float32', 'bfloat16'], lora_rank: int
) -> Pretrained:
  """Returns a checkpoint as `experiments.grpo` opens it, without reading its weights.

  Raises:
    ValueError: there is no checkpoint at that path, or it can't be used.
  """
  lora = LoraConfig(lora_rank)
  return from_hub.look_up(HubConfig(path, 'plain', dtype=dtype, lora=lora))


def of_checkpoint(found: Pretrained, shape: Shape) -> tuple[Machinery, dict[str, Any]]:
  """Returns a checkpoint's machinery, and what it starts from."""
  tokenizer: Any = RandomPrompts(shape)
  policy = dataclasses.replace(found.policy, tokenizer=tokenizer)
  return _started(shape, policy, found.params)


def _started(
  shape: Shape, policy: Policy, params: Callable[[jax.sharding.Mesh], Any]
) -> tuple[Machinery, dict[str, Any]]:
  mesh = fit_mesh({'prompts': shape.prompts, 'rows': shape.micro_batch_rows})
  config = RLConfig(
    prompts_per_step=shape.prompts,
    group_size=shape.group_size,
    minibatches=1,
    micro_batch_rows=shape.micro_batch_rows,
    grpo=GRPOConfig(kl_coef=0.04),
  )
  learner, start = rl_state.learner_of(
    policy, mesh, config, functools.partial(params, mesh), seed=0
  )
  sampler = Sampler(policy, shape.prompt_length, mesh)
  return Machinery(sampler, learner), rl_state.start(learner, start())


def iterate(
  shape: Shape, stage: Machinery, reference: Any, state: TrainState, n: int
) -> tuple[TrainState, dict[str, float]]:
  """One iteration: the new state, and the seconds of rollout, reference and update."""
  problems = [Problem(str(n), '', '.' * n, {}) for n in range(shape.prompts)]
  key = jax.random.key(n)
  began = time.monotonic()
  with ThreadPoolExecutor(1) as executor:
    compiling = executor.submit(
      compile_ahead, stage.learner, state, reference, shape.prompt_length, shape.length
    )
    rollout = stage.sampler.sample(
      stage.learner.for_sampling(state.params),
      key,
      problems,
      group_size=shape.group_size,
      max_length=shape.length,
      draw=SamplingConfig(),
    )
    compiling.result()
  assert (rollout.lengths == shape.length).all()
  sampled = time.monotonic()
  scores = stage.learner.score(state.params, reference, rollout, 1.0)
  referred = time.monotonic()
  reward = np.mean(rollout.tokens % 2 == 0, axis=-1)
  advantage = stage.learner.advantage(grpo.outcomes(reward))
  state = stage.learner.update(state, rollout, advantage, scores, key, 1.0).state
  jax.block_until_ready(state)
  return state, {
    'rollout': sampled - began,
    'reference': referred - sampled,
    'update': time.monotonic() - referred,
  }
