"""Which type a run computes in, and that it keeps it."""

import json
from typing import Any

import jax
import pytest
from hub import checkpoint

from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import artifact, chat, from_hub, product_type
from r1jax.stages.from_hub import HubConfig


@pytest.fixture
def device(monkeypatch):
  """Seconds of a product in each type, and the types that were measured."""
  found: dict[str, Any] = {'float32': 2.0, 'bfloat16': 1.0, 'asked': []}

  def seconds(dtype):
    found['asked'].append(dtype)
    return found[dtype]

  monkeypatch.setattr(product_type, '_seconds', seconds)
  return found


@pytest.mark.parametrize(
  ('seconds', 'expected'),
  [(1.0, 'bfloat16'), (1.5, 'bfloat16'), (1.6, 'float32'), (9.0, 'float32')],
)
def test_a_run_computes_in_bfloat16_where_that_is_clearly_faster(
  tmp_path, device, seconds, expected
):
  device['bfloat16'] = seconds
  assert from_hub.began(tmp_path, 'auto').dtype == expected


def test_a_run_that_resumes_elsewhere_computes_in_the_type_of_its_start(
  tmp_path, device
):
  checkpoint(tmp_path / 'm', 'llama', {})
  config = HubConfig(str(tmp_path / 'm'), template='plain', dtype='bfloat16')
  from_hub.look_up(config).keep(tmp_path / 'run')
  kept = json.loads((tmp_path / 'run' / artifact.HUB / artifact.SOURCE).read_bytes())
  assert kept['dtype'] == 'bfloat16'
  device['float32'] = 0.1
  start = from_hub.began(tmp_path / 'run', 'auto')
  assert (start.dtype, start.remarks) == ('bfloat16', ())
  assert not device['asked']


def test_a_type_that_is_given_is_not_measured(tmp_path, device):
  assert from_hub.began(tmp_path, 'float32').dtype == 'float32'
  assert not device['asked']


def test_the_measurement_is_said(tmp_path, device):
  (said,) = from_hub.began(tmp_path, 'auto').remarks
  assert said == (
    'model.dtype: bfloat16, as products in bfloat16 are 2.0 times as fast as in '
    'float32.'
  )


def test_a_product_of_each_type_is_measured_on_this_device():
  assert 0.02 < product_type.speedup() < 50


def test_a_checkpoint_is_opened_in_the_type_that_is_faster(tmp_path, device):
  checkpoint(tmp_path / 'm', 'llama', {})
  greedy = SamplingConfig(temperature=0)
  session = chat.open_session(str(tmp_path / 'm'), None, greedy)
  assert session.policy.config.dtype == 'bfloat16'
  assert {x.dtype.name for x in jax.tree.leaves(session.params)} == {'bfloat16'}
  device['bfloat16'] = 9.0
  session = chat.open_session(str(tmp_path / 'm'), None, greedy)
  assert session.policy.config.dtype == 'float32'


def test_only_a_run_chooses(tmp_path):
  checkpoint(tmp_path / 'm', 'llama', {})
  with pytest.raises(ValueError, match=r"model.dtype: .*as only a run chooses.*'auto'"):
    from_hub.look_up(HubConfig(str(tmp_path / 'm'), dtype='auto'))
