"""The tokenizer: prompts and texts to ids, and back.

Wraps byte-level BPE that is trained here, or any tokenizer of the Hugging Face hub.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax.plain import JsonObject
from r1jax.text import surroundings
from r1jax.text.parsing import OPEN_BOX, TAG_PATTERN, TAGS
from r1jax.text.templates import (
  CHAT_ANSWER,
  CHATS,
  SPECIAL,
  TEMPLATES,
  Chat,
  Message,
  Question,
  is_chat,
  messages_of,
  render,
  with_request,
)

PAD, EOS = '<|pad|>', '<|eos|>'  # ids 0 and 1, which no text encodes to
_SPECIALS = (PAD, EOS)
_SMALLEST_VOCABULARY = len(_SPECIALS) + 256 + len(TAGS)  # 256 bytes encode any text


def _bytes_by_letter() -> dict[str, int]:
  """The letters that byte-level BPE writes for bytes, as GPT-2 does.

  A printable byte is its own Latin-1 letter, the others follow from U+0100 on.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {
    chr(256 + n): byte for n, byte in enumerate(others)
  }


_BYTES = _bytes_by_letter()


class Tokenizer:
  """Text to ids and back, with a tokenizer of `train` or of the hub (`r1jax.hub`).

  Control tokens are padding, all tokens that end a sequence, and the special tokens in
  `control`, except TAGS. `encode` never returns one, even for text that spells one:
  only the program ends a sequence. `decode` drops them. Every other added token,
  special or not, is encoded from and decoded to its text: a reward looks for `<think>`
  however the author of the checkpoint has added it.

  A tokenizer of `train` is byte-level BPE in which every digit and every tag is one
  token. Digits are separate so that a model sees the same 1 in 16 and in 61. For every
  text `decode(encode(text)) == text`.

  Attributes:
    pad_id: pads rows; always masked.
    stop_ids: each of these ends a sequence; the first one is `eos_id`.
    chat: formats messages as a prompt, or None.
    begin_ids: tokens before each text, such as BOS.
    remarks: warnings for the user about the tokenizer's files.

  With `splits`, text that spells a special token is encoded as ordinary text, as with
  `split_special_tokens` in transformers.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    *,
    pad_id: int = 0,
    stop_ids: Sequence[int] = (1,),
    chat: Chat | None = None,
    control: Iterable[int] = (),
    remarks: Sequence[str] = (),
    splits: bool = False,
  ):
    self.pad_id, self.stop_ids, self.chat = pad_id, tuple(stop_ids), chat
    self.remarks = tuple(remarks)
    # A file may keep both from an earlier call.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self.begin_ids, end_ids = surroundings.around(tokenizer)
    # Chat templates write special tokens as text.
    tokenizer.encode_special_tokens = splits
    self._of_chats = tokenizer
    content = self.content
    always, also = {pad_id, *stop_ids}, {*control, *self.begin_ids, *end_ids}
    for token in content['added_tokens']:
      special = token['id'] in always or (token['special'] and token['id'] in also)
      token['special'] = special and token['content'] not in TAGS
    self._tokenizer = _plain(content)
    read = self.content if splits else content
    self._reader = _plain(read) if splits else self._tokenizer
    # For text that continues other text, without a leading space.
    within = _without_spaces(read)
    self._continuation = self._reader if within == read else _plain(within)

  @property
  def eos_id(self) -> int:
    """The token that ends the texts that a model is trained on."""
    return self.stop_ids[0]

  def prompt(self, template: str, question: Question) -> str:
    """Returns the prompt for a question, by one of TEMPLATES or CHATS.

    Raises:
      ValueError: the template is unknown or no chat for a conversation, or this
        tokenizer has no chat template.
    """
    if template not in CHATS:
      return render(template, question)
    return self.chat_prompt(template, messages_of(question))

  def chat_prompt(self, template: str, messages: Sequence[Message]) -> str:
    """Returns the prompt for a conversation, by one of CHATS.

    Raises:
      ValueError: this tokenizer has no chat template.
    """
    if self.chat is None:
      raise ValueError(
        f'template: this tokenizer has no chat template; choose one of '
        f'{sorted(TEMPLATES)}'
      )
    prompt = self.chat(with_request(template, messages))
    return f'{prompt}{OPEN_BOX}' if template == CHAT_ANSWER else prompt

  def prompt_ids(self, template: str, question: Question) -> list[int]:
    """Returns the ids of `prompt`, for plain templates after `begin_ids`.

    Tokens that end a text, such as EOS, are left out, since the model continues it.

    Raises:
      ValueError: the tokenizer lacks a special token of the template.
    """
    prompt = self.prompt(template, question)
    if not is_chat(template):
      return [*self.begin_ids, *self.encode(prompt)]
    lacking = [
      token
      for token in SPECIAL.findall(TEMPLATES.get(template, ''))
      if self._tokenizer.token_to_id(token) is None
    ]
    if lacking:
      raise ValueError(
        f'template: expected a tokenizer with the tokens of {template!r}, but it lacks '
        f'{", ".join(lacking)}'
      )
    return self.chat_ids(prompt)

  def chat_ids(self, prompt: str) -> list[int]:
    """Returns the ids of a prompt that a chat template has written."""
    return self._of_chats.encode(prompt, add_special_tokens=False).ids

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> 'Tokenizer':
    """Returns a tokenizer whose merges are the most frequent ones in `texts`.

    The same texts in the same order give the same tokenizer. Texts with too few
    different pairs give fewer than `vocab_size` tokens.

    Raises:
      ValueError: `vocab_size` has no room for all bytes, tags and special tokens.
    """
    check_vocab_size(vocab_size)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
      ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
      vocab_size=vocab_size - len(TAGS),
      special_tokens=list(_SPECIALS),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    tokenizer.train_from_iterator(_without_tags(texts), trainer)
    # Not special, so decoding keeps them.
    tokenizer.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in TAGS])
    return cls(_checked(tokenizer))

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Tokenizer':
    """Returns the tokenizer that `save` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    content = Path(path).read_bytes()
    try:
      return cls(_checked(tokenizers.Tokenizer.from_buffer(content)))
    except ValueError as error:
      raise ValueError(
        f'{path} is damaged or not a tokenizer of r1jax ({error}); restore it, or'
        ' delete it and train again'
      ) from error

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes `path`, usually tokenizer.json, completely or not at all.

    Raises:
      OSError: the disk is full or the folder read-only.
    """
    path = Path(path)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
      with partial.open('w', encoding='utf-8') as file:
        file.write(self._of_chats.to_str(pretty=True))
        file.flush()
        os.fsync(file.fileno())
      partial.replace(path)
    except OSError as error:
      raise OSError(
        f'cannot write {path} ({error.strerror}); free some space and start again'
      ) from error
    finally:
      partial.unlink(missing_ok=True)

  @property
  def content(self) -> JsonObject:
    """The content of the file, in the format of tokenizer.json."""
    return json.loads(self._of_chats.to_str())

  @property
  def digest(self) -> str:
    """The SHA-256 of the file."""
    return hashlib.sha256(self._of_chats.to_str(pretty=True).encode()).hexdigest()

  @property
  def vocab_size(self) -> int:
    """The largest id plus one; some ids may be unused."""
    return num_ids(self._tokenizer)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without BOS or EOS."""
    return self._reader.encode(text, add_special_tokens=False).ids

  def encode_after(self, text: str) -> list[int]:
    """Returns the ids of `text` that continues other text, such as a prompt.

    Omits the space that tokenizers like Llama 2's put before the first word.
    """
    return self._continuation.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of `ids`, without control tokens.

    Bytes that are not UTF-8 become U+FFFD, since a model may stop inside a character.
    """
    return self._tokenizer.decode(list(ids))

  def decode_batch(self, rows: Sequence[Sequence[int]] | np.ndarray) -> list[str]:
    """Returns the text of every row; see `decode`."""
    return self._tokenizer.decode_batch([list(row) for row in rows])

  def token_bytes(self) -> list[bytes]:
    """Returns what each id adds to a text, of a byte-level tokenizer of `train`.

    Control tokens add nothing.

    Raises:
      ValueError: the tokenizer is not byte-level.
    """
    added = self._tokenizer.get_added_tokens_decoder()
    found = [b''] * self.vocab_size
    for text, token in self._tokenizer.get_vocab().items():
      if token in added:
        found[token] = b'' if added[token].special else text.encode()
      else:
        if not set(text) <= _BYTES.keys():
          raise ValueError(
            f'tokenizer: expected one whose tokens are bytes, got the token {text!r}'
          )
        found[token] = bytes(_BYTES[letter] for letter in text)
    return found

  def stream(self) -> Callable[[int], str]:
    """Returns a function that takes one id at a time and returns the new text.

    It holds back the bytes of an incomplete character.
    """
    stream = decoders.DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(self._tokenizer, token) or ''


def num_ids(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the largest id of a tokenizer plus one; there may be fewer tokens."""
  return max(tokenizer.get_vocab().values()) + 1


