"""Text on its way into the model and out of it.

In the order in which a problem travels: templates around a question, the tokenizer,
padding; then a completion is taken apart, and looked through for reflective words.
Knows neither arrays on a device nor rewards.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax.text import surroundings
from r1jax.text.parsing import TAG_PATTERN, TAGS
from r1jax.text.templates import CHATS, SPECIAL, TEMPLATES, Chat, asked, is_chat, render

PAD, EOS = '<|pad|>', '<|eos|>'  # ids 0 and 1; no text encodes to them
_SPECIALS = (PAD, EOS)
_SMALLEST_VOCABULARY = len(_SPECIALS) + 256 + len(TAGS)  # 256 bytes: any text encodes


class Tokenizer:
  """Text to ids and back; those that `train` makes, and any of the hub (`r1jax.hub`).

  Control tokens are padding, all that end a sequence, and the special tokens that
  `control` names, unless they are TAGS. `encode` never gives one, even for text that
  spells one: only the program ends a sequence. `decode` leaves them out. Every other
  added token, special or not, is read and shown as the text that it spells: a reward
  looks for `<think>`, however the checkpoint's author has added it.

  A tokenizer of our own is byte-level BPE in which every digit and every tag is one
  token (digits stand alone so that a model sees the same 1 in 16 and in 61), and
  `decode(encode(text)) == text` for every text.

  Attributes:
    pad_id: fills rows; always masked.
    stop_ids: any of these ends a sequence; the first one is `eos_id`.
    chat: writes messages as a prompt, or None.
    begin_ids: what the tokenizer puts before each text, such as BOS.
    remarks: sentences for the user about its files.

  With `splits`, text that spells a special token is text like any other everywhere, as
  transformers has it with `split_special_tokens`.
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
    # Settings of somebody's last call, which such a file may have kept.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self.begin_ids, behind = surroundings.around(tokenizer)
    # The template of a chat writes special tokens as text.
    tokenizer.encode_special_tokens = splits
    self._of_chats = tokenizer
    content = self.content
    always, also = {pad_id, *stop_ids}, {*control, *self.begin_ids, *behind}
    for token in content['added_tokens']:
      special = token['id'] in always or (token['special'] and token['id'] in also)
      token['special'] = special and token['content'] not in TAGS
    self._tokenizer = _plain(content)
    read = self.content if splits else content
    self._reader = _plain(read) if splits else self._tokenizer
    # A text that goes on after another one gets no blank in front.
    within = _without_blanks(read)
    self._within = self._reader if within == read else _plain(within)

  @property
  def eos_id(self) -> int:
    """The token that ends what a model learns from."""
    return self.stop_ids[0]

  def prompt(self, template: str, question: str) -> str:
    """The prompt: one of TEMPLATES, or the tokenizer's own, with a question in it.

    Raises ValueError for a name that is neither.
    """
    if template not in CHATS:
      return render(template, question)
    return self.converse(asked(template, [{'role': 'user', 'content': question}]))

  def converse(self, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages by turns as a prompt, by the tokenizer's own template."""
    if self.chat is None:
      raise ValueError(
        f'template: this tokenizer has no chat template; choose one of '
        f'{sorted(TEMPLATES)}'
      )
    return self.chat(messages)

  def prompt_ids(self, template: str, question: str) -> list[int]:
    """The ids of `prompt`; of a plain text with what the model begins texts with.

    What it ends texts with, such as EOS, is left out: the model is to go on.

    Raises ValueError for a template whose special tokens the tokenizer lacks.
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
    """The ids of what the template of a chat has written."""
    return self._of_chats.encode(prompt, add_special_tokens=False).ids

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int) -> 'Tokenizer':
    """A tokenizer whose merges are the most frequent ones in `texts`.

    The same texts in the same order give the same tokenizer. Texts with too few
    different pairs give fewer than `vocab_size` tokens. Raises ValueError for a
    `vocab_size` without room for all bytes, tags and special tokens.
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
    # Not special, so that decoding keeps them.
    tokenizer.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in TAGS])
    return cls(_checked(tokenizer))

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Tokenizer':
    """The tokenizer that `save` wrote. Raises ValueError when the file is damaged."""
    content = Path(path).read_bytes()
    try:
      return cls(_checked(tokenizers.Tokenizer.from_buffer(content)))
    except ValueError as error:
      raise ValueError(
        f'{path} is damaged or not a tokenizer of r1jax ({error}); restore it, or'
        ' delete it and train again'
      ) from error

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes `path` (by custom tokenizer.json) whole or not at all."""
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
        f'cannot write {path} ({error.strerror}); make room for it and start again'
      ) from error
    finally:
      partial.unlink(missing_ok=True)

  @property
  def content(self) -> dict[str, Any]:
    """What its file says, in the layout of tokenizer.json."""
    return json.loads(self._of_chats.to_str())

  @property
  def digest(self) -> str:
    """The SHA-256 of its file."""
    return hashlib.sha256(self._of_chats.to_str(pretty=True).encode()).hexdigest()

  @property
  def vocab_size(self) -> int:
    """The largest id and one more, specials and tags included; some may be unused."""
    return num_ids(self._tokenizer)

  def encode(self, text: str) -> list[int]:
    """The ids of `text`, with nothing added around them."""
    return self._reader.encode(text, add_special_tokens=False).ids

  def encode_after(self, text: str) -> list[int]:
    """The ids of `text` where it goes on after other text, such as a prompt.

    Without the blank that tokenizers like Llama 2's put before the first word.
    """
    return self._within.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`; control tokens are left out wherever they are.

    Bytes that are not UTF-8 become U+FFFD, as a model may stop inside a character.
    """
    return self._tokenizer.decode(list(ids))

  def decode_batch(self, rows: Sequence[Sequence[int]] | np.ndarray) -> list[str]:
    """The text of every row, as `decode` gives it."""
    return self._tokenizer.decode_batch([list(row) for row in rows])

  def stream(self) -> Callable[[int], str]:
    """Returns a function that takes one id after the other and gives the new text.

    Bytes of a character that is not complete yet are held back.
    """
    stream = decoders.DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(self._tokenizer, token) or ''


