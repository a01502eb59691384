"""The tokenizer of a GGUF file, as the files of a Hugging Face checkpoint.

llama.cpp has byte-level BPE with merges, and SentencePiece's BPE with a score for each
token. Texts become the same tokens as there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gguf import TokenType

from r1jax.hub import gguf_vocabulary
from r1jax.hub.chat_template import HubError
from r1jax.hub.config_fields import FamilyError, Fields
from r1jax.hub.gguf_config import ROLES
from r1jax.hub.gguf_file import GGUFFile
from r1jax.plain import JsonDict

MODEL = 'tokenizer.ggml.model'
BYTES, PIECES = 'gpt2', 'llama'  # byte-level BPE, SentencePiece
SPACE = '▁'  # in SentencePiece's tokens
TOKENIZER, TEMPLATE = 'tokenizer.json', 'chat_template.jinja'
SETTINGS, GENERATION = 'tokenizer_config.json', 'generation_config.json'
# Tokens that end outputs beside EOS, by llama.cpp's names: of a turn, of a message.
_OTHER_ENDS = {'eot': 'eot', 'eom': 'eom'}
# Control tokens at which llama.cpp ends outputs even if no field names them.
ENDS = {
  *('<|endoftext|>', '<|end_of_text|>', '<|im_end|>', '<|end|>', '<|eot_id|>'),
  *('<|eom_id|>', '</s>', '<｜end▁of▁sentence｜>'),
}


def read(file: GGUFFile) -> dict[str, str]:
  """Returns tokenizer.json, its settings and the chat template, as texts by name.

  Raises:
    HubError: metadata is missing or malformed, or the tokenizer is of another kind.
  """
  try:
    return _read(file)
  except FamilyError as error:
    raise HubError(f'{file.path}: {error}') from error


def _read(file: GGUFFile) -> dict[str, str]:
  kind = file.fields.get(MODEL)
  if kind not in (BYTES, PIECES):
    raise FamilyError(f'{MODEL}: expected {BYTES} or {PIECES}, got {kind!r}')
  tokens = _texts(file, 'tokens')
  types = _numbers(file, 'token_type', len(tokens))
  ids = _roles(file, len(tokens))
  used = [n for n, type_ in enumerate(types) if type_ != TokenType.UNUSED]
  vocab = {tokens[n]: n for n in used}
  if twice := [tokens[n] for n in used if vocab[tokens[n]] != n]:
    raise FamilyError(
      f'tokenizer.ggml.tokens: expected different tokens, got {twice[0]!r} twice'
    )
  parts = _bytes(file, vocab) if kind == BYTES else _pieces(file, vocab, types)
  control = [n for n, type_ in enumerate(types) if type_ == TokenType.CONTROL]
  content = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      _added(tokens[n], n, special=type_ == TokenType.CONTROL)
      for n, type_ in enumerate(types)
      if type_ in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ],
    'post_processor': _around(file, tokens, ids),
    **parts,
  }
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    **{f'{role}_token': tokens[n] for role, n in ids.items() if role in ROLES},
  }
  ends = [ids[role] for role in ('eos', *_OTHER_ENDS) if role in ids]
  ends += [n for n in control if tokens[n] in ENDS]
  found = {
    TOKENIZER: _text(content),
    SETTINGS: _text(settings),
    GENERATION: _text({'eos_token_id': list(dict.fromkeys(ends))}),
  }
  template = file.fields.get('tokenizer.chat_template')
  return found if template is None else {**found, TEMPLATE: str(template)}


def _text(content: JsonDict) -> str:
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def _roles(file: GGUFFile, count: int) -> dict[str, int]:
  """Returns the tokens with a role, by role; there is always an EOS."""
  found = {}
  for role, theirs in {**ROLES, **_OTHER_ENDS}.items():
    name = f'tokenizer.ggml.{theirs}_token_id'
    if role != 'eos' and name not in file.fields:
      continue
    found[role] = Fields(file.fields).whole(name)
    if not 0 <= found[role] < count:
      raise FamilyError(
        f'{name}: expected less than the {count} tokens, got {found[role]}'
      )
  return found


def _texts(file: GGUFFile, name: str) -> list[str]:
  """Returns a list of texts of the vocabulary."""
  found = file.fields.get(f'tokenizer.ggml.{name}')
  if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
    given = 'none' if found is None else repr(found)[:80]
    raise FamilyError(f'tokenizer.ggml.{name}: expected a list of texts, got {given}')
  return found


def _numbers(file: GGUFFile, name: str, count: int) -> list[Any]:
  """Returns a number for each token."""
  found = file.fields.get(f'tokenizer.ggml.{name}')
  if not isinstance(found, np.ndarray) or len(found) != count:
    given = 'none' if found is None else repr(found)[:80]
    raise FamilyError(
      f'tokenizer.ggml.{name}: expected {count} numbers, one for each token, got '
      f'{given}'
    )
  return found.tolist()


def _added(text: str, n: int, *, special: bool) -> JsonDict:
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': n, 'content': text, **flags, 'special': special}


def _around(
  file: GGUFFile, tokens: Sequence[str], ids: Mapping[str, int]
) -> JsonDict | None:
  """Returns the post_processor that puts BOS and EOS around texts, or None."""
  fields, pre = Fields(file.fields), file.fields.get('tokenizer.ggml.pre')
  # llama.cpp's defaults.
  begins = file.fields[MODEL] == PIECES or _known(pre) in gguf_vocabulary.WHOLE_WORDS
  before = fields.flag('tokenizer.ggml.add_bos_token', begins) and 'bos' in ids
  after = fields.flag('tokenizer.ggml.add_eos_token', default=False)
  if not before and not after:
    return None
  names = [tokens[ids['bos']]] if before else []
  ends = [tokens[ids['eos']]] if after else []

  def template(*sequences: str) -> list[JsonDict]:
    return [
      *({'SpecialToken': {'id': name, 'type_id': 0}} for name in names),
      *({'Sequence': {'id': name, 'type_id': 0}} for name in sequences),
      *({'SpecialToken': {'id': name, 'type_id': 0}} for name in ends),
    ]

  return {
    'type': 'TemplateProcessing',
    'single': template('A'),
    'pair': template('A', 'B'),
    'special_tokens': {
      name: {'id': name, 'ids': [tokens.index(name)], 'tokens': [name]}
      for name in (*names, *ends)
    },
  }


def _known(pre: object) -> str | None:
  """Returns the name of a pre-tokenizer in PRE_TOKENIZERS, or None."""
  name = gguf_vocabulary.ALIASES.get(str(pre), str(pre))
  return name if name in gguf_vocabulary.PRE_TOKENIZERS else None


def _bytes(file: GGUFFile, vocab: Mapping[str, int]) -> JsonDict:
  """Returns the parts of tokenizer.json for byte-level BPE."""
  given = file.fields.get('tokenizer.ggml.pre')
  name = _known(given)
  if name is None:
    known = ', '.join([*gguf_vocabulary.PRE_TOKENIZERS, *gguf_vocabulary.ALIASES])
    raise FamilyError(f'tokenizer.ggml.pre: expected one of {known}, got {given!r}')
  parts = gguf_vocabulary.PRE_TOKENIZERS[name]
  merges = [_pair(merge) for merge in _texts(file, 'merges')]
  return {
    'normalizer': None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': parts},
    'decoder': {'type': 'ByteLevel', **_DECODER},
    'model': {
      'type': 'BPE',
      'ignore_merges': name in gguf_vocabulary.WHOLE_WORDS,
      'vocab': vocab,
      'merges': merges,
    },
  }


_DECODER = dict.fromkeys(('add_prefix_space', 'trim_offsets', 'use_regex'), True)


def _pair(merge: str) -> list[str]:
  first, separator, second = merge[1:].partition(' ')
  if not separator:
    raise FamilyError(
      f'tokenizer.ggml.merges: expected two tokens and a space between them, got '
      f'{merge!r}'
    )
  return [merge[:1] + first, second]


def _pieces(file: GGUFFile, vocab: Mapping[str, int], types: Sequence[int]) -> JsonDict:
  """Returns the parts of tokenizer.json for SentencePiece's BPE."""
  scores = _numbers(file, 'scores', len(types))
  prefix = Fields(file.fields).flag('tokenizer.ggml.add_space_prefix', True)
  spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': SPACE}
  first = [{'type': 'Prepend', 'prepend': SPACE}] if prefix else []
  strip = [{'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}] if prefix else []
  back = {'type': 'Replace', 'pattern': {'String': SPACE}, 'content': ' '}
  unknown = next((t for t, n in vocab.items() if types[n] == TokenType.UNKNOWN), None)
  pieces = [t for t, n in vocab.items() if types[n] == TokenType.NORMAL]
  return {
    'normalizer': {'type': 'Sequence', 'normalizers': [*first, spaces]},
    'pre_tokenizer': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [back, {'type': 'ByteFallback'}, {'type': 'Fuse'}, *strip],
    },
    'model': {
      'type': 'BPE',
      'unk_token': unknown,
      'fuse_unk': True,
      'byte_fallback': True,
      'vocab': vocab,
      'merges': _merges(pieces, {t: scores[n] for t, n in vocab.items()}),
    },
  }


def _merges(pieces: Iterable[str], scores: dict[str, float]) -> list[list[str]]:
  """Returns all ways to join two pieces to a third, the best third first."""
  known = set(pieces)
  ordered = sorted(known, key=lambda piece: (-scores[piece], piece))
  return [
    [piece[:n], piece[n:]]
    for piece in ordered
    for n in range(1, len(piece))
    if piece[:n] in known and piece[n:] in known
  ]
