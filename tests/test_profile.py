"""The table of a trace: names of operations, scopes, sums; which runs are traced."""

import dataclasses

import pytest

from experiments import r1_zero, smoke
from scripts import profile

PROGRAM = """HloModule jit_step, is_scheduled=true
%region (arg: f32[2]) -> f32[2] {
  %arg = f32[2]{0} parameter(0)
  ROOT %dot.3 = f32[2]{0} dot(%arg), metadata={op_name="jit(step)/while/Block/mlp/dot"}
}
ENTRY %main () -> f32[2] {
  %copy.1 = f32[2]{0} copy(%x)
  %fusion.2 = (f32[2], s32[]) fusion(%y), metadata={op_name="jit(step)/optimizer/add"}
}
"""


def test_operations_have_their_names_in_the_code():
  assert profile.operations(PROGRAM.splitlines()) == {
    'arg': '',
    'dot.3': 'jit(step)/while/Block/mlp/dot',
    'copy.1': '',
    'fusion.2': 'jit(step)/optimizer/add',
  }


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('jit(step)/while/body/Block/mlp/dot_general', 'mlp'),
    ('jit(step)/jvp(head)/dot_general', 'head'),
    ('jit(step)/transpose(jvp(blocks))/attend/mul', 'attend, gradient'),
    ('jit(step)/blocks/mlp/mlp_norm/mul', 'mlp_norm'),
    ('jit(step)/while/body/add', 'the rest'),
    ('', 'the rest'),
  ],
)
def test_the_innermost_scope_counts(name, expected):
  assert profile.scope(name) == expected


def test_thread_seconds_are_summed_and_loops_are_not_counted_twice():
  def event(operation, microseconds, module='jit_step'):
    args = {'hlo_module': module, 'hlo_op': operation}
    return {'ph': 'X', 'dur': microseconds, 'args': args}

  events = [
    event('dot.3', 2e6),
    event('dot.3', 1e6),
    event('fusion.2', 5e5),
    event('while.9', 9e6),
    event('add.1', 25e4, module='jit_convert'),
    {'ph': 'X', 'dur': 7e6, 'args': {'_src': 'threads'}},
    {'ph': 'M', 'args': {'name': 'python'}},
  ]
  seconds = profile.thread_seconds(
    events, {'jit_step': profile.operations(PROGRAM.splitlines())}
  )
  assert seconds == {
    ('update', 'mlp'): 3.0,
    ('update', 'optimizer'): 0.5,
    ('other programs', 'the rest'): 0.25,
  }
  lines = profile.table(seconds).splitlines()
  assert lines[1].split() == ['update', '3.500', '93.3%']
  assert lines[2].split() == ['mlp', '3.000', '80.0%']
  assert lines[-1].split() == ['the', 'rest', '0.250', '6.7%']


@pytest.mark.parametrize('name', ['r1_zero', 'smoke'])
def test_an_experiment_is_shortened_and_keeps_its_other_settings(name):
  experiment, config = profile._experiment(f'experiments.{name}')
  assert experiment is r1_zero.R1_ZERO
  whole = {'r1_zero': r1_zero.R1Zero, 'smoke': smoke.Smoke}[name]()
  assert isinstance(config, type(whole))
  assert config.rl == dataclasses.replace(whole.rl, steps=5, evaluate_every=5)
  assert config.base.steps == min(300, whole.base.steps)
  assert config.evals == dataclasses.replace(whole.evals, problems=16)
  assert config.workdir.startswith('runs/profile/')


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('experiments.cold_start', 'with the fields workdir, base, rl and evals, got'),
    ('experiments.nothing', 'expected an experiment such as experiments.r1_zero'),
  ],
)
def test_what_cannot_be_profiled_is_named(name, expected):
  with pytest.raises(SystemExit, match=f'error: .*{expected}'):
    profile._experiment(name)
