"""The loop of a phase of training, with a step that does nothing."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.runtime import loop as loop_module
from r1jax.runtime import run as run_module
from r1jax.runtime.loop import SETTLED, Loop
from r1jax.runtime.run import Interruption, TrainingError, start

FINITE = {'loss': 0.5, 'grad_norm': 2.0}


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


@pytest.fixture
def run(tmp_path):
  with start(Experiment(str(tmp_path / 'run')), phases=('sft',)) as run:
    yield run


def lines(run, name='metrics.jsonl'):
  return [json.loads(line) for line in (run.workdir / name).read_text().splitlines()]


def saved(run):
  """The steps of the checkpoints that are kept."""
  run.checkpoints['sft'].wait()
  folder = run.workdir / 'checkpoints' / 'sft'
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def loop_of(run, steps, optim='sft.optim', **settings):
  return Loop(run, 'sft', steps, optim=optim, **settings)


class Clock:
  """Stands for the module `time`; a test sets its seconds."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(loop_module, 'time', clock)
  return clock


# --- Steps ----------------------------------------------------------------------------


def test_steps_begin_after_the_checkpoint(run):
  assert list(loop_of(run, 4)) == [1, 2, 3, 4]
  resumed = loop_of(run, 5, first=3)
  assert resumed.step == 3
  assert [(step, resumed.step) for step in resumed] == [(4, 4), (5, 5)]
  assert list(loop_of(run, 5, first=5)) == []


def test_a_resumed_loop_goes_on_from_its_own_checkpoint(tmp_path):
  experiment = Experiment(str(tmp_path / 'run'))

  def go_on(steps):
    with start(experiment, phases=('sft',)) as run:
      state, first = run.checkpoints['sft'].resume({'w': np.zeros(2, np.float32)})
      for _ in (loop := loop_of(run, steps, first=first)):
        state = {'w': state['w'] + 1}
        loop.log(FINITE)
        if loop.must_save():
          loop.save(state)
      return first, state['w'].tolist(), [line['step'] for line in lines(run)]

  assert go_on(2) == (0, [2, 2], [1, 2])
  assert go_on(5) == (2, [5, 5], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
  ('log_saves', 'logged'),
  [(False, [2, 4, 6, 8, 10, 11]), (True, [2, 4, 5, 6, 8, 10, 11])],
)
def test_due_steps_are_logged_shown_and_saved(run, log_saves, logged):
  returned, shown = [], []
  loop = loop_of(run, 11, log_every=2, save_every=5, log_saves=log_saves)
  run.progress = SimpleNamespace(
    update=lambda phase, step, steps, values: shown.append((phase, step, steps))
  )
  for step in loop:
    if loop.log(FINITE):
      returned.append(step)
    assert loop.save_due == loop.must_save() == (step in (5, 10, 11))
    if loop.must_save():
      loop.save({'w': np.full(2, step)})
  # Every second step and the last one; those with a checkpoint are shown.
  assert returned == [line['step'] for line in lines(run)] == logged
  assert shown == [('sft', step, 11) for step in (2, 4, 5, 6, 8, 10, 11)]
  assert {line['phase'] for line in lines(run)} == {'sft'}
  assert saved(run)[-1] == 11
  assert run.checkpoints['sft'].manifest()['metrics_lines'] == len(logged)


# --- The log --------------------------------------------------------------------------


def test_a_due_step_writes_numbers_and_samples(run):
  loop = loop_of(run, 2)
  next(iter(loop))
  values = loop.log(
    {**FINITE, 'kl': jnp.float32(0.25)},
    more=lambda: {'tokens': 7},
    samples=[{'output': 'yes', 'reward': 1.0}],
  )
  assert (values['kl'], values['tokens']) == (0.25, 7)
  assert isinstance(values['kl'], float)
  (line,) = lines(run)
  assert line['time'].keys() == {'seconds'}
  del line['time']
  assert line == {'phase': 'sft', 'step': 1, **FINITE, 'kl': 0.25, 'tokens': 7}
  (sample,) = lines(run, 'samples.jsonl')
  assert sample == {'phase': 'sft', 'step': 1, 'output': 'yes', 'reward': 1.0}


def test_a_step_that_is_not_due_writes_nothing_and_fetches_nothing(run):
  loop = loop_of(run, 10, log_every=5, save_every=5)
  next(iter(loop))
  on_device = {name: jnp.float32(x) for name, x in FINITE.items()}
  for array in on_device.values():
    array.delete()  # would raise if it were read
  run.progress = SimpleNamespace(update=pytest.fail)
  assert loop.log(on_device, more=pytest.fail, samples=[{'output': 'yes'}]) == {}
  assert not loop.must_save()
  assert lines(run) == lines(run, 'samples.jsonl') == []


def test_seconds_count_from_one_line_to_the_next(run, clock):
  loop = loop_of(run, 10, log_every=2, save_every=10)
  times = []
  for step in loop:
    clock.now += 3.0
    if step == 5:
      loop.restart_clock()  # what was done before is left out
    if values := loop.log(FINITE, tokens=12):
      times.append(values['time'])
  assert [time['seconds'] for time in times] == [6.0, 6.0, 3.0, 6.0, 6.0]
  assert [time['tokens_per_second'] for time in times] == [2.0, 2.0, 4.0, 2.0, 2.0]
  assert [line['time'] for line in lines(run)] == times


