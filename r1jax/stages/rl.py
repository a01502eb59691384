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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from r1jax import drawing, grpo, optim, packing, sampling, text
from r1jax import mesh as mesh_lib
from r1jax.rewards.pool import RewardPool, Scores
from r1jax.stages import compilation
from r1jax.stages import evaluate as evaluation
from r1jax.stages.evaluate import named_key
from r1jax.stages.generate import Generator, Outputs
from r1jax.stages.rl_config import Config, at
from r1jax.stages.run import Run, TrainingError, check_finite
from r1jax.tasks import Problem

SETTLED = 3  # steps of a run after which nothing should be compiled any more
FLAT = 20  # first steps without any difference in reward after which a run ends


def problem_order(
  sources: Sequence[Sequence[Problem]], shares: Sequence[float], seed: int
) -> Callable[[int], Problem]:
  """Returns index -> problem: endless passes over each source, in orders of their own.

  Any stretch of indices takes from the sources by their shares.
  """
  passes = [
    grain.MapDataset.source(problems).seed(seed + n).shuffle().repeat()
    for n, problems in enumerate(sources)
    if shares[n]
  ]
  mixed = grain.MapDataset.mix(passes, [share for share in shares if share])
  return lambda index: mixed[index]


class Passes(NamedTuple):
  """Log-probs [P, G, T] of a rollout's tokens, and the device's seconds for them."""

  old_logp: np.ndarray | None  # of the policy; None if the sampler was the policy
  ref_logp: np.ndarray | None  # of the reference; None if no penalty needs it
  seconds: float


