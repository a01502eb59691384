"""The tokenizer of a GGUF file, as the files of a Hugging Face checkpoint.

llama.cpp has byte-level BPE with merges, and SentencePiece's BPE with a score for each
token. Texts become the same tokens as there.
"""

import json
from collections.abc import Iterable, Sequence

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
  fields = Fields(file.fields)
  kind = file.fields.get(MODEL)
  if kind not in (BYTES, PIECES):
    raise FamilyError(f'{MODEL}: expected {BYTES} or {PIECES}, got {kind!r}')
  tokens = _listed(file, 'tokens')
  types = _listed(file, 'token_type', len(tokens))
  ids = {
    role: fields.whole(f'tokenizer.ggml.{theirs}_token_id')
    for role, theirs in ROLES.items()
    if role == 'eos' or f'tokenizer.ggml.{theirs}_token_id' in file.fields
  }
  for role, n in ids.items():
    if not 0 <= n < len(tokens):
      raise FamilyError(
        f'tokenizer.ggml.{ROLES[role]}_token_id: expected less than the {len(tokens)} '
        f'tokens, got {n}'
      )
  used = {
    token: n
    for n, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind != TokenType.UNUSED
  }
  parts = _bytes(file, used) if kind == BYTES else _pieces(file, used, types, ids)
  begins = file.fields.get('tokenizer.ggml.pre') in _BEGIN or kind == PIECES
  around = [
    ids.get('bos') if fields.flag('tokenizer.ggml.add_bos_token', begins) else None,
    ids['eos'] if fields.flag('tokenizer.ggml.add_eos_token', False) else None,
  ]
  content = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      _added(tokens[n], n, kind == TokenType.CONTROL)
      for n, kind in enumerate(types)
      if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ],
    'post_processor': _around(tokens, around),
    **parts,
  }
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    **{f'{role}_token': tokens[n] for role, n in ids.items()},
  }
  stops = [
    ids['eos'],
    *(fields.whole(f'tokenizer.ggml.{name}_token_id', -1) for name in ('eot', 'eom')),
    *(
      n
      for n, kind in enumerate(types)
      if kind == TokenType.CONTROL and tokens[n] in ENDS
    ),
  ]
  generation = {'eos_token_id': [n for n in dict.fromkeys(stops) if n >= 0]}
  found = {
    'tokenizer.json': json.dumps(content, ensure_ascii=False),
    'tokenizer_config.json': json.dumps(settings, indent=2, ensure_ascii=False) + '\n',
    'generation_config.json': json.dumps(generation, indent=2) + '\n',
  }
  if template := file.fields.get('tokenizer.chat_template'):
    found['chat_template.jinja'] = template
  return found


# Pre-tokenizers for which llama.cpp puts BOS before texts unless a field forbids it.
_BEGIN = (
  'llama-bpe',
  *(a for a, b in gguf_vocabulary.ALIASES.items() if b == 'llama-bpe'),
)


def _listed(file: GGUFFile, name: str, count: int | None = None) -> list:
  """Returns a list of the vocabulary."""
  found = file.fields.get(f'tokenizer.ggml.{name}')
  if found is None or isinstance(found, str) or count not in (None, len(found)):
    wanted = 'a list' if count is None else f'{count} numbers, one for each token'
    given = 'none' if found is None else repr(found)[:80]
    raise FamilyError(f'tokenizer.ggml.{name}: expected {wanted}, got {given}')
  return found.tolist() if isinstance(found, np.ndarray) else found


def _added(text: str, n: int, special: bool) -> JsonDict:
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': n, 'content': text, **flags, 'special': special}


def _around(tokens: Sequence[str], ids: Sequence[int | None]) -> JsonDict | None:
  """Returns the post_processor that puts these tokens before and after a text."""
  if ids == [None, None]:
    return None

  def template(*sequences: str) -> list[JsonDict]:
    parts: list[JsonDict] = [{'Sequence': {'id': x, 'type_id': 0}} for x in sequences]
    before, after = (
      [] if n is None else [{'SpecialToken': {'id': tokens[n], 'type_id': 0}}]
      for n in ids
    )
    return [*before, *parts, *after]

  special = {tokens[n]: n for n in ids if n is not None}
  return {
    'type': 'TemplateProcessing',
    'single': template('A'),
    'pair': template('A', 'B'),
    'special_tokens': {
      text: {'id': text, 'ids': [n], 'tokens': [text]} for text, n in special.items()
    },
  }


def _bytes(file: GGUFFile, vocab: dict[str, int]) -> JsonDict:
  """Returns the parts of tokenizer.json for byte-level BPE."""
  given = file.fields.get('tokenizer.ggml.pre')
  name = gguf_vocabulary.ALIASES.get(given, given)
  if name not in gguf_vocabulary.PRE_TOKENIZERS:
    known = ', '.join([*gguf_vocabulary.PRE_TOKENIZERS, *gguf_vocabulary.ALIASES])
    raise FamilyError(f'tokenizer.ggml.pre: expected one of {known}, got {given!r}')
  parts = gguf_vocabulary.PRE_TOKENIZERS[name]
  merges = [_pair(merge) for merge in _listed(file, 'merges')]
  return {
    'normalizer': None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': parts},
    'decoder': {'type': 'ByteLevel', **_DECODER},
    'model': {
      'type': 'BPE',
      'ignore_merges': name == gguf_vocabulary.WHOLE_WORDS,
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


def _pieces(
  file: GGUFFile, vocab: dict[str, int], types: Sequence[int], ids: dict[str, int]
) -> JsonDict:
  """Returns the parts of tokenizer.json for SentencePiece's BPE."""
  scores = _listed(file, 'scores', len(types))
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
