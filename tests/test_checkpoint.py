"""Checkpoints come back as they were, or not at all."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.runtime import checkpoint
from r1jax.runtime.checkpoint import KEEP, CheckpointError, Checkpoints
from r1jax.runtime.digest import digest_of, number_sum
from r1jax.sharding.mesh import MeshConfig, make_mesh
from r1jax.sharding.rules import named_sharding


def tree(value: float = 1.0):
  return {'policy': {'w': jnp.full((3, 2), value)}, 'step': jnp.int32(value)}


def save(checkpoints, step, arrays, manifest):
  checkpoints.save(step, arrays, manifest)
  checkpoints.wait()


def test_restored_arrays_are_the_saved_ones(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  assert saved.step is None
  save(saved, 4, tree(1.5), {'phase': 'rl'})
  again = Checkpoints(tmp_path / 'rl')
  assert again.step == 4
  restored = again.restore(tree())
  np.testing.assert_array_equal(restored['policy']['w'], np.full((3, 2), 1.5))
  assert restored['policy']['w'].dtype == np.float32
  assert restored['step'] == 1
  assert restored['step'].dtype == np.int32
  assert again.manifest()['phase'] == 'rl'
  assert again.manifest()['step'] == 4


def test_a_trees_digest_is_the_one_that_its_checkpoint_has(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  save(saved, 1, tree(), {})
  assert saved.manifest()['digest'] == digest_of(tree()) != digest_of(tree(2.0))


def test_a_digest_is_that_of_names_types_shapes_and_weighted_sums():
  def random(x):  # splitmix64, as published
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31

  def weight(axis, index):
    return random((axis * 2**48 + index) * 0x9E3779B97F4A7C15 % 2**64) | 1

  one = 0x3F800000  # 1.0 as bits
  a = sum(one * weight(0, 0) * weight(1, n) for n in range(2)) % 2**64
  b = sum(bits * weight(0, n) for n, bits in enumerate((3, 0xFF))) % 2**64
  arrays: dict[str, np.ndarray] = {
    'b': np.array([3, -1], np.int8),
    'a': np.ones((1, 2), np.float32),
  }
  content = f"['a'] float32 (1, 2) {a:016x} ['b'] int8 (2,) {b:016x} "
  assert digest_of(arrays) == hashlib.sha256(content.encode()).hexdigest()


def test_parts_of_an_array_add_up_to_its_sum():
  x = np.random.default_rng(0).normal(size=(300, 7, 500)).astype(np.float32)
  parts = [
    (x[:100], (0, 0, 0)),
    (x[100:, :, :3], (100, 0, 0)),
    (x[100:, :, 3:], (100, 0, 3)),
  ]
  total = sum(int(number_sum(part, first)) for part, first in parts)
  assert total % 2**64 == int(number_sum(x))
  place = make_mesh(config=MeshConfig(fsdp=4, tensor=2))
  cut = jax.device_put(x[:, 0, :], named_sharding(place, 'embed', 'mlp'))
  assert digest_of([cut]) == digest_of([x[:, 0, :]])


@pytest.mark.parametrize('change', ['one bit', 'two swapped', 'a row moved'])
def test_a_change_is_seen_in_the_digest(change):
  x = np.random.default_rng(0).integers(256, size=(50, 40)).astype(np.uint8)
  y = x.copy()
  if change == 'one bit':
    y[31, 7] ^= 128
  elif change == 'two swapped':
    y[3, [5, 6]] = y[3, [6, 5]]
  else:
    y = np.roll(y, 1, axis=0)
  assert digest_of([x]) != digest_of([y])


def test_only_the_newest_are_kept(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  for step in range(1, KEEP + 3):
    save(saved, step, tree(step), {})
  left = sorted(int(p.name) for p in (tmp_path / 'rl').iterdir() if p.name.isdigit())
  assert left == [KEEP + 1, KEEP + 2]


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove manifest'])
def test_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
  saved = Checkpoints(tmp_path / 'rl')
  rng = np.random.default_rng(0)
  big = {'w': rng.normal(size=10_000).astype(np.float32)}
  save(saved, 1, big, {})
  save(saved, 2, {'w': big['w'] + 1}, {})
  files = [path for path in (tmp_path / 'rl' / '2').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  if damage == 'flip':
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
  elif damage == 'truncate':
    largest.write_bytes(content[: len(content) // 2])
  else:
    next(p for p in files if 'manifest' in p.parts).unlink()
  again = Checkpoints(tmp_path / 'rl')
  assert again.step == 1
  np.testing.assert_array_equal(again.restore(big)['w'], big['w'])
  assert len(again.warnings) == 2
  assert again.warnings[1] == 'The one of step 1 before it is used.'
  assert 'checkpoint of step 2' in again.warnings[0]
  assert str(tmp_path / 'rl-damaged') in again.warnings[0]
  save(again, 2, big, {})  # the step can be reached again
  assert Checkpoints(tmp_path / 'rl').step == 2


def test_only_checkpoint_damaged_starts_over(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  save(saved, 1, tree(), {})
  (tmp_path / 'rl' / '1' / 'manifest' / 'metadata').write_text('{')
  again = Checkpoints(tmp_path / 'rl')
  assert again.step is None
  assert len(again.warnings) == 2
  assert again.warnings[1] == f'No whole checkpoint is left in {tmp_path / "rl"}.'


@pytest.mark.parametrize(
  'error', [MemoryError(), OSError(errno.EMFILE, 'Too many open files')]
)
def test_what_cannot_be_read_now_is_not_taken_for_damage(tmp_path, monkeypatch, error):
  save(Checkpoints(tmp_path / 'rl'), 1, tree(), {})

  def refuse(*arguments):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, '_read', refuse)
    with pytest.raises(CheckpointError, match='may be intact, so it was not moved'):
      Checkpoints(tmp_path / 'rl')
  assert Checkpoints(tmp_path / 'rl').step == 1


def test_another_models_checkpoint_is_refused_by_name_and_shape(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  save(saved, 1, tree(), {})
  other = {'policy': {'w': jnp.zeros((3, 5))}, 'step': jnp.int32(0)}
  with pytest.raises(CheckpointError, match=r"'w'.*float32\[3, 5\].*float32\[3, 2\]"):
    saved.restore(other)
  with pytest.raises(CheckpointError, match='absent'):
    saved.restore({'step': jnp.int32(0)})


def test_full_disk_is_one_sentence_and_keeps_the_last_checkpoint(tmp_path):
  # RLIMIT_FSIZE makes the kernel refuse to write, as a full disk does.
  script = textwrap.dedent("""
    import pathlib, resource, signal, sys
    import numpy as np
    from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
    saved = Checkpoints(pathlib.Path(sys.argv[1]))
    saved.save(1, {'w': np.zeros(10, np.float32)}, {})
    saved.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    noise = np.random.default_rng(0).normal(size=1_000_000)
    try:
      saved.save(2, {'w': noise}, {})
      saved.wait()
    except CheckpointError as error:
      print(error)
      sys.exit(7)
  """)
  command = [sys.executable, '-c', script, str(tmp_path / 'rl')]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 7, done.stderr
  assert 'checkpoint of step 2 could not be written' in done.stdout
  assert 'the one of step 1 is intact' in done.stdout
  again = Checkpoints(tmp_path / 'rl')
  assert again.step == 1
  assert not again.warnings


def test_a_failed_write_is_told_by_the_next_save(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path / 'rl')
  save(saved, 1, tree(), {})

  def refuse():
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    saved.save(2, tree(), {})
    patch.setattr(saved._manager, 'wait_until_finished', refuse)
    with pytest.raises(
      CheckpointError, match=r'of step 2 could not .*step 1 is intact'
    ):
      saved.save(3, tree(), {})
  saved.wait()  # told once


def test_arrays_are_those_of_the_moment_of_saving(tmp_path):
  saved = Checkpoints(tmp_path / 'rl')
  # Of 80 MB, which take longer to write than the next step takes to come.
  array = jnp.zeros((20_000, 1_000))
  saved.save(1, {'w': array}, {})
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  add(array)  # as the next step does: the array's memory is used for another
  saved.wait()
  restored = saved.restore({'w': jax.ShapeDtypeStruct(array.shape, array.dtype)})
  np.testing.assert_array_equal(restored['w'], 0)


def test_kill_while_writing_leaves_the_last_checkpoint(tmp_path):
  script = textwrap.dedent("""
    import itertools, pathlib, sys
    import numpy as np
    from r1jax.runtime.checkpoint import Checkpoints
    saved = Checkpoints(pathlib.Path(sys.argv[1]))
    array = np.random.default_rng(0).normal(size=2_000_000)
    for step in itertools.count((saved.step or 0) + 1):
      saved.save(step, {'w': array + step}, {})
      saved.wait()
      print(step, flush=True)
  """)
  command = [sys.executable, '-c', script, str(tmp_path / 'rl')]
  reached = 0
  for _ in range(3):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reached = int(process.stdout.readline())  # the next one is being written
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = Checkpoints(tmp_path / 'rl')
    assert again.step is not None
    assert again.step >= reached
    assert not again.warnings


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
  (tmp_path / 'rl').write_text('')
  with pytest.raises(CheckpointError, match='is a file, expected a folder'):
    Checkpoints(tmp_path / 'rl')


def test_folders_that_are_no_steps_are_left_alone(tmp_path):
  for name in ('013', '²', 'notes'):
    (tmp_path / 'rl' / name).mkdir(parents=True)
  checkpoints = Checkpoints(tmp_path / 'rl')
  assert checkpoints.step is None
  assert checkpoints.warnings == []


def test_arrays_are_written_as_they_are_without_a_compressed_copy(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'c')
  checkpoints.save(1, {'zeros': jnp.zeros(2**20)}, {})
  checkpoints.wait()
  files = (path for path in (tmp_path / 'c').rglob('*') if path.is_file())
  assert sum(path.stat().st_size for path in files) >= 4 * 2**20  # float32
