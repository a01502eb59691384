"""How far float32 and bfloat16 are from float64, on a checkpoint.

  python -m scripts.accuracy --model FOLDER

prints the errors of log-probs, loss and gradient as the table of docs/precision.md. The
model samples 4 outputs of 32 tokens to each of 2 prompts in float32. On these tokens it
computes one gradient of GRPO as `experiments.grpo` does by default, with
`--model.dtype bfloat16`, and with float64 for the parameters and everything else. Old
log-probs are those of the type's own sampler, advantages are random, and the
reference's log-probs are those of the float32 sampler plus noise.
"""

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import packing, update
from r1jax.grpo import GRPOConfig
from r1jax.hub import weights
from r1jax.model.config import DTYPES, EXACT
from r1jax.model.decode_weights import decode_params
from r1jax.rollout.policy import Policy
from r1jax.sampling import generate
from r1jax.sampling.logprob import token_logp
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens
from r1jax.sampling.streaming import decode_step, prefill
from r1jax.sharding.mesh import make_mesh
from r1jax.stages import from_hub
from r1jax.stages.from_hub import HubConfig, Pretrained
from r1jax.text.tokenizer import pad_left
from scripts.bench import Parser, refuse

QUESTIONS = (
  'Tom has 3 bags with 4 apples each and eats 2 apples. How many apples are left?',
  'Why is the sky blue?',
)
GROUP, LENGTH = 4, 32
NOISE = 0.1  # nats, of the reference's log-probs
CONFIG = GRPOConfig(kl_coef=0.04)


class Rollout(NamedTuple):
  """What is computed with each type."""

  prompts: np.ndarray  # int32 [P, S]
  prompt_mask: np.ndarray  # bool [P, S]
  tokens: np.ndarray  # int32 [P, G, T], no token ends an output
  ref_logp: np.ndarray  # float32 [P, G, T]
  advantage: np.ndarray  # float32 [P, G]


class Computed(NamedTuple):
  """What one type gives."""

  logp: np.ndarray  # [P, G, T], of the learner
  sampler_logp: np.ndarray  # [P, G, T]
  loss: float
  kl: float  # mean of tokens, k3
  gradient: dict[str, np.ndarray]  # by the tensor's name in the checkpoint


class Errors(NamedTuple):
  """The differences of a type to float64."""

  logp_max: float  # nats
  logp_mean: float
  drift: float  # mean |logp of the sampler - logp of the learner|
  loss: float  # relative
  kl: float  # relative
  gradient: float  # |g - g64| / |g64|
  cosine_gap: float  # 1 - cosine of g and g64
  worst: float  # the largest relative error of a matrix's gradient
  worst_name: str


def look_up(path: str) -> Pretrained:
  """Returns a checkpoint as `experiments.grpo` opens it, without reading its weights.

  Raises:
    ValueError: there is no checkpoint at that path, or it can't be used.
  """
  return from_hub.look_up(HubConfig(path, 'plain'))


def with_dtype(policy: Policy, dtype: str) -> Policy:
  """Returns the policy with another `dtype` of its model."""
  field: dict[str, Any] = {'dtype': dtype}
  return dataclasses.replace(policy, config=dataclasses.replace(policy.config, **field))


def sampled(policy: Policy, params: Any) -> Rollout:
  """Returns outputs that the model samples to `QUESTIONS`."""
  rows = [policy.tokenizer.prompt_ids(policy.template, text) for text in QUESTIONS]
  prompts = pad_left(rows, max(map(len, rows)), policy.tokenizer.pad_id)
  sample = functools.partial(
    generate.sample,
    model=policy.functions,
    config=SamplingConfig(),
    group_size=GROUP,
    max_length=LENGTH,
    stop_ids=(),
  )
  keys = jax.random.split(jax.random.key(0), len(rows))
  drawn = jax.device_get(jax.jit(sample)(params, keys, *prompts))
  rng = np.random.default_rng(0)
  noise = NOISE * rng.normal(size=drawn.logp.shape)
  advantage = rng.normal(size=drawn.logp.shape[:2])
  return Rollout(
    *prompts,
    drawn.tokens,
    (drawn.logp + noise).astype(np.float32),
    advantage.astype(np.float32),
  )


def decoded(policy: Policy, params: Any, rollout: Rollout) -> jax.Array:
  """Returns the sampler's log-probs of a rollout's tokens, [P, G, T]: one at a time."""
  model = policy.functions
  prompts, prompt_mask, tokens = map(jnp.asarray, rollout[:3])
  shape = {'room': LENGTH, 'group_size': GROUP}
  first, state = prefill(params, prompts, prompt_mask, model=model, **shape)
  prepared = decode_params(policy.config, params)

  def step(carry: Any, token_B: jax.Array) -> Any:
    logits_BV, state = carry
    logp_B, _ = token_logp(logits_BV, token_B)
    return decode_step(prepared, state, token_B, model=model), logp_B

  start = jnp.repeat(first, GROUP, axis=0), state
  _, logp_TB = jax.lax.scan(step, start, tokens.reshape(-1, LENGTH).T)
  return logp_TB.T.reshape(tokens.shape)


