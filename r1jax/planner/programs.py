"""The programs of an RL step, with the shapes of their arguments on a mesh.

Each program of the stage becomes a `Phase`, which `measure` compiles ahead of time for
hardware you do not have. Nothing is allocated: all arrays are shapes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from r1jax import packing
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import TrainState
from r1jax.packing import PackedRows
from r1jax.rollout.sample_program import SampleProgram
from r1jax.runtime import compilation
from r1jax.sampling import streaming
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sampling.streaming import DecodeState
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import MeshConfig, check_lengths, check_rows, make_mesh
from r1jax.sharding.place import bytes_per_device, param_shardings, unbox
from r1jax.sharding.rules import MeshError, named_sharding, shard_count
from r1jax.stages import rl_state
from r1jax.stages.learner import Learner
from r1jax.stages.rl_config import RLConfig
from r1jax.trees import Shardings

Shapes = Any  # a tree of jax.ShapeDtypeStruct, each with a sharding


class PlanError(ValueError):
  """A stage that cannot be planned."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """A model and the settings of an RL stage that determine its programs."""

  model: ModelConfig
  vocab_size: int
  rl: RLConfig
  mesh: MeshConfig
  param_dtype: str  # of parameters, reference and sampler; see `OptimConfig.masters`

  @property
  def length(self) -> int:
    """The most tokens of an output."""
    return self.rl.longest

  @property
  def tokens(self) -> int:
    """The most tokens that a step samples."""
    return self.rl.prompts_per_step * self.rl.group_size * self.length


class Phase(NamedTuple):
  """One program of the stage, with the shapes of its arguments."""

  name: str
  program: Any  # a function of jax.jit
  args: tuple[Shapes, ...]
  arguments: dict[str, Shapes]  # the arguments that take memory, by purpose
  resident: dict[str, float]  # bytes per device of other arrays that stay there
  runs: int  # in one step
  unknown_trips: int = 1  # of the loop over a rollout's micro-batches
  ragged_share: float = 1.0  # of the rows of a grouped product that are not padding
  offloaded: float = 0.0  # bytes per device in host memory
  output: str = 'results'  # what the program returns


def _with_shardings(tree: Shapes, shardings: Shardings) -> Shapes:
  return jax.tree.map(lambda x, place: x.update(sharding=place), tree, shardings)


def phases(plan: PlannedRun, devices: Sequence[jax.Device]) -> Iterator[Phase]:
  """Yields the programs of a step: prefill, decode, score and update.

  With `rl.offload` the update is two programs, gradient and update.

  Raises:
    MeshError, ValueError: a size is not divisible by the mesh.
  """
  if slots := plan.mesh.sampler_slots:
    raise MeshError(
      'mesh.sampler_slots: expected 0, as a plan is for samplers that decode all '
      f'outputs at once, got {slots}'
    )
  mesh = make_mesh(devices, plan.mesh)
  sizes = ('prompts_per_step', 'micro_batch_rows')
  check_rows(mesh, {f'rl.{name}': getattr(plan.rl, name) for name in sizes})
  check_lengths(
    mesh,
    {'rl.max_prompt_length': plan.rl.max_prompt_length, 'rl.max_length': plan.length},
  )
  learner, sampler = learner_of(plan, mesh), sampler_of(plan, mesh)
  state, reference = state_of(plan, learner)
  policy = {'policy': bytes_per_device(state.params)}
  waiting = {  # on the devices, or in host memory
    'optimizer': bytes_per_device(state.opt_state),
    'reference': bytes_per_device(reference),
  }
  sampled = param_shardings(
    sampler.sampling_mesh, sampler.sampling_names, 'mesh.sampler_'
  )
  shared = sampled == param_shardings(
    mesh, sampler.names
  )  # the policy's own parameters
  resident = ({} if shared else policy) | ({} if plan.rl.offload else waiting)
  offloaded = sum(waiting.values()) if plan.rl.offload else 0.0
  yield from _sampling(plan, sampler, resident, offloaded)
  yield from _learning(plan, mesh, learner, state, reference, waiting)


def _learning(
  plan: PlannedRun,
  mesh: jax.sharding.Mesh,
  learner: Learner,
  state: TrainState,
  reference: Shapes,
  waiting: dict[str, float],
) -> Iterator[Phase]:
  """Yields scoring with the reference, if there is one, and the update."""
  offload = plan.rl.offload
  rollout = packed(plan, mesh)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  parts, share = rollout.prompts.shape[0], 1 / mesh.shape['expert']
  optimizer = {'optimizer': waiting['optimizer']}
  referring = {'reference': waiting['reference']}

  def offloaded(arrays: dict[str, float]) -> float:
    return sum(arrays.values()) if offload else 0.0

  if plan.rl.grpo.kl_coef:
    yield Phase(
      'score',
      learner.program.score,
      (reference, rollout.inputs, count, scalar),
      {'reference': reference, 'rows': rollout.inputs},
      {'policy': bytes_per_device(state.params)} | ({} if offload else optimizer),
      plan.rl.minibatches,
      parts,
      share,
      offloaded(optimizer),
    )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  numbers = (scalar, scalar) if plan.rl.grpo.entropy_target else (scalar,)
  updates, rest = plan.rl.minibatches * plan.rl.epochs, (None, rollout, count, *numbers)
  loops = (updates, parts, share, offloaded(waiting))
  inputs = {'policy': state.params, 'rows': rollout}
  kept = {'policy': state.params, 'optimizer': state.opt_state}
  large = compilation.is_large(state.params)
  if not offload:
    program = learner.program.step(shardings, large)
    yield Phase('update', program, (state, *rest), kept | inputs, referring, *loops)
    return
  gradients, apply = learner.program.halves(shardings, large)
  args = (state.params, *rest)
  yield Phase('gradient', gradients, args, inputs, {}, *loops, output='gradient')
  grads = jax.tree.map(lambda x: x.update(dtype=jnp.float32), state.params)
  arguments, still = kept | {'gradient': grads}, offloaded(referring)
  yield Phase('update', apply, (state, grads), arguments, {}, updates, offloaded=still)


def learner_of(plan: PlannedRun, mesh: jax.sharding.Mesh) -> Learner:
  """Returns what learns in the stage."""
  model = DecoderFns(*decoder.functions(plan.model, plan.vocab_size))
  return Learner(
    model,
    mesh,
    plan.rl,
    decoder.matrices(plan.model),
    round_reference=functools.partial(decoder.as_multiplied, config=plan.model),
  )


def sampler_of(plan: PlannedRun, mesh: jax.sharding.Mesh) -> SampleProgram:
  """Returns what samples in the stage; no token ends an output."""
  model = DecoderFns(*decoder.functions(plan.model, plan.vocab_size))
  names = decoder.names(plan.model, plan.vocab_size)
  return SampleProgram(model, (), mesh, plan.mesh, names)


def state_of(plan: PlannedRun, learner: Learner) -> tuple[TrainState, Shapes]:
  """Returns the shapes of the policy's state, and of the reference."""
  mesh, names = learner.mesh, decoder.names(plan.model, plan.vocab_size)
  shardings = param_shardings(mesh, names)
  shapes = decoder.with_dtype(unbox(names), plan.param_dtype)
  params = _with_shardings(shapes, shardings)
  saved = rl_state.like(learner, params)
  return saved['policy'], saved['reference']