def num_ids(tokenizer: tokenizers.Tokenizer) -> int:
  """The largest id of a tokenizer and one more; there may be fewer tokens."""
  return max(tokenizer.get_vocab().values()) + 1


def _plain(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """A tokenizer for which text that spells a special token is text like any other."""
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
  tokenizer.encode_special_tokens = True
  return tokenizer


def _without_blanks(content: Mapping[str, Any]) -> dict[str, Any]:
  """A tokenizer.json that puts no blank before texts; else as `content`."""
  normalizer, cut = content['normalizer'], content['pre_tokenizer']
  return {
    **content,
    'normalizer': normalizer and _without_blank(normalizer),
    'pre_tokenizer': cut and _without_blank(cut),
  }


def _without_blank(part: Mapping[str, Any]) -> dict[str, Any]:
  """A normalizer or pre_tokenizer of tokenizer.json that puts no blank before texts."""
  never = {'Prepend': {'prepend': ''}, 'Metaspace': {'prepend_scheme': 'never'}}
  changed = {**part, **never.get(part['type'], {})}
  if part['type'] == 'ByteLevel':
    changed['add_prefix_space'] = False
  for parts in ('normalizers', 'pretokenizers'):  # of a Sequence
    if parts in part:
      changed[parts] = [_without_blank(one) for one in part[parts]]
  return changed


def _checked(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """A tokenizer of our own; ValueError without the special tokens or the tags."""
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
  """The pieces between tags: a tag has its id, merges must not be spent on it."""
  for text in texts:
    yield from TAG_PATTERN.split(text)


def pad_left(
  rows: Sequence[Sequence[int]], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32 [P, S] and mask bool [P, S], each row at the right end of S = length.

  The mask is True where a token belongs to the row. Raises ValueError for a row that
  does not fit: a prompt without its beginning is another problem.
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
