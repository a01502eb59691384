"""Tests of r1jax.stages.metrics: what a killed and resumed run leaves on disk."""

import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from r1jax.runtime.log import Log, parse_line
from r1jax.statistics import Interval


def lines_of(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def run(workdir: Path, start: dict[str, int], stop: tuple[str, int] | None) -> None:
  """Plays a run of 4 base and 4 RL steps that is gone after `stop` has been written."""
  with Log(workdir, start) as log:
    for phase in 'base', 'rl':
      for step in range(start.get(phase, 0) + 1, 5):
        log.write(phase, step, loss=step / 8)
        log.samples([{'phase': phase, 'step': step, 'output': f'próba {step}'}])
        if phase == 'rl' and step % 2 == 0:
          log.write('eval', step, pass_at_1=Interval(0.5, 0.25, 0.75))
        if (phase, step) == stop:
          return


@pytest.mark.parametrize(
  ('stop', 'checkpoint'),
  [
    (('base', 1), {}),
    (('base', 4), {'base': 2}),
    (('rl', 1), {'base': 4}),
    (('rl', 3), {'base': 4, 'rl': 2}),
    (('rl', 4), {'base': 4, 'rl': 4}),
  ],
)
def test_killed_and_resumed_run_writes_what_an_unkilled_one_writes(
  tmp_path, stop, checkpoint
):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  whole.mkdir()
  killed.mkdir()
  run(whole, {}, None)
  run(killed, {}, stop)
  run(killed, checkpoint, None)
  for name in 'metrics.jsonl', 'samples.jsonl':
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  for phase in 'base', 'rl':
    expected = seen_by_tensorboard(whole / 'tensorboard' / phase)
    assert seen_by_tensorboard(killed / 'tensorboard' / phase) == expected


@pytest.mark.parametrize('step', [0, 2, 3])
def test_a_phase_without_a_checkpoint_keeps_its_lines_up_to_where_it_resumes(
  tmp_path, step
):
  def play(start: dict[str, int], first: int) -> None:
    with Log(tmp_path, start) as log:
      log.write('base', start.get('base', 0) + 1)
      log.resume('rejection', first)
      for n in range(first + 1, 4):
        log.write('rejection', n, accepted=n / 4)
        log.samples([{'phase': 'rejection', 'step': n}])
      assert log.lines == len(lines_of(tmp_path / 'metrics.jsonl'))

  play({}, 0)
  play({'base': 1}, step)
  earlier = [('base', 1), *(('rejection', n + 1) for n in range(step)), ('base', 2)]
  expected = [*earlier, *(('rejection', n + 1) for n in range(step, 3))]
  found = lines_of(tmp_path / 'metrics.jsonl')
  assert [(line['phase'], line['step']) for line in found] == expected
  assert [line['step'] for line in lines_of(tmp_path / 'samples.jsonl')] == [1, 2, 3]
  assert seen_by_tensorboard(tmp_path / 'tensorboard' / 'rejection') == [
    (n, 'rejection/accepted', n / 4) for n in (1, 2, 3)
  ]


def seen_by_tensorboard(folder: Path) -> list[tuple[int, str, float]]:
  """Step, tag and value, by TensorBoard's rules: files by name, a restart purges."""
  values: list[tuple[int, str, float]] = []
  for path in sorted(folder.glob('*tfevents*')):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack_from('<Q', content, at)
      header, body = content[at : at + 8], content[at + 12 : at + 12 + length]
      sums = struct.unpack_from('<I', content, at + 8)
      sums += struct.unpack_from('<I', content, at + 12 + length)
      assert sums == (masked(header), masked(body))
      at += 16 + length
      event = Event.FromString(body)
      if event.session_log.status == SessionLog.START:
        values = [value for value in values if value[0] < event.step]
      values += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
  return values


def masked(content: bytes) -> int:
  """The TFRecord format's checksum: rotated right by 15 bits, plus a constant."""
  crc = crc32c(content) & 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tensorboard_gets_every_number_under_its_path(tmp_path):
  with Log(tmp_path, {}) as log:
    log.write('rl', 1, reward=0.5, kl=None, time={'rollout': 2.0})
    log.write('eval', 1, pass_at_1=Interval(0.5, 0.25, 0.75), split='test')
  assert seen_by_tensorboard(tmp_path / 'tensorboard' / 'rl') == [
    (1, 'rl/reward', 0.5),
    (1, 'rl/time/rollout', 2.0),
    (1, 'eval/pass_at_1/mean', 0.5),
    (1, 'eval/pass_at_1/low', 0.25),
    (1, 'eval/pass_at_1/high', 0.75),
  ]


def test_values_become_plain_json_and_nan_becomes_null(tmp_path):
  with Log(tmp_path, {}) as log:
    log.write('rl', 1, loss=float('nan'), kl=np.float32(0.5), n=np.int64(3))
    log.write('rl', 2, time={'seconds': float('inf')}, shares=[0.5, float('nan')])
  assert lines_of(tmp_path / 'metrics.jsonl') == [
    {'phase': 'rl', 'step': 1, 'loss': None, 'kl': 0.5, 'n': 3},
    {'phase': 'rl', 'step': 2, 'time': {'seconds': None}, 'shares': [0.5, None]},
  ]


def test_any_model_output_can_be_written_and_read_back(tmp_path):
  output = 'błąd\n"\x00\u2028\ud800'
  with Log(tmp_path, {}) as log:
    log.samples([{'phase': 'rl', 'step': 1, 'output': output}])
  raw = (tmp_path / 'samples.jsonl').read_bytes()
  line = parse_line(raw)
  assert raw.count(b'\n') == 1
  assert line is not None
  assert line['output'] == output


def test_half_written_last_line_is_dropped(tmp_path):
  metrics = tmp_path / 'metrics.jsonl'
  first = b'{"phase": "rl", "step": 1}\n'
  metrics.write_bytes(first + b'{"phase": "rl", "st')
  with Log(tmp_path, {'rl': 5}):
    pass
  assert metrics.read_bytes() == first


def test_damaged_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path):
  metrics = tmp_path / 'metrics.jsonl'
  content = b'{"phase": "rl", "step": 1}\nrubbish\n{"phase": "rl", "step": 2}\n'
  metrics.write_bytes(content)
  with (
    pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: .*rubbish.*delete'),
    Log(tmp_path, {'rl': 1}),
  ):
    pass
  assert metrics.read_bytes() == content


