"""Chats with a model: streams its output, with thoughts separate from the answer."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax.model import decode_weights, decoder
from r1jax.rollout.policy import Policy
from r1jax.runtime import compilation
from r1jax.sampling import streaming
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sharding import constrain
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import any_model
from r1jax.text import parsing, templates
from r1jax.text.tokenizer import pad_left

SMALLEST = 64  # prompts are padded to 64, 128, 256, … tokens
_TAG = re.compile('|'.join(parsing.TAGS))


class TooLongError(ValueError):
  """The conversation has more tokens than the model has positions."""


class Chunk(NamedTuple):
  """A piece of an output."""

  text: str
  thought: bool  # whether it belongs to the thoughts


@dataclasses.dataclass(frozen=True)
class ChatSession:
  """A model with its parameters, ready to chat."""

  policy: Policy
  params: optax.Params
  max_positions: int  # of prompt and output together
  draw: SamplingConfig

  @functools.cached_property
  def _prefill(self) -> jax.stages.Wrapped:
    function = functools.partial(streaming.prefill, model=self.policy.functions)
    options = compilation.options()
    return jax.jit(function, static_argnames='room', compiler_options=options)

  @functools.cached_property
  def decode_params(self) -> decode_weights.DecodeParams:
    """The parameters as they are read at each token: once a conversation."""
    function = functools.partial(
      decode_weights.decode_params, self.policy.config, single=True
    )
    return jax.jit(function, compiler_options=compilation.options())(self.params)

  @functools.cached_property
  def _decode_step(self) -> jax.stages.Wrapped:
    def step(
      params: optax.Params,
      state: streaming.DecodeState,
      token: jax.Array,
      uniform: jax.Array,
    ) -> tuple[jax.Array, streaming.DecodeState]:
      functions = self.policy.functions
      logits, state = streaming.decode_step(params, state, token, model=functions)
      return self._draw(uniform, logits), state

    options = compilation.options()
    if constrain.platform() == 'cpu':
      # At one row the products are loops of vector instructions. Of 16 numbers instead
      # of 8, where the processor has them, two thirds of the time for bfloat16.
      options['xla_cpu_prefer_vector_width'] = 512
    return jax.jit(step, donate_argnums=1, compiler_options=options)

  def _draw(self, uniform: jax.Array, logits: jax.Array) -> jax.Array:
    temperature = jnp.float32(self.draw.temperature)
    return sample_token(uniform, logits, self.draw, temperature)[0]

  def prompt(self, messages: Sequence[dict[str, str]]) -> tuple[str, list[int]]:
    """Returns the prompt of a conversation, as text and token ids.

    Templates other than chat templates contain the last question only.
    """
    tokenizer, template = self.policy.tokenizer, self.policy.template
    if template in templates.CHATS:
      prompt = tokenizer.chat_prompt(template, messages)
      return prompt, tokenizer.chat_ids(prompt)
    question = messages[-1]['content']
    return (
      tokenizer.prompt(template, question),
      tokenizer.prompt_ids(template, question),
    )

  def tokens(self, ids: Sequence[int], key: jax.Array, most: int) -> Iterator[int]:
    """Yields the tokens sampled after `ids`, up to a stop token or `most` tokens.

    Raises:
      TooLongError: the model has too few positions for the prompt.
    """
    room = min(most, self.max_positions - len(ids))
    if room < 1:
      raise TooLongError(
        f'expected at most {self.max_positions - 1} tokens, the positions that the '
        f'model knows less one for an answer, got a conversation of {len(ids)}'
      )
    size = SMALLEST
    while size < len(ids):
      size *= 2
    tokenizer = self.policy.tokenizer
    rows, mask = pad_left([list(ids)], size, tokenizer.pad_id)
    room_at_most = min(most, self.max_positions)  # the same for all prompts
    logits, state = self._prefill(self.params, rows, mask, room=room_at_most)
    uniform = np.asarray(jax.random.uniform(key, (room, 1)))
    token = self._draw(uniform[0], logits)
    for n in range(room):
      found = int(token[0])
      if found in tokenizer.stop_ids:
        return
      yield found
      if n + 1 < room:
        token, state = self._decode_step(
          self.decode_params, state, token, uniform[n + 1]
        )

  def answer(
    self, messages: Sequence[dict[str, str]], key: jax.Array, most: int
  ) -> Iterator[Chunk]:
    """Yields the answer to the last message in pieces, without tags."""
    prompt, ids = self.prompt(messages)
    stream = self.policy.tokenizer.stream()
    pieces = (stream(token) for token in self.tokens(ids, key, most))
    opening = parsing.opened(prompt)
    if opening == parsing.OPEN_BOX:
      yield Chunk(opening, thought=False)
    yield from split_thoughts(pieces, opening.strip() == '<think>')


def split_thoughts(pieces: Iterator[str], thinking: bool = False) -> Iterator[Chunk]:
  """Yields text marked as thought or answer; holds back what may be part of a tag."""
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
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto',
  int8: bool = False,
) -> ChatSession:
  """Returns a chat session with the model of a stage or of a hub checkpoint.

  Args:
    path: the work directory of a finished stage, the folder of a checkpoint, or a GGUF
      file.
    template: of the prompts; None is that of the stage or of the checkpoint.
    draw: how to sample a token.
    chat_template_kwargs: variables for the chat template, in JSON; None is those that
      the stage was trained with.
    dtype: of products, keys and values; see `any_model.look_up`.
    int8: round the weight matrices to int8, with a scale for each output.

  Raises:
    ValueError: the path holds none; see `any_model.look_up`.
  """
  model = any_model.look_up(
    path,
    'path',
    template=template,
    checkpoint_template=templates.CHAT,
    chat_template_kwargs=chat_template_kwargs,
    dtype=dtype,
  )
  params = model.params(make_mesh(jax.devices()[:1]))
  params = _rounded(params, model.policy, int8)
  return ChatSession(model.policy, params, model.max_positions, draw)


def _rounded(params: optax.Params, policy: Policy, int8: bool) -> optax.Params:
  """Returns the parameters, with weight matrices in int8 if it is wanted."""
  if not int8:
    return params
  return jax.jit(functools.partial(decoder.quantize, config=policy.config))(params)
