"""LoRA: applied and merged adapters, training them alone, and PEFT's files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft as their_peft
import pytest
import torch
from hub import FAMILIES, VOCAB, checkpoint, theirs

from r1jax import grpo
from r1jax.grpo import GRPOConfig
from r1jax.hub import peft, peft_config, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.hub.storage import WeightsError
from r1jax.model import decode, decoder, lora
from r1jax.model.decode_weights import layer_weights
from r1jax.model.linear import dense
from r1jax.model.lora import LoraConfig
from r1jax.optim import OptimConfig
from r1jax.rollout.sampler import Sampler
from r1jax.sampling import generate
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding
from r1jax.stages import from_hub, rl_state
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.tasks import Problem

ALL = LoraConfig(rank=3, alpha=6.0, targets='.*')
MLA = 'query|query_down|latent_down|latent_up|out'
KINDS = ['qwen3', 'deepseek_v3']


@functools.cache
def opened(model_type, folder):
  """A checkpoint of transformers, and what we read of it."""
  reference = theirs(model_type, FAMILIES[model_type])
  reference.save_pretrained(folder)
  found = open_checkpoint(folder)
  everywhere = named_sharding(make_mesh(jax.devices()[:1]))
  return reference, found, weights.read(found, everywhere)


@pytest.fixture(params=KINDS, scope='module')
def kind(request, tmp_path_factory):
  return opened(request.param, tmp_path_factory.mktemp('lora') / 'model')


def random_adapters(config, settings=ALL):
  """Adapters that change something."""
  fresh = lora.init(config, settings, jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 100))
  return jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), fresh)


def logits(found, params):
  tokens = np.random.default_rng(0).integers(VOCAB, size=(2, 20))
  positions = np.broadcast_to(np.arange(20), tokens.shape)
  forward, head, *_ = decoder.functions(found.config, VOCAB)
  hidden, _ = jax.jit(forward)(params, tokens, positions, np.zeros_like(tokens))
  return np.asarray(head(params, hidden))


def greedy(found, params):
  return generate.sample(
    params,
    jax.random.split(jax.random.key(0), 2),
    jnp.asarray(np.random.default_rng(1).integers(VOCAB, size=(2, 6))),
    jnp.ones((2, 6), bool),
    model=DecoderFns(*decoder.functions(found.config, VOCAB)),
    config=SamplingConfig(temperature=0),
    group_size=1,
    max_length=20,
    stop_ids=(),
  ).tokens


def test_applied_and_merged_adapters_give_the_same_logits(kind):
  _, found, base = kind
  attached = lora.attach(base, random_adapters(found.config), ALL.scale)
  applied = logits(found, attached)
  merged = lora.merged(attached)
  # float32 sums in another order, on logits of order 10
  np.testing.assert_allclose(applied, logits(found, merged), atol=1e-5 * 10)
  assert np.abs(applied - logits(found, base)).max() > 0.1
  np.testing.assert_array_equal(greedy(found, attached), greedy(found, merged))


def test_the_sampler_of_a_bfloat16_base_sees_a_small_update(kind):
  # Entries of the product are 2 * 3 * 0.2 * 1e-5 at most, a hundredth of the distance
  # between the bfloat16 around 0.02: merged in that type nearly all would round away.
  _, found, base = kind
  base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  adapters = jax.tree_util.tree_map_with_path(
    lambda path, x: 1e-5 * jnp.sign(x) if path[-1].key == 'b' else x,
    random_adapters(found.config),
  )
  tokens = np.random.default_rng(1).integers(VOCAB, size=(2, 2, 12))
  prompts, mask = jnp.asarray(tokens[:, 0, :6]), jnp.ones((2, 6), bool)
  model = DecoderFns(*decoder.functions(found.config, VOCAB))

  @jax.jit
  def sampled(params):
    completions = generate.sample(
      params,
      jax.random.split(jax.random.key(0), 2),
      prompts,
      mask,
      model=model,
      config=SamplingConfig(),
      group_size=2,
      max_length=12,
      stop_ids=(),
    )
    scored, _ = score_tokens(params, prompts, mask, completions.tokens, model=model)
    return completions.tokens, completions.logp, scored

  attached = lora.attach(base, adapters, ALL.scale)
  before, after = jax.device_get((sampled(base), sampled(attached)))
  np.testing.assert_array_equal(before[0], after[0])
  changes = [(x - y).ravel() for x, y in zip(after[1:], before[1:], strict=True)]
  sampler, learner = (x / np.linalg.norm(x) for x in changes)
  assert sampler @ learner > 0.99
  assert np.linalg.norm(changes[0]) == pytest.approx(
    np.linalg.norm(changes[1]), rel=0.05
  )
  matrix = attached['blocks']['query']
  assert matrix.merged().dtype == jnp.float32
  assert lora.merged_in_dtype(attached)['blocks']['query'].dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['query', 'down', 'out'])
def test_products_in_bfloat16_keep_adapters_apart(kind, name):
  _, found, base = kind
  if found.config.latent.kv_rank:
    return  # the same products
  attached = lora.attach(base, random_adapters(found.config), ALL.scale)
  matrix = jax.tree.map(lambda x: x[1], attached['blocks'][name])
  inputs = matrix.a.size // matrix.a.shape[-1]
  x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, inputs)), jnp.float32)
  config = dataclasses.replace(found.config, dtype='bfloat16')
  layer = decode.Layer(config, layer_weights(config, attached['blocks'], 1), 1)
  expected = dense(x, matrix, 'bfloat16')[0].T  # the learner's
  np.testing.assert_array_equal(layer.times(name, x[0].T), expected)


@pytest.mark.parametrize('how', ['fresh', 'scale 0'])
def test_an_adapter_of_zeros_leaves_the_base_as_it_is(kind, how):
  _, found, base = kind
  if how == 'fresh':
    attached = lora.attach(base, lora.init(found.config, ALL, jax.random.key(0)), 2.0)
  else:
    attached = lora.attach(base, random_adapters(found.config), 0.0)
  # Zeros are added to every product, and the compiler may sum in another order.
  off = 2e-6 if how == 'fresh' else 0
  np.testing.assert_allclose(logits(found, attached), logits(found, base), atol=off)
  jax.tree.map(np.testing.assert_array_equal, lora.merged(attached), base)


def test_peft_reads_the_adapters_that_are_written(kind, tmp_path):
  reference, found, base = kind
  config = dataclasses.replace(ALL, targets='query|value|down')
  if found.config.latent.kv_rank:
    config = dataclasses.replace(ALL, targets=MLA)
  adapters = random_adapters(found.config, config)
  peft.write(tmp_path / 'adapter', adapters, config, found)
  # A copy: the library changes the model that it is given.
  clone = type(reference)(reference.config)
  clone.load_state_dict(reference.state_dict())
  adapted = their_peft.PeftModel.from_pretrained(clone.eval(), tmp_path / 'adapter')
  tokens = np.random.default_rng(0).integers(VOCAB, size=(2, 20))
  with torch.no_grad():
    expected = adapted(torch.tensor(tokens)).logits.numpy()
  ours = logits(found, lora.attach(base, adapters, config.scale))
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  # And back, to the same numbers.
  again, read = peft.read(tmp_path / 'adapter', found)
  assert (again.rank, again.alpha) == (config.rank, config.alpha)
  jax.tree.map(np.testing.assert_array_equal, read, adapters)


def test_adapters_written_by_peft_are_read(kind, tmp_path):
  reference, found, base = kind
  names = ['q_proj', 'o_proj'] if not found.config.latent.kv_rank else ['q_b_proj']
  clone = type(reference)(reference.config)
  clone.load_state_dict(reference.state_dict())
  settings = their_peft.LoraConfig(r=2, lora_alpha=3, target_modules=names)
  torch.manual_seed(1)
  adapted = their_peft.get_peft_model(clone.eval(), settings)
  with torch.no_grad():
    for name, parameter in adapted.named_parameters():
      if 'lora_' in name:
        parameter.normal_(0, 0.3)
  adapted.save_pretrained(tmp_path / 'adapter')
  config, adapters = peft.read(tmp_path / 'adapter', found)
  assert config.scale == 1.5
  tokens = np.random.default_rng(0).integers(VOCAB, size=(2, 20))
  with torch.no_grad():
    expected = adapted.eval()(torch.tensor(tokens)).logits.numpy()
  ours = logits(found, lora.attach(base, adapters, config.scale))
  np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'peft_type': 'IA3'}, "peft_type: expected 'LORA', got 'IA3'"),
    ({'use_dora': True}, 'use_dora: expected False, got True'),
    ({'r': None}, 'expected numbers r and lora_alpha, got None'),
    ({'r': 4}, r'q_proj.lora_A.weight: expected the shape \(4, 32\), found \(3, 32\)'),
  ],
)
def test_adapters_that_cannot_be_read_are_refused(tmp_path, fields, message):
  folder = tmp_path / 'model'
  theirs('qwen3', FAMILIES['qwen3']).save_pretrained(folder)
  found = open_checkpoint(folder)
  config = dataclasses.replace(ALL, targets='query')
  peft.write(tmp_path / 'a', random_adapters(found.config, config), config, found)
  file = tmp_path / 'a' / peft_config.CONFIG
  file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
  with pytest.raises(WeightsError, match=message):
    peft.read(tmp_path / 'a', found)


def test_an_adapter_without_any_tensor_is_refused(tmp_path):
  theirs('qwen3', FAMILIES['qwen3']).save_pretrained(tmp_path / 'm')
  found = open_checkpoint(tmp_path / 'm')
  settings = json.dumps({'r': 2, 'lora_alpha': 4})
  write_folder(
    tmp_path / 'a', iter(()), {peft_config.CONFIG: settings}, name=peft_config.FILE
  )
  with pytest.raises(WeightsError, match=r'expected adapters .*, found none'):
    peft.read(tmp_path / 'a', found)


def test_a_pattern_without_a_match_names_the_matrices(kind):
  _, found, _ = kind
  with pytest.raises(
    ValueError, match=r'lora.targets: expected .* down.*, got .q_proj'
  ):
    lora.targets(found.config, LoraConfig(rank=1, targets='q_proj'))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rank': -1}, 'lora.rank: expected 0 or more, got -1'),
    ({'alpha': float('nan')}, 'lora.alpha: expected a finite number'),
    ({'rank': 1, 'alpha': 0.0}, 'lora.alpha: expected more than 0 with lora.rank'),
    ({'targets': '('}, r'lora.targets: expected a regular expression, got .\('),
  ],
)
def test_impossible_adapters_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**fields)


@pytest.mark.parametrize(('model_type', 'rank'), [('deepseek_v3', 4), ('qwen3', 0)])
def test_grpo_learns_to_write_small_tokens(model_type, rank, tmp_path):
  checkpoint(tmp_path / 'model', model_type)
  settings = HubConfig(
    path=str(tmp_path / 'model'),
    template='plain',
    remat='none',
    lora=LoraConfig(rank=rank, targets='.*'),
  )
  found = from_hub.look_up(settings)
  mesh = make_mesh(jax.devices()[:1])
  base = found.params(mesh)
  sampler = Sampler(found.policy, 18, mesh)
  config = RLConfig(
    steps=40,
    prompts_per_step=4,
    group_size=8,
    minibatches=1,
    grpo=GRPOConfig(kl_coef=0.001),
    # The model is as small as the rate is high: rounding noise must make no full step.
    optim=OptimConfig(learning_rate=0.02, warmup_steps=0, eps=1e-6),
  )
  learner = Learner(found.policy.functions, mesh, config)
  params = base
  if rank:
    join = functools.partial(lora.attach, scale=settings.lora.scale)
    learner = dataclasses.replace(learner, frozen=base, join=join)
    params = lora.init(found.policy.config, settings.lora, jax.random.key(0))
  saved = rl_state.start(learner, params)
  state = saved['policy']
  problems = [Problem(f'{n}', 'x', f'{n}', {}) for n in range(4)]
  before = jax.tree.map(np.array, base)
  rewards = []
  for step in range(40):
    key = jax.random.key(step)
    rollout = sampler.sample(
      learner.for_sampling(state.params),
      key,
      problems,
      group_size=config.group_size,
      max_length=4,
      draw=SamplingConfig(1.0),
    )
    small = (rollout.tokens < 150) & (np.arange(4) < rollout.lengths[..., None])
    reward = small.sum(-1) / rollout.lengths
    scores = learner.score(state.params, saved['reference'], rollout, 1.0)
    advantage = learner.advantage(grpo.outcomes(reward.astype(np.float32)))
    updated = learner.update(state, rollout, advantage, scores, key, 1.0)
    state = updated.state
    # The sampler reads what the learner does.
    assert updated.metrics['drift'] < 1e-4
    rewards.append(reward.mean())
  # Half of 300 tokens are small; 32 outputs of 4 tokens give a mean to 0.05.
  assert np.mean(rewards[:2]) < 0.75
  assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + 0.15
  if rank:
    # The base has not changed, and nothing but adapters is learned.
    jax.tree.map(np.testing.assert_array_equal, before, learner.frozen)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    assert {path[-1].key for path, _ in leaves} == {'a', 'b'}
