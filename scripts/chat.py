"""Talk to a model in the terminal: one that was made here, or a checkpoint of the hub.

`python -m scripts.chat runs/r1/final_rl-…` or `python -m scripts.chat ~/models/Qwen…`.
Thoughts are dim, the answer is plain. Ctrl-C stops an answer, and at the prompt ends
the program, as Ctrl-D does. `--prompt 'make 16 from 3 5 2'` asks once.
"""

import dataclasses
import sys

import jax
import rich.console
import rich.text
import tyro

from r1jax.runtime import cli, compilation
from r1jax.runtime.errors import user_errors
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import chat, problem_sets
from r1jax.stages.chat import ChatSession


@dataclasses.dataclass(frozen=True)
class Chat:
  """Whom to talk to, and how."""

  # Work directory of a finished stage, or a folder as on the hub.
  path: tyro.conf.Positional[str] = ''
  prompt: str | None = None  # one question, instead of a conversation
  template: str | None = None  # None is the model's own; see `templates.TEMPLATES`
  # Variables for a chat template, in JSON; None is those that a stage was trained with
  chat_template_kwargs: str | None = None
  system: str | None = None  # a message before all others
  max_length: int = 2048  # tokens of an answer, at most
  seed: int = 0
  draw: SamplingConfig = SamplingConfig(temperature=0.6, top_p=0.95)  # R1's own

  def __post_init__(self) -> None:
    if self.max_length < 1:
      raise ValueError(f'max_length: expected 1 or more, got {self.max_length}')
    problem_sets.check_seed(self.seed)


def say(
  speaker: ChatSession,
  messages: list[dict[str, str]],
  key: jax.Array,
  most: int,
  console: rich.console.Console,
) -> str:
  """Prints an answer as it comes; what of it was not thought."""
  shown = ''
  try:
    for piece in speaker.answer(messages, key, most):
      style = 'dim' if piece.thought else ''
      console.print(rich.text.Text(piece.text, style), end='', soft_wrap=True)
      shown += '' if piece.thought else piece.text
  except KeyboardInterrupt:
    console.print(' [stopped]', markup=False, end='')
  console.print()
  return shown.strip()


def converse(config: Chat) -> None:
  """Asks once, or goes on until the user has enough."""
  if not config.path:
    raise ValueError(
      'expected the work directory of a finished stage or the folder of a checkpoint, '
      'as in: python -m scripts.chat runs/r1/final_rl-…'
    )
  compilation.keep_on_disk()
  speaker = chat.open_session(
    config.path, config.template, config.draw, config.chat_template_kwargs
  )
  for remark in speaker.model.tokenizer.remarks:
    print(remark, file=sys.stderr)
  console = rich.console.Console(highlight=False)
  root = jax.random.key(config.seed)
  messages: list[dict[str, str]] = []
  if config.system is not None:
    messages.append({'role': 'system', 'content': config.system})
  if config.prompt is not None:
    messages.append({'role': 'user', 'content': _readable(config.prompt)})
    say(speaker, messages, root, config.max_length, console)
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
      said = say(speaker, messages, key, config.max_length, console)
    except chat.TooLongError as error:
      print(f'{error}; the conversation begins anew, please ask again')
      messages = [message for message in messages if message['role'] == 'system']
      continue
    messages.append({'role': 'assistant', 'content': said})


def _readable(question: str) -> str:
  """A question without the bytes that were no text in the terminal's encoding."""
  return question.encode(errors='replace').decode()


if __name__ == '__main__':
  with user_errors():
    converse(cli.parse(Chat()))
