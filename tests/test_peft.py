"""PEFT's adapters: experts, ranks, scales, and what is refused."""

import dataclasses
import json

import numpy as np
import peft as their_peft
import pytest
import torch
import transformers
from hub import DEEPSEEK, FAMILIES, GROUPS, VOCAB, theirs
from test_lora import logits, random_adapters

from r1jax.hub import peft, peft_config, storage, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.hub.storage import WeightsError
from r1jax.model import lora
from r1jax.model.lora import LoraConfig
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding

TOKENS = np.random.default_rng(0).integers(VOCAB, size=(2, 20))
FIELDS = {
  'qwen3_moe': {**FAMILIES['qwen3_moe'], 'norm_topk_prob': True},
  'deepseek_v3': {**DEEPSEEK, **GROUPS, 'num_hidden_layers': 2},
  'llama': {},
  'phi3': FAMILIES['phi3'],
}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """A checkpoint of each kind, and the parameters that we read of it."""
  found = {}
  for model_type, fields in FIELDS.items():
    folder = tmp_path_factory.mktemp('peft') / model_type
    theirs(model_type, fields).save_pretrained(folder)
    like = open_checkpoint(folder)
    found[model_type] = like, weights.read(like, named_sharding(make_mesh()))
  return found


def opened(like):
  """The model of transformers: a new one each time, as the library changes it."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    like.folder, attn_implementation='eager'
  )


def said(model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def adapted(like, base, config, adapters):
  return logits(like, lora.merged(lora.attach(base, adapters, config.scale)))


@pytest.mark.parametrize(
  ('model_type', 'targets'),
  [
    ('qwen3_moe', '.*'),
    ('qwen3_moe', 'expert_gate|expert_up'),
    ('qwen3_moe', 'expert_down'),
    ('qwen3_moe', 'query|expert_up'),
    ('deepseek_v3', '.*'),
    ('deepseek_v3', 'gate|shared_down'),
    ('phi3', '.*'),
    ('phi3', 'query|value|up'),
  ],
)
def test_adapters_go_to_peft_and_back(bases, model_type, targets, tmp_path):
  like, base = bases[model_type]
  config = LoraConfig(rank=3, alpha=6.0, targets=targets)
  adapters = random_adapters(like.config, config)
  peft.write(tmp_path / 'a', adapters, config, like)
  expected = said(their_peft.PeftModel.from_pretrained(opened(like), tmp_path / 'a'))
  assert np.abs(expected - said(opened(like))).max() > 0.01
  ours = adapted(like, base, config, adapters)
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  again, read = peft.read(tmp_path / 'a', like)
  assert (again.rank, again.alpha) == (config.rank, config.alpha)
  np.testing.assert_allclose(adapted(like, base, again, read), expected, atol=1e-4)


PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj']


@pytest.mark.parametrize(
  ('model_type', 'fields'),
  [
    ('qwen3_moe', {'target_modules': PROJECTIONS}),
    ('qwen3_moe', {'target_modules': 'all-linear'}),  # the router too
    ('qwen3_moe', {'target_modules': [], 'target_parameters': ['experts.down_proj']}),
    (
      'qwen3_moe',
      {'target_modules': [], 'target_parameters': ['experts.gate_up_proj']},
    ),
    ('deepseek_v3', {'target_modules': ['q_b_proj', *PROJECTIONS]}),
    ('llama', {'target_modules': ['q_proj', 'up_proj'], 'use_rslora': True}),
    (
      'llama',
      {
        'target_modules': ['q_proj', 'k_proj', 'down_proj'],
        'rank_pattern': {'layers.1.self_attn.q_proj': 3, '.*down_proj': 5},
        'alpha_pattern': {'k_proj': 9},
      },
    ),
    ('phi3', {'target_modules': ['qkv_proj', 'gate_up_proj', 'o_proj']}),
    *(
      ('llama', {'target_modules': ['q_proj'], 'init_lora_weights': init})
      for init in ('eva', 'mica', 'gaussian', False)
    ),
  ],
  ids=lambda x: str(x)[:60],
)
def test_adapters_of_peft_give_the_same_logits(bases, model_type, fields, tmp_path):
  like, base = bases[model_type]
  settings = their_peft.LoraConfig(r=2, lora_alpha=3, **fields)
  torch.manual_seed(1)
  model = their_peft.get_peft_model(opened(like), settings)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'lora_' in name:
        parameter.normal_(0, 0.2)
  model.save_pretrained(tmp_path / 'a')
  expected = said(their_peft.PeftModel.from_pretrained(opened(like), tmp_path / 'a'))
  config, adapters = peft.read(tmp_path / 'a', like)
  assert config.scale == 1.5
  ours = adapted(like, base, config, adapters)
  np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_each_expert_may_have_an_adapter_of_its_own(bases, tmp_path):
  # As PEFT wrote them with transformers 4; it turns them into one when it opens them.
  like, base = bases['qwen3_moe']
  rng = np.random.default_rng(2)
  named = {}
  for layer in range(2):
    for n in range(6):
      for part, inputs, outputs in (('gate', 32, 20), ('up', 32, 20), ('down', 20, 32)):
        module = f'{peft_config.PREFIX}model.layers.{layer}.mlp.experts.{n}.{part}_proj'
        for x, shape in (('A', (2, inputs)), ('B', (outputs, 2))):
          named[f'{module}.lora_{x}.weight'] = rng.normal(0, 0.2, shape)
  arrays = ((name, x.astype(np.float32)) for name, x in named.items())
  settings = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 3}
  content = json.dumps({**settings, 'target_modules': PROJECTIONS})
  write_folder(
    tmp_path / 'a', arrays, {peft_config.CONFIG: content}, name=peft_config.FILE
  )
  expected = said(their_peft.PeftModel.from_pretrained(opened(like), tmp_path / 'a'))
  config, adapters = peft.read(tmp_path / 'a', like)
  ours = adapted(like, base, config, adapters)
  np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.fixture(scope='module')
def plain(bases, tmp_path_factory):
  """A plain adapter of a checkpoint, and that."""
  like, _ = bases['llama']
  config = LoraConfig(rank=2, targets='query')
  folder = tmp_path_factory.mktemp('plain') / 'a'
  peft.write(folder, random_adapters(like.config, config), config, like)
  return folder, like


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    *(
      ({'init_lora_weights': init}, f'init_lora_weights: expected true.*{init}')
      for init in ('pissa', 'pissa_niter_4', 'olora', 'corda', 'loftq', 'lora_ga')
    ),
    ({'alora_invocation_tokens': [5]}, r'alora_invocation_tokens: .*got \[5\]'),
    ({'use_bdlora': {'nblocks': 2}}, 'use_bdlora: expected none'),
    ({'arrow_config': {'top_k': 3}}, 'arrow_config: expected none'),
    ({'kasa_config': {'beta': 1}}, 'kasa_config: expected none'),
    ({'monteclora_config': {'num_samples': 1}}, 'monteclora_config: expected none'),
    ({'trainable_token_indices': [1]}, 'trainable_token_indices: expected none'),
    ({'a_kind_of_later': True}, 'a_kind_of_later: .* kind of LoRA is not implemented'),
    ({'use_qalora': True}, 'use_qalora: expected False, got True'),
    ({'lora_bias': True}, 'lora_bias: expected False, got True'),
    ({'bias': 'all'}, "bias: expected 'none', got 'all'"),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save: expected None'),
    ({'layer_replication': [[0, 2]]}, 'layer_replication: expected None'),
    (
      {'rank_pattern': {'(': 2}},
      r'rank_pattern: expected regular expressions, got .\(',
    ),
    ({'alpha_pattern': {'q_proj': 'x'}}, 'alpha_pattern: expected numbers above 0'),
    ({'lora_alpha': 0}, 'expected numbers r and lora_alpha, got 2, 0'),
  ],
)
def test_unsupported_kinds_of_lora_are_named(plain, fields, message, tmp_path):
  folder, like = plain
  settings = json.loads((folder / peft_config.CONFIG).read_text())
  (tmp_path / peft_config.FILE).write_bytes((folder / peft_config.FILE).read_bytes())
  (tmp_path / peft_config.CONFIG).write_text(json.dumps({**settings, **fields}))
  with pytest.raises(WeightsError, match=message):
    peft.read(tmp_path, like)


def test_every_field_of_peft_is_known_or_refused(plain, tmp_path):
  folder, like = plain
  known = peft.peft_config
  (tmp_path / peft_config.FILE).write_bytes((folder / peft_config.FILE).read_bytes())
  settings = json.loads((folder / peft_config.CONFIG).read_text())
  defaults = their_peft.LoraConfig(r=2, lora_alpha=32).to_dict()
  # As saved with all its fields, at their defaults, it is a plain one.
  content = {**defaults, **settings, 'peft_type': 'LORA'}
  (tmp_path / peft_config.CONFIG).write_text(json.dumps(content, default=list))
  peft.read(tmp_path, like)
  fields = {field.name for field in dataclasses.fields(their_peft.LoraConfig)}
  computed = {'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'use_rslora'}
  for name in fields - known.IGNORED - computed:
    changed = {**content, name: 'something'}
    (tmp_path / peft_config.CONFIG).write_text(json.dumps(changed, default=list))
    with pytest.raises(WeightsError, match=name):
      peft.read(tmp_path, like)


def test_a_pickled_adapter_is_not_opened(plain, tmp_path):
  folder, like = plain
  (tmp_path / peft_config.CONFIG).write_bytes(
    (folder / peft_config.CONFIG).read_bytes()
  )
  with pytest.raises(WeightsError, match=rf'{peft_config.FILE} does not exist$'):
    peft.read(tmp_path, like)
  (tmp_path / 'adapter_model.bin').touch()
  with pytest.raises(WeightsError, match=r'not exist; adapter_model.bin is a pick'):
    peft.read(tmp_path, like)


def test_an_adapter_that_is_not_finite_is_named(plain, tmp_path):
  folder, like = plain
  named = {
    name: tensor.copy()
    for name, tensor in storage.read_header(folder / peft_config.FILE)
  }
  name = f'{peft_config.PREFIX}model.layers.1.self_attn.q_proj.lora_B.weight'
  named[name][3, 0] = np.nan
  files = {peft_config.CONFIG: folder / peft_config.CONFIG}
  write_folder(tmp_path / 'b', iter(named.items()), files, name=peft_config.FILE)
  with pytest.raises(WeightsError, match=rf'{name}: .* infinity in row 3'):
    peft.read(tmp_path / 'b', like)
