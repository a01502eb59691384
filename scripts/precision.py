"""How far 20 updates of GRPO move a model, by the types that it is kept in.

`python -m scripts.precision` prints the measured columns of docs/precision.md: for a
small decoder with random weights, as wide as those of published models, and one rollout
of random tokens, the change of the parameters and what it gains.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import optim, packing, update
from r1jax.grpo import GRPOConfig
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.score import score_tokens
from r1jax.sharding.place import unbox

MODEL = ModelConfig(d_model=256, layers=2, heads=4, kv_heads=2, head_dim=64, d_ff=512)
VOCAB, PROMPTS, SAMPLES, LENGTH, UPDATES = 512, 2, 8, 16, 20
WAYS = (
  ('float32', 'float32'),
  ('bfloat16', 'float32'),
  ('bfloat16', 'stochastic'),
  ('bfloat16', 'none'),
)


def learned(param_dtype: str, masters: str, rate: float) -> tuple[np.ndarray, float]:
  """Returns the change of all parameters, and the gain.

  That is the sum of advantage times change of log-prob over all tokens, under the
  parameters as a sampler has them.
  """
  model = DecoderFns(*decoder.functions(MODEL, VOCAB))
  score: Any = functools.partial(score_tokens, model=model)
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, VOCAB, (PROMPTS, 8)).astype(np.int32)
  tokens = rng.integers(2, VOCAB, (PROMPTS, SAMPLES, LENGTH)).astype(np.int32)
  advantage = rng.normal(size=(PROMPTS, SAMPLES)).astype(np.float32)
  mask = np.ones(prompts.shape, bool)
  fresh = unbox(decoder.init(MODEL, VOCAB, jax.random.key(0)))
  # As a checkpoint of the hub: its numbers are bfloat16, whatever they are kept in.
  before = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(param_dtype), fresh)
  logp = jax.jit(lambda params: score(params, prompts, mask, tokens)[0])
  old = logp(before)
  layout = packing.plan(np.full(tokens.shape[:2], LENGTH), LENGTH, 4, 2)
  rollout = packing.pack(
    layout,
    prompts=prompts,
    prompt_mask=mask,
    tokens=tokens,
    old_logp=np.asarray(old),
    ref_logp=np.asarray(old),
    advantage=advantage,
  )
  settings: dict[str, Any] = {'masters': masters, 'warmup_steps': 0}
  rule = optim.make(OptimConfig(rate, **settings), UPDATES)
  step = jax.jit(
    functools.partial(update.step, score=score, optimizer=rule, config=GRPOConfig())
  )
  state = optim.init(before, rule)
  for _ in range(UPDATES):
    state, _ = step(state, rollout, np.int32(layout.count), np.float32(1))
  leaves = zip(jax.tree.leaves(state.params), jax.tree.leaves(before), strict=True)
  change = [np.ravel(np.float32(after) - np.float32(first)) for after, first in leaves]
  gain = np.sum(advantage[..., None] * np.asarray(logp(state.params) - old))
  return np.concatenate(change), float(gain)


def main() -> None:
  """Prints a line for each rate and way."""
  expected, gained = np.zeros(0), 0.0
  for rate, (param_dtype, masters) in itertools.product((1e-6, 3e-6), WAYS):
    change, gain = learned(param_dtype, masters, rate)
    if param_dtype == 'float32':
      expected, gained = change, gain
    along = float(change @ expected / (expected @ expected))
    print(
      f'rate {rate:g}, parameters {param_dtype}, masters {masters}: '
      f'{along:.3f} of the way of float32, {gain / gained:.3f} of its gain ({gain:.2f})'
    )


if __name__ == '__main__':
  main()