def _learned_alone(frozen: Any, params: Any) -> Any:
  """The model's parameters where all of them are learned."""
  del frozen
  return params


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What does not change during a stage."""

  generator: Generator
  pool: RewardPool
  config: Config
  algorithm: grpo.Config
  optimizer: optim.Config
  matrices: Any = None  # of the model, for Muon; see `optim.make`
  # What rollouts are sampled with in the place of the policy's parameters, say their
  # `decoder.quantize`; None is the policy itself.
  sampler_params: Callable[[Any], Any] | None = None
  # Parameters that nothing is learned of, and how they make up the model's with those
  # that are; see `model.lora`.
  frozen: Any = None
  join: Callable[[Any, Any], Any] = _learned_alone

  @functools.cached_property
  def chain(self) -> Any:
    """The optimizer over all updates of the stage."""
    config = self.config
    updates = config.steps * config.epochs * config.minibatches
    return optim.make(self.optimizer, updates, self.matrices)

  def start(self, params: Any) -> dict[str, Any]:
    """What a checkpoint holds, before the first step."""
    # A copy: an update takes the memory of the state before it.
    before = {
      'policy': optim.init(jax.tree.map(jnp.copy, params), self.chain),
      'reference': params,
    }
    # Placed now: another layout in the second step would compile again.
    return mesh_lib.put_beside(self.generator.mesh, before, params)

  @functools.cached_property
  def _score(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
    return functools.partial(sampling.score, model=self.generator.model)

  def program(self, places: Any) -> Any:
    """`grpo.step` for `jax.jit`; the old state's memory is used for the new one.

    `places` is where the state lies, before and after.
    """

    def step(state: optim.TrainState, frozen: Any, *rollout: Any) -> Any:
      def score(params: Any, *rows: Any, **settings: Any) -> Any:
        return self._score(self.join(frozen, params), *rows, **settings)

      return grpo.step(
        state, *rollout, score=score, optimizer=self.chain, config=self.algorithm
      )

    return jax.jit(
      mesh_lib.bound(self.generator.mesh, step),
      donate_argnums=0,
      out_shardings=(places, None),
      compiler_options=compilation.options(self.generator.mesh),
    )

  @functools.cached_property
  def update(self) -> Callable[..., tuple[optim.TrainState, dict[str, jax.Array]]]:
    """`program`, compiled for where the first state lies."""
    programs: list[Any] = []

    def update(state: optim.TrainState, *args: Any) -> Any:
      if not programs:
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        programs.append(self.program(places))
      return programs[0](state, *args)

    return update

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
  ) -> Outputs:
    """Samples the group of each problem."""
    return self.generator(
      self._sampler_params(self.whole(params)),
      key,
      problems,
      group_size=self.config.group_size,
      max_length=max_length,
      draw=drawing.Config(temperature),
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

    score = mesh_lib.bound(self.generator.mesh, score)
    options = compilation.options(self.generator.mesh)
    return jax.jit(score, compiler_options=options)

  def passes(
    self, policy: Any, reference: Any, outputs: Outputs, temperature: float
  ) -> Passes:
    """Log-probs that the update needs beside the sampler's."""
    old_logp, ref_logp, first, second = None, None, 0.0, 0.0
    if self.sampler_params is not None:
      old_logp, first = self.logp(policy, outputs, temperature)
    if self.algorithm.kl_coef:
      ref_logp, second = self.logp(reference, outputs, temperature)
    return Passes(old_logp, ref_logp, first + second)

  def logp(
    self, params: Any, outputs: Outputs, temperature: float
  ) -> tuple[np.ndarray, float]:
    """Log-probs of the outputs' tokens, [P, G, T], and the device's seconds."""
    layout = self._plan(outputs)
    rows = (
      layout.by_prompt(outputs.prompts),
      layout.by_prompt(outputs.prompt_mask),
      layout.by_token(outputs.tokens),
      layout.offsets,
      layout.documents,
    )
    count, scalar = np.int32(layout.count), np.float32(temperature)
    rows = self._put(rows)
    began = time.monotonic()
    logp = jax.device_get(self.scoring(self.whole(params), rows, count, scalar))
    seconds = time.monotonic() - began
    return layout.undo(logp, outputs.tokens.shape), seconds

  def advantages(self, reward_PG: np.ndarray) -> np.ndarray:
    """`grpo.group_advantage` on the host's numbers."""
    return np.asarray(
      grpo.group_advantage(jnp.asarray(reward_PG), config=self.algorithm)
    )

  def learn(
    self,
    state: optim.TrainState,
    outputs: Outputs,
    passes: Passes,
    advantage_PG: np.ndarray,
    key: jax.Array,
    temperature: float,
  ) -> tuple[optim.TrainState, dict[str, float], float]:
    """All updates of one rollout.

    Returns the state, the updates' mean metrics, and the seconds that the device took.
    """

    def chosen_of(x_PGT: np.ndarray | None, chosen: np.ndarray) -> np.ndarray | None:
      return None if x_PGT is None else x_PGT[chosen]

    old_logp, sampler_logp = outputs.logp, None
    if passes.old_logp is not None:
      old_logp, sampler_logp = passes.old_logp, outputs.logp
    values, began = [], None
    for epoch in range(self.config.epochs):
      for chosen in self._minibatches(jax.random.fold_in(key, epoch)):
        layout = self._plan(outputs, chosen)
        rollout = packing.pack(
          layout,
          prompts=outputs.prompts[chosen],
          prompt_mask=outputs.prompt_mask[chosen],
          tokens=outputs.tokens[chosen],
          old_logp=old_logp[chosen],
          ref_logp=chosen_of(passes.ref_logp, chosen),
          sampler_logp=chosen_of(sampler_logp, chosen),
          advantage=advantage_PG[chosen],
        )
        began = began or time.monotonic()
        count = np.int32(layout.count)
        state, metrics = self.update(
          state, self.frozen, self._put(rollout), count, np.float32(temperature)
        )
        values.append(metrics)  # not fetched: the next part is packed meanwhile
    values = jax.device_get(values)
    seconds = time.monotonic() - (began or 0.0)
    means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
    # Before the first update the learner is what sampled, but for rounding.
    means['drift'] = float(values[0]['drift'])
    return state, means, seconds

  def _minibatches(self, key: jax.Array) -> np.ndarray:
    """Which problems each mini-batch takes, [minibatches, problems]."""
    prompts, parts = self.config.prompts_per_step, self.config.minibatches
    if parts == 1:
      return np.arange(prompts)[None]
    return np.asarray(jax.random.permutation(key, prompts)).reshape(parts, -1)

  def _plan(
    self, outputs: Outputs, chosen: np.ndarray | slice = slice(None)
  ) -> packing.Layout:
    _, group_size, length = outputs.tokens.shape
    rows = self.config.micro_batch_rows
    prompt_rows = packing.rows_of_a_prompt(
      group_size, outputs.prompts.shape[1], length, rows, self._shards
    )
    return packing.plan(outputs.lengths[chosen], length, rows, prompt_rows)

  @property
  def _shards(self) -> int:
    return mesh_lib.shards(self.generator.mesh, 'prompt')

  def _put(self, parts: Any) -> Any:
    return mesh_lib.put_batch(self.generator.mesh, parts, axis=1)


