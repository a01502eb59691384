"""The parts of the RL stage that need no training."""

import collections
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import grpo, mesh, optim, packing, sampling
from r1jax.model.attention import KV
from r1jax.stages.rl import Config, Trainer, at, problem_order
from r1jax.tasks import Problem


def test_schedule_takes_the_last_pair_that_has_begun():
  schedule = ((0, 256), (100, 512), (300, 1024))
  steps = (0, 99, 100, 299, 300, 9999)
  assert [at(schedule, step) for step in steps] == [256, 256, 512, 512, 1024, 1024]


def test_every_pass_visits_every_problem_once_in_an_order_of_its_own():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order = problem_order(problems, seed=3)
  first = [order(index).id for index in range(50)]
  second = [order(index).id for index in range(50, 100)]
  assert collections.Counter(first) == collections.Counter(p.id for p in problems)
  assert collections.Counter(second) == collections.Counter(first)
  assert first != second != [p.id for p in problems]


def test_order_is_a_function_of_seed_and_index_alone():
  problems = [Problem(str(n), 'countdown', '', {}) for n in range(50)]
  order, again = problem_order(problems, 3), problem_order(problems, 3)
  assert again(77).id == order(77).id  # asked for out of order
  assert [again(i).id for i in range(50)] == [order(i).id for i in range(50)]
  other = problem_order(problems, 4)
  assert [other(i).id for i in range(50)] != [order(i).id for i in range(50)]


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'group_size': 0}, 'rl.group_size: expected 1 or more, got 0'),
    ({'prompts_per_step': 5, 'minibatches': 2}, 'multiple of 2, got 5; set it to 6'),
    ({'micro_batch_rows': 7}, 'rl.micro_batch_rows: .* multiple of 2, got 7; .* 8'),
    ({'temperature': ((0, -1.0),)}, 'rl.temperature'),
    ({'temperature': ((0, 0.0),)}, 'rl.temperature: expected values from 0.01'),
    ({'max_length': ()}, 'rl.max_length: expected pairs'),
    ({'max_length': ((5, 100),)}, 'rl.max_length: expected pairs'),
    ({'max_length': ((0, 100), (0, 200))}, 'rising steps'),
    ({'max_length': ((0, 0),)}, 'values from 1 to 1048576'),
    ({'reward_timeout': 0.0}, 'rl.reward_timeout: .* above 0, got 0.0'),
    ({'reward_timeout': math.inf}, 'rl.reward_timeout: .* above 0, got inf'),
    ({'temperature': ((0, math.nan),)}, 'rl.temperature: expected values from'),
    ({'max_length': ((0, 2**30),)}, 'rl.max_length: expected values from 1 to'),
    ({'reward_workers': 1000}, 'rl.reward_workers: expected at most 256, got 1000'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    Config(**fields)


def test_every_minibatch_takes_other_problems():
  nothing: Any = None  # unused here
  config = Config(prompts_per_step=16, minibatches=4)
  trainer = Trainer(nothing, nothing, config, grpo.Config(), optim.Config())
  parts = trainer._minibatches(jax.random.key(0))
  assert parts.shape == (4, 4)
  assert sorted(parts.reshape(-1).tolist()) == list(range(16))
  assert parts.tolist() != trainer._minibatches(jax.random.key(1)).tolist()


def test_reference_scores_every_output_and_stays_cut_over_the_devices():
  # A model that says the token before once more with probability 3/4, of two tokens,
  # on four devices.
  def forward(params, tokens, positions, document, context=()):
    return tokens[..., None], KV(*jnp.zeros((2, 1, len(tokens), 1, 1, tokens.shape[1])))

  def logits(params, hidden):
    return jnp.log(jnp.where(hidden == jnp.arange(2)[None, None], 3.0, 1.0))

  place = mesh.make(jax.devices()[:4])
  nothing: Any = None  # unused here
  generator: Any = SimpleNamespace(
    mesh=place, model=sampling.Model(forward, logits, nothing)
  )
  config = Config(prompts_per_step=8, micro_batch_rows=8)
  trainer = Trainer(generator, nothing, config, grpo.Config(), optim.Config())
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, size=(8, 3)).astype(np.int32)
  tokens = rng.integers(2, size=(8, 4, 5)).astype(np.int32)
  lengths = rng.integers(1, 6, size=(8, 4))
  outputs: Any = SimpleNamespace(
    prompts=prompts, prompt_mask=prompts >= 0, tokens=tokens, lengths=lengths
  )
  logp = trainer.reference_logp({}, outputs, np.float32(1))
  last = np.broadcast_to(prompts[:, None, -1:], (8, 4, 1))
  before = np.concatenate([last, tokens[..., :-1]], axis=-1)
  expected = np.log(np.where(before == tokens, 0.75, 0.25))
  real = np.arange(5) < lengths[..., None]
  np.testing.assert_allclose(logp, np.where(real, expected, 0), rtol=1e-6)

  layout = packing.plan(lengths, 5, 8)
  rows = trainer._put(
    (
      layout.by_prompt(prompts),
      layout.by_prompt(prompts >= 0),
      layout.by_token(tokens),
      layout.offsets,
      layout.documents,
    )
  )
  compiled: Any = trainer._reference
  arguments: Any = ({}, rows, jnp.int32(layout.count), jnp.float32(1))
  program = compiled.lower(*arguments).compile().as_text()
  assert 'all-gather' not in program
  assert all(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(rows))
