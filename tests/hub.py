"""Small random checkpoints in the Hugging Face layout, made by transformers."""

import json
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.hub import storage, tokenizer_files, weights
from r1jax.hub.hf_checkpoint import open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.model import decoder
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.rules import named_sharding
from r1jax.text.tokenizer import Tokenizer

VOCAB = 101
everywhere = named_sharding(make_mesh(jax.devices()[:1]))
K = 'model.layers.1.self_attn.k_proj.weight'
BASE: dict[str, Any] = {
  'vocab_size': VOCAB,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 48,
  'max_position_embeddings': 256,
  'attn_implementation': 'eager',
}
QWEN3: dict[str, Any] = {'head_dim': 12}
QWEN3_MOE: dict[str, Any] = {
  **QWEN3,
  'num_experts': 6,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 20,
}
DEEPSEEK: dict[str, Any] = {
  'num_key_value_heads': 4,
  'num_hidden_layers': 3,
  'q_lora_rank': 16,
  'kv_lora_rank': 8,
  'qk_nope_head_dim': 8,
  'qk_rope_head_dim': 4,
  'v_head_dim': 6,
  'n_routed_experts': 8,
  'num_experts_per_tok': 2,
  'moe_intermediate_size': 20,
  'n_shared_experts': 2,
  'first_k_dense_replace': 1,
}
SMOLLM3: dict[str, Any] = {'num_hidden_layers': 5, 'pad_token_id': None}
# transformers checks that these ids are in the vocabulary.
OLMO2: dict[str, Any] = {'pad_token_id': None, 'eos_token_id': None}
PHI3: dict[str, Any] = {**OLMO2, 'bos_token_id': None}
GEMMA3: dict[str, Any] = {
  'head_dim': 12,
  'num_hidden_layers': 4,
  'sliding_window': 20,
  'query_pre_attn_scalar': 20,
  'layer_types': ['sliding_attention', 'full_attention'] * 2,
}
GROUPS: dict[str, Any] = {'n_group': 4, 'topk_group': 2}
V2_GROUPS: dict[str, Any] = {**GROUPS, 'topk_method': 'group_limited_greedy'}
LLAMA3: dict[str, Any] = {
  'rope_type': 'llama3',
  'rope_theta': 500.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,
}
YARN: dict[str, Any] = {
  'rope_type': 'yarn',
  'rope_theta': 1000.0,
  'factor': 4.0,
  'original_max_position_embeddings': 64,
}
# The short factors hold for all of the 128 positions that are computed here.
LONGROPE: dict[str, Any] = {
  'rope_type': 'longrope',
  'rope_theta': 500.0,
  'partial_rotary_factor': 0.75,
  'short_factor': [1.0, 1.5, 2.0],
  'long_factor': [2.0, 3.0, 4.0],
  'original_max_position_embeddings': 128,
}
LLAMA4: dict[str, Any] = {**YARN, 'llama_4_scaling_beta': 0.3}
MSCALE: dict[str, Any] = {
  **YARN,
  'mscale': 0.7,
  'mscale_all_dim': 1.0,
  'beta_fast': 8,
  'beta_slow': 2,
}
FAMILIES: dict[str, Any] = {
  'llama': {},
  'qwen2': {},
  'qwen3': QWEN3,
  'qwen3_moe': QWEN3_MOE,
  'deepseek_v2': {**DEEPSEEK, **V2_GROUPS},
  'deepseek_v3': {**DEEPSEEK, **GROUPS},
  'smollm3': SMOLLM3,
  'olmo2': OLMO2,
  'phi3': PHI3,
  'gemma3_text': GEMMA3,
}


def theirs(model_type, fields):
  """A model of transformers in which every number counts, biases and gains too."""
  torch.manual_seed(0)
  config = transformers.CONFIG_MAPPING[model_type](**{**BASE, **fields})
  # No end of sequence: 64 tokens are generated, whichever they are.
  config.eos_token_id = config.pad_token_id = None
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0.2 if parameter.ndim == 1 else 0.0, 0.3)
    for name, buffer in model.named_buffers():
      if name.endswith('e_score_correction_bias'):
        buffer.normal_(0, 0.1)
  return model.eval()


def ours(model, folder):
  """The same model by way of its files: the decoder's functions and parameters."""
  model.save_pretrained(folder)
  return read(folder)


def read(folder):
  """The decoder's functions and the parameters of a checkpoint."""
  checkpoint = open_checkpoint(folder)
  params = weights.read(checkpoint, everywhere)
  return DecoderFns(*decoder.functions(checkpoint.config, VOCAB)), params


CHAT_TEMPLATE = (
  "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n"
  "{{ message['content'] + eos_token }}\n{% endfor %}"
  '{% if add_generation_prompt %}<|assistant|>\n{% endif %}'
)


def checkpoint(folder, model_type='qwen3', fields=None, chat=CHAT_TEMPLATE):
  """A folder as on the hub, with a tokenizer and a chat template."""
  corpus = ['make 16 from 3 5 2', '<think>3+5=8 8*2=16</think><answer>(3+5)*2</answer>']
  tokenizer = Tokenizer.train(corpus * 20, 290)
  fields = FAMILIES[model_type] if fields is None else fields
  model = theirs(model_type, {**fields, 'vocab_size': 300})
  model.config.eos_token_id = 1
  model.save_pretrained(folder)
  tokenizer.save(folder / 'tokenizer.json')
  settings = {
    'eos_token': '<|eos|>',
    'pad_token': {'__type': 'AddedToken', 'content': '<|pad|>', 'special': True},
    'chat_template': chat,
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return model


OUTPUT = '<think>3+5=8</think><answer>8</answer>'
SPECIALS = ['<pad>', '</s>', '<s>']  # ids 0, 1, 2
ROLES = {'pad_token': '<pad>', 'eos_token': '</s>', 'bos_token': '<s>'}


def made(specials=SPECIALS):
  """A byte-level tokenizer as transformers makes them."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=specials,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([OUTPUT, 'User: so\nAssistant: the total'] * 9, trainer)
  return tokenizer


def saved(folder, tokenizer, roles=ROLES, **settings):
  """A folder with this tokenizer; as transformers opens it, and as we do."""
  folder.mkdir(exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast', **roles, **settings}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return (
    transformers.AutoTokenizer.from_pretrained(folder),
    tokenizer_files.open_tokenizer(folder),
  )


def tensors(folder):
  """Every tensor of a checkpoint, by name, as the library reads it."""
  found: dict[str, np.ndarray] = {}
  for file in folder.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


def round_trip(source, target, dtype=None, **settings):
  checkpoint = open_checkpoint(source)
  params = weights.read(checkpoint, everywhere, dtype)
  named = weights.tensors(params, checkpoint)
  write_folder(target, named, **settings)
  return params


def changed(folder, name, change):
  """The checkpoint with another tensor in a place."""
  placed = json.loads((folder / storage.INDEX).read_text())['weight_map'][name]
  named = safetensors.numpy.load_file(folder / placed)
  named[name] = change(named[name])
  safetensors.numpy.save_file(named, folder / placed)


def put(folder, named, **fields):
  """Another set of tensors in a checkpoint of one file; fields of its config."""
  safetensors.numpy.save_file(named, folder / storage.SINGLE)
  raw = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(raw | fields))


def same(before, after):
  assert before.keys() == after.keys()
  for name, expected in before.items():
    assert after[name].dtype == expected.dtype, name
    assert after[name].shape == expected.shape, name
    assert after[name].tobytes() == expected.tobytes(), name
