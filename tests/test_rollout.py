"""From problems to texts, with a small random model and a real tokenizer."""

import os
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.model.config import ModelConfig
from r1jax.rollout.policy import Policy
from r1jax.rollout.sample_program import SampleProgram
from r1jax.rollout.sampler import Sampler
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import REPLICATED, MeshConfig, make_mesh
from r1jax.sharding.place import put_boxed
from r1jax.tasks import Problem
from r1jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(['User: make 5 from 2 3 Assistant: <think>'] * 9, 270)
CONFIG = ModelConfig(d_model=16, layers=1, heads=2, kv_heads=1, head_dim=8, d_ff=16)
POLICY = Policy(CONFIG, TOKENIZER, 'plain')
MESH = make_mesh(jax.devices()[:1])
PROBLEMS = [Problem(str(n), '', f'make {n} from 2 3', {}) for n in range(4)]


@pytest.fixture(scope='module')
def params():
  return put_boxed(MESH, POLICY.boxed(jax.random.key(0)))


def sample(params, cores, monkeypatch, layout=REPLICATED):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(cores), raising=False)
  return Sampler(POLICY, 30, MESH, layout).sample(
    params,
    jax.random.key(3),
    PROBLEMS,
    group_size=3,
    max_length=40,
    draw=SamplingConfig(),
  )


def test_samples_do_not_depend_on_the_number_of_cores(params, monkeypatch):
  one, *others = (sample(params, cores, monkeypatch) for cores in (1, 2, 4, 7))
  assert len({tuple(row) for row in one.tokens.reshape(12, -1).tolist()}) == 12
  for other in others:
    np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_array_equal(other.prompts, one.prompts)
    np.testing.assert_allclose(other.logp, one.logp, rtol=1e-5, atol=1e-5)
    assert other.texts == one.texts


@pytest.mark.parametrize(('cores', 'slots'), [(1, 5), (2, 4), (4, 1)])
def test_samples_do_not_depend_on_the_slots(params, monkeypatch, cores, slots):
  every = sample(params, 1, monkeypatch)
  found = sample(params, cores, monkeypatch, MeshConfig(sampler_slots=slots))
  np.testing.assert_array_equal(found.tokens, every.tokens)
  np.testing.assert_array_equal(found.lengths, every.lengths)
  np.testing.assert_allclose(found.logp, every.logp, rtol=1e-5, atol=1e-5)


def test_programs_in_parallel_share_the_slots():
  def slots(count, outputs, parts, devices=1):
    mesh = make_mesh(jax.devices()[:devices])
    layout = MeshConfig(sampler_slots=count)
    nothing: Any = None  # unused here
    program = SampleProgram(nothing, (), mesh, layout, nothing)
    return program.slots(outputs, parts)

  assert slots(8, 100, 1) == 8
  assert slots(8, 100, 2) == 4
  assert slots(1, 100, 2) == 1
  assert slots(8, 100, 1, devices=4) == 32
  # All at once, as no output would wait.
  assert slots(0, 100, 1) == slots(8, 8, 1) == slots(8, 32, 1, devices=4) == 0


def test_lengths_cut_offs_and_texts_follow_from_the_tokens(params, monkeypatch):
  rollout = sample(params, 2, monkeypatch)
  for p, g in np.ndindex(4, 3):
    tokens = rollout.tokens[p, g].tolist()
    ended = TOKENIZER.eos_id in tokens
    length = tokens.index(TOKENIZER.eos_id) + 1 if ended else 40
    assert rollout.lengths[p, g] == length
    assert rollout.cut_off[p, g] == (not ended)
    assert rollout.texts[p][g] == TOKENIZER.decode(tokens[:length])
  for p, problem in enumerate(PROBLEMS):
    prompt = rollout.prompts[p][rollout.prompt_mask[p]].tolist()
    assert TOKENIZER.decode(prompt) == f'User: {problem.question}\nAssistant:'
    assert rollout.prompt_texts[p] == TOKENIZER.decode(prompt)


def test_each_problem_draws_from_a_key_of_its_own(params):
  same = [PROBLEMS[0]] * 2
  rollout = Sampler(POLICY, 30, MESH).sample(
    params,
    jax.random.key(3),
    same,
    group_size=3,
    max_length=40,
    draw=SamplingConfig(),
  )
  np.testing.assert_array_equal(rollout.prompts[0], rollout.prompts[1])
  # Of some 270 tokens, equally likely at first: six outputs are hardly ever alike.
  assert len({tuple(row) for row in rollout.tokens.reshape(6, -1).tolist()}) == 6
