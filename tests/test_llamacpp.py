"""llama.cpp with our GGUF files: the same tokens in, the same tokens out."""

import json
import urllib.request
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import xllamacpp
from hub import (
  DEEPSEEK,
  GEMMA3,
  GROUPS,
  LLAMA3,
  LONGROPE,
  MSCALE,
  PHI3,
  QWEN3_MOE,
  SMOLLM3,
  YARN,
  checkpoint,
)
from test_gguf import around, written

from r1jax.hub import gguf_vocabulary

# It knows by the layers that the queries are not compressed.
LITE = {**DEEPSEEK, 'q_lora_rank': None, 'num_hidden_layers': 27}
# Of every third layer, windows of 20 tokens and scores by the width of a head.
GEMMA: dict[str, Any] = {
  **GEMMA3,
  'layer_types': None,
  'sliding_window_pattern': 3,
  'num_hidden_layers': 3,
  'query_pre_attn_scalar': 12,
}
# The server's context has 256 tokens, so that llama.cpp takes the short factors.
PHI_LONG = {'original_max_position_embeddings': 256, 'max_position_embeddings': 512}
MLA_YARN = {**MSCALE, 'mscale': 1.0}  # like mscale_all_dim
VARIATIONS = {
  'llama': ('llama', {'num_key_value_heads': 2}),
  'one-kv-head-tied': (
    'llama',
    {'num_key_value_heads': 1, 'tie_word_embeddings': True},
  ),
  'llama3-rope': ('llama', {'rope_parameters': LLAMA3}),
  'biases': ('llama', {'attention_bias': True}),
  'mistral': ('mistral', {'sliding_window': None}),
  'internlm3': ('internlm3', {'head_dim': 8}),
  'qwen2': ('qwen2', {}),
  'yarn': ('qwen2', {'rope_parameters': YARN}),
  'linear-rope': ('qwen2', {'rope_parameters': {'rope_type': 'linear', 'factor': 3.0}}),
  'qwen3': ('qwen3', None),
  'qwen3-moe': ('qwen3_moe', {**QWEN3_MOE, 'norm_topk_prob': True}),
  'deepseek-v2': ('deepseek_v2', DEEPSEEK),
  'deepseek-v2-lite': ('deepseek_v2', LITE),
  'deepseek-v3': ('deepseek_v3', {**DEEPSEEK, **GROUPS}),
  'smollm3': ('smollm3', SMOLLM3),
  'smollm3-yarn': ('smollm3', {**SMOLLM3, 'rope_parameters': YARN}),
  'olmo2': ('olmo2', None),
  'phi3': ('phi3', None),
  'longrope': (
    'phi3',
    {**PHI3, 'rope_parameters': LONGROPE, **PHI_LONG},
  ),
  'gemma3': ('gemma3_text', GEMMA),
  'yarn-mla': ('deepseek_v3', {**DEEPSEEK, **GROUPS, 'rope_parameters': MLA_YARN}),
}
LENGTH = 64  # tokens that are generated
A_LETTER = 40


class Server:
  """llama.cpp with a file of ours; all in float32, as the models beside it."""

  def __init__(self, file):
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 256
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = off
    self._server = xllamacpp.Server(params)

  def ask(self, what, **fields):
    request = urllib.request.Request(
      f'{self._server.listening_address}/{what}',
      json.dumps(fields).encode(),
      {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
      return json.load(answer)

  def greedy(self, prompt):
    """The most probable tokens after a prompt."""
    found = self.ask(
      'completions',
      prompt=prompt,
      n_predict=LENGTH,
      temperature=0,
      return_tokens=True,
    )
    return found['tokens']

  def logp(self, prompt):
    """Log-probs of all tokens after a prompt."""
    found = self.ask(
      'completions',
      prompt=prompt,
      n_predict=1,
      n_probs=300,
      logit_bias=[[A_LETTER, 1000]],  # it says none of a token that is no text
    )
    said = found['completion_probabilities'][0]['top_logprobs']
    by_token = {one['id']: one['logprob'] for one in said}
    return np.array([by_token[token] for token in range(300)])


def prompts(count, length=90):
  return np.random.default_rng(0).integers(2, 290, size=(count, length)).tolist()


def logp_of(model, prompt):
  with torch.no_grad():
    return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1).numpy()


class GeluOfFloat16(torch.nn.Module):
  """llama.cpp's on a CPU: a table of the GELU of each float16, exact beyond 10."""

  def forward(self, x):
    rounded = x.half().float()
    found = torch.nn.functional.gelu(rounded, approximate='tanh').half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, found))


@pytest.mark.parametrize('name', VARIATIONS)
def test_greedy_tokens_are_the_same(name, tmp_path):
  model = written(tmp_path / 'm', *VARIATIONS[name], 'f32', tmp_path / 'm.gguf')
  close = 2e-5
  if name == 'gemma3':
    close = 1e-3  # a sum in another order may round to the next number of the table
    for layer in model.model.layers:
      layer.mlp.act_fn = GeluOfFloat16()
  server = Server(tmp_path / 'm.gguf')
  for prompt in prompts(4):
    tokens = server.greedy(prompt)
    expected = model.generate(
      torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False
    )
    assert tokens == expected[0, len(prompt) :].tolist()
    for n in range(0, len(tokens), 8):
      found = server.logp(prompt + tokens[:n])
      expected = logp_of(model, prompt + tokens[:n])
      np.testing.assert_allclose(found, expected, rtol=0, atol=close)


