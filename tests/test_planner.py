"""Plans of small stages, against sizes calculated by hand."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import machines
import pytest

from experiments.smoke import Smoke
from r1jax.grpo import GRPOConfig
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.planner import fit, measure, programs, report, topology
from r1jax.planner.costs import Costs
from r1jax.planner.measure import Measurement
from r1jax.planner.programs import PlannedRun
from r1jax.sharding.mesh import MeshConfig, make_mesh, slice_of
from r1jax.sharding.rules import MeshError, named_sharding
from r1jax.stages.rl_config import RLConfig
from scripts import plan as script

MODEL = ModelConfig(d_model=64, layers=2, heads=4, kv_heads=2, head_dim=16, d_ff=96)
WORK = PlannedRun(
  MODEL,
  256,
  RLConfig(
    prompts_per_step=8,
    group_size=4,
    max_prompt_length=16,
    max_length=((0, 32),),
    minibatches=2,
    micro_batch_rows=8,
  ),
  MeshConfig(fsdp=4, tensor=2),
  'float32',
)
PARAMETERS = 256 * 64 + 2 * (64 * (4 + 2 + 2 + 4) * 16 + 3 * 64 * 96 + 2 * 64) + 64


@pytest.fixture(scope='module')
def found():
  devices, chip = topology.find('cpu:8')
  (total,) = re.findall(r'MemTotal: *(\d+) kB', Path('/proc/meminfo').read_text())
  assert chip.memory * 8 == pytest.approx(int(total) * 1024, rel=1e-3)
  return {one.name: one for one in map(measure.measure, programs.phases(WORK, devices))}


def test_every_phase_is_compiled_and_runs_as_often_as_in_a_step(found):
  times = {name: one.runs for name, one in found.items()}
  assert times == {'prefill': 1, 'decode': 32, 'score': 2, 'update': 2}
  free = dataclasses.replace(WORK.rl, grpo=GRPOConfig(kl_coef=0.0))
  without = dataclasses.replace(WORK, rl=free)
  devices, _ = topology.find('cpu:8')
  names = [phase.name for phase in programs.phases(without, devices)]
  assert names == ['prefill', 'decode', 'update']


def test_memory_follows_from_the_sizes(found):
  # Gains lie everywhere, embeddings and matrices are cut in eight.
  share = 4 * (PARAMETERS / 8)
  update = {name: size / share for name, size in found['update'].memory.items()}
  parts = {'policy': 1, 'optimizer': 2, 'reference': 1}
  assert {name: update[name] for name in parts} == pytest.approx(parts, rel=0.05)
  # A device has a problem of each of two micro-batches: 16 tokens with their mask, and
  # two rows of 32 tokens, each with three ints and two floats.
  rows = 2 * (16 * (4 + 1) + 2 * 32 * 5 * 4)
  assert update['rows'] * share == pytest.approx(rows, rel=0.3)
  prefill = {name: size / share for name, size in found['prefill'].memory.items()}
  assert {name: prefill[name] for name in parts} == pytest.approx(parts, rel=0.05)
  assert prefill['sampler'] == pytest.approx(4, rel=0.05)
  # A sampler has half of the model, and a cache of 8 outputs: keys and values of two
  # layers and one of two kv heads, prompt and output.
  cache = 2 * 2 * 16 * 4 * (2 * 16 + 8 * 32)
  decode = found['decode'].memory
  assert decode['sampler'] == pytest.approx(4 * PARAMETERS / 2, rel=0.05)
  assert decode['cache'] == pytest.approx(cache, rel=0.05)
  for one in found.values():  # what has no name is padding
    assert abs(one.memory['padding']) < 0.05 * one.argument_bytes


def test_offloaded_arrays_take_no_device_memory():
  settings = dataclasses.replace(WORK.rl, offload=True)
  work = dataclasses.replace(WORK, rl=settings)
  devices, _ = topology.find('cpu:8')
  compiled = {
    one.name: one for one in map(measure.measure, programs.phases(work, devices))
  }
  names = ['prefill', 'decode', 'score', 'gradient', 'update']
  assert list(compiled) == names
  # Of the policy, the two means of its gradient and the reference in eighths there is:
  share = 4 * (PARAMETERS / 8)
  held = {
    name: [one.memory.get(part, 0) / share for part in ('optimizer', 'reference')]
    for name, one in compiled.items()
  }
  assert held.pop('score') == pytest.approx([0, 1], rel=0.05)
  assert held.pop('update') == pytest.approx([2, 0], rel=0.05)
  assert set(map(tuple, held.values())) == {(0, 0)}
  aside = {name: one.offloaded / share for name, one in compiled.items()}
  expected = {'prefill': 3, 'decode': 3, 'score': 2, 'gradient': 3, 'update': 1}
  assert aside == pytest.approx(expected, rel=0.05)
  # On a CPU it is all the same memory, and the run's process is in it too.
  on_cpu = measure.add_process_memory([compiled['gradient']], 8)[0]
  assert on_cpu.memory['offloaded'] == compiled['gradient'].offloaded
  gradient, update = compiled['gradient'].memory, compiled['update'].memory
  for memory in (gradient, update):
    assert memory['policy'] == pytest.approx(share, rel=0.05)
    assert memory['gradient'] == pytest.approx(share, rel=0.05)
  assert update['results'] < 0.1 * share


def test_flops_follow_from_the_model(found):
  matrices = PARAMETERS - 5 * 64
  scores = 2 * 2 * 4 * 16 * (16 + 32)  # of a token that sees prompt and output
  assert found['decode'].costs.flops == pytest.approx(
    32 / 4 * (2 * matrices / 2 + 2 * scores / 2), rel=0.05
  )


def test_replicas_reduce_gradients_once_for_all_micro_batches():
  work = dataclasses.replace(
    WORK,
    rl=dataclasses.replace(WORK.rl, minibatches=1),
    mesh=MeshConfig(data=2, fsdp=4),
  )
  *_, update = programs.phases(work, topology.find('2xv5e:2x2')[0])
  assert update.args[2].tokens.shape[0] == 4
  sent = measure.measure(update).costs.sent
  # A quarter of them: a half goes out to be summed, and the sum of the other comes.
  summed = sent['all-reduce', 2, 'network']
  assert summed == pytest.approx(4 * PARAMETERS / 4, rel=0.05)


def test_a_phase_is_bound_by_the_slowest_resource():
  sent = {
    ('all-gather', 4, 'links'): 3e9,
    ('all-reduce', 8, 'links'): 1e9,
    ('all-reduce', 8, 'network'): 5e8,
  }
  costs = Costs(flops=6e12, bytes=1e9, sent=sent)
  found = Measurement('update', 1.0, {'temporary': 3e9}, costs, runs=2)
  chip = topology.Chip(memory=4e9, flops=1e12, bandwidth=1e9, links=1e9, network=1e8)
  assert report.lower_bounds(found, chip) == {
    'compute': 12.0,
    'memory': 2.0,
    'links': 8.0,
    'network': 10.0,
  }
  given = dataclasses.replace(found, argument_bytes=3e9, costs=Costs())
  assert report.lower_bounds(given, chip)['memory'] == 6.0  # read once each time
  assert fit.fits([found], chip)
  assert not fit.fits([found], chip._replace(memory=2.9e9))
  text = '\n'.join(report.summary(WORK, [found], chip))
  assert 'update needs the most, 3.00 GB of 4.00 GB: fits' in text
  assert 'by compute' in text
  gathered = 'all-gather over 4 chips 3.00 GB, all-reduce over 8 chips 1.00 GB'
  assert f' 4.00 GB by links: {gathered}\n' in text
  assert ' 0.50 GB by network: all-reduce over 8 chips 0.50 GB\n' in text
  slow = report.summary(WORK, [found], chip._replace(network=5e7))
  assert 'update   at least 20 s a step, by network' in '\n'.join(slow)
  assert f'at most {8 * 4 * 32 / 12:,.0f} tokens/s, 7,200.0 steps a day' in text


BESIDE = {'reference': 3e9}


class Refused:
  """A program for which the compiler finds no room, or something else is wrong."""

  def __init__(self, words):
    self.words = words

  def lower(self, *args):
    return self

  def compile(self, **settings):
    raise RuntimeError(self.words)


@pytest.mark.parametrize(
  'how', ['Used 120.50G of 95.74G hbm.', 'The total (120.50G) exceeds HBM (95.74G).']
)
def test_a_program_that_runs_out_of_memory_does_not_fit(how):
  words = f'RESOURCE_EXHAUSTED: Ran out of memory. {how}\nmore'
  found = measure.measure(programs.Phase('update', Refused(words), (), {}, BESIDE, 1))
  assert found.memory == {'reference': 3e9, 'the program': 120.5 * 2**30}
  assert not fit.fits([found], topology.CHIPS['v5p'])
  text = '\n'.join(report.summary(WORK, [found], topology.CHIPS['v5p']))
  assert f'refused: RESOURCE_EXHAUSTED: Ran out of memory. {how}' in text
  assert 'does NOT fit' in text
  assert 'steps a day' not in text
  with pytest.raises(RuntimeError, match='INTERNAL'):
    measure.measure(
      programs.Phase('update', Refused('INTERNAL: else'), (), {}, BESIDE, 1)
    )


@pytest.mark.parametrize(('machine', 'copies'), [('cpu:8', 1), ('2xv5e:2x2', 2)])
def test_smaller_plans_come_cheapest_first(machine, copies):
  work = dataclasses.replace(
    WORK,
    model=dataclasses.replace(MODEL, remat='dots'),
    rl=dataclasses.replace(WORK.rl, micro_batch_rows=32),
    mesh=MeshConfig(tensor=2),
  )
  tried = dict(fit.smaller_plans(work, topology.find(machine)[0]))
  assert list(tried) == [
    '--rl.micro-batch-rows 16',
    '--rl.micro-batch-rows 8',
    '--rl.micro-batch-rows 4',
    '--remat full',
    f'--mesh.data {copies} --mesh.fsdp {4 // copies}',
    '--rl.offload True',
    '--rl.optim.moments bfloat16',
    '--param-dtype bfloat16',
    '--rl.optim.masters stochastic',
  ]
  last = tried['--param-dtype bfloat16']
  assert (last.rl.micro_batch_rows, last.model.remat) == (4, 'full')
  assert (last.mesh.data, last.mesh.fsdp) == (copies, 4 // copies)
  # Nothing that would not learn.
  unmoved = OptimConfig(masters='none', b2=0.999)
  still = dataclasses.replace(work, rl=dataclasses.replace(work.rl, optim=unmoved))
  found = dict(fit.smaller_plans(still, topology.find(machine)[0]))
  assert list(found)[-1] == '--rl.offload True'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'mesh': MeshConfig(fsdp=3)}, 'set mesh.fsdp to 4'),
    ({'mesh': MeshConfig(fsdp=2, context=4, data=1)}, 'max_length: .* the next is 36'),
    ({'mesh': MeshConfig(tensor=4)}, 'mesh.tensor 4: expected a divisor of 2, the ax'),
    ({'mesh': MeshConfig(data=8)}, 'prompts_per_step: .* got 12; the next is 16'),
    ({'mesh': MeshConfig(sampler_tensor=4)}, 'mesh.sampler_tensor 4: expected a div'),
    ({'mesh': MeshConfig(sampler_slots=4)}, 'mesh.sampler_slots: expected 0, .* got 4'),
    (
      {'rl': dataclasses.replace(WORK.rl, micro_batch_rows=6)},
      'rl.micro_batch_rows: expected a multiple of 4, .* got 6; the next is 8',
    ),
  ],
)
def test_incompatible_sizes_are_refused_before_anything_is_compiled(change, message):
  length = 33 if 'max_length' in message else 32
  prompts = 12 if 'prompts' in message else 8
  rl = dataclasses.replace(WORK.rl, max_length=((0, length),), prompts_per_step=prompts)
  work = dataclasses.replace(WORK, **{'rl': rl, **change})
  with pytest.raises(MeshError, match=message):
    list(programs.phases(work, topology.find('cpu:8')[0]))


def run(*words):
  return machines.with_gpu_compiler('-m', 'scripts.plan', *words)


@pytest.mark.parametrize(
  ('machine', 'has', 'pairs'),
  # Kernels attend to padded rows, in one block of 384 queries and keys on TPUs, and in
  # three of 128 queries on GPUs, to two, four and six of 64 keys.
  [
    ('v5e:2x2', '16.00', 384 * 384),
    ('h100:4', '80.00', 12 * 128 * 64),
  ],
)
def test_the_compiler_of_a_machine_compiles_the_miniature(machine, has, pairs):
  done = run(
    *('experiments.r1_zero', '--topology', machine, '--dtype', 'bfloat16'),
    *('--rl.prompts-per-step', '4', '--rl.minibatches', '1'),
  )
  assert done.returncode == 0, done.stderr
  for name in ('prefill', 'decode', 'score', 'update'):
    assert f'\n{name} ' in f'\n{done.stdout}'
  assert f'of {has} GB: fits' in done.stdout
  assert 'steps a day' in done.stdout
  # Of each chip's 16 outputs 319 of 320 tokens are read, and for two of them a prompt
  # of 32.
  matrices = 3 * (96 * (3 + 1 + 1 + 3) * 32 + 3 * 96 * 256)
  products = (16 * 319 + 8 * 32) * matrices + 16 * 320 * 400 * 96
  attention = 16 * 3 * 3 * pairs * (32 + 32)
  scored = re.search(r'score .*\n +(\S+) FLOPs', done.stdout)
  assert scored is not None
  assert float(scored[1]) == pytest.approx(2 * (products + attention), rel=0.01)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ((), 'error: expected an experiment first, such as experiments.grpo'),
    (('experiments.nothing',), "such as experiments.grpo, got 'experiments.nothing'"),
    (('experiments.paper.data',), 'expected an experiment with a stage of RL, got'),
    (
      ('experiments.grpo', '--topology', 'cpu:1'),
      'model: expected one of Qwen2',
    ),
    (('experiments.grpo', '--topolgy', 'cpu:1'), 'did you mean --topology'),
  ],
)
def test_mistakes_get_one_sentence(words, message):
  done = run(*words)
  assert done.returncode
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


def test_an_experiment_is_planned_as_it_is():
  chosen, own = script.defaults('experiments.paper.r1_zero')
  assert own is None
  assert chosen.model == 'DeepSeek-V3-Base'
  assert (chosen.rl.group_size, chosen.rl.prompts_per_step) == (16, 512)
  work = script.work(chosen, own)
  assert (work.model.layers, work.vocab_size) == (61, 129_280)
  chosen, own = script.defaults('experiments.r1_zero')
  assert own == (script.work(chosen, own).model, 400)


def test_a_smaller_variant_of_an_experiment_is_planned_as_itself():
  _, smaller = script.defaults('experiments.smoke')
  assert smaller is not None
  assert smaller[0] == Smoke().model


def test_replicas_are_on_different_slices():
  two, chip = topology.find('2xv5e:2x2')
  assert chip == topology.CHIPS['v5e']
  found = make_mesh(two, MeshConfig(fsdp=2, tensor=2))
  assert found.shape['data'] == 2
  for n, copy in enumerate(found.devices):
    assert {slice_of(device) for device in copy.flat} == {n}
  message = r'mesh.data: .* the 2 slices, got 1; .* fit in the 4 .* other axes is 8$'
  with pytest.raises(MeshError, match=message):
    make_mesh(two, MeshConfig(fsdp=8))


def slope(w, x):
  return jax.grad(lambda w: (jnp.sin(x) @ w).sum())(w)


@pytest.mark.parametrize(
  ('machine', 'chip'),
  [('2xv5e:2x2', None), ('cpu:8', topology.CHIPS['h100']._replace(joined=4))],
)
def test_gradients_of_replicas_are_summed_over_the_network(machine, chip):
  place = make_mesh(topology.find(machine)[0], MeshConfig(data=2, fsdp=4))

  def shape(*sizes, names):
    lying = named_sharding(place, *names)
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=lying)

  args = shape(64, 48, names=('embed', None)), shape(32, 64, names=('prompt', None))
  program = jax.jit(slope, out_shardings=args[0].sharding)
  costs = measure.measure(programs.Phase('slope', program, args, {}, {}, 1), chip).costs
  # Of 64 x 48 gradients a device has a quarter, and exchanges halves of it twice.
  assert costs.over('network') == pytest.approx(4 * 64 * 48 / 4)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--model.path', 'm'], r'takes no --model\.path: give the folder, .* as --model$'),
    (['--model.lora.rank=4'], r'takes no --model\.lora\.rank: a plan is of all param'),
    (['--model.param_dtype', 'x'], r'takes no --model\.param-dtype: .* --param-dtype$'),
  ],
)
def test_flags_with_another_name_are_named(words, message):
  with pytest.raises(programs.PlanError, match=message):
    script.check_words(['--rl.steps', '3', *words])
  script.check_words(['--model', 'Qwen2.5-7B', '--mesh.fsdp', '8'])


def test_help_needs_no_experiment():
  for word in ('--help', '-h'):
    done = subprocess.run(
      [sys.executable, '-m', 'scripts.plan', word],
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert 'experiments.grpo --model' in done.stdout
    assert '--topology' in done.stdout