def train(
  run: Run,
  phase: str,
  params: Any,
  *,
  trainer: Trainer,
  order: Callable[[int], Problem],
  held_out: Sequence[Problem],
  evaluate: evaluation.Config,
  seed: int,
) -> Any:
  """Returns the policy after `config.steps` rollouts, from the last checkpoint on.

  Args:
    run: of which `phase` is a part.
    phase: its name in logs and checkpoints.
    params: what is learned of the policy to start from, and the first reference.
    trainer: the machinery.
    order: index -> the problem to learn from; see `problem_order`.
    held_out: to be evaluated on, never learned from.
    evaluate: how to evaluate.
    seed: everything random follows from it.

  Raises:
    RewardError: a reward failed on every output of a step.
    TrainingError: the loss is no longer finite, or from the first step on the outputs
      of a problem have always had equal rewards. The last checkpoint stays.
  """
  config = trainer.config
  saved, first = run.checkpoints[phase].resume(trainer.start(params))
  state, reference = saved['policy'], saved['reference']
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
    with _profile(run, step == config.profile_step):
      state, values, samples = _step(trainer, state, reference, chosen, key, step - 1)
    for sentence in values.pop('errors'):
      run.progress.say(f'Step {step}: {sentence}')
    check_finite(phase, step, values, 'rl_optim')
    flat = flat and values['zero_variance_groups'] == 1
    if flat and step == FLAT:
      raise TrainingError(
        f'in {FLAT} steps of {phase} all outputs of a problem had the same reward (the '
        f'last mean is {values["reward"]:.3g}), so nothing was learned; make the '
        'problems easier or harder, or the reward finer, in another --workdir'
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
      reference = jax.tree.map(jnp.copy, state.params)
      run.progress.say(f'Step {step}: the policy is the new reference.')
    if step % config.evaluate_every == 0 or step == config.steps:
      measure(step, trainer.whole(state.params))
      ended = time.monotonic()
    _say_compilations(run, step, step - first, seconds)
    due = step % config.checkpoint_every == 0 or step == config.steps
    if due or run.interrupted:
      run.save(phase, step, {'policy': state, 'reference': reference})
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
  trainer: Trainer,
  held_out: Sequence[Problem],
  config: evaluation.Config,
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
    max_length=at(trainer.config.max_length, last),
  )
  run.log.write('eval', step, **values)
  run.log.samples({'phase': 'eval', 'step': step, **sample} for sample in shown)
  run.progress.update('eval', step, last, values)


def _step(
  trainer: Trainer,
  state: optim.TrainState,
  reference: Any,
  problems: Sequence[Problem],
  key: jax.Array,
  rollouts_before: int,
) -> tuple[optim.TrainState, dict[str, Any], list[dict[str, Any]]]:
  """One rollout and its updates: the state, the metrics, some samples."""
  config = trainer.config
  temperature = at(config.temperature, rollouts_before)
  began = time.monotonic()
  length = at(config.max_length, rollouts_before)
  outputs = trainer.rollout(
    state.params, named_key(key, 'sample'), problems, length, temperature
  )
  sampled = time.monotonic()
  repeated = [problem for problem in problems for _ in range(config.group_size)]
  flat = [output for group in outputs.texts for output in group]
  # The worker processes score the texts while the device scores the tokens.
  with concurrent.futures.ThreadPoolExecutor(1) as aside:
    passing = aside.submit(
      trainer.passes, state.params, reference, outputs, temperature
    )
    scores = trainer.pool.submit(repeated, flat).result()
    rewarded = time.monotonic()
    passes = passing.result()
  reward_PG = scores.total.reshape(len(problems), config.group_size)
  advantage_PG = trainer.advantages(reward_PG)
  referred = time.monotonic()
  state, metrics, learning = trainer.learn(
    state, outputs, passes, advantage_PG, named_key(key, 'minibatch'), temperature
  )
  values = {
    **_observed(outputs, scores, reward_PG, trainer.pool.names),
    **metrics,
    'temperature': temperature,
    'time': {
      'rollout': sampled - began,
      'reward': rewarded - sampled,
      'reference': passes.seconds,
      'update': time.monotonic() - referred,
      'tokens': int(outputs.lengths.sum()),
      'device': outputs.seconds + passes.seconds + learning,
    },
  }
  return state, values, _samples(trainer, problems, outputs, scores, advantage_PG)


def _observed(
  outputs: Outputs, scores: Scores, reward_PG: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
  """What can be seen of a rollout before learning from it."""
  flat = [output for group in outputs.texts for output in group]
  spread = reward_PG.max(1) - reward_PG.min(1)
  return {
    'reward': float(reward_PG.mean()),
    'rewards': {
      name: float(scores.values[:, i].mean()) for i, name in enumerate(names)
    },
    'length': float(outputs.lengths.mean()),
    'zero_variance_groups': float((spread == 0).mean()),
    'cut_off': float(outputs.cut_off.mean()),
    'unparsable': float(np.mean([text.parse(output) is None for output in flat])),
    'reflective': float(np.mean([text.is_reflective(output) for output in flat])),
    'reward_errors': scores.failures,
    'reward_timeouts': scores.timeouts,
    'errors': scores.errors,
  }


def _samples(
  trainer: Trainer,
  problems: Sequence[Problem],
  outputs: Outputs,
  scores: Scores,
  advantage_PG: np.ndarray,
) -> list[dict[str, Any]]:
  """The first outputs of the first groups, as lines of samples.jsonl."""
  samples = []
  for index in range(min(trainer.config.logged_samples, len(problems))):
    row = index * trainer.config.group_size
    names = trainer.pool.names
    samples.append(
      {
        'problem': problems[index].id,
        'prompt': trainer.generator.prompt(problems[index]),
        'output': outputs.texts[index][0],
        'rewards': dict(zip(names, scores.values[row].tolist(), strict=True)),
        'reward': float(scores.total[row]),
        'advantage': float(advantage_PG[index, 0]),
      }
    )
  return samples
