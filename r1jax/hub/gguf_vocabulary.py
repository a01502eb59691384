"""The vocabulary of a GGUF file, and the tokenizers that GGUF cannot express.

llama.cpp's byte-level BPE has pre-tokenizers by name, merges, added
tokens, and one token before and after each text. It does not normalize texts.
"""

import dataclasses
import json
from collections.abc import Mapping

import tokenizers

from r1jax.hub.storage import WeightsError
from r1jax.plain import JsonDict, JsonObject
from r1jax.text import surroundings

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|' + _SPACES
_REST_WITH_SLASHES = r' ?[^\s\p{L}\p{N}]+[\r\n/]*|' + _SPACES
# Letters of alphabets with cases, as DeepSeek-V2's tokenizer lists them.
_LETTERS = (
  'A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ'
  'ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎ'
  'ↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃'
)
_ASCII = r'!"#$%&' + "'" + r'()*+,\-./:;<=>?@\[\\\]^_`{|}~'


def _split(pattern: str) -> JsonObject:
  return {
    'type': 'Split',
    'pattern': {'Regex': pattern},
    'behavior': 'Isolated',
    'invert': False,
  }


def _cased_words(end: str) -> str:
  """Returns the pattern of words that end before the next capital letter."""
  before, marks = r'[^\r\n\p{L}\p{N}]?', r'\p{Lm}\p{Lo}\p{M}]'
  capitals, small = rf'[\p{{Lu}}\p{{Lt}}{marks}', rf'[\p{{Ll}}{marks}'
  return f'{before}{capitals}*{small}+{end}|{before}{capitals}+{small}*{end}|'


