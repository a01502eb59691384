"""Tokenizers and chat templates as they lie on the hub, beside a model's weights.

Both are read as transformers reads them; `chat_template` runs what is read.
"""

import datetime
import json
import os
import shutil
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import tokenizers

from r1jax import network, paths, text
from r1jax.chat_template import GIVEN, ChatTemplate, HubError
from r1jax.model import surroundings

TOKENIZER = 'tokenizer.json'
TEMPLATE = 'chat_template.jinja'
OTHERS = 'additional_chat_templates'  # a folder of further ones, by name
SETTINGS = ('tokenizer_config.json', 'generation_config.json', 'config.json')
ROLES = 'special_tokens_map.json'
# Beside the weights, what makes up a checkpoint; see `copy`.
FILES = (TOKENIZER, TEMPLATE, *SETTINGS, ROLES)
REMOTE = 'hf://'
FETCHED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code
DEFAULT = 'default'  # of several templates, the one that is used
# Whatever has one of these roles is no text; a template may name others as it likes.
CONTROL = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')


def now() -> datetime.datetime:
  """Returns the time by the clock of this machine, in whole seconds."""
  return datetime.datetime.now().replace(microsecond=0)


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


def open_tokenizer(
  folder: str | os.PathLike[str],
  variables: Mapping[str, Any] | None = None,
  time: datetime.datetime | None = None,
) -> text.Tokenizer:
  """Returns the tokenizer of a checkpoint, with its chat template if it has one.

  Args:
    folder: the checkpoint's.
    variables: for the chat template, beside what every one is given.
    time: that the chat template is told; None is the clock's, each time.

  Raises:
    HubError: a file is missing or damaged, no token ends a sequence, or the chat
      template doesn't read one of the variables.
  """
  folder = Path(folder).expanduser()
  tokenizer = _read(folder)
  settings = {name: _settings(folder / name) for name in SETTINGS}
  roles = _roles(folder, settings[SETTINGS[0]])
  try:
    _add(tokenizer, settings[SETTINGS[0]].get('added_tokens_decoder') or {}, roles)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise HubError(
      f'{folder / SETTINGS[0]}: added_tokens_decoder: expected tokens by their number, '
      f'each with its content ({error!r})'
    ) from error
  names = {role: token.content for role, token in roles.items()}
  stops = _stops(folder, settings, names, tokenizer)
  pad = tokenizer.token_to_id(names.get('pad_token', ''))
  found = templates(folder)
  template = None
  if DEFAULT in found:
    template = ChatTemplate(found[DEFAULT], names, variables or {}, time)
  _check_variables(folder, template, variables or {})
  control = {tokenizer.token_to_id(names.get(f'{role}_token', '')) for role in CONTROL}
  return text.Tokenizer(
    tokenizer,
    pad_id=stops[0] if pad is None else pad,
    stop_ids=stops,
    chat=template.render if template else None,
    control={n for n in control if n is not None} | _written(tokenizer, template),
    remarks=_remarks(folder, found, template),
  )


def _read(folder: Path) -> tokenizers.Tokenizer:
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
  except Exception as error:  # the library raises no other
    what = 'cannot be read' if (folder / TOKENIZER).exists() else 'is not there'
    raise HubError(f'{folder / TOKENIZER} {what} ({error})') from error
  # Of somebody's last call, and kept in the file; transformers resets both each time.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _add(
  tokenizer: tokenizers.Tokenizer,
  listed: Mapping[str, Any],
  roles: Mapping[str, tokenizers.AddedToken],
) -> None:
  """Adds the tokens that other files name, as transformers does.

  Those that tokenizer_config.json lists, whose flags go before those of tokenizer.json;
  and those with a role that tokenizer.json has as mere words.
  """
  known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
  given = [listed[number] for number in sorted(listed, key=int)]
  tokens = [_token(token, bool(token.get('special'))) for token in given]
  tokenizer.add_tokens([token for token in tokens if repr(token) not in known])
  names = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
  for content, token in {token.content: token for token in roles.values()}.items():
    if content not in names and tokenizer.token_to_id(content) is not None:
      tokenizer.add_special_tokens([token])


def _token(given: Mapping[str, Any], special: bool) -> tokenizers.AddedToken:
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  how = {flag: bool(given[flag]) for flag in flags if flag in given}
  return tokenizers.AddedToken(given['content'], special=special, **how)


def _check_variables(
  folder: Path, template: ChatTemplate | None, variables: Mapping[str, Any]
) -> None:
  reads = template.reads if template and variables else frozenset()
  if unread := sorted(variables.keys() - reads):
    which = ', '.join(sorted(reads - {*GIVEN})) or 'none'
    raise HubError(
      f'chat_template_kwargs: expected variables that the chat template of {folder} '
      f'reads ({which}), got {", ".join(unread)}'
    )


def _written(
  tokenizer: tokenizers.Tokenizer, template: ChatTemplate | None
) -> set[int]:
  """The tokens that a template writes around messages, in which there is none."""
  turns = 'system', 'user', 'assistant', 'user'
  if template is None:
    return set()
  for roles in (turns, turns[1:], turns[1:2]):
    try:
      prompt = template.render([{'role': role, 'content': 'a'} for role in roles])
    except HubError:  # some refuse a message of the system
      continue
    return set(tokenizer.encode(prompt, add_special_tokens=False).ids)
  return set()


