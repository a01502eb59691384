"""What a user sees at the end of a run that went wrong."""

import numpy as np
import pytest

from r1jax import grpo, statistics
from r1jax.stages.run import Interruption, TrainingError, plain_errors


def refuse_setting():
  grpo.Config(clip_low=-1.0)


def stop_training():
  raise TrainingError('the loss is nan')


def stop():
  raise Interruption('Stopped at step 3')


@pytest.mark.parametrize(
  ('act', 'status', 'told'),
  [
    (refuse_setting, 1, 'error: grpo.clip_low: expected 0 to 1, got -1.0\n'),
    (stop_training, 1, 'error: the loss is nan\n'),
    (stop, 130, 'Stopped at step 3\n'),
  ],
)
def test_what_a_user_can_mend_is_one_sentence(act, status, told, capsys):
  with pytest.raises(SystemExit) as end, plain_errors():
    act()
  assert end.value.code == status
  assert capsys.readouterr().err == told


def test_a_value_error_of_a_library_keeps_its_traceback():
  # Such a call would be a bug of ours: no setting of a user's leads to it.
  with pytest.raises(ValueError, match='same number of elements'), plain_errors():
    np.moveaxis(np.zeros((2, 3)), [0, 1], [0])


def test_other_exceptions_keep_their_traceback():
  with pytest.raises(ZeroDivisionError), plain_errors():
    statistics.Interval(1 / 0, 0, 0)
