"""A policy: model config, tokenizer and prompt template, without parameters."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sharding.place import param_shardings, unbox
from r1jax.text import parsing, templates
from r1jax.text.tokenizer import Tokenizer
from r1jax.trees import Boxed, Matrices


@dataclasses.dataclass(frozen=True)
class Policy:
  """A model without its parameters: config, tokenizer and prompt template."""

  config: ModelConfig
  tokenizer: Tokenizer
  template: str  # a name in `templates.TEMPLATES`, or `templates.CHAT`
  rows: int = 0  # of the embedding; 0 is the tokenizer's number of tokens
  lora: LoraConfig = LoraConfig()  # with a rank, a stage trains and saves adapters

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding."""
    return self.rows or self.tokenizer.vocab_size

  @functools.cached_property
  def functions(self) -> DecoderFns:
    """The decoder's functions."""
    return DecoderFns(*decoder.functions(self.config, self.vocab_size))

  @property
  def matrices(self) -> Matrices:
    """The model's matrices, for Muon; see `optim.make`."""
    return decoder.matrices(self.config)

  def init(self, mesh: jax.sharding.Mesh, seed: int) -> optax.Params:
    """Returns random parameters, placed on the mesh.

    Raises:
      MeshError: the mesh does not divide them.
    """
    places = param_shardings(mesh, self.names)

    def init(seed: jax.Array) -> optax.Params:
      return unbox(self.boxed(jax.random.key(seed)))

    return jax.jit(init, out_shardings=places)(np.uint32(seed))

  @functools.cached_property
  def names(self) -> Boxed:
    """The parameters' shapes, with names of their axes."""
    return decoder.names(self.config, self.vocab_size)

  def boxed(self, key: jax.Array) -> Boxed:
    """Returns random parameters, with names of their axes."""
    return decoder.init(self.config, self.vocab_size, key)

  def prompt(self, question: templates.Question) -> str:
    """Returns the prompt of a question."""
    return self.tokenizer.prompt(self.template, question)

  def example_ids(
    self, question: templates.Question, output: str
  ) -> tuple[list[int], list[int]]:
    """Returns token ids of a question's prompt, and of an output with its end."""
    output = parsing.remainder(self.prompt(question), output)
    if not templates.is_chat(self.template):
      output = f' {output}'
    return (
      self.tokenizer.prompt_ids(self.template, question),
      [*self.tokenizer.encode_after(output), self.tokenizer.eos_id],
    )
