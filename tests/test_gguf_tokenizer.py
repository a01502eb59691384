"""Tokenizers of GGUF files: the same tokens as llama.cpp, or a refusal."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from gguf import TokenType
from gguf_files import WIDTH, make
from hub import checkpoint
from test_gguf import written
from test_llamacpp import Server

from r1jax.hub import chat_template, checkpoint_files, gguf_vocabulary, tokenizer_files
from r1jax.hub.hf_checkpoint import open_checkpoint

# The first characters are those that the pre-tokenizers treat differently.
ALPHABET = ' \n\r\tab1239.,\'"(-_¼é中ぁ、한Ж١²🎉\u00a0'
SAMPLES = [
  'Hello world 123 <think>x</think>',
  "12345 don't DON'T  stop\r\n\n",
  '(3+5)*2=16, 3.14; a_b/c',
  'zażółć gęślą jaźń, Привет, мир! 日本語テキスト',
  'for (int i = 0; i < n; ++i) {\n\treturn x[i];\n}\n\n',
]


def texts(count=200):
  """Varied texts: samples, then letters, digits, spaces and marks at random."""
  random = np.random.default_rng(0)
  drawn = (
    ''.join(random.choice(list(ALPHABET), size=random.integers(1, 30)))
    for _ in itertools.count()
  )
  return list(itertools.islice(itertools.chain(SAMPLES, drawn), count))


def byte_level(pre, **fields):
  """Metadata of a tokenizer that merges any two neighbours which are not split."""
  letters = list(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  cut = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  used = sorted({letter for x in ALPHABET for letter in cut.pre_tokenize_str(x)[0][0]})
  pairs = list(itertools.product(used, repeat=2))
  np.random.default_rng(0).shuffle(pairs)
  ordinary = [*letters, *(''.join(pair) for pair in pairs)]
  special = ['<|bos|>', '<|eos|>', '<|im_end|>', '<think>']
  kinds = [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED]
  first = len(ordinary)
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': ordinary + special,
    'tokenizer.ggml.token_type': [int(TokenType.NORMAL)] * first + [*map(int, kinds)],
    'tokenizer.ggml.merges': [' '.join(pair) for pair in pairs],
    'tokenizer.ggml.bos_token_id': first,
    'tokenizer.ggml.eos_token_id': first + 1,
    **{f'tokenizer.ggml.{name}': value for name, value in fields.items()},
  }


def pieces(**fields):
  """Metadata of a tokenizer of SentencePiece: pieces with scores, and all bytes."""
  words = [
    '▁th',
    'th',
    'er',
    '▁the',
    'ther',
    '▁1',
    'ab',
    'bb',
    'abb',
    '▁▁',
    '▁a',
    '中中',
  ]
  ordinary = words + sorted({x for word in words for x in word})
  tokens = ['<unk>', '<s>', '</s>', *(f'<0x{n:02X}>' for n in range(256)), *ordinary]
  kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
  kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(ordinary)
  return {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.scores': [0.0] * 259 + [-float(n) for n in range(len(ordinary))],
    'tokenizer.ggml.token_type': [*map(int, kinds)],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    **{f'tokenizer.ggml.{name}': value for name, value in fields.items()},
  }


def file_with(folder, metadata):
  """A model of Llama with this vocabulary."""
  rows = len(metadata['tokenizer.ggml.tokens'])
  embedding = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
  tensors = {'token_embd.weight': embedding}
  return make(folder / 'm.gguf', 'F16', metadata, tensors)


def same_as_llama_cpp(file, given):
  """Our tokens of all texts are those of llama.cpp, with and without special tokens."""
  tokenizer, server = tokenizer_files.open_tokenizer(file), Server(file)
  for text in given:
    found = server.ask('tokenize', content=text, parse_special=False)['tokens']
    assert tokenizer.encode(text) == found, text
    found = server.ask('tokenize', content=text, add_special=True)['tokens']
    before, after = tokenizer.begin_ids, found[len(tokenizer.begin_ids) :]
    assert found[: len(before)] == list(before)
    assert tokenizer.chat_ids(text) == after, text


PRE = [*gguf_vocabulary.PRE_TOKENIZERS, 'deepseek-r1-qwen', 'smaug-bpe']


@pytest.mark.parametrize('pre', PRE)
def test_texts_have_the_tokens_of_llama_cpp(pre, tmp_path):
  file = file_with(tmp_path, byte_level(pre))
  given = [*texts(), 'a<think>b<|eos|>', '<|bos|> <|im_end|>', 'aB AAb Ab1AB2b']
  if pre in ('gpt-4o', 'tekken'):  # as the test below says
    given = [text.replace('Ж', 'ж') for text in given]
  same_as_llama_cpp(file, given)


# Words and numbers of the three kinds: 100k and 200k tokens of GPT-4, and Tekken's.
CASED = [' Привет', 'Мир', ' e\u0301a', ' naïve', 'École']
WORDS = {
  'dbrx': [' ПриветМир', ' e', '\u0301a', ' naïveÉcole', ' ', '123', '4', ' don', "'T"],
  'gpt-4o': [*CASED, ' ', '123', '4', " don'T"],
  'tekken': [*CASED, ' ', '1', '2', '3', '4', ' don', "'T"],
}


@pytest.mark.parametrize('pre', WORDS)
def test_words_end_before_capital_letters_of_all_alphabets(pre, tmp_path):
  content = gguf_vocabulary.PRE_TOKENIZERS[pre][0]['pattern']['Regex']
  split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(content), 'isolated')
  found = split.pre_tokenize_str(" ПриветМир e\u0301a naïveÉcole 1234 don'T")
  assert [word for word, _ in found] == WORDS[pre]


@pytest.mark.parametrize('pre', ['gpt-4o', 'tekken'])
def test_llama_cpp_knows_capital_letters_from_a_to_z_alone(pre, tmp_path):
  file = file_with(tmp_path, byte_level(pre))
  tokenizer, server = tokenizer_files.open_tokenizer(file), Server(file)
  asked = {
    text: server.ask('tokenize', content=text, parse_special=False)['tokens']
    for text in texts(60)
  }
  other = [text for text, found in asked.items() if tokenizer.encode(text) != found]
  assert other
  assert all('Ж' in text for text in other)


@pytest.mark.parametrize('prefix', [True, False])
def test_pieces_have_the_tokens_of_llama_cpp(prefix, tmp_path):
  file = file_with(tmp_path, pieces(add_space_prefix=prefix))
  others = ['the other abbab', ' the  abb中中中 ther', '1 the\n', '<s>the</s> abb']
  same_as_llama_cpp(file, [*texts(), *others])
  tokenizer = tokenizer_files.open_tokenizer(file)
  assert tokenizer.begin_ids == [1]  # where no field says otherwise
  for text in ('the other abb', 'é 🎉'):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
  ('pre', 'fields', 'adds'),
  [
    ('gpt-2', {}, (False, False)),
    ('llama-bpe', {}, (True, False)),  # llama.cpp's default for these two
    ('tekken', {}, (True, False)),
    ('dbrx', {}, (False, False)),
    ('gpt-4o', {}, (False, False)),
    ('llama3', {'add_bos_token': False}, (False, False)),
    ('qwen2', {'add_bos_token': True, 'add_eos_token': True}, (True, True)),
  ],
)
def test_texts_have_the_tokens_of_llama_cpp_around_them(pre, fields, adds, tmp_path):
  file = file_with(tmp_path, byte_level(pre, **fields))
  found = Server(file).ask('tokenize', content='ab', add_special=True)['tokens']
  content = checkpoint_files.read_bytes(file / 'tokenizer.json')
  assert tokenizers.Tokenizer.from_buffer(content).encode('ab').ids == found
  bos, eos = (byte_level(pre)[f'tokenizer.ggml.{x}_token_id'] for x in ('bos', 'eos'))
  assert (found[0] == bos, found[-1] == eos) == adds


def test_outputs_end_at_the_tokens_where_llama_cpp_ends_them(tmp_path):
  metadata = byte_level('qwen2')
  eos = metadata['tokenizer.ggml.eos_token_id']
  tokenizer = tokenizer_files.open_tokenizer(file_with(tmp_path, metadata))
  assert tokenizer.stop_ids == (eos, eos + 1)  # <|im_end|>, which no field names
  assert tokenizer.pad_id == eos  # without a token of its own for it


def test_a_tokenizer_that_was_written_is_read_as_it_was(tmp_path):
  checkpoint(tmp_path / 'm', 'qwen2', {})
  written(tmp_path / 'm', None, None, 'f16', tmp_path / 'm.gguf')
  before, after = (
    tokenizer_files.open_tokenizer(tmp_path / name) for name in ('m', 'm.gguf')
  )
  assert after.stop_ids == before.stop_ids
  assert after.pad_id == before.pad_id
  assert after.vocab_size == before.vocab_size < 300  # the other rows have no token
  messages = [{'role': 'user', 'content': 'make 16 <think>'}]
  prompt = before.chat_prompt('chat', messages)
  assert after.chat_prompt('chat', messages) == prompt
  for text in (*texts(), prompt):
    assert after.encode(text) == before.encode(text)
    assert after.chat_ids(text) == before.chat_ids(text)
    assert after.decode(after.encode(text)) == text


TWICE = {
  'tokens': ['a', 'b', 'a'],
  'token_type': [1, 1, 1],
  'eos_token_id': 1,
  'bos_token_id': 1,
}


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    ({'model': 't5'}, "tokenizer.ggml.model: expected gpt2 or llama, got 't5'"),
    ({'model': None}, 'tokenizer.ggml.model: expected gpt2 or llama, got None'),
    ({'pre': 'viking'}, "ggml.pre: expected one of gpt-2, .* got 'viking'"),
    ({'pre': None}, 'ggml.pre: expected one of gpt-2, .* got None'),
    ({'merges': None}, 'ggml.merges: expected a list of texts, got none'),
    ({'merges': ['ab']}, "merges: expected two tokens and a space .*, got 'ab'"),
    ({'token_type': [1, 1]}, 'token_type: expected [0-9]+ numbers, one for each token'),
    ({'tokens': ['a', 'b', 'a']}, 'token_type: expected 3 numbers'),
    (TWICE, "tokens: expected different tokens, got 'a' twice"),
    ({'merges': [1, 2]}, 'ggml.merges: expected a list of texts, got array'),
    ({'eos_token_id': None}, 'eos_token_id: expected a whole number, got None'),
    ({'eos_token_id': 9999}, 'eos_token_id: expected less than the [0-9]+ tokens, got'),
  ],
)
def test_vocabularies_that_cannot_be_read_are_named(metadata, message, tmp_path):
  changes = {f'tokenizer.ggml.{name}': value for name, value in metadata.items()}
  file = file_with(tmp_path, byte_level('gpt-2') | changes)
  with pytest.raises(chat_template.HubError, match=message) as error:
    tokenizer_files.open_tokenizer(file)
  assert str(file) in str(error.value)
  open_checkpoint(file)  # the weights can be read all the same


def test_the_files_of_a_checkpoint_are_written_from_it(tmp_path):
  written(tmp_path / 'm', 'qwen3', None, 'f16', tmp_path / 'm.gguf')
  checkpoint_files.copy(tmp_path / 'm.gguf', tmp_path / 'copy')
  names = sorted(file.name for file in (tmp_path / 'copy').iterdir())
  assert names == [
    *('chat_template.jinja', 'config.json', 'generation_config.json'),
    *('tokenizer.json', 'tokenizer_config.json'),
  ]
  ours, copied = (
    tokenizer_files.open_tokenizer(tmp_path / x) for x in ('m.gguf', 'copy')
  )
  assert copied.digest == ours.digest
  raw = json.loads((tmp_path / 'copy/config.json').read_text())
  assert raw == open_checkpoint(tmp_path / 'm.gguf').raw