@pytest.mark.parametrize('content', [b'', b'{"phase": "rl", "step": 1}\n{"phase": "rl'])
def test_lines_that_a_checkpoint_stands_for_must_be_there(tmp_path, content):
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_bytes(content)
  left = content.count(b'\n')
  message = f'metrics.jsonl: expected 2 lines of .*, got {left}; restore it'
  with (
    pytest.raises(ValueError, match=message),
    Log(tmp_path, {'rl': 2}, least_lines=2),
  ):
    pass
  assert list(tmp_path.iterdir()) == [metrics]
  assert metrics.read_bytes() == content  # also the half that may help to restore it
  with Log(tmp_path, {'rl': 2}, least_lines=left) as log:
    log.write('rl', 2)
    assert log.lines == left + 1


def test_a_log_that_is_gone_is_missed(tmp_path):
  with (
    pytest.raises(ValueError, match=r'expected 1 lines of .*, got 0'),
    Log(tmp_path, {'rl': 2}, least_lines=1),
  ):
    pass


@pytest.mark.parametrize(
  'raw',
  [b'', b'[]', b'7', b'{"step": 1}', b'{"phase": "rl", "step": "1"}', b'\xff', b'\0'],
)
def test_what_is_not_a_line_of_a_run_parses_to_none(raw):
  assert parse_line(raw) is None


def test_full_disk_is_one_sentence_and_the_log_can_be_opened_again(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  log = Log(tmp_path, {})
  with log:
    log.write('rl', 1, loss=0.5)
    # The kernel cuts the next write short and refuses the rest, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
      with pytest.raises(OSError, match=r'^cannot write .*metrics\.jsonl .*make room'):
        log.write('rl', 2, loss=0.5, text='x' * 100)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not (tmp_path / 'metrics.jsonl').read_bytes().endswith(b'\n')
  with Log(tmp_path, {'rl': 2}) as log:
    log.write('rl', 2, loss=0.25)
  written = lines_of(tmp_path / 'metrics.jsonl')
  assert [(line['step'], line['loss']) for line in written] == [(1, 0.5), (2, 0.25)]
