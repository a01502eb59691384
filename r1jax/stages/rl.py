"""Reinforcement learning on checked answers: rollout, rewards, advantage, updates.

Everything random in step n comes from (seed, n): the problems from a shuffle with
random access, the samples and the cut into mini-batches from children of one key.
Nothing random is stored, and a killed run goes on to the same bits.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from r1jax import grpo, optim, packing, update
from r1jax.choice import Choice, label
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig, TrainState
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import compilation, hosts
from r1jax.runtime.keys import named_key
from r1jax.runtime.run import Run, TrainingError, check_finite
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sampling.score import score_tokens
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import local_shards
from r1jax.sharding.place import (
  abstract_like_params,
  device_sharding,
  feed_rows,
  fetch_rows,
  like_params,
  to_device,
  to_host,
)
from r1jax.sharding.rules import named_sharding, shard_count
from r1jax.stages import evaluation
from r1jax.stages.evaluation import EvalConfig
from r1jax.stages.rl_config import RLConfig, value_at
from r1jax.stages.rollout import Rollout, Sampler
from r1jax.tasks import Problem
from r1jax.text import parsing

SETTLED = 3  # steps of a run after which nothing should be compiled any more
FLAT = 20  # first steps with no advantage but 0 after which a run ends
LARGEST_REWARD = 1e15  # squares of it, and sums of many of them, fit into float32
SHORT = 0.1  # of the learning rate; shorter updates are said to be
LARGE = 100  # times Adam's eps; no longer small beside a gradient of such an rms


def problem_stream(
  sources: Sequence[Sequence[Problem]],
  shares: Sequence[float],
  seed: int,
  begin: Sequence[int] | None = None,
) -> Callable[[int], Problem]:
  """Returns index -> problem: endless passes over each source, in orders of their own.

  Any stretch of indices takes from the sources by their shares. With `begin` the passes
  over source n go on after its first begin[n] problems, as if these had been asked.
  """
  passes = [
    grain.MapDataset.source(problems)
    .seed(seed + n)
    .shuffle()
    .repeat()[begin[n] if begin else 0 :]
    for n, problems in enumerate(sources)
    if shares[n]
  ]
  mixed = grain.MapDataset.mix(passes, [share for share in shares if share])
  return lambda index: mixed[index]


class ScoredRollout(NamedTuple):
  """Log-probs [P, G, T] of a rollout's tokens, and the device's seconds for them."""

  old_logp: np.ndarray | None  # of the policy; None if the sampler was the policy
  ref_logp: np.ndarray | None  # of the reference; None if no penalty needs it
  seconds: float


def _learned_alone(frozen: Any, params: Any) -> Any:
  """The model's parameters where all of them are learned."""
  del frozen
  return params


