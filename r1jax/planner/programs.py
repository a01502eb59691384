"""What a stage of RL would take of machines that are not there: compiled, not run.

The stage's own programs are lowered for a topology and compiled ahead of time. The
compiler says what memory each chip needs; the partitioned program says what a chip
computes and what it sends, and the chip's data sheet how long that takes at least.
Nothing is allocated: parameters are shapes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax import packing
from r1jax.grpo import GRPOConfig
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.planner.measure import bytes_per_device
from r1jax.runtime import compilation
from r1jax.sampling import streaming
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import (
  MeshConfig,
  check_lengths,
  check_rows,
  make_mesh,
)
from r1jax.sharding.place import param_shardings, unbox
from r1jax.sharding.rules import named_sharding, shard_count
from r1jax.stages.rl import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.rollout import Sampler
from r1jax.update import PackedRows


class PlanError(ValueError):
  """A stage that can't be planned."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """A model and a stage of RL, as far as a machine can tell."""

  model: ModelConfig
  vocab_size: int
  rl: RLConfig
  optim: OptimConfig
  grpo: GRPOConfig
  mesh: MeshConfig
  param_dtype: str  # of parameters, reference and sampler; see `optim.Config.masters`

  @property
  def length(self) -> int:
    """Tokens of an output, at most."""
    return max(n for _, n in self.rl.max_length)

  @property
  def tokens(self) -> int:
    """Tokens that a step samples, at most."""
    return self.rl.prompts_per_step * self.rl.group_size * self.length


class Phase(NamedTuple):
  """One program of the stage, with the shapes of its arguments."""

  name: str
  program: Any  # compiled by jax.jit
  args: tuple[Any, ...]
  given: dict[str, Any]  # what the arguments are, as far as they take memory
  beside: dict[str, float]  # bytes a device, of what lies there beside them
  times: int  # that a step runs it
  unknown_trips: int = 1  # of a loop that ends with the rollout's micro-batches
  ragged_share: float = 1.0  # of the rows of a grouped product that are some expert's
  aside: float = 0.0  # bytes a device, of what waits in its host's memory
  gives: str = 'results'  # what the results are


def _shaped(tree: Any, places: Any) -> Any:
  """A tree of shapes as those that lie somewhere."""
  return jax.tree.map(lambda x, place: x.update(sharding=place), tree, places)


def phases(work: PlannedRun, devices: Sequence[Any]) -> Iterator[Phase]:
  """The programs of a step: prefill, decode, score, update.

  Where something is put aside the update is two: gradient, and update.

  Raises:
    MeshError, ValueError: sizes that the mesh can't cut.
  """
  where = make_mesh(devices, work.mesh)
  sizes = ('prompts_per_step', 'micro_batch_rows')
  check_rows(where, {f'rl.{name}': getattr(work.rl, name) for name in sizes})
  check_lengths(
    where,
    {'rl.max_prompt_length': work.rl.max_prompt_length, 'rl.max_length': work.length},
  )
  trainer = learner_of(work, where)
  generator, names = trainer.generator, trainer.generator.names
  state, params = state_of(work, trainer)
  policy, reference = (
    {'policy': bytes_per_device(params)},
    {'reference': bytes_per_device(params)},
  )
  optimizer, away = {'optimizer': bytes_per_device(state.opt_state)}, work.rl.offload
  waiting = optimizer | reference  # on the devices, or aside

  sampled = param_shardings(generator.where, generator.sampled, 'mesh.sampler_')
  shared = sampled == param_shardings(where, names)  # the policy's own parameters
  beside = ({} if shared else policy) | ({} if away else waiting)
  yield from _sampling(work, generator, beside, _aside(away, waiting))
  rollout = packed(work, where)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  parts = rollout.prompts.shape[0]
  rows = (
    rollout.prompts,
    rollout.prompt_mask,
    rollout.tokens,
    rollout.offsets,
    rollout.documents,
  )
  minibatches, share = work.rl.minibatches, 1 / where.shape['expert']
  if work.grpo.kl_coef:
    scored, given = (params, rows, count, scalar), {'reference': params, 'rows': rows}
    beside = policy | ({} if away else optimizer)
    loops = (minibatches, parts, share, _aside(away, optimizer))
    yield Phase('score', trainer.scoring, scored, given, beside, *loops)
  places = jax.tree.map(lambda leaf: leaf.sharding, state)
  updates, rest = minibatches * work.rl.epochs, (None, rollout, count, scalar)
  loops = (updates, parts, share, _aside(away, waiting))
  given = {'policy': state.params, 'rows': rollout}
  kept = {'policy': state.params, 'optimizer': state.opt_state}
  if not away:
    program, learned = trainer.program(places), (state, *rest)
    yield Phase('update', program, learned, kept | given, reference, *loops)
    return
  gradients, apply = trainer.halves(places)
  learned = (state.params, *rest)
  yield Phase('gradient', gradients, learned, given, {}, *loops, gives='gradient')
  grads = jax.tree.map(lambda x: x.update(dtype=jnp.float32), params)
  given, without = kept | {'gradient': grads}, _aside(away, reference)
  yield Phase('update', apply, (state, grads), given, {}, updates, aside=without)


