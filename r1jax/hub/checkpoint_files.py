"""Reads, lists and copies the files of a Hugging Face checkpoint except its weights.

A GGUF file is read as if it were a folder with the files that are made from it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from r1jax.hub import added_tokens, gguf_files
from r1jax.hub.chat_template import HubError
from r1jax.plain import JsonObject

TOKENIZER = 'tokenizer.json'
TEMPLATE = 'chat_template.jinja'
OTHERS = 'additional_chat_templates'  # a folder of further templates, by name
SETTINGS = (added_tokens.SETTINGS, 'generation_config.json', 'config.json')
# All files of a checkpoint except its weights; see `copy`.
FILES = (TOKENIZER, TEMPLATE, *SETTINGS, added_tokens.ROLES, added_tokens.ADDED)
DEFAULT = 'default'  # the name of the template that is used


Settings = Mapping[str, JsonObject]  # the contents of SETTINGS, by name


def read_text(file: Path) -> str | None:
  """Returns the text of a file of a checkpoint, or None if it has no such file.

  Raises:
    HubError: the file is damaged.
  """
  if file.parent.is_file():
    return gguf_files.texts(file.parent).get(file.name)
  try:
    return file.read_text(encoding='utf-8') if file.exists() else None
  except (OSError, ValueError) as error:
    raise HubError(f'{file} cannot be read ({error})') from error


def read_bytes(file: Path) -> bytes:
  """Returns the content of a file that a checkpoint has."""
  if file.parent.is_file():
    return gguf_files.texts(file.parent)[file.name].encode()
  return file.read_bytes()


def read_settings(file: Path) -> JsonObject:
  """Returns the object in a JSON file, {} if there is no file.

  Raises:
    HubError: the file is damaged.
  """
  text = read_text(file)
  if text is None:
    return {}
  try:
    found = json.loads(text)
  except ValueError as error:
    raise HubError(f'{file} cannot be read ({error})') from error
  if not isinstance(found, dict):
    raise HubError(f'{file}: expected an object, got a {type(found).__name__}')
  return found


def eos_ids(settings: Settings) -> list[int]:
  """Returns the tokens that end an output, from generation_config.json or config.json.

  As in transformers, config.json counts only where generation_config.json names none:
  it is older, and is often left unchanged when the other one is edited.
  """
  for name in SETTINGS[1:]:
    given = settings[name].get('eos_token_id')
    if found := [n for n in _listed(given) if type(n) is int]:
      return found
  return []


def _listed(given: object) -> list[object]:
  return given if isinstance(given, list) else [given]


def chat_template(folder: Path) -> str | None:
  """Returns the chat template of a checkpoint, or None."""
  return chat_templates(folder).get(DEFAULT)


def reads_clock(folder: Path) -> bool:
  """Returns whether a checkpoint's chat template writes a date or time."""
  return 'strftime_now' in (chat_template(folder) or '')


def chat_templates(folder: Path) -> dict[str, str]:
  """Returns the chat templates of a checkpoint by name; most have one, the default.

  If there are templates in files of their own, those in tokenizer_config.json are
  ignored.

  Raises:
    HubError: a file cannot be read.
  """
  files = {file.stem: file for file in sorted((folder / OTHERS).glob('*.jinja'))}
  found = {name: read_text(file) for name, file in files.items()}
  found = {DEFAULT: read_text(folder / TEMPLATE), **found}
  if texts := {name: text for name, text in found.items() if text is not None}:
    return texts
  given = read_settings(folder / SETTINGS[0]).get('chat_template')
  if isinstance(given, list):  # several with names
    named = [one for one in given if isinstance(one, dict)]
    given = {str(one.get('name')): one.get('template') for one in named}
  elif given is not None:
    given = {DEFAULT: given}
  for source in (given or {}).values():
    if not isinstance(source, str):
      raise HubError(
        f'{folder / SETTINGS[0]}: chat_template: expected a string, got '
        f'{type(source).__name__}'
      )
  return given or {}


def files(folder: Path) -> list[str]:
  """Returns the names of a checkpoint's files except its weights."""
  if folder.is_file():
    return list(gguf_files.texts(folder))
  others = [
    f'{OTHERS}/{file.name}' for file in sorted((folder / OTHERS).glob('*.jinja'))
  ]
  return [name for name in FILES if (folder / name).exists()] + others


def copies(folder: Path, eos_id: int | None = None) -> dict[str, str | Path]:
  """Returns the files to export by name: a path to copy, or a text to write.

  All files of the checkpoint but its weights, with two changes. Truncation and padding
  are removed from tokenizer.json, which keeps them from an earlier call; they would
  truncate and pad the texts of users of the copy. And generation_config.json also ends
  outputs at `eos_id`, the token with which the model has learned to end its outputs.
  """
  found: dict[str, str | Path] = {name: folder / name for name in files(folder)}
  if folder.is_file():
    found |= gguf_files.texts(folder)
  content = read_settings(folder / TOKENIZER)
  if content.get('truncation') or content.get('padding'):
    plain = {**content, 'truncation': None, 'padding': None}
    found[TOKENIZER] = json.dumps(plain, indent=2)
  settings = {name: read_settings(folder / name) for name in SETTINGS}
  ends = eos_ids(settings)
  if eos_id is not None and eos_id not in ends:
    ids = [*ends, eos_id] if ends else eos_id
    more = {**settings[SETTINGS[1]], 'eos_token_id': ids}
    found[SETTINGS[1]] = json.dumps(more, indent=2) + '\n'
  return found


def copy(folder: Path, to: Path) -> None:
  """Writes the `copies` of a checkpoint's files to another folder."""
  for name, content in copies(folder).items():
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
      shutil.copyfile(content, to / name)
    else:
      (to / name).write_text(content, encoding='utf-8')
