"""A run as one program does what the ordinary loop does, for any number of seeds."""

import dataclasses
import functools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.fused import program
from r1jax.grpo import GRPOConfig
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rewards.pool import Pending, Scores
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import fused, rl, rl_state
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rl_groups import Actors
from r1jax.tasks import countdown
from r1jax.text.tokenizer import Tokenizer

PROBLEMS = list(countdown.generate(countdown.CountdownConfig(), 'train'))[:40]
TOKENIZER = Tokenizer.train([p.question for p in PROBLEMS], 300)
TINY = ModelConfig(d_model=32, layers=2, heads=2, kv_heads=1, head_dim=16, d_ff=64)
POLICY = Policy(TINY, TOKENIZER, 'plain')
CONFIG = RLConfig(
  steps=3,
  prompts_per_step=4,
  group_size=4,
  minibatches=2,
  micro_batch_rows=4,
  max_prompt_length=48,
  max_length=((0, 12),),
  temperature=((0, 1.0), (1, 0.9)),
  reference_every=2,
  optim=OptimConfig(learning_rate=3e-3, warmup_steps=0, eps=1e-4),
  grpo=GRPOConfig(kl_coef=0.1, mean='tokens'),
)


def order(seed):
  drawn = random.Random(seed).choices(range(len(PROBLEMS)), k=100)
  return lambda index: drawn[index]


@pytest.fixture(autouse=True)
def even_lengths_are_right(monkeypatch):
  """An untrained model answers nothing, so another reward stands for the verdict."""

  def parse(text):
    # Bytes that are no UTF-8 become a letter on the host, which is not of ASCII.
    inside = jnp.arange(text.bytes.shape[1])[None] < text.lengths[:, None]
    return jnp.sum(inside & (text.bytes < 128), axis=1) % 2 == 0, text

  monkeypatch.setattr(program.texts, 'parse', parse)
  monkeypatch.setattr(
    program.verify, 'right', lambda answer, truth: jnp.ones(len(truth.task), bool)
  )


class EvenLengths:
  """The same reward on the host."""

  names = ('accuracy',)
  weights = (1.0,)

  def submit(self, problems, texts):
    del problems
    ascii_only = [sum(letter < '\x80' for letter in text) for text in texts]
    even = np.array([count % 2 == 0 for count in ascii_only], np.float32)
    return Pending(lambda: Scores(even[:, None], even, [], 0, 0))


@functools.cache
def base():
  mesh = make_mesh(jax.devices()[:1])
  return POLICY.init(mesh, 0)


def trained(config, seeds, numbers=None, together=False):
  """Parameters and metrics of these seeds, in one program."""
  steps = [fused.steps_of(config, seed, order(seed)) for seed in seeds]
  run = functools.partial(
    program.train_all,
    problems=fused.problems_of(POLICY, PROBLEMS, config.max_prompt_length),
    pieces=fused.pieces_of(POLICY),
    settings=fused.settings_of(POLICY, config),
    together=together,
  )
  varied = {name: jnp.asarray(x, jnp.float32) for name, x in (numbers or {}).items()}
  return jax.jit(run)(base(), jax.tree.map(lambda *x: jnp.stack(x), *steps), varied)


def ordinary(config, seed):
  """The same of `stages.rl.step`."""
  mesh = make_mesh(jax.devices()[:1])
  sampler = Sampler(POLICY, config.max_prompt_length, mesh)
  learner = Learner(POLICY.functions, mesh, config, POLICY.matrices)
  rewarder: Any = EvenLengths()
  saved = rl_state.start(learner, base())
  state, reference = saved['policy'], saved['reference']
  metrics = []
  for number in range(1, config.steps + 1):
    problems = [PROBLEMS[order(seed)(n)] for n in config.problem_numbers(number)]
    key = jax.random.fold_in(jax.random.key(seed), number)
    state, found, _ = rl.step(
      Actors(sampler, rewarder, learner),
      *(state, reference, problems, key, number, rl_state.Feedback()),
    )
    metrics.append(found)
    if number % config.reference_every == 0:
      reference = jax.tree.map(jnp.copy, state.params)
  return state.params, metrics


def test_a_fused_run_is_the_ordinary_loop():
  params, metrics = trained(CONFIG, [5])
  expected, lines = ordinary(CONFIG, 5)
  assert [line['reward'] for line in lines] == metrics['reward'][0].tolist()
  assert len({line['reward'] for line in lines}) > 1
  for name in ('length', 'zero_variance_groups'):
    assert [line[name] for line in lines] == pytest.approx(metrics[name][0].tolist())
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected, base())
  assert max(jax.tree.leaves(moved)) > 1e-3
  # float32 sums in another order, over six updates
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x[0], y, atol=2e-4), params, expected
  )


SHORT = dataclasses.replace(CONFIG, steps=2, minibatches=1)


def test_seeds_of_one_program_are_those_of_single_runs():
  seeds = [1, 2, 3]
  whole = trained(SHORT, seeds)
  single = [trained(SHORT, [seed]) for seed in seeds]
  expected = jax.tree.map(lambda *x: np.concatenate(x), *single)
  jax.tree.map(np.testing.assert_array_equal, whole, expected)
  assert len(set(whole[1]['reward'][:, 0].tolist())) > 1
  # Side by side they round otherwise.
  together = trained(SHORT, seeds, together=True)
  assert together[1]['reward'].tolist() == whole[1]['reward'].tolist()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), together[0], whole[0]
  )


def test_numbers_vary_between_the_runs_of_a_program():
  numbers = {'learning_rate': [3e-3, 1e-3], 'kl_coef': [0.1, 0.4]}
  params, metrics = trained(SHORT, [1, 1], numbers)
  for n in range(2):
    config = dataclasses.replace(
      SHORT,
      optim=dataclasses.replace(SHORT.optim, learning_rate=numbers['learning_rate'][n]),
      grpo=dataclasses.replace(SHORT.grpo, kl_coef=numbers['kl_coef'][n]),
    )
    alone, seen = trained(config, [1])
    jax.tree.map(
      lambda x, y, n=n: np.testing.assert_allclose(x[n], y[0], atol=1e-6), params, alone
    )
    np.testing.assert_allclose(metrics['loss'][n], seen['loss'][0], rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'equal_groups': 'drop'}, "rl.equal_groups: expected 'keep' in a fused run, got"),
    (
      {'max_length': ((0, 8), (5, 12))},
      'rl.max_length: expected one length in a',
    ),
    ({'grpo': GRPOConfig(entropy_target=1.0)}, 'rl.grpo.entropy_target: expected 0 in'),
    ({'grpo': GRPOConfig(advantage='reward_decoupled')}, 'has one reward, got'),
  ],
)
def test_settings_of_the_ordinary_loop_alone_are_refused(fields, expected):
  with pytest.raises(ValueError, match=expected):
    fused.check(dataclasses.replace(CONFIG, **fields))
