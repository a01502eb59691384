"""Tokens that other files than tokenizer.json define, read as transformers reads them.

tokenizer_config.json has tokens with a role, further special tokens, and all tokens
that were added to the vocabulary (`added_tokens_decoder`). Older checkpoints without
that field have the first two in special_tokens_map.json and the third in
added_tokens.json. These files are read only if the field is missing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tokenizers

from r1jax.plain import JsonObject

SETTINGS = 'tokenizer_config.json'
ROLES = 'special_tokens_map.json'
ADDED = 'added_tokens.json'
FILES = (SETTINGS, ROLES, ADDED)
CONTROL = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')  # in this order
_ROLES = [f'{role}_token' for role in CONTROL]
_LISTED = 'added_tokens_decoder'
_EXTRA = 'extra_special_tokens', 'additional_special_tokens'  # the new name, the old


@dataclasses.dataclass(frozen=True)
class Named:
  """The tokens that these files define."""

  roles: Mapping[str, tokenizers.AddedToken]  # by role: 'eos_token', …
  extra: list[tokenizers.AddedToken]  # special tokens without a role
  listed: Mapping[int, tokenizers.AddedToken]  # by id
  flags_first: bool  # flags of `listed` override those of tokenizer.json

  def add_to(self, tokenizer: tokenizers.Tokenizer, rows: int | None = None) -> None:
    """Adds the tokens to those of tokenizer.json.

    A special token that the vocabulary lacks gets the next id, unless the embedding has
    no more `rows`: the model could not read it.
    """
    known = tokenizer.get_added_tokens_decoder()
    kept = set() if self.flags_first else set(known)
    written = {repr(token) for token in known.values()}
    given = [self.listed[n] for n in sorted(self.listed) if n not in kept]
    tokenizer.add_tokens([token for token in given if repr(token) not in written])
    names = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    special = {token.content: token for token in [*self.roles.values(), *self.extra]}
    for content in [content for content in special if content not in names]:
      number = tokenizer.token_to_id(content)
      if number is not None or rows is None or _size(tokenizer) < rows:
        tokenizer.add_special_tokens([special[content]])


def _size(tokenizer: tokenizers.Tokenizer) -> int:
  return max(tokenizer.get_vocab().values()) + 1


def read(files: Mapping[str, JsonObject]) -> Named:
  """Returns the tokens that FILES define, given the content of each file.

  Raises:
    AttributeError, KeyError, TypeError, ValueError: a token is malformed.
  """
  settings, mapped, numbered = (files[name] for name in FILES)
  new = _LISTED in settings
  fields = dict(settings) if new else {**settings, **mapped}
  extra, more = _extra(settings, {} if new else mapped)
  names = [*_ROLES, *(x for x in fields if x.endswith('_token')), *more]
  fields |= more
  roles = {
    name: _token(fields[name], special=True)
    for name in dict.fromkeys(names)
    if isinstance(_content(fields.get(name)), str)
  }
  if new:
    listed = {int(n): _token(x) for n, x in (settings[_LISTED] or {}).items()}
  else:
    special = {token.content for token in [*roles.values(), *extra]}
    listed = {int(n): _old(text, text in special) for text, n in numbered.items()}
  return Named(roles, extra, listed, new)


def _extra(
  settings: JsonObject, mapped: JsonObject
) -> tuple[list[tokenizers.AddedToken], JsonObject]:
  """Returns special tokens without a role, and those with a role of their own."""
  new, old = _EXTRA
  found = [settings.get(new) or settings.get(old), mapped.get(new)]
  if not {*_EXTRA} & {*settings} and new not in mapped:
    found.append(mapped.get(old))
  tokens = [token for x in found if isinstance(x, list) for token in x]
  roles = {role: x for one in found if isinstance(one, dict) for role, x in one.items()}
  return [_token(token, special=True) for token in tokens], roles


def _content(token: object) -> object:
  return token.get('content') if isinstance(token, dict) else token


def _token(given: Any, special: bool | None = None) -> tokenizers.AddedToken:
  """Returns a token from its text, or from an object with its flags."""
  flags = given if isinstance(given, dict) else {'content': given}
  names = ('single_word', 'lstrip', 'rstrip', 'normalized')
  how = {flag: bool(flags[flag]) for flag in names if flag in flags}
  special = bool(flags.get('special')) if special is None else special
  return tokenizers.AddedToken(flags['content'], special=special, **how)


def _old(text: str, special: bool) -> tokenizers.AddedToken:
  """Returns a token of added_tokens.json, which has only text and id."""
  return tokenizers.AddedToken(text, special=special, normalized=not special)
