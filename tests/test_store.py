"""Problems on disk: generated once, read back, and errors of damaged files."""

import operator

import pytest

from r1jax import tasks
from r1jax.miniature.corpus import TaskConfigs
from r1jax.tasks import Problem, arithmetic, countdown, splits, store
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.tasks.countdown import CountdownConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.tasks.instructions import InstructionsConfig

TINY = TaskConfigs(
  CountdownConfig(2, 6, 9),
  EquationsConfig(2, 3, 4),
  ArithmeticConfig(30),
  InstructionsConfig(2, 2),
)
NAMES = ('countdown', 'equations', 'arithmetic', 'instructions')
CONFIG = TINY.countdown


@pytest.mark.parametrize('task', NAMES)
def test_files_are_generated_once_and_give_the_problems_back(
  task, tmp_path, monkeypatch
):
  config, module = getattr(TINY, task), tasks.module(task)
  by_id = operator.attrgetter('id')
  expected = {
    split: sorted(module.generate(config, split), key=by_id) for split in splits.SPLITS
  }
  train = store.load(task, config, 'train', str(tmp_path))
  assert sorted(train, key=by_id) == expected['train']

  def rebuilt(*args):
    raise AssertionError('built again')

  monkeypatch.setattr(module, 'generate', rebuilt)
  for split in ('validation', 'test'):
    found = store.load(task, config, split, str(tmp_path))
    assert sorted(found, key=by_id) == expected[split]
  assert store.load(task, config, 'train', str(tmp_path)) == train  # in the same order
  with pytest.raises(AssertionError, match='built again'):  # another difficulty
    store.load(task, module.SETTINGS(), 'train', str(tmp_path))


def test_every_task_has_its_source(tmp_path):
  found = store.sources(NAMES[1:3], TINY, 'test', str(tmp_path))
  assert [{problem.task for problem in source} for source in found] == [
    {'equations'},
    {'arithmetic'},
  ]
  assert {p.id for p in found[1]} == {
    p.id for p in arithmetic.generate(TINY.arithmetic, 'test')
  }


def test_tasks_alternate_while_all_have_problems():
  a, b, c = (
    [Problem(f'{name}{n}', 'countdown', '', {}) for n in range(size)]
    for name, size in (('a', 3), ('b', 2), ('c', 5))
  )
  ids = [problem.id for problem in store.by_turns([a, b, c])]
  assert ids == ['a0', 'b0', 'c0', 'a1', 'b1', 'c1']
  assert store.by_turns([a]) == a
  assert store.by_turns([]) == []


def test_an_unknown_task_is_named():
  with pytest.raises(ValueError, match=r"task: expected one of .*, got 'chess'"):
    store.load('chess', CONFIG, 'train')


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  with pytest.raises(OSError, match=r'data_dir: .*/file/.*choose another --data-dir'):
    store.load('countdown', CONFIG, 'train', str(tmp_path / 'file'))


def test_a_difficulty_without_held_out_problems_is_refused(tmp_path):
  config = CountdownConfig(2, 3, 1)
  assert not list(countdown.generate(config, 'validation'))
  with pytest.raises(
    ValueError, match=r"tasks\.countdown: expected .* all splits, got none in 'val"
  ):
    store.load('countdown', config, 'train', str(tmp_path))
  assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
  store.load('countdown', CONFIG, 'test', str(tmp_path))
  (file,) = tmp_path.rglob('*test.array_record*')
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 255
  file.write_bytes(content)
  with pytest.raises(OSError, match=r'problems in .* are damaged .*delete that folder'):
    store.load('countdown', CONFIG, 'test', str(tmp_path))


def test_a_damaged_description_of_the_files_is_named(tmp_path):
  store.load('countdown', CONFIG, 'test', str(tmp_path))
  (info,) = tmp_path.rglob('dataset_info.json')
  info.write_text('{')
  with pytest.raises(OSError, match=r'are damaged .*delete that folder') as error:
    store.load('countdown', CONFIG, 'test', str(tmp_path))
  assert str(info.parent) in str(error.value)


def test_unreadable_files_are_not_reported_as_damaged(tmp_path, monkeypatch):
  # Root may read everything, so the refusal is played.
  store.load('countdown', CONFIG, 'test', str(tmp_path))

  def refuse(path, *args):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(type(tmp_path), 'open', refuse)
  with pytest.raises(
    OSError, match=r'cannot be read .Permission denied.; fix the permiss'
  ):
    store.load('countdown', CONFIG, 'test', str(tmp_path))


def test_a_full_disk_gets_one_sentence(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def fail(*args, **settings):
    raise RuntimeError('No space left on device\nstack of a writer in another language')

  monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, 'download_and_prepare', fail)
  with pytest.raises(OSError, match=r'could not be written .*No space left') as error:
    store.load('countdown', CONFIG, 'test', str(tmp_path))
  assert str(error.value).endswith('; free some space or choose another --data-dir')
  assert '\n' not in str(error.value)


def test_two_runs_may_generate_the_same_files(tmp_path, monkeypatch):
  generate, calls, theirs = countdown.generate, [], []

  def overtaken(config, split):
    calls.append(split)
    if len(calls) == 4:  # all splits have been looked at, and are being written
      theirs.extend(store.load('countdown', CONFIG, 'test', str(tmp_path)))
    return generate(config, split)

  monkeypatch.setattr(countdown, 'generate', overtaken)
  mine = store.load('countdown', CONFIG, 'test', str(tmp_path))
  assert mine
  assert mine == theirs
  (folder,) = (tmp_path / 'countdown' / CONFIG.name).iterdir()  # nothing half-written
  assert folder.name == countdown.VERSION
