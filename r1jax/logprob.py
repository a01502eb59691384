"""Log-probabilities of tokens from logits, fast in both directions."""

import jax
import jax.numpy as jnp


def token_logp(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log p(token) and the entropies of the distributions, both [...], in nats.

  Args:
    logits: [..., V].
    tokens: int32 [...].
  """
  total = jax.nn.logsumexp(logits, axis=-1)
  # A masked sum in place of a gather, whose gradient would be a scatter.
  ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
  here = ids == tokens[..., None]
  chosen = jnp.sum(jnp.where(here, logits, 0.0), axis=-1)
  probability = jnp.exp(logits - total[..., None])
  # The product is of exp and a finite number also where a logit is -inf.
  finite = jnp.where(probability > 0, logits, 0.0)
  entropy = total - jnp.sum(probability * finite, axis=-1)
  return chosen - total, entropy
