"""Tokenizers and chat templates as they lie on the hub, beside a model's weights.

A chat template is a small program in jinja2 that writes messages the way a model was
trained to read them. It comes with the checkpoint, so it runs in a sandbox: it sees the
messages and a few names of tokens, and reaches neither files nor Python's objects.
"""

import dataclasses
import datetime
import functools
import json
import os
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import jinja2
import jinja2.sandbox
import tokenizers

from r1jax import network, paths, text

TOKENIZER = 'tokenizer.json'
TEMPLATE = 'chat_template.jinja'
SETTINGS = ('tokenizer_config.json', 'generation_config.json', 'config.json')
# Beside the weights, what makes up a checkpoint; copied as it is.
FILES = (TOKENIZER, TEMPLATE, *SETTINGS)
REMOTE = 'hf://'
FETCHED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code

Message = Mapping[str, str]  # 'role' and 'content'


class HubError(ValueError):
  """Files of a tokenizer that can't be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template and the names of tokens that it may use."""

  source: str
  names: Mapping[str, str]  # 'bos_token', 'eos_token', …

  def render(self, messages: Sequence[Message]) -> str:
    """Returns the conversation as the model reads it, up to where its turn begins.

    Raises:
      HubError: the template is no template, or refuses these messages.
    """
    try:
      return self._template.render(
        messages=list(messages), add_generation_prompt=True, **self.names
      )
    except Exception as error:  # a template is a program, and may do anything wrong
      raise HubError(f'the chat template cannot write this: {error}') from error

  @functools.cached_property
  def _template(self) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
    )
    environment.globals |= {'raise_exception': _refuse, 'strftime_now': _now}
    environment.filters['tojson'] = _json
    return environment.from_string(self.source)


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _json(value: Any, indent: int | None = None, **_: Any) -> str:
  return json.dumps(value, ensure_ascii=False, indent=indent)


def fetched(path: str, flag: str = 'model.path') -> Path:
  """Returns the folder that a path names; `hf://owner/name` is fetched there first.

  Where the hub does not answer, what has been fetched before is used as it is.

  Raises:
    HubError: it could not be fetched.
    ValueError: the path has another scheme.
  """
  if not path.startswith(REMOTE):
    return paths.local(flag, path)
  constants = huggingface_hub.constants
  offline, silent = constants.HF_HUB_OFFLINE, ''
  try:
    if not offline and (silent := _silence(constants.ENDPOINT)):
      constants.HF_HUB_OFFLINE = True  # it would ask again and again
    name = path.removeprefix(REMOTE)
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=FETCHED))
  except Exception as error:  # of its own, of requests, of the system
    reason = f'{type(error).__name__}: {network.reason(error)}'
    if silent and isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
      reason = f'{constants.ENDPOINT}: {silent}'
    raise HubError(
      f'{flag}: {path} is not on this machine and could not be fetched ({reason}); '
      'give the folder of a checkpoint instead'
    ) from error
  finally:
    constants.HF_HUB_OFFLINE = offline


def _silence(url: str) -> str:
  """Why a host does not answer, or nothing if it does, be it with a refusal."""
  try:
    network.check(url)
  except OSError as error:
    refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
    return '' if refused else network.reason(error)
  return ''


def open_tokenizer(folder: str | os.PathLike[str]) -> text.Tokenizer:
  """Returns the tokenizer of a checkpoint, with its chat template if it has one.

  Raises:
    HubError: a file is missing or damaged, or no token ends a sequence.
  """
  folder = Path(folder).expanduser()
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
  except Exception as error:  # the library raises no other
    what = 'cannot be read' if (folder / TOKENIZER).exists() else 'is not there'
    raise HubError(f'{folder / TOKENIZER} {what} ({error})') from error
  settings = {name: _settings(folder / name) for name in SETTINGS}
  names = _names(settings[SETTINGS[0]])
  stops = _stops(folder, settings, names, tokenizer)
  pad = tokenizer.token_to_id(names.get('pad_token', ''))
  source = template(folder)
  chat = ChatTemplate(source, names).render if source is not None else None
  return text.Tokenizer(
    tokenizer, pad_id=stops[0] if pad is None else pad, stop_ids=stops, chat=chat
  )


def _settings(file: Path) -> dict[str, Any]:
  if not file.exists():
    return {}
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise HubError(f'{file} cannot be read ({error})') from error
  if not isinstance(found, dict):
    raise HubError(f'{file}: expected an object, got a {type(found).__name__}')
  return found


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
  """The tokens with a role, by role; some files have them as objects."""
  found = {}
  for role, token in settings.items():
    if role.endswith('_token'):
      content = token.get('content') if isinstance(token, dict) else token
      if isinstance(content, str):
        found[role] = content
  return found


def _stops(
  folder: Path,
  settings: Mapping[str, Mapping[str, Any]],
  names: Mapping[str, str],
  tokenizer: tokenizers.Tokenizer,
) -> tuple[int, ...]:
  """The tokens that end a sequence: the tokenizer's own first, then the model's."""
  own = tokenizer.token_to_id(names.get('eos_token', ''))
  found = [] if own is None else [own]
  for name in SETTINGS[1:]:
    given = settings[name].get('eos_token_id')
    ids = given if isinstance(given, list) else [given]
    tokens = range(tokenizer.get_vocab_size())
    found += [n for n in ids if type(n) is int and n in tokens]
  if not found:
    raise HubError(
      f'{folder}: expected an eos_token in tokenizer_config.json or an eos_token_id in '
      'generation_config.json or config.json, found none: nothing would end an output'
    )
  return tuple(dict.fromkeys(found))


def bos_id(folder: Path) -> int | None:
  """The token that a checkpoint's tokenizer puts before each text, or None."""
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
  begun = tokenizer.encode('').ids
  return begun[0] if begun else None


def template(folder: Path) -> str | None:
  """The chat template of a checkpoint, or None."""
  if (folder / TEMPLATE).exists():
    try:
      return (folder / TEMPLATE).read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
      raise HubError(f'{folder / TEMPLATE} cannot be read ({error})') from error
  given = _settings(folder / SETTINGS[0]).get('chat_template')
  if isinstance(given, list):  # several with names
    named = [one for one in given if isinstance(one, dict)]
    given = {one.get('name'): one.get('template') for one in named}.get('default')
  if given is not None and not isinstance(given, str):
    raise HubError(
      f'{folder / SETTINGS[0]}: chat_template: expected a text, got '
      f'{type(given).__name__}'
    )
  return given
