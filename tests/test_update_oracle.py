"""Updates of a policy against the second implementation in `torch_updates`.

r1jax runs as in training: outputs of ragged lengths packed into micro-batches,
`update.step`, the optimizer of `optim.make`; two rollouts, each of two epochs of two
mini-batches. But it runs in float64, so that only the order of sums differs and neither
eps nor the learning rate has to hide anything: in float32 Adam makes full steps of the
rounding of gradients near 0 unless eps is far above it. Outputs and rewards are random.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_updates
from torch_updates import LENGTH, LONGEST, MINIBATCHES, TEMPERATURE, UPDATES, VOCAB

from r1jax import algorithms, grpo, optim, packing, update
from r1jax.hub import weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.model import decoder
from r1jax.model.config import EXACT
from r1jax.optim import OptimConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.score import score_tokens
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding

MODELS: dict[str, Any] = {
  # biases; a head of its own
  'qwen2': {'tie_word_embeddings': False},
  # norms of queries and keys; the head is the embedding
  'qwen3': {'head_dim': 6, 'tie_word_embeddings': True},
}
SIZES = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'intermediate_size': 24,
  'rms_norm_eps': torch_updates.NORM_EPS,
}
# The rate is so high that ratios leave the bounds of the clip; eps is torch's default.
OPTIMIZER = OptimConfig(
  learning_rate=4e-3,
  warmup_steps=2,
  schedule='cosine',
  final_share=0.1,
  weight_decay=0.0,
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  max_grad_norm=1.0,
)
FLOAT64: dict[str, Any] = {'dtype': EXACT}
# A program that runs a few times takes longer to compile than to run.
QUICK = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
  'xla_cpu_use_fusion_emitters': False,
}


class Model(NamedTuple):
  """One model, as torch and r1jax have it."""

  config: Any  # of transformers
  start: Any  # tensors by name
  reference: Any
  checkpoint: Any
  params: Any  # the start's
  ref_params: Any
  score: Any
  scoring: Any


@pytest.fixture(scope='module', autouse=True)
def one_thread():
  """Of torch: more take longer with arrays as small as these."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """A function that gives the model of a family, made once."""

  @functools.cache
  def make(family):
    folder = tmp_path_factory.mktemp(family)
    theirs = hub.theirs(family, {**SIZES, **MODELS[family]})
    start, starts = stored(theirs, folder / 'start')
    with torch.no_grad():
      for parameter in theirs.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    reference, references = stored(theirs, folder / 'reference')
    checkpoint = open_checkpoint(folder / 'start')
    config = dataclasses.replace(checkpoint.config, **FLOAT64)
    functions = DecoderFns(*decoder.functions(config, VOCAB))
    score = functools.partial(score_tokens, model=functions)
    return Model(
      theirs.config,
      start,
      reference,
      checkpoint,
      starts,
      references,
      score,
      jax.jit(
        functools.partial(score, temperature=TEMPERATURE), compiler_options=QUICK
      ),
    )

  return make


def stored(theirs, folder):
  """The tensors of a model in float64, by name, and what r1jax reads of its files."""
  theirs.save_pretrained(folder)
  everywhere = named_sharding(make_mesh(jax.devices()[:1]))
  params = weights.read(open_checkpoint(folder), everywhere)
  tensors = {name: x.detach().double() for name, x in theirs.named_parameters()}
  with jax.enable_x64(True):
    return tensors, jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)


def updates(name, model, settings, sampled_by_another):
  """As `torch_updates.run`, by the calls that `stages.rl` makes."""
  algorithm = algorithms.PRESETS[name]
  optimizer = optim.make(settings, UPDATES)
  step = jax.jit(
    functools.partial(
      update.step, score=model.score, optimizer=optimizer, config=algorithm
    ),
    compiler_options=QUICK,
  )
  state, seen = optim.init(model.params, optimizer), []
  for rollout in torch_updates.rollouts():
    real = [[1] * len(prompt) for prompt in rollout.prompts]
    lengths = np.array([[len(x) for x in group] for group in rollout.outputs])
    outputs = {
      'prompts': padded(rollout.prompts, LONGEST, left=True).astype(np.int32),
      'prompt_mask': padded(real, LONGEST, left=True) > 0,
      'tokens': by_output(rollout.outputs).astype(np.int32),
    }
    noise = by_output(rollout.noise)
    old_logp = np.array(model.scoring(state.params, **outputs)[0])
    old_logp += torch_updates.stale(name) * noise
    ref_logp, sampler_logp = None, None
    if algorithm.kl_coef:
      ref_logp = np.asarray(model.scoring(model.ref_params, **outputs)[0])
    if sampled_by_another:
      sampler_logp = old_logp - noise
    outcomes = grpo.outcomes(jnp.asarray(rollout.rewards))
    advantage = np.asarray(grpo.group_advantage(outcomes, config=algorithm))
    for chosen in MINIBATCHES:
      layout = packing.plan(lengths, LENGTH, 4, 2, [chosen])
      batch = packing.pack(
        layout,
        **outputs,
        old_logp=old_logp,
        ref_logp=ref_logp,
        sampler_logp=sampler_logp,
        advantage=advantage,
      )
      batch = jax.tree.map(jnp.asarray, batch)
      state, metrics = step(state, batch, jnp.int32(layout.count), TEMPERATURE)
      seen.append({key: float(value) for key, value in metrics.items()})
  held = weights.arrays(state.params, model.checkpoint)
  return {name: array for _, name, array in held}, seen


def padded(lists, width, left=False):
  rows = np.zeros((len(lists), width))
  for row, numbers in zip(rows, lists, strict=True):
    row[width - len(numbers) if left else 0 :][: len(numbers)] = numbers
  return rows


def by_output(lists):
  return np.stack([padded(group, LENGTH) for group in lists])


CASES = [
  (name, tuple(MODELS)[n % 2], False)
  for n, name in enumerate(
    ('grpo', 'dr_grpo', 'dapo', 'gspo', 'cispo', 'rloo', 'reinforce_pp')
  )
] + [('grpo', 'qwen3', True)]


@pytest.mark.parametrize(('name', 'family', 'sampled_by_another'), CASES)
def test_updates_equal_those_in_torch(models, name, family, sampled_by_another):
  model = models(family)
  settings = OPTIMIZER
  if name == 'gspo':  # whose bounds are a thousandth as far from 1
    settings = dataclasses.replace(settings, learning_rate=1e-5)
  theirs, expected = torch_updates.run(
    name, model.config, model.start, model.reference, settings, sampled_by_another
  )
  with jax.enable_x64(True):
    ours, metrics = updates(name, model, settings, sampled_by_another)
  # What is compared happens: some tokens are clipped, and some gradients.
  if name in torch_updates.BOUNDS:
    for key in ('clip_up', 'clip_down', 'back'):
      assert any(0 < update[key] < 1 for update in expected)
    for update in expected:
      del update['back']
  if name == 'grpo':
    norms = [update['grad_norm'] for update in expected]
    assert min(norms) < settings.max_grad_norm < max(norms)
  # float64 sums in another order; at most 4e-13 of a move was measured.
  for update, found in zip(expected, metrics, strict=True):
    assert found.keys() >= update.keys()
    for key, value in update.items():
      np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12, err_msg=key)
  assert ours.keys() == theirs.keys()
  for key, x in theirs.items():
    start = model.start[key].numpy()
    assert ours[key].dtype == np.float64
    assert np.linalg.norm(ours[key] - x) < 1e-11 * np.linalg.norm(x - start), key


@pytest.mark.parametrize('family', MODELS)
def test_the_decoder_in_torch_equals_that_of_transformers(family):
  theirs = hub.theirs(family, {**SIZES, **MODELS[family]})
  tensors = {name: x.detach().double() for name, x in theirs.named_parameters()}
  tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
  with torch.no_grad():
    expected = theirs(tokens[None]).logits[0]
    got = torch_updates.logits_of(tensors, theirs.config, tokens)
  assert torch.abs(expected).max() > 0.5
  np.testing.assert_allclose(got, expected, atol=1e-5)  # float32 there


def test_weight_decay_equals_that_of_adamw_in_torch():
  # Decay added to the gradient (L2) would be divided by the gradient's size.
  start, *slopes = np.random.default_rng(0).normal(size=(4, 3, 2))
  settings = dataclasses.replace(OPTIMIZER, weight_decay=0.3, max_grad_norm=1e9)
  theirs = torch.tensor(start)
  chain = torch.optim.AdamW(
    [theirs],
    betas=(settings.b1, settings.b2),
    eps=settings.eps,
    weight_decay=settings.weight_decay,
  )
  with jax.enable_x64(True):
    optimizer = optim.make(settings, UPDATES)
    state = optim.init({'matrix': jnp.asarray(start)}, optimizer)
    for step, slope in enumerate(slopes):
      theirs.grad = torch.tensor(slope)
      chain.param_groups[0]['lr'] = torch_updates.rate(settings.learning_rate, step)
      chain.step()
      grads = {'matrix': jnp.asarray(slope)}
      state, _ = optim.apply(state, grads, optimizer=optimizer)
  np.testing.assert_allclose(state.params['matrix'], theirs, rtol=1e-12)
