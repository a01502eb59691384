"""Opens the tokenizer of a Hugging Face checkpoint, with its chat template.

Both are read as transformers reads them. `chat_template` runs the template.
"""

import datetime
import os
from collections.abc import Mapping
from pathlib import Path

import tokenizers

from r1jax.hub import added_tokens
from r1jax.hub.chat_template import GIVEN, PROBES, ChatTemplate, HubError
from r1jax.hub.checkpoint_files import (
  DEFAULT,
  SETTINGS,
  TOKENIZER,
  Settings,
  chat_template,
  chat_templates,
  eos_ids,
  read_settings,
  read_text,
)
from r1jax.plain import JsonObject
from r1jax.text import surroundings, templates
from r1jax.text.templates import Chat
from r1jax.text.tokenizer import Tokenizer, num_ids

# Tokens with these roles are not text. A template may use names of its own for others.
CONTROL = added_tokens.CONTROL


def now() -> datetime.datetime:
  """Returns the local time, in whole seconds."""
  return datetime.datetime.now().replace(microsecond=0)


def open_tokenizer(
  folder: str | os.PathLike[str],
  variables: JsonObject | None = None,
  time: datetime.datetime | None = None,
  system: str = '',
) -> Tokenizer:
  """Returns the tokenizer of a checkpoint, with its chat template if it has one.

  Args:
    folder: of the checkpoint, or its GGUF file.
    variables: of the chat template, in addition to those that every template gets.
    time: for the chat template; None is the current time at each call.
    system: message with which conversations begin that have none of their own.

  Raises:
    HubError: a file is missing or damaged, no token ends a sequence, or the chat
      template does not use one of the variables or the system message.
  """
  folder = Path(folder).expanduser()
  tokenizer = _read(folder)
  settings = {name: read_settings(folder / name) for name in SETTINGS}
  named = _named_tokens(folder)
  named.add_to(tokenizer, _embedding_rows(settings))
  names = {role: token.content for role, token in named.roles.items()}
  stops = _all_stop_ids(folder, settings, names, tokenizer)
  pad = tokenizer.token_to_id(names.get('pad_token', ''))
  found = chat_templates(folder)
  template = None
  if DEFAULT in found:
    template = ChatTemplate(found[DEFAULT], names, variables or {}, time)
  _check_variables(folder, template, variables or {})
  control = {tokenizer.token_to_id(names.get(f'{role}_token', '')) for role in CONTROL}
  return Tokenizer(
    tokenizer,
    pad_id=stops[0] if pad is None else pad,
    stop_ids=stops,
    chat=_chat(folder, template, system),
    control={n for n in control if n is not None} | _template_ids(tokenizer, template),
    remarks=[
      *_text_stop_remarks(folder, tokenizer, stops),
      *_template_remarks(folder, found, template),
    ],
    splits=bool(settings[SETTINGS[0]].get('split_special_tokens')),
  )


def _read(folder: Path) -> tokenizers.Tokenizer:
  text = read_text(folder / TOKENIZER)
  if text is None:
    raise HubError(f'{folder / TOKENIZER} does not exist')
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # the library raises no subclass
    raise HubError(f'{folder / TOKENIZER} cannot be read ({error})') from error
  # The file may keep both from an earlier call; transformers resets them too.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _check_variables(
  folder: Path, template: ChatTemplate | None, variables: JsonObject
) -> None:
  reads = template.reads if template and variables else frozenset()
  if unread := sorted(variables.keys() - reads):
    which = ', '.join(sorted(reads - {*GIVEN})) or 'none'
    raise HubError(
      f'chat_template_kwargs: expected variables that the chat template of {folder} '
      f'uses ({which}), got {", ".join(unread)}'
    )


def _chat(folder: Path, template: ChatTemplate | None, system: str) -> Chat | None:
  """Returns what formats messages, with the system message; None without a template."""
  if template is None:
    return None
  if not system:
    return template.render
  chat = templates.beginning_with(system, template.render)
  if system.strip() not in chat([{'role': 'user', 'content': ''}]):
    raise HubError(
      f'model.system: the chat template of {folder} writes no system message; leave it '
      'out'
    )
  return chat


