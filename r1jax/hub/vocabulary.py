"""The vocabulary of a GGUF file, and the tokenizers that GGUF cannot express.

llama.cpp's byte-level BPE has pre-tokenizers by name (see `gguf.PATTERNS`), merges,
added tokens, and one token before and after each text. It does not normalize texts.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from r1jax.hub.storage import WeightsError
from r1jax.text import surroundings

NFC = 'NFC'  # composes characters: e and ´ become é
STOPS = 3  # tokens that can end an output: EOS, end of turn, end of message
WHOLE_WORDS = 'llama-bpe'  # the pre-tokenizer that looks words up before it merges


@dataclasses.dataclass(frozen=True)
class Text:
  """Tokenizer, special tokens and chat template of a model, as GGUF needs them."""

  tokenizer: Mapping[str, Any]  # tokenizer.json
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

    def kinds(part: Mapping[str, Any]) -> list[str]:
      if part.get('type') != 'Sequence':
        return [str(part.get('type'))]
      return [kind for one in part.get('normalizers', []) for kind in kinds(one)]

    normalizer = self.tokenizer.get('normalizer')
    return kinds(normalizer) if normalizer else []


def check(text: Text, cut: str) -> None:
  """Raises WeightsError if llama.cpp would read texts as different tokens.

  `cut` is llama.cpp's name of the pre-tokenizer.
  """
  if other := [kind for kind in text.normalizers if kind != NFC]:
    raise WeightsError(
      f'tokenizer.json: normalizer: expected none or {NFC} for GGUF, since llama.cpp '
      f'does not normalize, got {", ".join(other)}'
    )
  _check_model(text.tokenizer, cut)
  for token in text.tokenizer.get('added_tokens', []):
    for field in ('lstrip', 'rstrip', 'single_word'):
      if token.get(field):
        raise WeightsError(
          f'tokenizer.json: added_tokens: expected {field} false for GGUF, since '
          'llama.cpp ignores that flag, got true for '
          f'{token["content"]!r}'
        )
  before, after = text.around
  if len(before) > 1 or after not in ([], [text.eos_id]):
    raise WeightsError(
      'tokenizer.json: post_processor: expected at most one token before each text '
      f'and at most EOS ({text.eos_id}) after it for GGUF, got {before} and {after}'
    )
  if 'bos_token' in (text.chat_template or '') and not before and text.bos_id is None:
    raise WeightsError(  # llama.cpp would write its default, token 11
      'chat_template: expected one without bos_token for GGUF, since the tokenizer '
      'has none; define it in tokenizer_config.json, or remove it from the template'
    )


def _check_model(tokenizer: Mapping[str, Any], cut: str) -> None:
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


def _unmerged(tokenizer: Mapping[str, Any]) -> str | None:
  """Returns a token that the merges do not produce from its own text, or None."""
  added = {token['content'] for token in tokenizer.get('added_tokens', [])}
  model = {**tokenizer['model'], 'ignore_merges': False}
  bare: dict[str, Any] = {'version': '1.0', 'added_tokens': [], 'model': model}
  bare |= dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
  merged = tokenizers.Tokenizer.from_str(json.dumps(bare))
  words = [word for word in model['vocab'] if word not in added]
  found = zip(words, merged.encode_batch(words), strict=True)
  return next((word for word, to in found if len(to.ids) != 1), None)


def remarks(text: Text) -> list[str]:
  """Returns warnings about texts that llama.cpp reads as different tokens."""
  before, after = text.around
  found = []
  if more := text.stop_ids[STOPS:]:
    found.append(
      f'GGUF has room for {STOPS} tokens that end outputs. If llama.cpp does not stop '
      f'at the tokens {", ".join(map(str, more))}, pass them as stop sequences.'
    )
  if text.normalizers:
    found.append(
      f'The tokenizer composes characters first ({NFC}), and llama.cpp does not: it '
      'reads text with decomposed accents as different tokens.'
    )
  if after:
    found.append(
      'The tokenizer ends each text with EOS, and llama.cpp appends it to prompts and '
      'conversations too: to continue them, pass token ids instead of text.'
    )
  if before and text.chat_template and not _writes(text, text.chat_template, before[0]):
    found.append(
      'The tokenizer begins each text with BOS, and llama.cpp puts it before '
      'conversations too, although the chat template writes none.'
    )
  return found


def _writes(text: Text, template: str, bos_id: int) -> bool:
  added = {token['id']: token['content'] for token in text.tokenizer['added_tokens']}
  return 'bos_token' in template or added.get(bos_id, 'bos_token') in template
