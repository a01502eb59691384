"""The accuracy of types on a checkpoint; float64 against torch in double."""

import math
import sys

import jax
import numpy as np
import pytest
import torch
import torch_updates
from hub import checkpoint

from r1jax.model.config import EXACT
from r1jax.sharding.mesh import make_mesh
from scripts import accuracy
from scripts.accuracy import Computed


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A checkpoint's folder, and the same model in torch."""
  folder = tmp_path_factory.mktemp('accuracy') / 'model'
  fields = {'tie_word_embeddings': True, 'rms_norm_eps': torch_updates.NORM_EPS}
  return folder, checkpoint(folder, 'qwen2', fields)


@pytest.fixture(scope='module')
def opened(model):
  """The checkpoint, its parameters and a rollout of it."""
  found = accuracy.look_up(str(model[0]))
  params = found.params(make_mesh(jax.devices()[:1]))
  return found, params, accuracy.sampled(found.policy, params)


def in_torch(model, rollout):
  """Log-probs, loss and gradient in double, each output a sequence of its own."""
  tensors = {
    name: x.detach().double().requires_grad_() for name, x in model.named_parameters()
  }
  loss, seen = torch.zeros((), dtype=torch.float64), []
  for p, g in np.ndindex(rollout.advantage.shape):
    prompt = rollout.prompts[p][rollout.prompt_mask[p]].tolist()
    output = rollout.tokens[p, g].tolist()
    tokens = torch.tensor(prompt + output[:-1])
    logits = torch_updates.logits_of(tensors, model.config, tokens)
    logp = torch.log_softmax(logits[len(prompt) - 1 :], -1)[range(len(output)), output]
    behind = torch.tensor(rollout.ref_logp[p, g]).double() - logp
    kl = torch.exp(behind) - behind - 1
    ratio = torch.exp(logp - logp.detach())
    gain = ratio * float(rollout.advantage[p, g]) - 0.04 * kl
    loss = loss - gain.mean() / rollout.advantage.size
    seen.append(logp.detach().numpy())
  loss.backward()
  gradient = {name: x.grad.numpy() for name, x in tensors.items()}
  return np.reshape(seen, rollout.tokens.shape), loss.item(), gradient


def test_float64_agrees_with_torch_in_double(model, opened):
  found, params, rollout = opened
  exact = accuracy.computed(found, params, rollout, EXACT)
  logp, loss, gradient = in_torch(model[1], rollout)
  # Sums of hundreds of float64 numbers in another order; float32 is off by 1e-6.
  assert exact.logp.dtype == np.float64
  np.testing.assert_allclose(exact.logp, logp, atol=1e-11)
  np.testing.assert_allclose(exact.loss, loss, rtol=1e-11)
  assert exact.gradient.keys() == gradient.keys()
  for name, wanted in gradient.items():
    off = np.linalg.norm(exact.gradient[name] - wanted)
    assert off < 1e-11 * np.linalg.norm(wanted), name


@pytest.fixture(scope='module')
def measured(opened):
  return accuracy.measure(opened[0])


def test_the_errors_of_a_type_are_those_of_its_rounding(measured):
  # A float32 is rounded by up to 2^-24 = 6e-8, the factors of a product in bfloat16 by
  # up to 2^-9 = 2e-3; they add up over two layers and their gradients.
  for dtype, least, most in (('float32', 1e-8, 1e-4), ('bfloat16', 1e-4, 0.1)):
    got = measured[dtype]
    assert least < got.gradient < most
    assert got.gradient <= got.worst < most
    assert 0 < got.cosine_gap < got.gradient**2
    assert got.logp_mean < got.logp_max < most
    assert 0 < got.drift < most
    assert got.loss < most
    assert got.kl < most


def test_differences_of_gradients_are_compared_by_norms():
  def made(logp, loss, kl, **gradient):
    sampler_logp = np.array([1.2, 1.6])
    return Computed(np.array(logp), sampler_logp, loss, kl, gradient)

  exact = made(
    [1.0, 2.0], -2.0, 0.1, gain=np.array([2.0]), a=np.eye(2), b=np.array([[4.0, 0.0]])
  )
  got = made(
    [1.5, 2.0], -1.0, 0.2, gain=np.array([5.0]), a=np.eye(2), b=np.array([[4.0, 4.0]])
  )
  found = accuracy.errors(got, exact)
  # Norms: of the difference sqrt(9 + 16), of float64's gradient sqrt(4 + 2 + 16), of
  # the other sqrt(25 + 2 + 32); their product is 10 + 2 + 16. A gain is no matrix.
  cosine = 28 / math.sqrt(22 * 59)
  expected = (0.5, 0.25, 0.35, 0.5, 1.0, 5 / math.sqrt(22), 1 - cosine, 1.0)
  np.testing.assert_allclose(found[:-1], expected)
  assert found.worst_name == 'b'


def test_the_table_has_a_column_for_each_type(measured):
  head, rule, *rows = accuracy.table(measured).splitlines()
  assert head == '|  | float32 | bfloat16 |'
  assert rule == '| --- | --- | --- |'
  assert len(rows) == 8
  assert f'{measured["bfloat16"].gradient:.1e} |' in rows[5]
  assert f'`{measured["bfloat16"].worst_name}` |' in rows[7]


@pytest.mark.parametrize(
  ('words', 'sentence'),
  [
    ([], 'the following arguments are required: --model'),
    (['--model', 'no/such/folder'], 'no/such/folder, which does not exist'),
  ],
)
def test_bad_input_is_refused_in_a_sentence(words, sentence, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['accuracy', *words])
  with pytest.raises(SystemExit) as stopped:
    accuracy.main()
  assert stopped.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert sentence in line