def _cached(mesh: jax.sharding.Mesh, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """Returns the shape of a part of the decode state with its sharding."""
  heads = [] if x.ndim < 4 else ['kv_heads' if x.shape[1] > 1 else None]
  axes = ['prompt', *heads, None, None][: x.ndim] if x.ndim else []
  sharding = named_sharding(mesh, *axes)
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _sampling(
  plan: PlannedRun, sampler: SampleProgram, resident: dict[str, float], offloaded: float
) -> Iterator[Phase]:
  """Yields prefill and the last decoding step, which attends to the most tokens."""
  mesh, names, model = sampler.sampling_mesh, sampler.names, sampler.model
  share = 1 / mesh.shape['expert']
  shape = (plan.rl.prompts_per_step, plan.rl.max_prompt_length)
  check_rows(mesh, {'rl.prompts_per_step': shape[0]}, 'samplers cut prompts')
  shardings = param_shardings(mesh, sampler.sampling_names)
  shapes = decoder.with_dtype(unbox(names), plan.param_dtype)
  params = _with_shardings(shapes, shardings)
  options = compilation.options(mesh)

  def rows(*shape: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    sharding = named_sharding(mesh, 'prompt')
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  prompts = rows(*shape, dtype=jnp.int32), rows(*shape, dtype=jnp.bool_)
  prefill = on_mesh(
    mesh,
    functools.partial(
      streaming.prefill, model=model, room=plan.length, group_size=plan.rl.group_size
    ),
  )
  _, state = jax.eval_shape(prefill, params, *prompts)
  state = jax.tree.map(functools.partial(_cached, mesh), state)
  places = jax.tree.map(lambda x: x.sharding, state)
  yield Phase(
    'prefill',
    jax.jit(prefill, out_shardings=(None, places), compiler_options=options),
    (params, *prompts),
    {'sampler': params, 'rows': prompts},
    resident,
    runs=1,
    ragged_share=share,
    offloaded=offloaded,
    output='cache',
  )

  def decode(
    params: optax.Params, state: DecodeState, token: jax.Array, uniform: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], DecodeState]:
    logits, state = streaming.decode_step(params, state, token, model=model)
    return sample_token(uniform, logits, SamplingConfig(), jnp.float32(1)), state

  count = shape[0] * plan.rl.group_size
  yield Phase(
    'decode',
    jax.jit(
      on_mesh(mesh, decode),
      donate_argnums=1,
      out_shardings=(None, places),
      compiler_options=options,
    ),
    (params, state, rows(count, dtype=jnp.int32), rows(count, dtype=jnp.float32)),
    {'sampler': params, 'cache': state},
    resident,
    runs=plan.length,
    ragged_share=share,
    offloaded=offloaded,
  )


def packed(plan: PlannedRun, mesh: jax.sharding.Mesh) -> PackedRows:
  """Returns the shapes of a mini-batch in which every output fills a row."""
  c = plan.rl
  length = plan.length
  rows = packing.rows_of_a_prompt(
    c.group_size,
    c.max_prompt_length,
    length,
    c.micro_batch_rows,
    shard_count(mesh, 'prompt'),
  )
  prompts = c.prompts_per_step // c.minibatches
  parts = c.micro_batch_rows // rows
  count = -(-prompts * -(-c.group_size // rows) // parts)
  place = named_sharding(mesh, None, 'prompt')

  def shape(*rest: int, dtype: DTypeLike) -> Any:
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
    ref_logp=token(dtype=jnp.float32) if plan.rl.grpo.kl_coef else None,
    sampler_logp=None,
    advantage=output(dtype=jnp.float32),
    group_tokens=output(dtype=jnp.int32),
    starts=output(dtype=jnp.int32),
    lengths=output(dtype=jnp.int32),
  )