def computed(found: Pretrained, params: Any, rollout: Rollout, dtype: str) -> Computed:
  """Returns what sampler and learner compute of a rollout with this type.

  Args:
    found: the checkpoint.
    params: float32.
    rollout: to learn from.
    dtype: of the model. `EXACT` is also that of the parameters; its sampler would have
      the learner's log-probs.
  """
  policy = with_dtype(found.policy, dtype)
  score = functools.partial(score_tokens, model=policy.functions)
  gradients = jax.jit(functools.partial(update.gradients, score=score, config=CONFIG))
  with jax.enable_x64(dtype == EXACT):
    if dtype == EXACT:
      params = jax.tree.map(lambda x: x.astype(EXACT), params)
    logp = sampler_logp = jax.device_get(jax.jit(score)(params, *rollout[:3])[0])
    if dtype != EXACT:
      sampler = jax.jit(functools.partial(decoded, policy))
      sampler_logp = jax.device_get(sampler(params, rollout))
    lengths = np.full(rollout.tokens.shape[:2], LENGTH)
    layout = packing.plan(lengths, LENGTH, micro_batch_rows=GROUP, prompt_rows=GROUP)
    batch = packing.pack(layout, **rollout._asdict(), old_logp=sampler_logp)
    count = np.int32(layout.count)
    grads, metrics = jax.device_get(gradients(params, batch, count, 1.0))
  named = weights.arrays(grads, found.checkpoint)
  return Computed(
    logp,
    sampler_logp,
    float(metrics['loss']),
    float(metrics['kl']),
    {name: array for _, name, array in named},
  )


def errors(got: Computed, exact: Computed) -> Errors:
  """Returns the differences of one type's numbers to float64's."""
  logp = np.abs(np.float64(got.logp) - exact.logp)
  squares = np.zeros(3)  # of the difference and of both gradients
  product, worst = 0.0, (0.0, '')
  for name, wanted in exact.gradient.items():
    x, y = np.float64(got.gradient[name]).ravel(), wanted.ravel()
    off, own, whole = (float(z @ z) for z in (x - y, x, y))
    squares += off, own, whole
    product += float(x @ y)
    if wanted.ndim > 1 and whole:
      worst = max(worst, ((off / whole) ** 0.5, name))
  off, own, whole = np.sqrt(squares).tolist()
  return Errors(
    float(logp.max()),
    float(logp.mean()),
    float(np.abs(got.logp - got.sampler_logp).mean()),
    abs(got.loss / exact.loss - 1),
    abs(got.kl / exact.kl - 1),
    off / whole,
    1 - product / (own * whole),
    *worst,
  )


def measure(found: Pretrained) -> dict[str, Errors]:
  """Returns the errors of each type.

  Raises:
    ValueError: the checkpoint's weights can't be used.
  """
  params = found.params(make_mesh(jax.devices()[:1]))
  rollout = sampled(found.policy, params)
  exact, *others = (
    computed(found, params, rollout, dtype) for dtype in (EXACT, *DTYPES)
  )
  return {dtype: errors(got, exact) for dtype, got in zip(DTYPES, others, strict=True)}


def table(found: Mapping[str, Errors]) -> str:
  """Returns the errors as a table in Markdown, with a column for each type."""
  rows = [
    ('log-probs: largest difference, nats', '{0.logp_max:.1e}'),
    ('log-probs: mean difference, nats', '{0.logp_mean:.1e}'),
    ('sampler against learner: mean difference, nats', '{0.drift:.1e}'),
    ('loss: relative difference', '{0.loss:.1e}'),
    ('KL: relative difference', '{0.kl:.1e}'),
    ('gradient: norm of the difference over norm', '{0.gradient:.1e}'),
    ('gradient: 1 − cosine', '{0.cosine_gap:.1e}'),
    ('gradient: the worst matrix', '{0.worst:.1e}, `{0.worst_name}`'),
  ]
  lines = [('', *found), ('---',) * (1 + len(found))]
  lines += [(name, *map(cell.format, found.values())) for name, cell in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
  """Prints the table."""
  parser = Parser(
    prog='python -m scripts.accuracy',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--model',
    required=True,
    metavar='FOLDER',
    help='of a checkpoint, or hf://owner/name',
  )
  try:
    found = measure(look_up(parser.parse_args().model))
  except (OSError, ValueError) as error:
    refuse(str(error))
  print(table(found))


if __name__ == '__main__':
  main()
