"""The files beside the weights of a Hugging Face checkpoint: read, listed, copied."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1jax.hub import added_tokens
from r1jax.hub.chat_template import HubError

TOKENIZER = 'tokenizer.json'
TEMPLATE = 'chat_template.jinja'
OTHERS = 'additional_chat_templates'  # a folder of further ones, by name
SETTINGS = (added_tokens.SETTINGS, 'generation_config.json', 'config.json')
# Beside the weights, what makes up a checkpoint; see `copy`.
FILES = (TOKENIZER, TEMPLATE, *SETTINGS, added_tokens.ROLES, added_tokens.ADDED)
DEFAULT = 'default'  # of several templates, the one that is used


def read_settings(file: Path) -> dict[str, Any]:
  if not file.exists():
    return {}
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise HubError(f'{file} cannot be read ({error})') from error
  if not isinstance(found, dict):
    raise HubError(f'{file}: expected an object, got a {type(found).__name__}')
  return found


def stop_ids(settings: Mapping[str, Mapping[str, Any]]) -> list[int]:
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


def chat_template(folder: Path) -> str | None:
  """The chat template of a checkpoint, or None."""
  return chat_templates(folder).get(DEFAULT)


def reads_clock(folder: Path) -> bool:
  """Whether a checkpoint's chat template writes the time, or part of it."""
  return 'strftime_now' in (chat_template(folder) or '')


def chat_templates(folder: Path) -> dict[str, str]:
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
  given = read_settings(folder / SETTINGS[0]).get('chat_template')
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
  content = read_settings(folder / TOKENIZER)
  if content.get('truncation') or content.get('padding'):
    plain = {**content, 'truncation': None, 'padding': None}
    found[TOKENIZER] = json.dumps(plain, indent=2)
  settings = {name: read_settings(folder / name) for name in SETTINGS}
  ends = stop_ids(settings)
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
