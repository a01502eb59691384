"""What a GGUF file says of texts, and what of a tokenizer.json it can't say.

llama.cpp's byte-level BPE knows by name how texts are cut (see `gguf.PATTERNS`),
merges, added tokens, and one token before and behind each text. It cuts texts as they
are: nothing changes them before.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from r1jax.hub.storage import WeightsError
from r1jax.text import surroundings

NFC = 'NFC'  # é as one character, however it is typed
STOPS = 3  # tokens that end an output: those of a text, of a turn, of a message
WHOLE_WORDS = 'llama-bpe'  # of these names, where words that are tokens aren't merged


@dataclasses.dataclass(frozen=True)
class Text:
  """What a file says of a model's texts."""

  tokenizer: Mapping[str, Any]  # tokenizer.json
  eos_id: int  # ends what a model learns from
  pad_id: int
  bos_id: int | None = None  # of bos_token, whether or not it is put before each text
  chat_template: str | None = None
  shown: tuple[str, ...] = ()  # tokens that readers are to see, special or not
  other_stop_ids: tuple[int, ...] = ()  # that end an output beside EOS

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The tokens that end an output; the first is EOS."""
    return (self.eos_id, *self.other_stop_ids)

  @property
  def around(self) -> tuple[list[int], list[int]]:
    """The tokens that are put before each text, and those behind it."""
    if not self.tokenizer.get('post_processor'):
      return [], []
    plain = {**self.tokenizer, 'truncation': None, 'padding': None}
    return surroundings.around(tokenizers.Tokenizer.from_str(json.dumps(plain)))

  @property
  def normalizers(self) -> list[str]:
    """How texts are changed before they are cut, by kind and in order."""

    def kinds(part: Mapping[str, Any]) -> list[str]:
      if part.get('type') != 'Sequence':
        return [str(part.get('type'))]
      return [kind for one in part.get('normalizers', []) for kind in kinds(one)]

    normalizer = self.tokenizer.get('normalizer')
    return kinds(normalizer) if normalizer else []


def check(text: Text, cut: str) -> None:
  """Raises WeightsError for a field by which llama.cpp would read other tokens.

  `cut` is its name for how texts are cut.
  """
  if other := [kind for kind in text.normalizers if kind != NFC]:
    raise WeightsError(
      f'tokenizer.json: normalizer: expected none, or {NFC}, for GGUF, as llama.cpp '
      f'changes no text, got {", ".join(other)}'
    )
  _check_model(text.tokenizer, cut)
  for token in text.tokenizer.get('added_tokens', []):
    for field in ('lstrip', 'rstrip', 'single_word'):
      if token.get(field):
        raise WeightsError(
          f'tokenizer.json: added_tokens: expected {field} false for GGUF, as '
          'llama.cpp takes such a token alone wherever it is, got true of '
          f'{token["content"]!r}'
        )
  before, behind = text.around
  if len(before) > 1 or behind not in ([], [text.eos_id]):
    raise WeightsError(
      'tokenizer.json: post_processor: expected no more than one token before each '
      f'text and the one that ends outputs ({text.eos_id}) behind it for GGUF, got '
      f'{before} and {behind}'
    )
  if 'bos_token' in (text.chat_template or '') and not before and text.bos_id is None:
    raise WeightsError(  # it would write its default, token 11
      'chat_template: expected none that writes bos_token for GGUF, as the tokenizer '
      'has none; name one in tokenizer_config.json, or take it out of the template'
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
      f'tokenizer.json: model.ignore_merges: expected {not whole} for GGUF with a '
      f'pre_tokenizer as {cut} has it, got {whole}: merges do not make {word!r}'
    )


def _unmerged(tokenizer: Mapping[str, Any]) -> str | None:
  """A token that is not what its own text is merged to, or None."""
  added = {token['content'] for token in tokenizer.get('added_tokens', [])}
  model = {**tokenizer['model'], 'ignore_merges': False}
  bare: dict[str, Any] = {'version': '1.0', 'added_tokens': [], 'model': model}
  bare |= dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
  merged = tokenizers.Tokenizer.from_str(json.dumps(bare))
  words = [word for word in model['vocab'] if word not in added]
  found = zip(words, merged.encode_batch(words), strict=True)
  return next((word for word, to in found if len(to.ids) != 1), None)


def remarks(text: Text) -> list[str]:
  """Sentences about texts that llama.cpp reads otherwise than the checkpoint does."""
  before, behind = text.around
  found = []
  if more := text.stop_ids[STOPS:]:
    found.append(
      f'llama.cpp ends outputs at {STOPS} tokens and at those that it knows by name: '
      f'give it {", ".join(map(str, more))} as stops too if they are others.'
    )
  if text.normalizers:
    found.append(
      f'The tokenizer composes characters first ({NFC}), and llama.cpp does not: it '
      'reads text with accents as characters of their own as other tokens.'
    )
  if behind:
    found.append(
      'The tokenizer ends each text with an end of sequence, which llama.cpp puts '
      'behind prompts and conversations too: to go on from them, give it tokens.'
    )
  if before and text.chat_template and not _writes(text, text.chat_template, before[0]):
    found.append(
      'The tokenizer begins each text with BOS, which llama.cpp puts before '
      'conversations too, though the chat template writes none.'
    )
  return found


def _writes(text: Text, template: str, bos_id: int) -> bool:
  added = {token['id']: token['content'] for token in text.tokenizer['added_tokens']}
  return 'bos_token' in template or added.get(bos_id, 'bos_token') in template
