"""TFRecord framing against tensorboardX's own writer."""

import subprocess
import sys

import pytest
from tensorboardX.record_writer import RecordWriter

from r1jax import tfrecord

CONTENTS = [b'first', b'', bytes(range(256)) * 9]


def test_records_are_those_of_another_writer(tmp_path):
  path = tmp_path / 'file'
  writer = RecordWriter(str(path))
  for content in CONTENTS:
    writer.write(content)
  writer.close()
  assert b''.join(map(tfrecord.record, CONTENTS)) == path.read_bytes()
  assert list(tfrecord.records(path.read_bytes())) == CONTENTS


@pytest.mark.parametrize('kept', [1, 11, 13, 20])
def test_a_file_that_is_cut_off_is_refused(kept):
  whole = tfrecord.record(b'content')
  assert len(whole) == 23
  with pytest.raises(ValueError, match='a checksum is wrong'):
    list(tfrecord.records(whole[:kept]))


def test_a_changed_byte_is_noticed():
  whole = tfrecord.record(b'content')
  for place in range(len(whole)):
    changed = bytearray(whole)
    changed[place] ^= 1
    with pytest.raises(ValueError, match='a checksum is wrong'):
      list(tfrecord.records(bytes(changed)))


def test_tensorboardx_is_imported_without_pytorch():
  pytest.importorskip('torch')  # imported where it is installed
  program = (
    'import sys; from r1jax import tfrecord; '
    "tfrecord.record(b''); event = tfrecord.tensorboard('proto.event_pb2').Event; "
    "print(event.__name__, 'torch' in sys.modules); import torch; print(torch.__name__)"
  )
  found = subprocess.run(
    [sys.executable, '-c', program], check=True, capture_output=True, text=True
  )
  assert found.stdout.split() == ['Event', 'False', 'torch']