@pytest.mark.parametrize(('kind', 'tolerance'), [('f16', 5e-3), ('q8_0', 0.3)])
def test_rounded_weights_give_nearly_the_same(kind, tolerance, tmp_path):
  model = written(tmp_path / 'm', 'qwen3', None, kind, tmp_path / 'm.gguf')
  server = Server(tmp_path / 'm.gguf')
  for prompt in prompts(8):
    found, expected = server.logp(prompt), logp_of(model, prompt)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_outputs_end_at_every_stop_token(tmp_path):
  """As transformers does, by the ids of generation_config.json."""
  model = written(tmp_path / 'm', 'llama', {}, 'f32', tmp_path / 'm.gguf')
  prompt = torch.tensor(prompts(1))
  where = prompt.shape[1]
  said = model.generate(prompt, max_new_tokens=LENGTH, do_sample=False)[0, where:]
  other = list(dict.fromkeys(said.tolist()))[1]
  for stops in ((1, other), (1, 2, other)):
    file = tmp_path / f'{len(stops)}.gguf'
    written(tmp_path / 'm', None, None, 'f32', file, stops)
    model.generation_config.eos_token_id = list(stops)
    expected = model.generate(prompt, max_new_tokens=LENGTH, do_sample=False)
    expected = expected[0, where:].tolist()
    assert expected[-1] in stops
    assert len(expected) < LENGTH
    found = Server(file).greedy(prompt[0].tolist())
    assert found in (expected, expected[:-1])


TEXTS = [
  'Hello world 123 <think>x</think>',
  '  a\n\nb é 中 ',
  "12345 don't DON'T  stop\r\n\n",
  '<|eos|>hi<|pad|>',
  '(3+5)*2=16, 3.14; a_b/c',
]


@pytest.mark.parametrize('cut', gguf_vocabulary.PRE_TOKENIZERS)
def test_texts_and_conversations_have_the_same_ids(cut, tmp_path):
  folder = tmp_path / 'm'
  checkpoint(folder, 'llama', {})
  content = json.loads((folder / 'tokenizer.json').read_text())
  parts = gguf_vocabulary.PRE_TOKENIZERS[cut]
  content['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': parts}
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  written(folder, None, None, 'f16', tmp_path / 'm.gguf')
  server = Server(tmp_path / 'm.gguf')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  for text in TEXTS:
    found = server.ask('tokenize', content=text, add_special=True)
    assert found['tokens'] == tokenizer(text)['input_ids'], text
  messages = [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Yes?'},
    {'role': 'user', 'content': 'make 16'},
  ]
  found = server.ask('apply-template', messages=messages)
  assert found['prompt'] == tokenizer.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True
  )


COMPOSED, APART = 'zażółć é', 'zaz\u0307o\u0301ł e\u0301'


@pytest.mark.parametrize(
  ('before', 'behind', 'chat'),
  [
    ([], [], "{{ messages[0]['content'] }}"),
    ([0], [], "{{ bos_token }}{{ messages[0]['content'] }}"),
    ([], [1], "{{ messages[0]['content'] }}"),
    ([0], [1], "{{ messages[0]['content'] }}"),
  ],
)
def test_texts_have_the_same_tokens_around_them(before, behind, chat, tmp_path):
  folder = tmp_path / 'm'
  checkpoint(folder, 'llama', {}, chat=chat)
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  settings['bos_token'] = '<|pad|>'
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  content = json.loads((folder / 'tokenizer.json').read_text())
  content['post_processor'] = around(*before, behind=behind[0] if behind else None)
  content['normalizer'] = {'type': 'NFC'}
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  written(folder, None, None, 'f16', tmp_path / 'm.gguf')
  server = Server(tmp_path / 'm.gguf')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  for text in (*TEXTS, COMPOSED):
    found = server.ask('tokenize', content=text, add_special=True)['tokens']
    assert found == tokenizer(text)['input_ids'], text
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    assert found == [*before, *ids, *behind]
  # llama.cpp composes no characters; `gguf_vocabulary.remarks` warns about that.
  found = server.ask('tokenize', content=APART)['tokens']
  assert found != tokenizer(APART, add_special_tokens=False)['input_ids']
  # A BOS that the template writes is there once.
  messages = [{'role': 'user', 'content': 'Hi'}]
  said = server.ask('v1/chat/completions', messages=messages, max_tokens=1)
  expected = tokenizer.apply_chat_template(messages, return_dict=False)
  blank = len(before) if 'bos_token' not in chat else 0
  assert said['usage']['prompt_tokens'] == len(expected) + blank + len(behind)
