"""The code of the README, run."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.paper.choices import CHOICES
from r1jax import grpo
from r1jax.grpo import GRPOConfig

README = (Path(__file__).parents[1] / 'README.md').read_text()
EXPERIMENT, NOTEBOOK = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


@pytest.fixture
def experiment(monkeypatch):
  monkeypatch.setattr(grpo, 'ADVANTAGES', {**grpo.ADVANTAGES})
  monkeypatch.setitem(grpo.TABLES, 'advantage', grpo.ADVANTAGES)
  monkeypatch.setattr(grpo, 'WITHIN_GROUP', {*grpo.WITHIN_GROUP})
  names = {'__name__': 'experiments.brief'}
  exec(EXPERIMENT, names)
  return names


def test_the_experiment_adds_a_reward(experiment):
  rewards = experiment['rewards'](experiment['Brief'](brevity_weight=0.5))
  assert [reward.name for reward in rewards] == [
    'accuracy',
    'format',
    'language',
    'brevity',
  ]
  assert rewards[-1].weight == 0.5
  assert [rewards[-1].function(None, 'x' * n) for n in (200, 201)] == [1, 0]


def test_the_experiment_adds_an_advantage(experiment):
  reward = jnp.array([[0.0, 0, 3, 0], [0.1, 0.1, 0.1, 0.1]])
  got = grpo.ADVANTAGES['sign'](reward)
  with pytest.raises(ValueError, match='needs 2 or more'):
    grpo.check_group_size(GRPOConfig(advantage='sign'), 1, 4)
  assert got.tolist() == [[-1, -1, 1, -1], [0, 0, 0, 0]]


def test_the_notebook_computes_a_loss():
  names: dict = {}
  exec(NOTEBOOK, names)
  # On policy the loss is minus the mean of A over the 5 + 3 + 4 + 4 tokens, where A is
  # 1/2 over std = sqrt(1/3), and over 1e-4 more, with the signs + - - +.
  expected = -(5 - 3 - 4 + 4) / 16 * 0.5 / (3**-0.5 + 1e-4)
  np.testing.assert_allclose(names['loss'], expected, rtol=1e-5)
  assert names['metrics']['ratio'] == 1


def test_the_table_of_choices_is_that_of_the_presets():
  for choice in CHOICES:
    assert f'| {choice.question} | {choice.paper} | {choice.ours} |' in README
