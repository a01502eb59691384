"""A conversation with a model: token by token, thoughts told apart from the answer."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.hub import chat_template, families, tokenizer_files, weights
from r1jax.hub.download import download
from r1jax.model import decode
from r1jax.runtime import compilation
from r1jax.runtime.workdir import RECORD
from r1jax.sampling import streaming
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import param_shardings
from r1jax.stages import artifact, from_hub
from r1jax.stages.artifact import Artifact
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.policy import Policy
from r1jax.text import parsing, templates
from r1jax.text.tokenizer import Tokenizer, pad_left

SMALLEST = 64  # tokens that a prompt is padded to, or twice, four times, … as many
_TAG = re.compile('|'.join(parsing.TAGS))


class TooLongError(ValueError):
  """A conversation that the model cannot read to its end."""


class Chunk(NamedTuple):
  """A piece of an output."""

  text: str
  thought: bool


@dataclasses.dataclass(frozen=True)
class ChatSession:
  """A model with its parameters."""

  model: Policy
  params: Any
  longest: int  # positions that the model knows; prompt and output have to fit
  draw: SamplingConfig

  @functools.cached_property
  def _listen(self) -> Any:
    function = functools.partial(streaming.prefill, model=self.model.functions)
    options = compilation.options()
    return jax.jit(function, static_argnames='room', compiler_options=options)

  @functools.cached_property
  def _turned(self) -> Any:
    """The parameters as they are read at each token: once a conversation."""
    turned = functools.partial(decode.decode_params, self.model.config)
    return jax.jit(turned, compiler_options=compilation.options())(self.params)

  @functools.cached_property
  def _speak(self) -> Any:
    def step(params: Any, spoken: Any, token: jax.Array, uniform: jax.Array) -> Any:
      functions = self.model.functions
      logits, spoken = streaming.decode_step(params, spoken, token, model=functions)
      return self._draw(uniform, logits), spoken

    options = compilation.options()
    return jax.jit(step, donate_argnums=1, compiler_options=options)

  def _draw(self, uniform: jax.Array, logits: jax.Array) -> jax.Array:
    temperature = jnp.float32(self.draw.temperature)
    return sample_token(uniform, logits, self.draw, temperature)[0]

  def prompt(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
    """The conversation as the model reads it, as text and ids.

    Only the templates of a chat hold more than the last question.
    """
    tokenizer, template = self.model.tokenizer, self.model.template
    if template in templates.CHATS:
      prompt = tokenizer.chat_prompt(templates.with_example(template, messages))
      return prompt, tokenizer.chat_ids(prompt)
    question = messages[-1]['content']
    return (
      tokenizer.prompt(template, question),
      tokenizer.prompt_ids(template, question),
    )

  def tokens(self, ids: Sequence[int], key: jax.Array, most: int) -> Iterator[int]:
    """What follows these ids, up to a stop token, or to `most` tokens.

    Raises:
      TooLongError: the model knows too few positions for the prompt.
    """
    room = min(most, self.longest - len(ids))
    if room < 1:
      raise TooLongError(
        f'expected at most {self.longest - 1} tokens, the positions that the model '
        f'knows less one for an answer, got a conversation of {len(ids)}'
      )
    size = SMALLEST
    while size < len(ids):
      size *= 2
    tokenizer = self.model.tokenizer
    rows, mask = pad_left([list(ids)], size, tokenizer.pad_id)
    room_at_most = min(most, self.longest)  # the same for all prompts
    logits, spoken = self._listen(self.params, rows, mask, room=room_at_most)
    uniform = np.asarray(jax.random.uniform(key, (room, 1)))
    token = self._draw(uniform[0], logits)
    for n in range(room):
      found = int(token[0])
      if found in tokenizer.stop_ids:
        return
      yield found
      if n + 1 < room:
        token, spoken = self._speak(self._turned, spoken, token, uniform[n + 1])

  def answer(
    self, messages: Sequence[dict[str, str]], key: jax.Array, most: int
  ) -> Iterator[Chunk]:
    """The answer to the last message, piece by piece, without its tags."""
    prompt, ids = self.prompt(messages)
    stream = self.model.tokenizer.stream()
    pieces = (stream(token) for token in self.tokens(ids, key, most))
    yield from split_thoughts(pieces, parsing.opened(prompt).strip() == '<think>')


def split_thoughts(pieces: Iterator[str], thinking: bool = False) -> Iterator[Chunk]:
  """Thoughts and the rest; what may become a tag is held back until it is known."""
  held = ''
  for piece in pieces:
    held += piece
    while found := _TAG.search(held):
      if found.start():
        yield Chunk(held[: found.start()], thinking)
      thinking = found[0] == '<think>'
      held = held[found.end() :]
    begun = held.rfind('<')
    keep = len(held)
    if begun >= 0 and any(tag.startswith(held[begun:]) for tag in parsing.TAGS):
      keep = begun
    if keep:
      yield Chunk(held[:keep], thinking)
    held = held[keep:]
  if held:
    yield Chunk(held, thinking)


def open_session(
  path: str,
  template: str | None,
  draw: SamplingConfig,
  chat_template_kwargs: str | None = None,
) -> ChatSession:
  """A model to talk to: a finished stage's, or a checkpoint's of the hub.

  Args:
    path: the work directory of a stage, or the folder of a checkpoint.
    template: None is the stage's, or the checkpoint's own.
    draw: how tokens are drawn.
    chat_template_kwargs: variables for the chat template, in JSON; None is those that
      the stage was trained with.

  Raises:
    ValueError: there is neither; see `artifact.load`, `from_hub.look_up`.
  """
  mesh = make_mesh(jax.devices()[:1])
  folder = download(path, 'path')
  if not any((folder / name).is_file() for name in (RECORD, 'config.json')):
    raise ValueError(
      f'path: expected the work directory of a finished stage or the folder of a '
      f'checkpoint, got {folder}, which has no {RECORD} and no config.json'
    )
  if (folder / RECORD).is_file():
    stage = artifact.load(folder)
    model = dataclasses.replace(
      stage.policy,
      tokenizer=_of_today(stage, chat_template_kwargs),
      template=template or stage.policy.template,
    )
    return ChatSession(model, stage.params(mesh), from_hub.positions(stage), draw)
  config = HubConfig(
    path=str(folder),
    template=template or templates.CHAT,
    chat_template_kwargs=chat_template_kwargs or '',
  )
  found = from_hub.look_up(config)
  longest = families.max_positions(found.checkpoint.raw)
  # In the file's own type: float32 would double what a folder in bfloat16 takes.
  params = weights.read(found.checkpoint, param_shardings(mesh, found.policy.names))
  return ChatSession(found.policy, params, longest, draw)


def _of_today(stage: Artifact, chat_template_kwargs: str | None) -> Tokenizer:
  """The tokenizer of a stage, whose chat template tells today's date, not the run's."""
  if not (stage.path / artifact.HUB).exists():
    return stage.policy.tokenizer
  variables = artifact.read_source(stage.path).chat_template_kwargs
  if chat_template_kwargs is not None:
    variables = chat_template.read_variables(chat_template_kwargs)
  return tokenizer_files.open_tokenizer(stage.path / artifact.HUB, variables)
