"""The parts of the RL stage that need no training."""

import collections
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import grpo, mesh, optim, sampling
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
    ({'prompts_per_step': 5, 'minibatches': 2, 'micro_batches': 2}, 'set it to 8'),
    ({'temperature': ((0, -1.0),)}, 'rl.temperature'),
    ({'temperature': ((0, 0.0),)}, 'rl.temperature: expected above 0'),
    ({'max_length': ()}, 'rl.max_length: expected pairs'),
    ({'max_length': ((5, 100),)}, 'rl.max_length: expected pairs'),
    ({'max_length': ((0, 100), (0, 200))}, 'rising steps'),
    ({'max_length': ((0, 0),)}, 'values of 1 or more'),
    ({'reward_timeout': 0.0}, 'rl.reward_timeout'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    Config(**fields)


def test_minibatches_and_reference_stay_cut_over_the_devices():
  # A model that says every token with probability 1/2, on four devices.
  def forward(params, tokens, positions, document, context=()):
    return tokens, KV(*jnp.zeros((2, 1, len(tokens), 1, 1, tokens.shape[1])))

  def logits(params, hidden):
    return jnp.zeros((*hidden.shape, 2))

  place = mesh.make(jax.devices()[:4])
  model = sampling.Model(forward, logits)
  generator: Any = SimpleNamespace(mesh=place, model=model)
  pool: Any = None  # unused here
  config = Config(prompts_per_step=16, minibatches=2, micro_batches=2)
  trainer = Trainer(generator, pool, config, grpo.Config(), optim.Config())
  rows = np.arange(16)
  prompts = mesh.put_batch(place, np.repeat(rows[:, None], 3, 1).astype(np.int32))
  said = mesh.put_batch(place, np.zeros((16, 2, 5), np.int32))
  arrays = (prompts, prompts >= 0, said)
  logp = trainer.reference_logp({}, arrays, jnp.float32(1))
  np.testing.assert_allclose(logp, np.full((16, 2, 5), np.log(0.5)), rtol=1e-6)
  compiled: Any = trainer.reference_logp
  program = compiled.lower({}, arrays, jnp.float32(1)).compile().as_text()
  assert 'all-gather' not in program
  advantage = mesh.put_batch(place, rows.astype(np.float32))
  rollout = grpo.Rollout(*arrays, said == 0, logp, logp, advantage)
  parts = trainer._minibatches(rollout, jax.random.key(0))
  assert sorted(np.concatenate([part.advantage for part in parts])) == rows.tolist()
  for part in parts:
    np.testing.assert_array_equal(part.prompts[:, 0], part.advantage)
    for leaf in jax.tree.leaves(part):
      assert not leaf.sharding.is_fully_replicated
