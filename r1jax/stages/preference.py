"""Trains the preference model on the judge's pairs.

The pairs of step n are a function of (seed, n), so a resumed run is bit-for-bit
identical.
"""

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r1jax import optim, reward_model, tasks
from r1jax.miniature import judge as judging
from r1jax.miniature.judge import JudgeConfig, Pair
from r1jax.optim import OptimConfig, TrainState
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler, of_all_hosts
from r1jax.runtime import hosts
from r1jax.runtime.errors import TrainingError
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import Run
from r1jax.runtime.workdir import write_whole
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import local_mesh
from r1jax.sharding.place import like_params, replicate
from r1jax.stages import supervised
from r1jax.stages.preference_scoring import Scoring, encode_pairs, score_pairs, scoring
from r1jax.tasks import Problem, splits

MEASURED = 256  # pairs for mean and deviation; their 512 texts give the mean to 4 %


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
  """How long to train, in which batches, and what is held out."""

  epochs: int = 1  # passes over the pairs (the paper: 1)
  pairs_per_step: int = 32  # B (the paper: 256); an incomplete last batch is dropped
  micro_batches: int = 1  # parts of the pairs that a gradient is summed over
  max_length: int = 128  # T, tokens of prompt, shown text and end of sequence
  checkpoint_every: int = 50  # steps; held-out pairs are scored at each checkpoint
  log_every: int = 10  # steps
  held_out: float = 0.1  # share of the problems; at least one problem unless it is 0
  optim: OptimConfig = OptimConfig()

  def __post_init__(self) -> None:
    for name in ('epochs', 'pairs_per_step', 'micro_batches', 'max_length',
                 'checkpoint_every', 'log_every'):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(
          f'preference.{name}: expected 1 or more, got {getattr(self, name)}'
        )
    if not 0 <= self.held_out < 1:
      raise ValueError(
        f'preference.held_out: expected 0 or more and less than 1, got {self.held_out}'
      )
    if self.pairs_per_step % self.micro_batches:
      raise ValueError(
        f'preference.micro_batches: expected a divisor of pairs_per_step='
        f'{self.pairs_per_step}, got {self.micro_batches}'
      )