@dataclasses.dataclass(frozen=True)
class Learner:
  """What does not change during a stage."""

  generator: Sampler
  pool: RewardPool
  config: RLConfig
  algorithm: GRPOConfig
  optimizer: OptimConfig
  matrices: Any = None  # of the model, for Muon; see `optim.make`
  # What rollouts are sampled with in the place of the policy's parameters, say their
  # `decoder.quantize`; None is the policy itself.
  sampler_params: Callable[[Any], Any] | None = None
  # Parameters that nothing is learned of, and how they make up the model's with those
  # that are; see `model.lora`.
  frozen: Any = None
  join: Callable[[Any, Any], Any] = _learned_alone
  seed: int = 0  # of what is random about bfloat16 parameters; see `optim.make`

  @functools.cached_property
  def chain(self) -> Any:
    """The optimizer over all updates of the stage."""
    config = self.config
    updates = config.steps * config.epochs * config.minibatches
    return optim.make(self.optimizer, updates, self.matrices, self.seed)

  def start(self, params: Any) -> dict[str, Any]:
    """What a checkpoint holds, before the first step."""
    # A copy: an update takes the memory of the state before it.
    before = {
      'policy': optim.init(jax.tree.map(jnp.copy, params), self.chain),
      'reference': params,
    }
    # Placed now: another layout in the second step would compile again.
    return like_params(self.generator.mesh, before, params)

  def like(self, params: Any) -> dict[str, Any]:
    """The shapes of what `start` returns, and where they lie."""
    shapes = jax.eval_shape(
      lambda params: {'policy': optim.init(params, self.chain), 'reference': params},
      params,
    )
    return abstract_like_params(self.generator.mesh, shapes, params)

  @functools.cached_property
  def _score(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return functools.partial(score_tokens, model=self.generator.model)

  def program(self, places: Any) -> Any:
    """`update.step` for `jax.jit`; the old state's memory is used for the new one.

    `places` is where the state lies, before and after.
    """

    def step(state: TrainState, frozen: Any, *rollout: Any) -> Any:
      score = self._scoring_with(frozen)
      return update.step(
        state, *rollout, score=score, optimizer=self.chain, config=self.algorithm
      )

    return self._jit(step, (places, None), donated=(0,))

  def halves(self, places: Any) -> tuple[Any, Any]:
    """`program` in two: what gives the gradient, and what makes the update of it.

    The first one does without the optimizer's state.
    """

    def gradients(params: Any, frozen: Any, *rollout: Any) -> Any:
      score = self._scoring_with(frozen)
      return update.gradients(params, *rollout, score=score, config=self.algorithm)

    def apply(state: TrainState, grads: Any) -> Any:
      return optim.apply(state, grads, optimizer=self.chain)

    return (
      self._jit(gradients, (places.params, None)),
      self._jit(apply, (places, None), donated=(0,)),
    )

  def _scoring_with(self, frozen: Any) -> Callable[..., Any]:
    def score(params: Any, *rows: Any, **settings: Any) -> Any:
      return self._score(self.join(frozen, params), *rows, **settings)

    return score

  def _jit(self, function: Any, places: Any, donated: tuple[int, ...] = ()) -> Any:
    mesh = self.generator.mesh
    return jax.jit(
      on_mesh(mesh, function),
      donate_argnums=donated,
      out_shardings=places,
      compiler_options=compilation.options(mesh),
    )

  @functools.cached_property
  def update(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One update, by `program` or its `halves`, compiled for where the state lies."""
    made: list[Any] = []

    def update(state: TrainState, *args: Any) -> Any:
      if not made:
        places = jax.tree.map(device_sharding, state)
        made.append((self.halves if self.config.offload else self.program)(places))
      if not self.config.offload:
        return made[0](state, *args)
      gradients, apply = made[0]
      grads, metrics = gradients(state.params, *args)
      jax.block_until_ready(grads)  # the optimizer's state has room only now
      state, more = apply(to_device(state), grads)
      return self.waiting(state), metrics | more

    return update

  def short_updates(
    self, step: int, values: Mapping[str, Any], weights: int
  ) -> str | None:
    """What to say of a step whose updates are far shorter than the learning rate.

    `weights` is how many are learned. Updates are short too where most mini-batches
    have no gradient; that is not the doing of Adam's eps, and not said.
    """
    config, each = self.optimizer, self.config.epochs * self.config.minibatches
    # Not by groups: an advantage may compare the outputs of several prompts.
    learns = values['grad_norm'] > 0 and values['zero_advantages'] < 1
    if config.muon_learning_rate or not learns:
      return None
    last = self.config.steps * each
    rate = optim.schedule(config, config.learning_rate, last)
    mean = np.mean([float(rate(n)) for n in range((step - 1) * each, step * each)])
    if not mean:
      return 'rl_optim.learning_rate is 0, so nothing is learned; raise that.'
    entry = min(values['grad_norm'], config.max_grad_norm) / weights**0.5
    if values['update_size'] >= SHORT * mean or entry > LARGE * config.eps:
      return None
    return (
      f'An update moved a weight by {values["update_size"] / mean:.1%} of the learning '
      f'rate on average: the gradient is smaller than rl_optim.eps = {config.eps:g}; '
      'lower that.'
    )

  def waiting(self, state: TrainState) -> TrainState:
    """The state as it lies between updates."""
    if not self.config.offload:
      return state
    aside = to_host(state.opt_state)
    return dataclasses.replace(state, opt_state=aside)

  def reference(self, params: Any) -> Any:
    """The parameters of a reference as they lie until they are needed."""
    return to_host(params) if self.config.offload else params

  def whole(self, params: Any) -> Any:
    """The model's parameters, of those that are learned."""
    return self.join(self.frozen, params)

  @functools.cached_property
  def _sampler_params(self) -> Callable[[Any], Any]:
    if self.sampler_params is None:
      return lambda params: params
    return jax.jit(self.sampler_params, compiler_options=compilation.options())

  def rollout(
    self,
    params: Any,
    key: jax.Array,
    problems: Sequence[Problem],
    max_length: int,
    temperature: float,
  ) -> Rollout:
    """Samples the group of each problem."""
    return self.generator(
      self._sampler_params(self.whole(params)),
      key,
      problems,
      group_size=self.config.group_size,
      max_length=max_length,
      draw=SamplingConfig(temperature),
    )

  @functools.cached_property
  def scoring(self) -> Any:
    """Log-probs [N, P, B, T], a micro-batch at a time, compiled."""

    def score(params: Any, rows: Any, count: jax.Array, temperature: jax.Array):
      def one(index: jax.Array, logp: jax.Array) -> jax.Array:
        part = jax.tree.map(lambda x: x[index], rows)
        return logp.at[index].set(
          self._score(params, *part, temperature=temperature)[0]
        )

      return jax.lax.fori_loop(0, count, one, jnp.zeros(rows[2].shape))

    mesh = self.generator.mesh
    place = None if mesh.size == 1 else named_sharding(mesh, None, 'prompt')
    return self._jit(score, place)

  def passes(
    self, policy: Any, reference: Any, outputs: Rollout, temperature: float
  ) -> ScoredRollout:
    """Log-probs that the update needs beside the sampler's."""
    old_logp, ref_logp, first, second = None, None, 0.0, 0.0
    if self.sampler_params is not None:
      old_logp, first = self.logp(policy, outputs, temperature)
    if self.algorithm.kl_coef:
      reference = to_device(reference)
      ref_logp, second = self.logp(reference, outputs, temperature)
    return ScoredRollout(old_logp, ref_logp, first + second)

  def logp(
    self, params: Any, outputs: Rollout, temperature: float
  ) -> tuple[np.ndarray, float]:
    """Log-probs of the outputs' tokens, [P, G, T], and the device's seconds."""
    layout = self._plan(outputs, np.arange(len(outputs.all_lengths)))
    rows = (
      layout.by_prompt(outputs.prompts),
      layout.by_prompt(outputs.prompt_mask),
      layout.by_token(outputs.tokens),
      layout.offsets,
      layout.documents,
    )
    count, scalar = np.int32(layout.count), np.float32(temperature)
    rows = self._feed(rows)
    began = time.monotonic()
    logp = self.scoring(self.whole(params), rows, count, scalar)
    logp = fetch_rows(self.generator.mesh, logp, axis=1)
    seconds = time.monotonic() - began
    return layout.undo(logp, outputs.tokens.shape), seconds

  def advantages(self, reward_PG: np.ndarray) -> np.ndarray:
    """`grpo.group_advantage` on the host's numbers."""
    return np.asarray(
      grpo.group_advantage(jnp.asarray(reward_PG), config=self.algorithm)
    )

  def learn(
    self,
    state: TrainState,
    outputs: Rollout,
    passes: ScoredRollout,
    advantage_PG: np.ndarray,
    key: jax.Array,
    temperature: float,
  ) -> tuple[TrainState, dict[str, float], float]:
    """All updates of one rollout.

    `advantage_PG` is of the outputs that this host has, as they and their passes are.
    Returns the state, the updates' mean metrics, and the seconds that the device took.
    """
    old_logp, sampler_logp = outputs.logp, None
    if passes.old_logp is not None:
      old_logp, sampler_logp = passes.old_logp, outputs.logp
    values, began = [], None
    for epoch in range(self.config.epochs):
      for chosen in self._minibatches(jax.random.fold_in(key, epoch)):
        layout = self._plan(outputs, chosen)
        rollout = packing.pack(
          layout,
          prompts=outputs.prompts,
          prompt_mask=outputs.prompt_mask,
          tokens=outputs.tokens,
          old_logp=old_logp,
          ref_logp=passes.ref_logp,
          sampler_logp=sampler_logp,
          advantage=advantage_PG,
        )
        began = began or time.monotonic()
        count = np.int32(layout.count)
        state, metrics = self.update(
          state, self.frozen, self._feed(rollout), count, np.float32(temperature)
        )
        values.append(metrics)  # not fetched: the next part is packed meanwhile
    values = jax.device_get(values)
    seconds = time.monotonic() - (began or 0.0)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    # Before the first update the learner is what sampled, but for rounding.
    means['drift'] = float(values[0]['drift'])
    return state, means, seconds

  def _minibatches(self, key: jax.Array) -> np.ndarray:
    """Which problems each mini-batch takes, [minibatches, problems].

    Of each part that devices have as many, as far as the numbers allow.
    """
    prompts, minibatches = self.config.prompts_per_step, self.config.minibatches
    if minibatches == 1:
      return np.arange(prompts)[None]
    order = np.asarray(jax.random.permutation(key, prompts))
    of_part = order // (prompts // self._shards)
    dealt = order[np.argsort(of_part, kind='stable')].reshape(self._shards, -1)
    return dealt.T.reshape(minibatches, -1)

  def _plan(self, outputs: Rollout, chosen: np.ndarray) -> packing.Layout:
    """A layout of the chosen problems' outputs, of those that this host has.

    Of as many micro-batches as the fullest part of any host needs.
    """
    prompts, group_size = outputs.all_lengths.shape
    parts, length = self._shards, outputs.tokens.shape[-1]
    rows = self.config.micro_batch_rows
    prompt_rows = packing.rows_of_a_prompt(
      group_size, outputs.prompts.shape[1], length, rows, parts
    )
    by_part = [chosen[chosen // (prompts // parts) == n] for n in range(parts)]
    held = local_shards(self.generator.mesh)
    layout = packing.plan(
      outputs.lengths,
      length,
      rows // parts * len(held),
      prompt_rows,
      # Rows are in order: where a problem stands among those that this host has.
      [np.searchsorted(outputs.rows, by_part[n]).tolist() for n in held],
      room=-(-len(chosen) // parts),
    )
    elsewhere = [
      packing.slots(outputs.all_lengths[by_part[n]], length, prompt_rows)
      for n in set(range(parts)) - set(held)
    ]
    at_a_time = rows // parts // prompt_rows
    count = max([layout.count, *(-(-used // at_a_time) for used in elsewhere)])
    return dataclasses.replace(layout, count=count)

  @property
  def _shards(self) -> int:
    return shard_count(self.generator.mesh, 'prompt')

  def _feed(self, parts: Any) -> Any:
    return feed_rows(self.generator.mesh, parts, axis=1)


def train(
  run: Run,
  phase: str,
  params: Callable[[], Any],
  *,
  trainer: Learner,
  order: Callable[[int], Problem],
  held_out: Sequence[Problem],
  evaluate: EvalConfig,
  seed: int,
) -> Any:
  """Returns the policy after `config.steps` rollouts, from the last checkpoint on.

  Args:
    run: of which `phase` is a part.
    phase: its name in logs and checkpoints.
    params: makes what is learned of the policy to start from, and the first reference.
    trainer: the machinery.
    order: index -> the problem to learn from; see `problem_stream`.
    held_out: the validation split, to be evaluated on and never learned from.
    evaluate: how to evaluate.
    seed: everything random follows from it.

  Raises:
    ValueError: the learning rate is too small for the policy to change.
    RewardError: a reward failed on every output of a step.
    TrainingError: rewards, advantages or the loss are no longer finite, or from the
      first step on every advantage was 0. The last checkpoint stays.
  """
  config = trainer.config
  checkpoints, before = run.checkpoints[phase], params()
  optim.check_learning_rate(before, trainer.optimizer, 'rl_optim', trainer.matrices)
  first, like = checkpoints.step or 0, trainer.like(before)
  saved = {} if first else trainer.start(before)
  del before  # of a large model there is no room for one more
  saved = saved or checkpoints.restore(like)
  state = trainer.waiting(saved.pop('policy'))
  reference = trainer.reference(saved.pop('reference'))
  root = jax.random.key(seed)
  measure = functools.partial(
    _measure, run, trainer=trainer, held_out=held_out, config=evaluate, root=root
  )

  if not first:
    measure(0, trainer.whole(state.params))
  if 0 < config.profile_step <= first:
    run.progress.say(
      f'Step {config.profile_step} is done, so it can no longer be traced.'
    )
  flat = not first  # so far nothing could be learned
  ended = time.monotonic()
  for step in range(first + 1, config.steps + 1):
    batch = range((step - 1) * config.prompts_per_step, step * config.prompts_per_step)
    key = jax.random.fold_in(root, step)
    chosen = [order(index) for index in batch]
    with _profile(run, hosts.is_primary() and step == config.profile_step):
      state, values, samples = _step(trainer, state, reference, chosen, key, step - 1)
    for sentence in values.pop('errors'):
      run.progress.say(f'Step {step}: {sentence}')
    check_finite(phase, step, values, 'rl_optim')
    flat = flat and values['zero_advantages'] == 1
    if flat and step == FLAT:
      raise TrainingError(
        f'in {FLAT} steps of {phase} every advantage was 0, as the rewards that are '
        f'compared were equal (the last mean is {values["reward"]:.3g}), so nothing '
        'was learned; make the problems easier or harder, or the reward finer, in '
        'another --workdir'
      )
    began, ended = ended, time.monotonic()
    seconds = ended - began
    values['time'] |= {
      'seconds': seconds,
      'tokens_per_second': values['time'].pop('tokens') / seconds,
      # Of the time since the last step's end, in which that step was written down.
      'device_waited': max(0.0, 1 - values['time'].pop('device') / seconds),
    }
    run.log.write(phase, step, **values)
    run.log.samples({'phase': phase, 'step': step, **sample} for sample in samples)
    run.progress.update(phase, step, config.steps, values)
    if config.reference_every and step % config.reference_every == 0:
      reference = trainer.reference(jax.tree.map(jnp.copy, state.params))
      run.progress.say(f'Step {step}: the policy is the new reference.')
    if step % config.evaluate_every == 0 or step == config.steps:
      measure(step, trainer.whole(state.params))
      ended = time.monotonic()
    _say_compilations(run, step, step - first, seconds)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    settling = step - first <= SETTLED
    if settling and (said := trainer.short_updates(step, values, weights)):
      run.progress.say(f'Step {step}: {said}')
    due = step % config.checkpoint_every == 0 or step == config.steps
    if run.saves(due):
      run.save(phase, step, to_device({'policy': state, 'reference': reference}))
  return state.params


def _say_compilations(run: Run, step: int, done: int, seconds: float) -> None:
  """Says what the first of the `done` steps took, and when a late one compiles."""
  programs, compiling = run.compilations.since()
  if done == 1:
    run.progress.say(
      f'The first step took {seconds:.1f} s; compiling or loading {programs} programs '
      f'took {compiling:.1f} s so far.'
    )
  elif programs and done > SETTLED:
    run.progress.say(
      f'Step {step}: {programs} programs had to be compiled or loaded, in '
      f'{compiling:.1f} s; a shape that changes at many steps costs that each time.'
    )


@contextlib.contextmanager
def _profile(run: Run, wanted: bool) -> Iterator[None]:
  """Writes a trace of what goes on inside, for Perfetto and XProf, if it is wanted."""
  if not wanted:
    yield
    return
  folder = run.workdir / 'profile'
  with jax.profiler.trace(str(folder), create_perfetto_trace=True):
    yield
  run.progress.say(f'The trace of this step is in {folder}.')


def _measure(
  run: Run,
  step: int,
  params: Any,
  *,
  trainer: Learner,
  held_out: Sequence[Problem],
  config: EvalConfig,
  root: jax.Array,
) -> None:
  """Evaluates the policy of `step` and writes down and shows what comes out."""
  last = trainer.config.steps
  values, shown = evaluation.evaluate(
    params,
    named_key(jax.random.fold_in(root, step), 'evaluate'),
    held_out[: config.problems],
    generator=trainer.generator,
    pool=trainer.pool,
    config=config,
    max_length=value_at(trainer.config.max_length, last),
  )
  run.log.write('eval', step, split='validation', **values)
  run.log.samples({'phase': 'eval', 'step': step, **sample} for sample in shown)
  run.progress.update('eval', step, last, values)


def _step(
  trainer: Learner,
  state: TrainState,
  reference: Any,
  problems: Sequence[Problem],
  key: jax.Array,
  rollouts_before: int,
) -> tuple[TrainState, dict[str, Any], list[dict[str, Any]]]:
  """One rollout and its updates: the state, the metrics, some samples."""
  config = trainer.config
  temperature = value_at(config.temperature, rollouts_before)
  began = time.monotonic()
  length = value_at(config.max_length, rollouts_before)
  outputs = trainer.rollout(
    state.params, named_key(key, 'sample'), problems, length, temperature
  )
  sampled = time.monotonic()
  # The worker processes score the texts while the device scores the tokens.
  with concurrent.futures.ThreadPoolExecutor(1) as aside:
    passing = aside.submit(
      trainer.passes, state.params, reference, outputs, temperature
    )
    seen = _joined(hosts.all_gather('rewards', _seen(trainer, problems, outputs)))
    rewarded = time.monotonic()
    passes = passing.result()
  names = trainer.pool.names
  _check_rewards(rollouts_before + 1, seen, names)
  advantage_PG = trainer.advantages(seen.reward)
  _check_advantages(rollouts_before + 1, advantage_PG, trainer.algorithm.advantage)
  referred = time.monotonic()
  state, metrics, learning = trainer.learn(
    state,
    outputs,
    passes,
    advantage_PG[outputs.rows],
    named_key(key, 'minibatch'),
    temperature,
  )
  values = {
    **_observed(outputs.all_lengths, seen, advantage_PG, names),
    **metrics,
    'temperature': temperature,
    'time': {
      'rollout': sampled - began,
      'reward': rewarded - sampled,
      'reference': passes.seconds,
      'update': time.monotonic() - referred,
      'tokens': int(outputs.all_lengths.sum()),
      'device': outputs.seconds + passes.seconds + learning,
    },
  }
  samples = [
    {**sample, 'advantage': float(advantage_PG[row, 0])}
    for row, sample in sorted(seen.samples.items())
  ]
  return state, values, samples


class _Seen(NamedTuple):
  """What can be seen of a rollout before learning from it, without the outputs."""

  rows: np.ndarray  # int [P], which problems
  rewards: np.ndarray  # float32 [P, G, R], R of them by name
  reward: np.ndarray  # float32 [P, G], the weighted sum
  cut_off: np.ndarray  # bool [P, G]
  unparsable: np.ndarray  # bool [P, G]
  reflective: np.ndarray  # bool [P, G]
  failures: int
  timeouts: int
  errors: list[str]
  samples: dict[int, dict[str, Any]]  # by row, lines of samples.jsonl


def _seen(trainer: Learner, problems: Sequence[Problem], outputs: Rollout) -> _Seen:
  """Rewards this host's outputs; others may have them too and then do not."""
  mine = np.flatnonzero(outputs.own)
  rows, texts = outputs.rows[mine], [outputs.texts[n] for n in mine]
  shape = len(mine), trainer.config.group_size
  repeated = [problems[row] for row in rows for _ in range(shape[1])]
  flat = [output for group in texts for output in group]
  scores = trainer.pool.submit(repeated, flat).result()
  samples = {
    int(row): {
      'problem': problems[row].id,
      'prompt': trainer.generator.prompt(problems[row]),
      'output': texts[n][0],
      'rewards': dict(
        zip(trainer.pool.names, scores.values[n * shape[1]].tolist(), strict=True)
      ),
      'reward': float(scores.total[n * shape[1]]),
    }
    for n, row in enumerate(rows)
    if row < trainer.config.logged_samples
  }
  return _Seen(
    rows,
    scores.values.reshape(*shape, len(trainer.pool.names)),
    scores.total.reshape(shape),
    outputs.cut_off[mine],
    np.array([parsing.parse(output) is None for output in flat], bool).reshape(shape),
    np.array([parsing.is_reflective(output) for output in flat], bool).reshape(shape),
    scores.failures,
    scores.timeouts,
    scores.errors,
    samples,
  )


def _joined(parts: Sequence[_Seen]) -> _Seen:
  """What all hosts have seen, in the order of the problems."""
  order = np.argsort(np.concatenate([part.rows for part in parts]))

  def all_of(*fields: Any) -> Any:
    if isinstance(fields[0], np.ndarray):
      return np.concatenate(fields)[order]
    if isinstance(fields[0], dict):
      return dict(item for field in fields for item in field.items())
    return sum(fields, start=type(fields[0])())

  return _Seen(*map(all_of, *parts))


def _check_rewards(step: int, seen: _Seen, names: Sequence[str]) -> None:
  """Raises TrainingError for a weighted sum that advantages can't be computed of."""
  wrong = np.argwhere(~(np.abs(seen.reward) <= LARGEST_REWARD))  # NaN too
  if len(wrong):
    p, g = wrong[0]
    parts = zip(names, seen.rewards[p, g].tolist(), strict=True)
    raise TrainingError(
      f'the rewards of an output of step {step} add up to {seen.reward[p, g]:.3g} ('
      + ', '.join(f'{name} {value:.3g}' for name, value in parts)
      + f'), and {LARGEST_REWARD:g} is the most that advantages are computed of; lower '
      'that reward or its weight, in another --workdir'
    )


def _check_advantages(step: int, advantage_PG: np.ndarray, choice: Choice) -> None:
  """Raises TrainingError for advantages that are no numbers."""
  wrong = advantage_PG[~np.isfinite(advantage_PG)]
  if wrong.size:
    raise TrainingError(
      f'the advantage {label(choice)} is {wrong[0]} for {wrong.size} of '
      f'{advantage_PG.size} outputs of step {step}, whose rewards are all finite; '
      'correct the function, or choose another grpo.advantage, in another --workdir'
    )


def _observed(
  length_PG: np.ndarray,
  seen: _Seen,
  advantage_PG: np.ndarray,
  names: Sequence[str],
) -> dict[str, Any]:
  spread = seen.reward.max(1) - seen.reward.min(1)
  return {
    'reward': float(seen.reward.mean()),
    'reward_spread': float(np.ptp(seen.reward)),  # the largest less the smallest
    'rewards': {
      name: float(seen.rewards[..., i].mean()) for i, name in enumerate(names)
    },
    'length': float(length_PG.mean()),
    'zero_variance_groups': float((spread == 0).mean()),
    'zero_advantages': float((advantage_PG == 0).mean()),
    'cut_off': float(seen.cut_off.mean()),
    'unparsable': float(seen.unparsable.mean()),
    'reflective': float(seen.reflective.mean()),
    'reward_errors': seen.failures,
    'reward_timeouts': seen.timeouts,
    'errors': seen.errors,
  }