@pytest.mark.parametrize(('device', 'waited'), [(3.0, 0.25), (0.0, 1.0), (9.0, 0.0)])
def test_the_device_waits_for_what_is_left_of_a_step(run, clock, device, waited):
  loop = loop_of(run, 2)
  next(iter(loop))
  clock.now += 4.0
  values = loop.log({**FINITE, 'time': {'rollout': 1.5}}, device=device)
  assert values['time'] == {'rollout': 1.5, 'seconds': 4.0, 'device_waited': waited}


# --- Losses that are not finite -------------------------------------------------------


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_due_step_that_is_not_finite_is_refused(run, name, value):
  loop = loop_of(run, 4)
  next(iter(loop))
  expected = r'of sft .* at step 1; lower sft\.optim\.learning_rate'
  with pytest.raises(TrainingError, match=expected):
    loop.log({**FINITE, name: jnp.float32(value)}, more=pytest.fail)
  assert lines(run) == []


def test_a_phase_without_an_optimizer_has_neither_loss_nor_gradient(run):
  for step in (loop := loop_of(run, 2, optim=None)):
    assert loop.log({'accepted': step / 4})['accepted'] == step / 4
  assert [(line['step'], line['accepted']) for line in lines(run)] == [
    (1, 0.25),
    (2, 0.5),
  ]


def test_training_without_a_loss_is_a_bug(run):
  loop = loop_of(run, 2)
  next(iter(loop))
  with pytest.raises(KeyError, match='grad_norm'):
    loop.log({'loss': 0.5})


def test_a_step_that_is_not_finite_is_never_saved(run):
  # Not due, but saved since the run was asked to stop.
  loop = loop_of(run, 10, log_every=10, save_every=10)
  steps = iter(loop)
  next(steps)
  assert loop.log(FINITE) == {}
  next(steps)
  assert loop.log({'loss': jnp.float32(math.nan), 'grad_norm': 1.0}) == {}
  run.interrupted = True
  assert loop.must_save()
  with pytest.raises(TrainingError, match=r'sft is nan .* at step 2'):
    loop.save({'w': np.ones(2)})
  assert run.checkpoints['sft'].step is None


# --- Checkpoints of steps that are not due --------------------------------------------


def test_a_run_that_is_asked_to_stop_saves_the_step_at_hand(run):
  loop = loop_of(run, 10, log_every=10, save_every=10)
  steps = iter(loop)
  next(steps)
  assert loop.log(FINITE) == {}
  assert not loop.must_save()
  next(steps)
  run.interrupted = True
  assert loop.log(FINITE) == {}
  assert loop.must_save()
  with pytest.raises(Interruption, match='Stopped at step 2 of sft; the checkpoint'):
    loop.save({'w': np.ones(2)})
  assert saved(run) == [2]
  # A run without interruption would have written no line of this step either.
  assert lines(run) == []
  assert run.checkpoints['sft'].manifest()['metrics_lines'] == 0


def test_a_long_step_is_saved_though_it_is_not_due(run, monkeypatch):
  loop = loop_of(run, 10, log_every=10, save_every=10)
  next(iter(loop))
  loop.log(FINITE)
  assert not loop.must_save()
  monkeypatch.setattr(run_module, 'MAX_CHECKPOINT_AGE', -1)
  assert loop.must_save()
  loop.save({'w': np.ones(2)})
  assert saved(run) == [1]
  assert lines(run) == []


# --- What is shown --------------------------------------------------------------------


def test_compilations_are_reported_at_the_first_step_and_once_settled(run):
  sentences: list[str] = []
  run.progress = SimpleNamespace(say=sentences.append)
  run.compilations = SimpleNamespace(since=lambda: (2, 1.5))
  loop = loop_of(run, 10, first=4)
  for step in loop:
    loop.say_compilations(3.0)
    assert len(sentences) == (1 if step - 4 <= SETTLED else 1 + step - 4 - SETTLED)
  assert sentences[0].startswith('The first step took 3.0 s; compiling or loading 2 ')
  assert sentences[1].startswith(f'Step {5 + SETTLED}: 2 programs had to be compiled')


def test_one_step_is_traced(run, monkeypatch):
  traced: list[str] = []
  sentences: list[str] = []
  run.progress = SimpleNamespace(say=sentences.append)

  class Trace:
    def __init__(self, folder, **settings):
      assert folder == str(run.workdir / 'profile')

    def __enter__(self):
      traced.append(loop.step)

    def __exit__(self, *exception):
      pass

  monkeypatch.setattr(loop_module.jax.profiler, 'trace', Trace)
  loop = loop_of(run, 4)
  for _ in loop:
    with loop.traced(3):
      pass
    with loop.traced(0):
      pass
  assert traced == [3]
  assert sentences == [f'The trace of this step is in {run.workdir / "profile"}.']
