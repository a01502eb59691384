"""Means: (tokens, numbers) -> the weight of each token in the loss, [P, G, T]."""

import jax
import jax.numpy as jnp

from r1jax.terms.inputs import Numbers, Term, Tokens


def mean_outputs(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """1/|o| a token, then the mean of outputs (GRPO): every output counts the same."""
  del numbers
  mask = tokens.mask
  return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1) / tokens.total.outputs


def mean_tokens(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The mean of all tokens of the batch (DAPO): long outputs count more."""
  del numbers
  return tokens.mask / tokens.total.tokens


def mean_prompts(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The mean of a prompt's tokens, then of prompts (ScaleRL, 2510.13786)."""
  del numbers
  return tokens.mask / jnp.maximum(tokens.group_tokens, 1) / tokens.total.prompts


def mean_constant(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """1/constant a token, then the mean of outputs (Dr. GRPO): no bias by length."""
  return tokens.mask / numbers.constant_length / tokens.total.outputs


def sum_tokens(tokens: Tokens, numbers: Numbers) -> jax.Array:
  """The sum over an output, then the mean of outputs (LUSPO, 2602.05261)."""
  del numbers
  return tokens.mask / tokens.total.outputs


MEANS: dict[str, Term] = {
  'outputs': mean_outputs,
  'tokens': mean_tokens,
  'prompts': mean_prompts,
  'constant': mean_constant,
  'sums': sum_tokens,
}
