"""Chats with a model in the terminal: of a finished run, or a checkpoint of the hub.

  python -m scripts.chat runs/r1/final_rl-…
  python -m scripts.chat ~/models/Qwen…
  python -m scripts.chat model.gguf

Thoughts are dim, the answer is plain. Ctrl-C stops an answer; at the prompt, Ctrl-C or
Ctrl-D ends the program. `--prompt 'make 16 from 3 5 2'` asks one question. With
`--dtype bfloat16` or `--int8 True` the weights take a half or a quarter of the memory;
`scripts.chat_speed` says how fast that is.
"""

import dataclasses
import sys
from typing import Literal

import jax
import rich.console
import rich.text
import tyro

from r1jax.runtime import cli, compilation, memory
from r1jax.runtime.errors import user_errors
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import chat, problem_sets
from r1jax.stages.chat import ChatSession


@dataclasses.dataclass(frozen=True)
class Chat:
  """The model to chat with, and its settings."""

  # Work directory of a finished stage, folder of a checkpoint, or GGUF file
  path: tyro.conf.Positional[str] = ''
  prompt: str | None = None  # one question instead of a conversation
  template: str | None = None  # prompt template; None is the model's own
  # Variables of the chat template in JSON; None is those that a stage was trained with
  chat_template_kwargs: str | None = None
  system: str | None = None  # system message
  # Of products, keys and values; 'auto' is the stage's, and for a checkpoint the one
  # that this device computes faster
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto'
  int8: bool = False  # weights in int8: a quarter of the bytes, a little less exact
  max_length: int = 2048  # the most tokens of an answer
  seed: int = 0
  draw: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95)  # as in R1

  def __post_init__(self) -> None:
    if self.max_length < 1:
      raise ValueError(f'max_length: expected 1 or more, got {self.max_length}')
    problem_sets.check_seed(self.seed)


def print_answer(
  session: ChatSession,
  messages: list[dict[str, str]],
  key: jax.Array,
  most: int,
  console: rich.console.Console,
) -> str:
  """Prints an answer while it is generated; returns it without the thoughts."""
  answer = ''
  try:
    for piece in session.answer(messages, key, most):
      style = 'dim' if piece.thought else ''
      console.print(rich.text.Text(piece.text, style), end='', soft_wrap=True)
      answer += '' if piece.thought else piece.text
  except KeyboardInterrupt:
    console.print(' [stopped]', markup=False, end='')
  console.print()
  return answer.strip()


def chat_loop(config: Chat) -> None:
  """Answers one question, or all questions until the user ends the program.

  Raises:
    ValueError: there is no model at `config.path`; see `chat.open_session`.
  """
  if not config.path:
    raise ValueError(
      'path: expected the work directory of a finished stage or the folder of a '
      'checkpoint, as in: python -m scripts.chat runs/r1/final_rl-…'
    )
  compilation.keep_on_disk()
  memory.keep_large_blocks()
  session = chat.open_session(
    config.path,
    config.template,
    config.draw,
    config.chat_template_kwargs,
    config.dtype,
    config.int8,
  )
  for remark in session.policy.tokenizer.remarks:
    print(remark, file=sys.stderr)
  console = rich.console.Console(highlight=False)
  root = jax.random.key(config.seed)
  messages: list[dict[str, str]] = []
  if config.system is not None:
    messages.append({'role': 'system', 'content': config.system})
  if config.prompt is not None:
    messages.append({'role': 'user', 'content': _readable(config.prompt)})
    print_answer(session, messages, root, config.max_length, console)
    return
  while True:
    try:
      question = input('> ').strip()
    except (EOFError, KeyboardInterrupt):
      print()
      return
    if not question:
      continue
    messages.append({'role': 'user', 'content': _readable(question)})
    key = jax.random.fold_in(root, len(messages))
    try:
      answer = print_answer(session, messages, key, config.max_length, console)
    except chat.TooLongError as error:
      print(f'{error}; the conversation starts over, please ask again')
      messages = [message for message in messages if message['role'] == 'system']
      continue
    messages.append({'role': 'assistant', 'content': answer})


def _readable(question: str) -> str:
  """Returns a question without bytes that are invalid in the terminal's encoding."""
  return question.encode(errors='replace').decode()


if __name__ == '__main__':
  with user_errors():
    chat_loop(cli.parse(Chat()))
