"""How far 20 GRPO updates move a model, by the types of parameters and masters.

  python -m scripts.precision

prints the measured columns of docs/precision.md: the change of the parameters, and the
gain. The model is a small decoder with random weights on the scale of published models,
trained on one rollout of random tokens.
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

  The gain is the sum of advantage times change of log-prob over all tokens, with the
  parameters in the sampler's type.
  """
  model = DecoderFns(*decoder.functions(MODEL, VOCAB))
  score: Any = functools.partial(score_tokens, model=model)
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, VOCAB, (PROMPTS, 8)).astype(np.int32)
  tokens = rng.integers(2, VOCAB, (PROMPTS, SAMPLES, LENGTH)).astype(np.int32)
  advantage = rng.normal(size=(PROMPTS, SAMPLES)).astype(np.float32)
  mask = np.ones(prompts.shape, bool)
  fresh = unbox(decoder.init(MODEL, VOCAB, jax.random.key(0)))
  # Rounded to bfloat16, like a checkpoint of the hub, whatever the type.
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
  """Prints a line for each learning rate and pair of types."""
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
