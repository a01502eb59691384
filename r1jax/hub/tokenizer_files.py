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

from r1jax.hub import added_tokens, network, paths
from r1jax.hub.chat_template import GIVEN, PROBES, ChatTemplate, HubError
from r1jax.text import surroundings
from r1jax.text.tokenizer import Tokenizer, num_ids

TOKENIZER = 'tokenizer.json'
TEMPLATE = 'chat_template.jinja'
OTHERS = 'additional_chat_templates'  # a folder of further ones, by name
SETTINGS = (added_tokens.SETTINGS, 'generation_config.json', 'config.json')
# Beside the weights, what makes up a checkpoint; see `copy`.
FILES = (TOKENIZER, TEMPLATE, *SETTINGS, added_tokens.ROLES, added_tokens.ADDED)
REMOTE = 'hf://'
FETCHED = ['*.json', '*.jinja', '*.safetensors']  # no pickles, no code
DEFAULT = 'default'  # of several templates, the one that is used
# Whatever has one of these roles is no text; a template may name others as it likes.
CONTROL = added_tokens.CONTROL


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
) -> Tokenizer:
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
  named = _named(folder)
  named.add_to(tokenizer, _rows(settings))
  names = {role: token.content for role, token in named.roles.items()}
  stops = _stops(folder, settings, names, tokenizer)
  pad = tokenizer.token_to_id(names.get('pad_token', ''))
  found = templates(folder)
  template = None
  if DEFAULT in found:
    template = ChatTemplate(found[DEFAULT], names, variables or {}, time)
  _check_variables(folder, template, variables or {})
  control = {tokenizer.token_to_id(names.get(f'{role}_token', '')) for role in CONTROL}
  return Tokenizer(
    tokenizer,
    pad_id=stops[0] if pad is None else pad,
    stop_ids=stops,
    chat=template.render if template else None,
    control={n for n in control if n is not None} | _written(tokenizer, template),
    remarks=[*_words(folder, tokenizer, stops), *_remarks(folder, found, template)],
    splits=bool(settings[SETTINGS[0]].get('split_special_tokens')),
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
  if template is None:
    return set()
  for messages in PROBES:
    try:
      prompt = template.render(messages)
    except HubError:
      continue
    return set(tokenizer.encode(prompt, add_special_tokens=False).ids)
  return set()


def _words(
  folder: Path, tokenizer: tokenizers.Tokenizer, stops: tuple[int, ...]
) -> list[str]:
  """A sentence for each token of ordinary text at which outputs would end."""
  added = tokenizer.get_added_tokens_decoder()
  return [
    f'{folder} ends outputs at token {n}, {word!r}, which is one of ordinary text: '
    f'outputs with it are cut off there; correct eos_token_id in {SETTINGS[1]}, or in '
    f'{SETTINGS[2]} if that names none.'
    for n in stops
    if n not in added and (word := tokenizer.id_to_token(n)) is not None
  ]


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
    f'{added_tokens.ROLES} names one: it writes nothing in its place.'
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


def _named(folder: Path) -> added_tokens.Named:
  """The tokens that the files beside tokenizer.json name."""
  files = {name: _settings(folder / name) for name in added_tokens.FILES}
  try:
    return added_tokens.read(files)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    there = [name for name in added_tokens.FILES if files[name]]
    raise HubError(
      f'{folder}: {", ".join(there)}: expected added tokens by their number, and each '
      f'token as a text or with its content ({error!r})'
    ) from error


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
  ids_there = range(max(num_ids(tokenizer), _rows(settings) or 0))
  ends = _ends(settings) if own is None else [own, *_ends(settings)]
  found = [n for n in ends if n in ids_there]
  if not found:
    raise HubError(
      f'{folder}: expected an eos_token in {SETTINGS[0]} or {added_tokens.ROLES}, or '
      f'an eos_token_id in {" or ".join(SETTINGS[1:])}, found none: nothing would end '
      'an output'
    )
  return tuple(dict.fromkeys(found))


def _rows(settings: Mapping[str, Mapping[str, Any]]) -> int | None:
  """The rows of the embedding, as far as config.json says."""
  rows = settings[SETTINGS[2]].get('vocab_size')
  return rows if type(rows) is int else None


def _ends(settings: Mapping[str, Mapping[str, Any]]) -> list[int]:
  """The tokens that end what a model generates, by what is said beside its weights.

  config.json counts where generation_config.json names none, as in transformers: it is
  the older of the two, and keeps what it had when the other one is changed.
  """
  for name in SETTINGS[1:]:
    given = settings[name].get('eos_token_id')
    if found := [n for n in _listed(given) if type(n) is int]:
      return found
  return []


def _listed(given: Any) -> list[Any]:
  return given if isinstance(given, list) else [given]


def bos_id(folder: Path) -> int | None:
  """The token that a checkpoint's tokenizer puts before each text, or None."""
  before, _ = surroundings.around(_read(folder))
  return before[0] if before else None


def named_bos_id(folder: Path) -> int | None:
  """The token with the role of BOS, whether or not it is put before texts, or None."""
  named, tokenizer = _named(folder), _read(folder)
  named.add_to(tokenizer, _rows({SETTINGS[2]: _settings(folder / SETTINGS[2])}))
  role = named.roles.get('bos_token')
  return tokenizer.token_to_id(role.content) if role else None


def template(folder: Path) -> str | None:
  """The chat template of a checkpoint, or None."""
  return templates(folder).get(DEFAULT)


def template_for_gguf(folder: Path) -> str | None:
  """The chat template of a checkpoint, or None.

  Raises:
    HubError: llama.cpp would write other prompts with it.
  """
  source = template(folder)
  if source is not None:
    roles = _named(folder).roles
    names = {role: token.content for role, token in roles.items()}
    ChatTemplate(source, names, time=now()).check_for_gguf()
  return source


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


def copies(folder: Path, eos_id: int | None = None) -> dict[str, str | Path]:
  """Returns a checkpoint's files but its weights, by name: a file, or another content.

  Two things change. A limit of length or a padding that tokenizer.json has kept of
  somebody's last call is left out, as it would cut and fill the texts of whoever opens
  the copy. And generation_config.json ends outputs at `eos_id` too, the token with
  which the model has learned to end its own.
  """
  found: dict[str, str | Path] = {name: folder / name for name in files(folder)}
  content = _settings(folder / TOKENIZER)
  if content.get('truncation') or content.get('padding'):
    plain = {**content, 'truncation': None, 'padding': None}
    found[TOKENIZER] = json.dumps(plain, indent=2)
  settings = {name: _settings(folder / name) for name in SETTINGS}
  ends = _ends(settings)
  if eos_id is not None and eos_id not in ends:
    ids: Any = [*ends, eos_id] if ends else eos_id
    more = {**settings[SETTINGS[1]], 'eos_token_id': ids}
    found[SETTINGS[1]] = json.dumps(more, indent=2) + '\n'
  return found


def copy(folder: Path, to: Path) -> None:
  """Writes a checkpoint's `copies` to another folder."""
  for name, content in copies(folder).items():
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
      shutil.copyfile(content, to / name)
    else:
      (to / name).write_text(content, encoding='utf-8')
