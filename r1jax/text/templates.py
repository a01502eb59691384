"""Prompt templates: the text around a question, and the form of outputs."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from r1jax.text import parsing

# 'r1_zero' is Table 1 of the first arXiv version of the R1 paper (2501.12948v1).
TEMPLATES: dict[str, str] = {
  'r1_zero': (
    'A conversation between User and Assistant. The user asks a question, and the'
    ' Assistant solves it. The assistant first thinks about the reasoning process in'
    ' the mind and then provides the user with the answer. The reasoning process and'
    ' answer are enclosed within <think> </think> and <answer> </answer> tags,'
    ' respectively, i.e., <think> reasoning process here </think>'
    ' <answer> answer here </answer>. User: {question}. Assistant:'
  ),
  'plain': 'User: {question}\nAssistant:',
  # The template of DeepSeek-R1, which ends inside the thoughts.
  'r1_chat': ('<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜><think>\n'),
}


Message = Mapping[str, str]  # 'role' and 'content'
Question = str | Sequence[Message]  # a text, or a conversation that ends with the user


def messages_of(question: Question) -> Sequence[Message]:
  """Returns the messages of a question; a text is one of the user."""
  if isinstance(question, str):
    return [{'role': 'user', 'content': question}]
  return question


def render(template_name: str, question: Question) -> str:
  """Returns the prompt: the template with `question` inserted.

  Raises:
    ValueError: the name is not in TEMPLATES, or the question is a conversation.
  """
  if template_name not in TEMPLATES:
    close = difflib.get_close_matches(template_name, TEMPLATES, n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise ValueError(
      f'template: expected one of {sorted(TEMPLATES)}, got {template_name!r}{hint}'
    )
  if not isinstance(question, str):
    raise ValueError(
      f'template: expected one of {", ".join(CHATS)} for a question of several '
      f'messages, got {template_name!r}, which takes one text'
    )
  # Not str.format: a question may contain braces.
  return TEMPLATES[template_name].replace('{question}', question)


SPECIAL = re.compile('<｜[^｜]*｜>')


def is_chat(template: str) -> bool:
  """Returns whether outputs follow the prompt of this template without a space."""
  return template not in ('r1_zero', 'plain')


Chat = Callable[[Sequence[Message]], str]  # messages -> a prompt
CHAT = 'chat'  # the tokenizer's own template
CHAT_TAGS = 'chat_tags'  # the same, after an example of the format with tags
CHAT_BOXED = 'chat_boxed'  # the same, after BOXED at the end of the question
# The tokenizer's own, and then `parsing.OPEN_BOX`: the model writes the answer at once.
CHAT_ANSWER = 'chat_answer'
# The tokenizer's own, for questions that ask for a last line 'Answer: …', as DAPO's do.
CHAT_LINE = 'chat_line'
CHAT_CODE = 'chat_code'  # the same, after CODE at the end of the question
CHATS = (CHAT, CHAT_TAGS, CHAT_BOXED, CHAT_ANSWER, CHAT_LINE, CHAT_CODE)
_FORMS: dict[str, parsing.Form] = {
  CHAT_BOXED: 'boxed',
  CHAT_CODE: 'code',
  CHAT_ANSWER: 'boxed',
  CHAT_LINE: 'line',
}
BOXED = 'Reason step by step, and write the final answer within \\boxed{}.'
CODE = 'Write the whole program in Python, in one block that begins with ```python.'
_REQUESTS = {CHAT_BOXED: BOXED, CHAT_CODE: CODE}
EXAMPLE: tuple[Message, ...] = (
  {
    'role': 'user',
    'content': (
      'Think about each question first, then answer it. Write your reasoning within'
      ' <think> </think> tags and the answer alone within <answer> </answer> tags, like'
      ' this: <think>reasoning process here</think><answer>answer here</answer>\n\n'
      'Tom has 3 bags with 4 apples each and eats 2 apples. How many apples are left?'
    ),
  },
  {
    'role': 'assistant',
    'content': (
      '<think>3 bags with 4 apples each are 3 * 4 = 12 apples. 12 - 2 = 10.</think>'
      '<answer>10</answer>'
    ),
  },
)


def beginning_with(system: str, chat: Chat) -> Chat:
  """Returns `chat` with a system message for messages that have none."""

  def begun(messages: Sequence[Message]) -> str:
    if messages[0]['role'] == 'system':
      return chat(messages)
    return chat([{'role': 'system', 'content': system}, *messages])

  return begun


def form(template: str) -> parsing.Form:
  """Returns the form of outputs that a template asks for."""
  return _FORMS.get(template, 'tags')


def with_request(template: str, messages: Sequence[Message]) -> list[Message]:
  """Returns the messages with what asks for the template's form of outputs.

  For CHAT_TAGS that is EXAMPLE, after any system message; for CHAT_BOXED and CHAT_CODE
  it is BOXED and CODE, at the end of the last message.
  """
  if request := _REQUESTS.get(template):
    *before, last = messages
    return [*before, {**last, 'content': f'{last["content"]}\n\n{request}'}]
  if template != CHAT_TAGS:
    return list(messages)
  first = 1 if messages[0]['role'] == 'system' else 0
  return [*messages[:first], *EXAMPLE, *messages[first:]]