def _plain(content: JsonObject) -> tokenizers.Tokenizer:
  """Returns a tokenizer that encodes special tokens in a text as ordinary text."""
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
  tokenizer.encode_special_tokens = True
  return tokenizer


def _without_spaces(content: JsonObject) -> JsonObject:
  """Returns a tokenizer.json that puts no space before texts."""
  normalizer, cut = content['normalizer'], content['pre_tokenizer']
  return {
    **content,
    'normalizer': normalizer and _without_space(normalizer),
    'pre_tokenizer': cut and _without_space(cut),
  }


def _without_space(part: JsonObject) -> JsonObject:
  """Returns a normalizer or pre_tokenizer that puts no space before texts."""
  never = {'Prepend': {'prepend': ''}, 'Metaspace': {'prepend_scheme': 'never'}}
  changed = {**part, **never.get(part['type'], {})}
  if part['type'] == 'ByteLevel':
    changed['add_prefix_space'] = False
  for parts in ('normalizers', 'pretokenizers'):  # of a Sequence
    if parts in part:
      changed[parts] = [_without_space(one) for one in part[parts]]
  return changed


def _checked(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Returns the tokenizer; raises ValueError unless `train` could have made it."""
  specials = tuple(tokenizer.id_to_token(i) for i in range(len(_SPECIALS)))
  missing = [tag for tag in TAGS if tokenizer.token_to_id(tag) is None]
  if specials != _SPECIALS or missing:
    raise ValueError(
      f'expected tokens 0 and 1 to be {_SPECIALS} and every tag to be a token,'
      f' got {specials}, without {missing}'
    )
  return tokenizer


def check_vocab_size(vocab_size: int) -> None:
  """Raises ValueError without room for all bytes, tags and special tokens."""
  if vocab_size < _SMALLEST_VOCABULARY:
    raise ValueError(
      f'vocab_size: expected at least {_SMALLEST_VOCABULARY}, got {vocab_size}'
    )


def _without_tags(texts: Iterable[str]) -> Iterator[str]:
  """Yields the text between tags: tags have ids of their own and need no merges."""
  for text in texts:
    yield from TAG_PATTERN.split(text)


def pad_left(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens int32 [P, S] and mask bool [P, S], padded on the left to S = length.

  The mask is True where a token belongs to the row. Rows are never truncated, since a
  prompt without its beginning is another problem.

  Raises:
    ValueError: a row does not fit.
  """
  tokens = np.full((len(rows), length), pad_id, dtype=np.int32)
  mask = np.zeros((len(rows), length), dtype=np.bool_)
  longest = max(map(len, rows), default=0)
  if longest > length:
    raise ValueError(
      f'max_prompt_length: expected at least {longest}, the tokens of the longest'
      f' prompt, got {length}'
    )
  for index, row in enumerate(rows):
    start = length - len(row)  # not -len(row): an empty row would fill everything
    tokens[index, start:] = row
    mask[index, start:] = True
  return tokens, mask
