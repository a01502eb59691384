"""Chat templates: jinja2 programs that turn messages into a prompt.

A template comes with its checkpoint, so it runs in a sandbox: it can read the messages,
the names of special tokens and the user's variables, but neither files nor Python
objects. It gets the variables that `apply_chat_template` of transformers passes.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from r1jax.plain import JsonObject
from r1jax.text.templates import Message

GIVEN = ('messages', 'tools', 'documents', 'add_generation_prompt')  # to every template
_NONE = {'tools': None, 'documents': None}
_OF_GGUF = ('bos_token', 'eos_token')
_TURNS = ('system', 'user', 'assistant', 'user')
# Conversations that probe a template; some templates refuse a system message.
PROBES = [
  [{'role': role, 'content': 'a'} for role in roles]
  for roles in (_TURNS, _TURNS[1:], _TURNS[1:2])
]


class HubError(ValueError):
  """Tokenizer files or a download that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template with the variables that transformers passes to it."""

  source: str
  names: Mapping[str, str]  # 'bos_token', 'eos_token', …
  variables: JsonObject = dataclasses.field(default_factory=dict)  # of the user
  time: datetime.datetime | None = None  # for strftime_now; None is the current time

  def render(self, messages: Sequence[Message]) -> str:
    """Returns the prompt: the conversation up to the beginning of the model's turn.

    Raises:
      HubError: the template is invalid or refuses these messages.
    """
    return self._write(messages, {**self.names, **self.variables, **_NONE})

  def _write(self, messages: Sequence[Message], given: JsonObject) -> str:
    try:
      return self._template.render(
        **given, messages=list(messages), add_generation_prompt=True
      )
    except Exception as error:  # a template is a program and may fail in any way
      raise HubError(f'the chat template cannot write this: {error}') from error

  def check_for_gguf(self) -> None:
    """Raises HubError if llama.cpp would write other prompts or refuse the file.

    llama.cpp passes only BOS and EOS of the special tokens to a template, and `tools`
    and `documents` are undefined instead of none; its `tojson` has no `sort_keys`.
    """
    if 'sort_keys' in self.source:
      raise HubError(
        'chat_template: expected tojson without sort_keys for GGUF, since llama.cpp '
        'refuses the file; remove sort_keys'
      )
    fewer = {name: self.names[name] for name in _OF_GGUF if name in self.names}
    written, reason = False, ''
    for messages in PROBES:
      try:
        expected = self.render(messages)
      except HubError as error:
        reason = str(error)
        continue
      written = True
      try:
        same = self._write(messages, fewer) == expected
      except HubError:
        same = False
      if not same:
        raise HubError(
          'chat_template: expected one that writes the same without tools, documents '
          'and special tokens other than BOS and EOS for GGUF, since llama.cpp passes '
          'none of these; write such tokens as text, and test for tools by truth value'
        )
    if not written:
      raise HubError(
        f'chat_template: expected one that writes conversations for GGUF, but {reason};'
        ' fix or delete it'
      )

  @property
  def reads(self) -> frozenset[str]:
    """The variables that the template uses; none if the template is invalid."""
    try:
      parsed = _ENVIRONMENT.parse(self.source)
    except jinja2.TemplateError:
      return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed) - {'strftime_now'})

  @functools.cached_property
  def _template(self) -> jinja2.Template:
    return _ENVIRONMENT.from_string(self.source, {'strftime_now': self._strftime})

  def _strftime(self, format: str) -> str:
    return (self.time or datetime.datetime.now()).strftime(format)


_TAGS = {'generation'}


class _Generation(jinja2.ext.Extension):
  """{% generation %} … {% endgeneration %} around the model's turns: writes its body.

  It has the scope of a macro call: variables that are set inside end with the block.
  """

  tags = _TAGS

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    block = jinja2.nodes.CallBlock(self.call_method('inside'), [], [], body)
    return block.set_lineno(line)

  def inside(self, caller: Callable[[], str]) -> str:
    """Returns the body of the block."""
    return caller()


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _json(
  value: object,
  ensure_ascii: bool = False,
  indent: int | str | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _environment() -> jinja2.Environment:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )
  environment.globals['raise_exception'] = _refuse
  environment.filters['tojson'] = _json
  return environment


_ENVIRONMENT = _environment()


def read_variables(given: str) -> JsonObject:
  """Returns the variables of a chat template from a JSON object; '' has none.

  Raises:
    HubError: the text is no JSON object, or has a variable of GIVEN.
  """
  try:
    found = json.loads(given) if given else {}
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise HubError(
      'chat_template_kwargs: expected an object in JSON, such as '
      f'\'{{"enable_thinking": false}}\', got {given!r}'
    )
  if taken := sorted(found.keys() & {*GIVEN, 'strftime_now', 'raise_exception'}):
    raise HubError(
      f'chat_template_kwargs: expected none of the variables that every chat template '
      f'gets, got {", ".join(taken)}; remove them'
    )
  return found