def _template_ids(
  tokenizer: tokenizers.Tokenizer, template: ChatTemplate | None
) -> set[int]:
  """Returns the tokens that a template writes around messages."""
  if template is None:
    return set()
  for messages in PROBES:
    try:
      prompt = template.render(messages)
    except HubError:
      continue
    return set(tokenizer.encode(prompt, add_special_tokens=False).ids)
  return set()


def _text_stop_remarks(
  folder: Path, tokenizer: tokenizers.Tokenizer, stops: tuple[int, ...]
) -> list[str]:
  """Returns a warning for each token of ordinary text that would end outputs."""
  added = tokenizer.get_added_tokens_decoder()
  return [
    f'{folder} ends outputs at token {n}, {word!r}, which is ordinary text: outputs '
    f'that contain it are truncated there; fix eos_token_id in {SETTINGS[1]}, or in '
    f'{SETTINGS[2]} if the first names none.'
    for n in stops
    if n not in added and (word := tokenizer.id_to_token(n)) is not None
  ]


def _template_remarks(
  folder: Path, found: Mapping[str, str], template: ChatTemplate | None
) -> list[str]:
  """Returns warnings about a checkpoint's chat templates."""
  if found and template is None:
    return [
      f'{folder} has no chat template named {DEFAULT!r}, the only one that is used; it '
      f'has {", ".join(sorted(found))}.'
    ]
  if template is None:
    return []
  roles = {f'{role}_token' for role in CONTROL} & template.reads
  missing = roles - {*template.names, *template.variables}
  return [
    f'The chat template of {folder} uses {name}, but neither {SETTINGS[0]} nor '
    f'{added_tokens.ROLES} defines it: it writes nothing there.'
    for name in sorted(missing)
  ]


def _named_tokens(folder: Path) -> added_tokens.Named:
  """Returns the tokens that files other than tokenizer.json define."""
  files = {name: read_settings(folder / name) for name in added_tokens.FILES}
  try:
    return added_tokens.read(files)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    there = [name for name in added_tokens.FILES if files[name]]
    raise HubError(
      f'{folder}: {", ".join(there)}: expected added tokens by id, and each token as a '
      f'string or as an object with its content ({error!r})'
    ) from error


def _all_stop_ids(
  folder: Path,
  settings: Settings,
  names: Mapping[str, str],
  tokenizer: tokenizers.Tokenizer,
) -> tuple[int, ...]:
  """Returns the tokens that end a sequence: the tokenizer's EOS, then the model's.

  The model may name a row of its embedding for which the tokenizer has no token.
  """
  eos = tokenizer.token_to_id(names.get('eos_token', ''))
  ids_there = range(max(num_ids(tokenizer), _embedding_rows(settings) or 0))
  ends = eos_ids(settings) if eos is None else [eos, *eos_ids(settings)]
  found = [n for n in ends if n in ids_there]
  if not found:
    raise HubError(
      f'{folder}: expected an eos_token in {SETTINGS[0]} or {added_tokens.ROLES}, or '
      f'an eos_token_id in {" or ".join(SETTINGS[1:])}, found none: outputs would '
      'never end'
    )
  return tuple(dict.fromkeys(found))


def _embedding_rows(settings: Settings) -> int | None:
  """Returns the rows of the embedding, or None if config.json does not say."""
  rows = settings[SETTINGS[2]].get('vocab_size')
  return rows if type(rows) is int else None


def bos_id(folder: Path) -> int | None:
  """Returns the token that the tokenizer puts before each text, or None."""
  before, _ = surroundings.around(_read(folder))
  return before[0] if before else None


def named_bos_id(folder: Path) -> int | None:
  """Returns the token with the role of BOS, or None; texts may begin without it."""
  named, tokenizer = _named_tokens(folder), _read(folder)
  named.add_to(
    tokenizer, _embedding_rows({SETTINGS[2]: read_settings(folder / SETTINGS[2])})
  )
  role = named.roles.get('bos_token')
  return tokenizer.token_to_id(role.content) if role else None


def template_for_gguf(folder: Path) -> str | None:
  """Returns the chat template of a checkpoint, or None.

  Raises:
    HubError: llama.cpp would write different prompts with it.
  """
  source = chat_template(folder)
  if source is not None:
    roles = _named_tokens(folder).roles
    names = {role: token.content for role, token in roles.items()}
    ChatTemplate(source, names, time=now()).check_for_gguf()
  return source