_BYTES: JsonObject = {
  'type': 'ByteLevel',
  'trim_offsets': True,  # which changes no tokens
  'add_prefix_space': False,
  'use_regex': False,
}
_WORDS: JsonObject = {**_BYTES, 'use_regex': True}  # splits as GPT-2 does
_WORDS_AND_THOUSANDS = [
  _split(_CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|' + _REST),
  _BYTES,
]
# Pre-tokenizers: name in llama.cpp -> parts in tokenizer.json.
PRE_TOKENIZERS: Mapping[str, list[JsonObject]] = {
  'gpt-2': [_WORDS],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _WORDS],
  'qwen2': [
    _split(_CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|' + _REST),
    _BYTES,
  ],
  'llama-bpe': _WORDS_AND_THOUSANDS,
  'dbrx': _WORDS_AND_THOUSANDS,  # Phi-4, OLMo 2
  # Phi-4-mini.
  'gpt-4o': [
    _split(
      _cased_words("(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
      + r'\p{N}{1,3}|'
      + _REST_WITH_SLASHES
    ),
    _BYTES,
  ],
  # Mistral Nemo and later.
  'tekken': [_split(_cased_words('') + r'\p{N}|' + _REST_WITH_SLASHES), _BYTES],
  'deepseek-llm': [
    _split(r'[\r\n]'),
    _split(rf'\s?[{_LETTERS}]+'),
    _split(r'\s?[!-/:-~！-／：-～‘-‟　-。]+'),
    _split(r'\s+$'),
    _split('[一-龥ࠀ-一가-퟿]+'),
    _split(r'\p{N}+'),
    _BYTES,
  ],
  'deepseek-coder': [
    _split(r'[\r\n]'),
    _split(r'\s?\p{L}+'),
    _split(r'\s?\p{P}+'),
    _split('[一-龥ࠀ-一가-퟿]+'),
    {'type': 'Digits', 'individual_digits': True},
    _BYTES,
  ],
  'deepseek-v3': [
    _split(r'\p{N}{1,3}'),
    _split('[一-龥぀-ゟ゠-ヿ]+'),
    _split(
      f'[{_ASCII}][A-Za-z]+|'
      r'[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|' + _SPACES
    ),
    _BYTES,
  ],
}
# Other names of llama.cpp for the same pre-tokenizers.
ALIASES = {
  'llama3': 'llama-bpe',
  'llama-v3': 'llama-bpe',
  'smaug-bpe': 'dbrx',  # SmolLM3
  'deepseek-r1-qwen': 'qwen2',
}
NFC = 'NFC'  # composes characters: e and ´ become é
STOPS = 3  # tokens that can end an output: EOS, end of turn, end of message
# Pre-tokenizers that look words up before they merge, and begin texts with BOS.
WHOLE_WORDS = 'llama-bpe', 'tekken'
# llama.cpp's own patterns for them know capital letters from A to Z alone, no marks.
_CASED = 'gpt-4o', 'tekken'


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Tokenizer, special tokens and chat template of a model, as GGUF needs them."""

  tokenizer: JsonObject  # tokenizer.json
  eos_id: int  # ends the texts that the model was trained on
  pad_id: int
  bos_id: int | None = None  # of bos_token, even if texts begin without it
  chat_template: str | None = None
  shown: tuple[str, ...] = ()  # tokens to show to users, special or not
  other_stop_ids: tuple[int, ...] = ()  # other tokens than EOS that end an output

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an output; the first is EOS."""
    return (self.eos_id, *self.other_stop_ids)

  @property
  def around(self) -> tuple[list[int], list[int]]:
    """The tokens that are put before each text, and those after it."""
    if not self.tokenizer.get('post_processor'):
      return [], []
    plain = {**self.tokenizer, 'truncation': None, 'padding': None}
    return surroundings.around(tokenizers.Tokenizer.from_str(json.dumps(plain)))

  @property
  def normalizers(self) -> list[str]:
    """The types of the normalizers, in order."""

    def kinds(part: JsonObject) -> list[str]:
      if part.get('type') != 'Sequence':
        return [str(part.get('type'))]
      return [kind for one in part.get('normalizers', []) for kind in kinds(one)]

    normalizer = self.tokenizer.get('normalizer')
    return kinds(normalizer) if normalizer else []


def check(vocabulary: Vocabulary) -> str:
  """Returns llama.cpp's name of the pre-tokenizer.

  Raises:
    WeightsError: llama.cpp would read texts as different tokens.
  """
  name = _pre_tokenizer(vocabulary.tokenizer)
  if other := [kind for kind in vocabulary.normalizers if kind != NFC]:
    raise WeightsError(
      f'tokenizer.json: normalizer: expected none or {NFC} for GGUF, since llama.cpp '
      f'does not normalize, got {", ".join(other)}'
    )
  _check_model(vocabulary.tokenizer, name)
  for token in vocabulary.tokenizer.get('added_tokens', []):
    for field in ('lstrip', 'rstrip', 'single_word'):
      if token.get(field):
        raise WeightsError(
          f'tokenizer.json: added_tokens: expected {field} false for GGUF, since '
          'llama.cpp ignores that flag, got true for '
          f'{token["content"]!r}'
        )
  before, after = vocabulary.around
  if len(before) > 1 or after not in ([], [vocabulary.eos_id]):
    raise WeightsError(
      'tokenizer.json: post_processor: expected at most one token before each text and '
      f'at most EOS ({vocabulary.eos_id}) after it for GGUF, got {before} and {after}'
    )
  if (
    'bos_token' in (vocabulary.chat_template or '')
    and not before
    and vocabulary.bos_id is None
  ):
    raise WeightsError(  # llama.cpp would write its default, token 11
      'chat_template: expected one without bos_token for GGUF, since the tokenizer '
      'has none; define it in tokenizer_config.json, or remove it from the template'
    )
  return name


def _pre_tokenizer(tokenizer: JsonObject) -> str:
  """Returns llama.cpp's name of this tokenizer's pre-tokenizer."""
  if tokenizer.get('model', {}).get('type') != 'BPE':
    raise WeightsError(
      f'tokenizer.json: expected a BPE model for GGUF, got '
      f'{tokenizer.get("model", {}).get("type")!r}'
    )
  given = tokenizer.get('pre_tokenizer') or {}
  parts = [_with_defaults(part) for part in given.get('pretokenizers', [given])]
  if parts[-1].get('add_prefix_space'):
    raise WeightsError(
      'tokenizer.json: pre_tokenizer: expected add_prefix_space false for GGUF, since '
      'llama.cpp puts no space before texts, got true'
    )
  if names := [name for name, known in PRE_TOKENIZERS.items() if parts == known]:
    whole = bool(tokenizer['model'].get('ignore_merges'))
    return next((name for name in names if (name in WHOLE_WORDS) == whole), names[0])
  raise WeightsError(
    f'tokenizer.json: expected the pre_tokenizer of {", ".join(PRE_TOKENIZERS)} for '
    f'GGUF, got {json.dumps(given)[:200]}'
  )


def _with_defaults(part: JsonObject) -> JsonObject:
  """Returns a part of a pre_tokenizer with all fields that change how it splits."""
  defaults = {
    'ByteLevel': {'add_prefix_space': True, 'use_regex': True, 'trim_offsets': True},
    'Digits': {'individual_digits': False},
    'Split': {'invert': False},
  }
  found = {**defaults.get(part.get('type', ''), {}), **part}
  if found.get('behavior') == 'Removed' and found.get('invert'):
    pattern = found['pattern'].get('Regex', '')
    if pattern.endswith(_SPACES):  # it matches every character, so none is removed
      found |= {'behavior': 'Isolated', 'invert': False}
  return {**found, 'trim_offsets': True} if 'trim_offsets' in found else found


def _check_model(tokenizer: JsonObject, cut: str) -> None:
  model = tokenizer['model']
  for field in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'):
    if model.get(field):
      raise WeightsError(
        f'tokenizer.json: model.{field}: expected none for GGUF, got {model[field]!r}'
      )
  whole = bool(model.get('ignore_merges'))
  if whole != (cut in WHOLE_WORDS) and (word := _unmerged(tokenizer)):
    raise WeightsError(
      f'tokenizer.json: model.ignore_merges: expected {not whole} for GGUF with the '
      f'pre_tokenizer {cut}, got {whole}: merges do not produce {word!r}'
    )


def _unmerged(tokenizer: JsonObject) -> str | None:
  """Returns a token that the merges do not produce from its own text, or None."""
  added = {token['content'] for token in tokenizer.get('added_tokens', [])}
  model = {**tokenizer['model'], 'ignore_merges': False}
  bare: JsonDict = {'version': '1.0', 'added_tokens': [], 'model': model}
  bare |= dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
  merged = tokenizers.Tokenizer.from_str(json.dumps(bare))
  words = [word for word in model['vocab'] if word not in added]
  found = zip(words, merged.encode_batch(words), strict=True)
  return next((word for word, to in found if len(to.ids) != 1), None)


def remarks(vocabulary: Vocabulary) -> list[str]:
  """Returns warnings about texts that llama.cpp reads as different tokens."""
  before, after = vocabulary.around
  found = []
  if more := vocabulary.stop_ids[STOPS:]:
    found.append(
      f'GGUF has room for {STOPS} tokens that end outputs. If llama.cpp does not stop '
      f'at the tokens {", ".join(map(str, more))}, pass them as stop sequences.'
    )
  if vocabulary.normalizers:
    found.append(
      f'The tokenizer composes characters first ({NFC}), and llama.cpp does not: it '
      'reads text with decomposed accents as different tokens.'
    )
  if _pre_tokenizer(vocabulary.tokenizer) in _CASED:
    found.append(
      'The tokenizer ends words before capital letters of all alphabets, and llama.cpp '
      'before A to Z alone: it reads text with others, or with combining marks, as '
      'different tokens.'
    )
  if after:
    found.append(
      'The tokenizer ends each text with EOS, and llama.cpp appends it to prompts and '
      'conversations too: to continue them, pass token ids instead of text.'
    )
  if (
    before
    and vocabulary.chat_template
    and not _writes(vocabulary, vocabulary.chat_template, before[0])
  ):
    found.append(
      'The tokenizer begins each text with BOS, and llama.cpp puts it before '
      'conversations too, although the chat template writes none.'
    )
  return found


def _writes(vocabulary: Vocabulary, template: str, bos_id: int) -> bool:
  added = {
    token['id']: token['content'] for token in vocabulary.tokenizer['added_tokens']
  }
  return 'bos_token' in template or added.get(bos_id, 'bos_token') in template