def split(pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
  """Returns the pairs to train on and the held-out ones.

  Problems of the same group (`tasks.group`) are on the same side.
  """
  names = [tasks.group(pair.problem) for pair in pairs]
  ordered = sorted(
    set(names), key=lambda name: (splits.uniform('preference', name), name)
  )
  held_out = set(ordered[: math.ceil(share * len(ordered))])
  parts: tuple[list[Pair], list[Pair]] = [], []
  for name, pair in zip(names, pairs, strict=True):
    parts[name in held_out].append(pair)
  return parts


def updates(pairs: Sequence[Pair], config: PreferenceConfig) -> int:
  """Returns how many updates `train` makes on these pairs.

  Raises:
    ValueError: there are fewer training pairs than a step needs.
  """
  training, _ = split(pairs, config.held_out)
  if len(training) < config.pairs_per_step:
    raise ValueError(
      f'preference.pairs_per_step: expected at most {len(training)}, the pairs left of '
      f'{len(pairs)} when {config.held_out:g} of the problems are held out, got '
      f'{config.pairs_per_step}; lower it, or give the judge more outputs'
    )
  return config.epochs * (len(training) // config.pairs_per_step)


def check_judged(judged: int, prompts: int, available: int | None = None) -> None:
  """Raises ValueError unless the judged instructions fill batches of `prompts`.

  `available` is the number of instructions to learn from, if it is known.
  """
  if judged < 1 or judged % prompts:
    raise ValueError(
      f'judged: expected a multiple of rl.prompts_per_step = {prompts}, got {judged}'
    )
  if available is not None and judged > available:
    most = available // prompts * prompts
    raise ValueError(
      f'judged: expected at most the {available} instructions to learn from, got '
      f'{judged}; ' + (f'set it to {most}' if most else 'lower rl.prompts_per_step')
    )


def judged_pairs(
  run: Run,
  sampler: Sampler,
  params: optax.Params,
  problems: Sequence[Problem],
  *,
  judge: JudgeConfig,
  prompts: int,
  group_size: int,
  max_length: int,
  seed: int,
) -> list[Pair]:
  """Returns pairs of a policy's outputs as ranked by the judge.

  Writes their counts to pairs.json.

  Args:
    run: the open run.
    sampler: of the policy.
    params: of the policy.
    problems: instructions; a multiple of `prompts`.
    judge: how the judge compares.
    prompts: problems sampled at a time.
    group_size: outputs per problem.
    max_length: T, tokens.
    seed: of the samples and of the judge.
  """
  key = named_key(jax.random.key(seed), 'judged')
  outputs: list[list[str]] = []
  for begin in range(0, len(problems), prompts):
    rollout = sampler.sample(
      params,
      jax.random.fold_in(key, begin),
      problems[begin : begin + prompts],
      group_size=group_size,
      max_length=max_length,
      draw=SamplingConfig(),
    )
    outputs += of_all_hosts(rollout, rollout.texts)
  pairs, counts = judging.pairs(problems, outputs, seed, judge)
  if hosts.is_primary():
    content = json.dumps(dataclasses.asdict(counts)) + '\n'
    write_whole(run.workdir / 'pairs.json', content)
  return pairs


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
  """Returns the order of the pairs in an epoch."""
  # With a name, as otherwise epoch 0 would share its random numbers with the judge.
  name = zlib.crc32(b'preference')
  return np.random.default_rng((seed, name, epoch)).permutation(count)


def pair_batch(
  data: reward_model.Batch, seed: int, step: int, size: int
) -> reward_model.Batch:
  """Returns the pairs of a step; steps count from 1, epochs are shuffled."""
  count = len(data.tokens)
  epoch, place = divmod(step - 1, count // size)
  chosen = permutation(seed, epoch, count)[place * size : (place + 1) * size]
  return reward_model.Batch(data.tokens[chosen], data.mask[chosen])


def train(
  run: Run,
  phase: str,
  params: optax.Params,
  *,
  policy: Policy,
  pairs: Sequence[Pair],
  config: PreferenceConfig,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> optax.Params:
  """Trains a preference model; resumes from the last checkpoint.

  Returns its parameters, replicated on `local_mesh(mesh)`. Its scores have mean 0 and
  deviation 1 over the training texts.

  Args:
    run: the open run.
    phase: name in logs and checkpoints.
    params: of the policy to start from; not donated.
    policy: the model, its tokenizer and template.
    pairs: see `judge.pairs`.
    config: see `PreferenceConfig`.
    mesh: devices for training.
    seed: of the order of the pairs.

  Raises:
    ValueError: see `updates` and `encode`; raised before any training.
    TrainingError: the loss is not finite (the last checkpoint is kept), or every text
      has the same score.
  """
  steps, model = updates(pairs, config), policy.functions
  training, held_out = (
    encode_pairs(
      part,
      tokenizer=policy.tokenizer,
      template=policy.template,
      max_length=config.max_length,
    )
    for part in split(pairs, config.held_out)
  )
  optimizer = optim.make(config.optim, steps, seed=seed)
  fresh = reward_model.init(params, _width(model, params))
  here = local_mesh(mesh)
  score = scoring(model, here)

  def measure(
    _: reward_model.Batch, state: TrainState, saves: bool
  ) -> dict[str, float]:
    if not saves or not len(held_out.tokens):
      return {}
    copies = _copies(state.params, mesh, here)
    return {'held_out_accuracy': _accuracy(score, copies, held_out)}

  state = supervised.fit(
    run,
    phase,
    # Placed now, as another sharding in the second step would compile again.
    like_params(mesh, optim.init(fresh, optimizer), params),
    update=functools.partial(
      reward_model.step,
      forward=model.forward,
      optimizer=optimizer,
      micro_batches=config.micro_batches,
      in_place=True,
    ),
    batch=lambda step, _: pair_batch(training, seed, step, config.pairs_per_step),
    steps=steps,
    log_every=config.log_every,
    checkpoint_every=config.checkpoint_every,
    log_saves=True,  # with the accuracy on held-out pairs
    optim_field='preference.optim',
    mesh=mesh,
    measure=measure,
  )
  measured = permutation(seed, 0, len(training.tokens))[:MEASURED]
  sample = reward_model.Batch(training.tokens[measured], training.mask[measured])
  copies = _copies(state.params, mesh, here)
  scores = score_pairs(score, copies, sample)
  _check_scores(phase, steps, scores)
  return reward_model.standardised(copies, scores)


def _check_scores(phase: str, steps: int, scores: np.ndarray) -> None:
  """Raises TrainingError where all texts have the same score."""
  if not scores.std():
    raise TrainingError(
      f'the preference model of {phase} gives every text the score {scores.mean():g} '
      f'after {steps} steps; raise preference.optim.learning_rate or preference.epochs '
      'and choose another --workdir'
    )


def _copies(
  params: optax.Params, mesh: jax.sharding.Mesh, here: jax.sharding.Mesh
) -> optax.Params:
  """Returns parameters sharded over `mesh`, replicated on the devices of `here`."""
  whole = jax.device_get(replicate(mesh, params))
  return replicate(here, whole)


def _width(model: DecoderFns, params: optax.Params) -> int:
  """Returns D, the width of the decoder's hidden states."""
  ids = jnp.zeros((1, 1), jnp.int32)
  hidden, _ = jax.eval_shape(model.forward, params, ids, ids, ids)
  return hidden.shape[-1]


def _accuracy(score: Scoring, params: optax.Params, pairs: reward_model.Batch) -> float:
  """Returns the share of pairs whose chosen text scores higher; a tie counts half."""
  chosen, rejected = score_pairs(score, params, pairs).T
  return float(np.mean(0.5 + 0.5 * np.sign(chosen - rejected)))
