"""The vocabulary of a GGUF file, and the tokenizers that GGUF cannot express.

llama.cpp's byte-level BPE has pre-tokenizers by name (see `PATTERNS`), merges, added
tokens, and one token before and after each text. It does not normalize texts.
"""

import dataclasses
import json

import tokenizers

from r1jax.hub.storage import WeightsError
from r1jax.plain import JsonDict, JsonObject
from r1jax.text import surroundings

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# Pre-tokenizers: pattern in tokenizer.json -> name in llama.cpp.
PATTERNS = {
  _CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|' + _REST: 'qwen2',
  _CONTRACTIONS + r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|' + _REST: 'llama-bpe',
}
NFC = 'NFC'  # composes characters: e and ´ become é
STOPS = 3  # tokens that can end an output: EOS, end of turn, end of message
WHOLE_WORDS = 'llama-bpe'  # the pre-tokenizer that looks words up before it merges


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
  parts = given.get('pretokenizers', [given])
  names = [part.get('type') for part in parts]
  if names[-1] == 'ByteLevel' and parts[-1].get('add_prefix_space', True):
    raise WeightsError(
      'tokenizer.json: pre_tokenizer: expected add_prefix_space false for GGUF, since '
      'llama.cpp puts no space before texts, got true'
    )
  cuts = parts[-1].get('use_regex', True)  # ByteLevel splits as GPT-2 does
  if names == ['Digits', 'ByteLevel'] and parts[0].get('individual_digits') and cuts:
    return 'smollm'
  if names == ['ByteLevel'] and cuts:
    return 'gpt-2'
  pattern = parts[0].get('pattern', {}).get('Regex')
  keeps = parts[0].get('behavior') == 'Isolated' and not parts[0].get('invert')
  if names == ['Split', 'ByteLevel'] and pattern in PATTERNS and keeps and not cuts:
    return PATTERNS[pattern]
  raise WeightsError(
    'tokenizer.json: expected a pre_tokenizer like that of GPT-2, SmolLM, Qwen2 or '
    f'Llama 3 for GGUF, got {json.dumps(given)[:200]}'
  )


def _check_model(tokenizer: JsonObject, cut: str) -> None:
  model = tokenizer['model']
  for field in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'):
    if model.get(field):
      raise WeightsError(
        f'tokenizer.json: model.{field}: expected none for GGUF, got {model[field]!r}'
      )
  whole = bool(model.get('ignore_merges'))
  if whole != (cut == WHOLE_WORDS) and (word := _unmerged(tokenizer)):
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
