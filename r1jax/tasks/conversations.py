"""Questions that are conversations: lists of messages in a row of a data file."""

from typing import Any

from r1jax.tasks import rows
from r1jax.text.templates import Message, Question

ROLES = ('system', 'user', 'assistant')


def question(messages: list[Any], name: str) -> Question:
  """Returns the question that the messages of a field ask.

  That is the text of a single message of the user, and all messages otherwise, of which
  the last one is the user's. Of a message the role and the content are kept.

  Args:
    messages: objects with `role` and `content`, as chat templates take them.
    name: of the field.

  Raises:
    ValueError: with the end of a sentence whose subject is the row.
  """
  found = [_message(one, n, name) for n, one in enumerate(messages, 1)]
  if not found or found[-1]['role'] != 'user':
    last = f'one of the {found[-1]["role"]}' if found else 'none'
    raise ValueError(f'has {last} as the last message of {name!r}, not one of the user')
  return found[0]['content'] if len(found) == 1 else tuple(found)


def _message(message: Any, n: int, name: str) -> Message:
  if not isinstance(message, dict) or not {'role', 'content'} <= message.keys():
    raise ValueError(
      f'has no object with role and content as message {n} of {name!r}: {message!r:.60}'
    )
  role, content = message['role'], rows.text(message['content'])
  first = ROLES if n == 1 else ROLES[1:]  # a system message begins a conversation
  if role not in first:
    raise ValueError(
      f'has the role {role!r} in message {n} of {name!r}, not {" or ".join(first)}'
    )
  if not content:
    raise ValueError(f'has no text as the content of message {n} of {name!r}')
  return {'role': role, 'content': content}