def _aside(away: bool, waiting: dict[str, float]) -> float:
  return sum(waiting.values()) if away else 0.0


def learner_of(work: PlannedRun, where: jax.sharding.Mesh) -> Learner:
  names = decoder.names(work.model, work.vocab_size)
  model = DecoderFns(*decoder.functions(work.model, work.vocab_size))
  nothing: Any = None
  generator = Sampler(
    model, nothing, '', work.rl.max_prompt_length, where, work.mesh, names
  )
  matrices = decoder.matrices(work.model)
  return Learner(generator, nothing, work.rl, work.grpo, work.optim, matrices)


def state_of(work: PlannedRun, trainer: Learner) -> tuple[Any, Any]:
  """The shapes of a policy's state, and of the reference."""
  where, names = trainer.generator.mesh, trainer.generator.names
  places = param_shardings(where, names)
  params = _shaped(decoder.held(unbox(names), work.param_dtype), places)
  saved = trainer.like(params)
  return saved['policy'], saved['reference']


def _sampling(
  work: PlannedRun, generator: Sampler, beside: dict[str, float], aside: float
) -> Iterator[Phase]:
  """Prefill, and the last step of decoding, which has the most to attend to."""
  where, names, model = generator.where, generator.names, generator.model
  share = 1 / where.shape['expert']
  asked = {'rl.prompts_per_step': work.rl.prompts_per_step}
  check_rows(where, asked, 'samplers cut prompts')
  places = param_shardings(where, generator.sampled)
  params = _shaped(decoder.held(unbox(names), work.param_dtype), places)
  options = compilation.options(where)
  on_rows = named_sharding(where, 'prompt')

  def rows(*shape: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=on_rows)

  shape = (work.rl.prompts_per_step, work.rl.max_prompt_length)
  prompts = rows(*shape, dtype=jnp.int32), rows(*shape, dtype=jnp.bool_)
  listen = on_mesh(
    where,
    functools.partial(
      streaming.prefill, model=model, room=work.length, group_size=work.rl.group_size
    ),
  )
  _, spoken = jax.eval_shape(listen, params, *prompts)

  def cached(x: Any) -> Any:
    heads = [] if x.ndim < 4 else ['kv_heads' if x.shape[1] > 1 else None]
    axes = ['prompt', *heads, None, None][: x.ndim] if x.ndim else []
    place = named_sharding(where, *axes)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  spoken = jax.tree.map(cached, spoken)
  lying = jax.tree.map(lambda x: x.sharding, spoken)
  program = jax.jit(listen, out_shardings=(None, lying), compiler_options=options)
  listening, given = (params, *prompts), {'sampler': params, 'rows': prompts}
  yield Phase(
    'prefill', program, listening, given, beside, 1, 1, share, aside, gives='cache'
  )

  def decode(params: Any, spoken: Any, token: Any, uniform: Any) -> Any:
    logits, spoken = streaming.decode_step(params, spoken, token, model=model)
    drawn = sample_token(uniform, logits, SamplingConfig(), jnp.float32(1))
    return drawn, spoken

  count = shape[0] * work.rl.group_size
  written = rows(count, dtype=jnp.int32), rows(count, dtype=jnp.float32)
  program = jax.jit(
    on_mesh(where, decode),
    donate_argnums=1,
    out_shardings=(None, lying),
    compiler_options=options,
  )
  speaking = (params, spoken, *written)
  given, loops = {'sampler': params, 'cache': spoken}, (work.length, 1, share, aside)
  yield Phase('decode', program, speaking, given, beside, *loops)


def packed(work: PlannedRun, where: Any) -> PackedRows:
  """The shapes of a mini-batch's rollout when no output leaves room for another."""
  c = work.rl
  length = work.length
  rows = packing.rows_of_a_prompt(
    c.group_size,
    c.max_prompt_length,
    length,
    c.micro_batch_rows,
    shard_count(where, 'prompt'),
  )
  prompts = c.prompts_per_step // c.minibatches
  parts = c.micro_batch_rows // rows
  count = -(-prompts * -(-c.group_size // rows) // parts)
  place = named_sharding(where, None, 'prompt')

  def shape(*rest: int, dtype: Any) -> Any:
    return jax.ShapeDtypeStruct((count, parts, *rest), dtype, sharding=place)

  token = functools.partial(shape, rows, length)
  output = functools.partial(shape, rows * packing.ROW_OUTPUTS)
  return PackedRows(
    prompts=shape(c.max_prompt_length, dtype=jnp.int32),
    prompt_mask=shape(c.max_prompt_length, dtype=jnp.bool_),
    tokens=token(dtype=jnp.int32),
    offsets=token(dtype=jnp.int32),
    documents=token(dtype=jnp.int32),
    old_logp=token(dtype=jnp.float32),
    ref_logp=token(dtype=jnp.float32) if work.grpo.kl_coef else None,
    sampler_logp=None,
    advantage=output(dtype=jnp.float32),
    starts=output(dtype=jnp.int32),
    lengths=output(dtype=jnp.int32),
  )
