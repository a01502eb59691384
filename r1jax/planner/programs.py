"""What a stage of RL would take of machines that are not there: compiled, not run.

The stage's own programs are lowered for a topology and compiled ahead of time. The
compiler says what memory each chip needs; the partitioned program says what a chip
computes and what it sends, and the chip's data sheet how long that takes at least.
Nothing is allocated: parameters are shapes.
"""

import dataclasses
import functools
import math
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from r1jax import optim, packing
from r1jax.grpo import GRPOConfig
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.planner import hlo
from r1jax.planner.topology import Chip
from r1jax.runtime import checkpoint, compilation
from r1jax.sampling import streaming
from r1jax.sampling.decoder_api import DecoderFns
from r1jax.sampling.sampler import SamplingConfig, sample_token
from r1jax.sharding.constrain import on_mesh
from r1jax.sharding.mesh import (
  MeshConfig,
  check_lengths,
  check_rows,
  make_mesh,
  slice_of,
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


@dataclasses.dataclass(frozen=True)
class Found:
  """What a compiled phase takes of one device."""

  name: str
  seconds: float  # that it took to compile
  memory: dict[str, float]  # bytes, by what they are for
  costs: hlo.Costs
  times: int
  refused: str = ''  # the compiler's words, where it found no room
  aside: float = 0.0  # bytes in the host's memory, of each of its devices
  given: float = 0.0  # bytes of the program's arguments

  @property
  def total(self) -> float:
    """Bytes at the peak."""
    return sum(self.memory.values())


def _bytes(tree: Any) -> float:
  """Of a tree of shapes, on each device."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
  )


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
  trainer = _trainer(work, where)
  generator, names = trainer.generator, trainer.generator.names
  state, params = _learner(work, trainer)
  policy, reference = {'policy': _bytes(params)}, {'reference': _bytes(params)}
  optimizer, away = {'optimizer': _bytes(state.opt_state)}, work.rl.offload
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


def _trainer(work: PlannedRun, where: jax.sharding.Mesh) -> Learner:
  names = decoder.names(work.model, work.vocab_size)
  model = DecoderFns(*decoder.functions(work.model, work.vocab_size))
  nothing: Any = None
  generator = Sampler(
    model, nothing, '', work.rl.max_prompt_length, where, work.mesh, names
  )
  matrices = decoder.matrices(work.model)
  return Learner(generator, nothing, work.rl, work.grpo, work.optim, matrices)


def _learner(work: PlannedRun, trainer: Learner) -> tuple[Any, Any]:
  """The shapes of a policy's state, and of the reference."""
  where, names = trainer.generator.mesh, trainer.generator.names
  places = param_shardings(where, names)
  params = _shaped(decoder.with_dtype(unbox(names), work.param_dtype), places)
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
  params = _shaped(decoder.with_dtype(unbox(names), work.param_dtype), places)
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


def checkpoint_memory(work: PlannedRun, devices: Sequence[Any]) -> Found:
  """What a checkpoint needs of a CPU's memory: a small one is copied."""
  where = make_mesh(devices, work.mesh)
  state, reference = _learner(work, _trainer(work, where))
  held = {
    'policy': _bytes(state.params),
    'optimizer': _bytes(state.opt_state),
    'reference': _bytes(reference),
  }
  size = sum(held.values())
  memory = {**held, 'copies': size if size <= checkpoint.COPIED else 0.0}
  return Found('save', 0.0, memory, hlo.Costs(), times=1)


def with_process(found: Sequence[Found], devices: int) -> list[Found]:
  """Adds what a run needs of a CPU's memory beside the arrays of its programs.

  That is what it puts aside, and its process with Python, libraries and compiler: what
  this one, which has compiled the same programs and holds no arrays, has come to, each
  device its share.
  """
  unit = 1 if sys.platform == 'darwin' else 1024
  own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / devices
  return [
    dataclasses.replace(
      one, memory={**one.memory, 'put aside': one.aside, 'the process': own}
    )
    for one in found
  ]


def _slice_of_each(phase: Phase, chip: Chip | None) -> list[int]:
  """The slice of each device, in the order of the phase's mesh."""
  mesh = jax.tree.leaves(phase.args)[0].sharding.mesh
  if chip and chip.joined:
    return [n // chip.joined for n in range(mesh.size)]
  return [slice_of(device) for device in mesh.devices.flat]


def measure(phase: Phase, chip: Chip | None = None) -> Found:
  """Compiles a phase; what it takes of a device, which is no CPU if there is a chip."""
  began = time.monotonic()
  lowered = phase.program.lower(*phase.args)
  with tempfile.TemporaryDirectory() as folder:
    dump = {
      'xla_dump_to': folder,
      'xla_dump_hlo_as_text': True,
      'xla_dump_hlo_pass_re': '.*spmd-partitioning',
    }
    try:
      with compilation.nothing_from_disk():
        compiled = lowered.compile(compiler_options=dump)
    except Exception as error:  # the compiler's; only one of them is expected
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      used = re.search(r'([\d.]+)([GM])\)? (?:of|exceeds)', str(error))
      scale = {'G': 2**30, 'M': 2**20}[used[2]] if used else 1
      needed = float(used[1]) * scale if used else math.inf
      return Found(
        phase.name,
        time.monotonic() - began,
        {**phase.beside, 'the program': needed},
        hlo.Costs(),
        phase.times,
        str(error).splitlines()[0][:200],
        phase.aside,
      )
    cut = sorted(Path(folder).glob('*after_*spmd-partitioning.before*'))
    whole = sorted(Path(folder).glob('*before_optimizations.txt'))
    text = (cut or whole)[-1].read_text()
  seconds = time.monotonic() - began
  stats = compiled.memory_analysis()
  given = {name: _bytes(tree) for name, tree in phase.given.items()}
  arguments = float(stats.argument_size_in_bytes)
  memory = {
    **phase.beside,
    **given,
    'padding': arguments - sum(given.values()),  # and single numbers
    phase.gives: float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
    'activations and temporaries': float(stats.temp_size_in_bytes),
  }
  return Found(
    phase.name,
    seconds,
    memory,
    hlo.costs(
      text,
      phase.unknown_trips,
      phase.ragged_share,
      _slice_of_each(phase, chip),
    ),
    phase.times,
    aside=phase.aside,
    given=arguments,
  )


# --- What it comes to -----------------------------------------------------------------


def limits(found: Found, chip: Chip) -> dict[str, float]:
  """Seconds that a phase takes at least in a step, by what bounds it.

  Links and network are counted apart, as if each worked while the other does. What a
  program is given it reads, if only once.
  """
  read = max(found.costs.bytes, found.given)
  one = {
    'compute': found.costs.flops / chip.flops,
    'memory': read / chip.bandwidth,
    'links': found.costs.over('links') / chip.links,
    'network': found.costs.over('network') / chip.network,
  }
  return {name: seconds * found.times for name, seconds in one.items()}


def fits(found: Sequence[Found], chip: Chip) -> bool:
  """Whether each phase has room on the chip."""
  return all(not one.refused and one.total <= chip.memory for one in found)


def changes(
  work: PlannedRun, devices: Sequence[Any]
) -> Iterator[tuple[str, PlannedRun]]:
  """What needs less memory, from what costs least: flags, and the work with them.

  Each is on top of those before it.
  """
  rows, parts = work.rl.micro_batch_rows, work.mesh.fsdp * work.mesh.expert
  parts *= work.mesh.data or max(1, len(devices) // work.mesh.parts)
  while rows % 2 == 0 and rows // 2 % parts == 0:
    rows //= 2
    work = dataclasses.replace(
      work, rl=dataclasses.replace(work.rl, micro_batch_rows=rows)
    )
    yield f'--rl.micro-batch-rows {rows}', work
  for kept in ('dots', 'full'):
    if work.model.remat == {'dots': 'none', 'full': 'dots'}[kept]:
      work = dataclasses.replace(
        work, model=dataclasses.replace(work.model, remat=kept)
      )
      yield f'--remat {kept}', work
  copies = work.mesh.data or max(1, len(devices) // work.mesh.parts)
  fewest = len(set(map(slice_of, devices)))  # a copy is cut within a slice
  if copies > fewest:
    fsdp = work.mesh.fsdp * copies // fewest
    layout = dataclasses.replace(work.mesh, data=fewest, fsdp=fsdp)
    work = dataclasses.replace(work, mesh=layout)
    yield f'--mesh.data {fewest} --mesh.fsdp {fsdp}', work
  if not work.rl.offload:
    work = dataclasses.replace(work, rl=dataclasses.replace(work.rl, offload=True))
    yield '--rl.offload True', work
  if (
    not work.mesh.sampler_gathers and (work.mesh.sampler_expert or work.mesh.expert) > 1
  ):
    layout = dataclasses.replace(work.mesh, sampler_gathers=True)
    work = dataclasses.replace(work, mesh=layout)
    yield '--mesh.sampler-gathers True', work
  decays = work.optim.b1, work.optim.b2
  if work.optim.moments == 'float32' and max(decays) <= optim.MAX_BFLOAT16_DECAY:
    halved = dataclasses.replace(work.optim, moments='bfloat16')
    work = dataclasses.replace(work, optim=halved)
    yield '--rl-optim.moments bfloat16', work
  if work.optim.masters == 'none':  # in bfloat16 a small step would change nothing
    return
  if work.param_dtype == 'float32':
    work = dataclasses.replace(work, param_dtype='bfloat16')
    yield '--param-dtype bfloat16', work
  if work.optim.masters == 'float32':
    without = dataclasses.replace(work.optim, masters='stochastic')
    work = dataclasses.replace(work, optim=without)
    yield '--rl-optim.masters stochastic', work


def report(work: PlannedRun, found: Sequence[Found], chip: Chip) -> list[str]:
  """The plan in lines of text."""
  lines = []
  for one in found:
    named = sorted(one.memory.items(), key=lambda item: -item[1])
    parts = ', '.join(f'{name} {_size(x)}' for name, x in named if x)
    lines.append(f'{one.name:8} {_size(one.total)} a chip: {parts}')
    if one.aside and chip.flops:  # of a CPU it is among the rest
      lines.append(f"{'':8} {_size(one.aside)} a chip wait in the host's memory")
    if one.refused:
      lines.append(f'{"":8} refused: {one.refused}')
    if not one.costs.flops:  # no products, or a program that was refused
      continue
    lines.append(
      f'{"":8} {one.costs.flops:.3g} FLOPs, {_size(one.costs.bytes)} read or written a '
      f'chip, {one.times} times a step; compiled in {one.seconds:.0f} s'
    )
    for way in ('links', 'network'):
      sent = sorted(
        (size, f'{kind} over {group} chips {_size(size)}')
        for (kind, group, taken), size in one.costs.sent.items()
        if taken == way
      )
      if sent:
        most = ', '.join(words for _, words in sent[:-6:-1])
        lines.append(f'{"":8} {_size(one.costs.over(way))} by {way}: {most}')
  peak = max(found, key=lambda one: one.total)
  says = 'fits' if fits(found, chip) else 'does NOT fit'
  lines.append(
    f'{peak.name} needs the most, {_size(peak.total)} of {_size(chip.memory)}: {says}'
  )
  if chip.flops and not any(one.refused for one in found):
    lines += _speed(work, found, chip)
  return lines


def _speed(work: PlannedRun, found: Sequence[Found], chip: Chip) -> list[str]:
  lines, total = [], 0.0
  for one in found:
    times = limits(one, chip)
    bound = max(times, key=lambda name: times[name])
    total += times[bound]
    rest = ', '.join(f'{name} {s:.3g} s' for name, s in times.items())
    lines.append(
      f'{one.name:8} at least {times[bound]:.3g} s a step, by {bound} ({rest})'
    )
  lines.append(
    f'A step takes at least {total:.3g} s: at most {work.tokens / total:,.0f} '
    f'tokens/s, {86_400 / total:,.1f} steps a day, if every output is {work.length} '
    'tokens long and nothing but products, memory, links and network takes time'
  )
  if any(one.aside for one in found):
    lines.append("Moving what waits in the host's memory is not counted")
  return lines


def _size(count: float) -> str:
  return f'{count / 1e9:.2f} GB' if count >= 1e7 else f'{count / 1e6:.2f} MB'
