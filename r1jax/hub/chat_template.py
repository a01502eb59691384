"""Chat templates: small programs in jinja2 that write messages as a model reads them.

One comes with its checkpoint, so it runs in a sandbox: it sees the messages, a few
names of tokens and what the user sets, and reaches neither files nor Python's objects.
It is given what `apply_chat_template` of transformers gives it.
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

GIVEN = ('messages', 'tools', 'documents', 'add_generation_prompt')  # to each template
_NONE = {'tools': None, 'documents': None}
_OF_GGUF = ('bos_token', 'eos_token')
_TURNS = ('system', 'user', 'assistant', 'user')
# Conversations by which a template is looked at; some refuse a message of the system.
PROBES = [
  [{'role': role, 'content': 'a'} for role in roles]
  for roles in (_TURNS, _TURNS[1:], _TURNS[1:2])
]

Message = Mapping[str, str]  # 'role' and 'content'


class HubError(ValueError):
  """Files of a tokenizer that can't be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template with all that it may read, as transformers gives it to one."""

  source: str
  names: Mapping[str, str]  # 'bos_token', 'eos_token', …
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # a user's
  time: datetime.datetime | None = None  # what strftime_now tells; None is the clock's

  def render(self, messages: Sequence[Message]) -> str:
    """Returns the conversation as the model reads it, up to where its turn begins.

    Raises:
      HubError: the template is no template, or refuses these messages.
    """
    return self._write(messages, {**self.names, **self.variables, **_NONE})

  def _write(self, messages: Sequence[Message], given: Mapping[str, Any]) -> str:
    try:
      return self._template.render(
        **given, messages=list(messages), add_generation_prompt=True
      )
    except Exception as error:  # a template is a program, and may do anything wrong
      raise HubError(f'the chat template cannot write this: {error}') from error

  def check_for_gguf(self) -> None:
    """Raises HubError where llama.cpp would write other prompts, or open no such file.

    Of the special tokens it gives a template BOS and EOS alone, and `tools` and
    `documents` are undefined there, not none; its `tojson` knows no `sort_keys`.
    """
    if 'sort_keys' in self.source:
      raise HubError(
        'chat_template: expected tojson without sort_keys for GGUF, as llama.cpp opens '
        'no file with it; leave it out'
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
          'and special tokens other than BOS and EOS for GGUF, as llama.cpp gives it '
          'none of these; write such tokens as text, and ask for tools by their truth'
        )
    if not written:
      raise HubError(
        f'chat_template: expected one that writes conversations for GGUF, but {reason};'
        ' correct it, or delete it'
      )

  @property
  def reads(self) -> frozenset[str]:
    """The variables that the template may be given; none if it is no template."""
    try:
      parsed = _ENVIRONMENT.parse(self.source)
    except jinja2.TemplateError:
      return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed) - {'strftime_now'})

  @functools.cached_property
  def _template(self) -> jinja2.Template:
    return _ENVIRONMENT.from_string(self.source, {'strftime_now': self._told})

  def _told(self, format: str) -> str:
    return (self.time or datetime.datetime.now()).strftime(format)


_TAGS = {'generation'}


class _Generation(jinja2.ext.Extension):
  """{% generation %} … {% endgeneration %}, around what the model says: no change.

  Like a macro that is called where it stands: what is set inside ends with it.
  """

  tags = _TAGS

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    block = jinja2.nodes.CallBlock(self.call_method('inside'), [], [], body)
    return block.set_lineno(line)

  def inside(self, caller: Callable[[], str]) -> str:
    """What the block says."""
    return caller()


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _json(
  value: Any,
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


def read_variables(given: str) -> dict[str, Any]:
  """Returns the variables for a chat template that a text of JSON names; '' names none.

  Raises:
    HubError: it is no object, or names what each template is given anyhow.
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
      f'is given, got {", ".join(taken)}; leave that out'
    )
  return found