def _remarks(
  folder: Path, found: Mapping[str, str], template: ChatTemplate | None
) -> list[str]:
  """What a user should know about a checkpoint's chat templates."""
  if found and template is None:
    return [
      f'{folder} has no chat template named {DEFAULT!r}, which alone is used; it has '
      f'{", ".join(sorted(found))}.'
    ]
  if template is None:
    return []
  roles = {f'{role}_token' for role in CONTROL} & template.reads
  missing = roles - {*template.names, *template.variables}
  return [
    f'The chat template of {folder} reads {name}, but neither {SETTINGS[0]} nor '
    f'{ROLES} names one: it writes nothing in its place.'
    for name in sorted(missing)
  ]


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


def _roles(
  folder: Path, settings: Mapping[str, Any]
) -> dict[str, tokenizers.AddedToken]:
  """The tokens with a role, by role, as transformers finds them.

  special_tokens_map.json counts, and goes first, where tokenizer_config.json lists no
  added tokens: such checkpoints are of a time when it was the one that named roles.
  """
  told = dict(settings)
  if 'added_tokens_decoder' not in settings:
    told |= _settings(folder / ROLES)
  if isinstance(more := told.get('extra_special_tokens'), dict):
    told |= more
  found = {}
  for role, token in told.items():
    given = token if isinstance(token, dict) else {'content': token}
    if role.endswith('_token') and isinstance(given.get('content'), str):
      found[role] = _token(given, special=True)
  return found


def _stops(
  folder: Path,
  settings: Mapping[str, Mapping[str, Any]],
  names: Mapping[str, str],
  tokenizer: tokenizers.Tokenizer,
) -> tuple[int, ...]:
  """The tokens that end a sequence: the tokenizer's own first, then the model's.

  One of the model's may be a row of its embedding that the tokenizer has no token for.
  """
  own = tokenizer.token_to_id(names.get('eos_token', ''))
  rows = settings[SETTINGS[2]].get('vocab_size')
  ids_there = range(max(text.size(tokenizer), rows if type(rows) is int else 0))
  found = [] if own is None else [own]
  for name in SETTINGS[1:]:
    given = settings[name].get('eos_token_id')
    ids = given if isinstance(given, list) else [given]
    found += [n for n in ids if type(n) is int and n in ids_there]
  if not found:
    raise HubError(
      f'{folder}: expected an eos_token in tokenizer_config.json or {ROLES}, or an '
      'eos_token_id in generation_config.json or config.json, found none: nothing '
      'would end an output'
    )
  return tuple(dict.fromkeys(found))


def bos_id(folder: Path) -> int | None:
  """The token that a checkpoint's tokenizer puts before each text, or None."""
  before, _ = surroundings.around(_read(folder))
  return before[0] if before else None


def named_bos_id(folder: Path) -> int | None:
  """The token with the role of BOS, whether or not it is put before texts, or None."""
  role = _roles(folder, _settings(folder / SETTINGS[0])).get('bos_token')
  return _read(folder).token_to_id(role.content) if role else None


def template(folder: Path) -> str | None:
  """The chat template of a checkpoint, or None."""
  return templates(folder).get(DEFAULT)


def reads_clock(folder: Path) -> bool:
  """Whether a checkpoint's chat template writes the time, or part of it."""
  return 'strftime_now' in (template(folder) or '')


def templates(folder: Path) -> dict[str, str]:
  """The chat templates of a checkpoint, by name; most have one, the default.

  Those in files of their own come first, and then no others count.

  Raises:
    HubError: a file cannot be read.
  """
  files = {file.stem: file for file in sorted((folder / OTHERS).glob('*.jinja'))}
  if (folder / TEMPLATE).exists():
    files = {DEFAULT: folder / TEMPLATE, **files}
  if files:
    return {name: _text(file) for name, file in files.items()}
  given = _settings(folder / SETTINGS[0]).get('chat_template')
  if isinstance(given, list):  # several with names
    named = [one for one in given if isinstance(one, dict)]
    given = {str(one.get('name')): one.get('template') for one in named}
  elif given is not None:
    given = {DEFAULT: given}
  for source in (given or {}).values():
    if not isinstance(source, str):
      raise HubError(
        f'{folder / SETTINGS[0]}: chat_template: expected a text, got '
        f'{type(source).__name__}'
      )
  return given or {}


def _text(file: Path) -> str:
  try:
    return file.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise HubError(f'{file} cannot be read ({error})') from error


def files(folder: Path) -> list[str]:
  """The names in a folder of what makes up a checkpoint beside its weights."""
  others = [
    f'{OTHERS}/{file.name}' for file in sorted((folder / OTHERS).glob('*.jinja'))
  ]
  return [name for name in FILES if (folder / name).exists()] + others


def copies(folder: Path) -> dict[str, str | Path]:
  """Returns a checkpoint's files but its weights, by name: a file, or another content.

  Only a limit of length or a padding that tokenizer.json has kept of somebody's last
  call is left out, as it would cut and fill the texts of whoever opens the copy.
  """
  found: dict[str, str | Path] = {name: folder / name for name in files(folder)}
  content = _settings(folder / TOKENIZER)
  if content.get('truncation') or content.get('padding'):
    plain = {**content, 'truncation': None, 'padding': None}
    found[TOKENIZER] = json.dumps(plain, indent=2)
  return found


def copy(folder: Path, to: Path) -> None:
  """Writes a checkpoint's `copies` to another folder."""
  for name, content in copies(folder).items():
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
      shutil.copyfile(content, to / name)
    else:
      (to / name).write_text(content, encoding='utf-8')
