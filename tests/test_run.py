"""What a user sees at the end of a run that went wrong."""

import dataclasses
import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from r1jax import statistics
from r1jax.grpo import GRPOConfig
from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
from r1jax.runtime.errors import Interruption, TrainingError, user_errors
from r1jax.runtime.run import start


def refuse_setting():
  GRPOConfig(clip_low=-1.0)


def stop_training():
  raise TrainingError('the loss is nan')


def stop():
  raise Interruption('Stopped at step 3')


@pytest.mark.parametrize(
  ('act', 'status', 'expected'),
  [
    (refuse_setting, 1, 'error: grpo.clip_low: expected 0 to 1, got -1.0\n'),
    (stop_training, 1, 'error: the loss is nan\n'),
    (stop, 130, 'Stopped at step 3\n'),
  ],
)
def test_a_users_mistake_is_one_sentence(act, status, expected, capsys):
  with pytest.raises(SystemExit) as end, user_errors():
    act()
  assert end.value.code == status
  assert capsys.readouterr().err == expected


def test_a_value_error_of_a_library_keeps_its_traceback():
  # Such a call would be a bug of ours: no setting of a user's leads to it.
  with pytest.raises(ValueError, match='same number of elements'), user_errors():
    np.moveaxis(np.zeros((2, 3)), [0, 1], [0])


def test_other_exceptions_keep_their_traceback():
  with pytest.raises(ZeroDivisionError), user_errors():
    statistics.Interval(1 / 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


@pytest.fixture
def experiment(tmp_path):
  return Experiment(str(tmp_path / 'run'))


def save_and_fail(experiment, spoil=lambda checkpoints: None):
  with start(experiment, phases=('rl',)) as run:
    run.save('rl', 3, {'w': np.ones(2)})
    spoil(run.checkpoints['rl'])
    stop_training()


def refuse():
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_run_that_fails_first_finishes_its_checkpoint(experiment, monkeypatch):
  waited: list[None] = []
  wait = Checkpoints.wait
  monkeypatch.setattr(Checkpoints, 'wait', lambda self: waited.append(wait(self)))
  with pytest.raises(TrainingError, match='the loss is nan'):
    save_and_fail(experiment)
  assert waited
  assert Checkpoints(Path(experiment.workdir) / 'checkpoints' / 'rl').step == 3


def test_a_run_that_fails_names_a_checkpoint_that_failed_too(
  experiment, monkeypatch, capsys
):
  def spoil(checkpoints):
    monkeypatch.setattr(checkpoints._manager, 'wait_until_finished', refuse)

  with pytest.raises(TrainingError, match='the loss is nan'):
    save_and_fail(experiment, spoil)
  assert 'of step 3 could not be written' in capsys.readouterr().out


def test_a_phase_does_not_go_on_from_a_checkpoint_that_is_not_there(
  experiment, monkeypatch
):
  def go_on():
    with start(experiment, phases=('base', 'rl')) as run:
      run.save('base', 5, {'w': np.ones(2)})
      base = run.checkpoints['base']
      monkeypatch.setattr(base._manager, 'wait_until_finished', refuse)
      run.save('rl', 1, {'w': np.ones(2)})

  with pytest.raises(CheckpointError, match='of step 5 could not be written'):
    go_on()
  assert Checkpoints(Path(experiment.workdir) / 'checkpoints' / 'rl').step is None


def test_a_checkpoint_is_written_when_the_last_one_is_old(experiment, monkeypatch):
  with start(experiment, phases=('rl',)) as run:
    assert run.must_save(due=True)
    began = time.monotonic()
    monkeypatch.setattr('r1jax.runtime.run.time.monotonic', lambda: began + 599)
    assert not run.must_save(due=False)
    monkeypatch.setattr('r1jax.runtime.run.time.monotonic', lambda: began + 601)
    assert run.must_save(due=False)
    run.save('rl', 1, {'w': np.ones(2)})
    assert not run.must_save(due=False)
    assert not run.ending


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_stop(experiment, capsys, number):
  before = signal.getsignal(number)
  stopped = pytest.raises(Interruption, match='Stopped at step 3 of rl')
  with stopped, start(experiment, phases=('rl',)) as run:
    run.save('rl', 2, {'w': np.ones(2)})
    assert not run.must_stop()
    assert not run.must_save(due=False)
    os.kill(os.getpid(), number)
    assert run.must_stop()
    assert run.must_save(due=False)
    run.save('rl', 3, {'w': np.ones(2)})
  assert 'saving after this step' in capsys.readouterr().out
  assert signal.getsignal(number) == before
  assert Checkpoints(Path(experiment.workdir) / 'checkpoints' / 'rl').step == 3
