"""A work directory belongs to one run, and to one process at a time."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

import r1jax
from experiments import final_rl, grpo, thinking
from r1jax.runtime import workdir
from r1jax.runtime.workdir import (
  WorkdirError,
  machine_settings,
  open_workdir,
  write_whole,
)


@dataclasses.dataclass(frozen=True)
class Loss:
  kl_coef: float = 0.001
  schedule: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: Path = Path('runs/a')
  seed: int = 0
  ceiling: float = float('nan')
  loss: Loss = Loss()


@dataclasses.dataclass(frozen=True)
class Other:
  seed: int = 0


def contents(directory: Path) -> dict[str, bytes]:
  return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_new_directory_is_made_with_the_config_in_it(tmp_path, monkeypatch):
  main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name='experiments.mine'))
  monkeypatch.setitem(sys.modules, '__main__', main)
  monkeypatch.setattr(sys, 'argv', ['mine.py', '--seed', '3', '--workdir', 'a b'])
  made = open_workdir(tmp_path / 'deep' / 'run', Experiment(workdir=Path('x'), seed=3))
  assert made == tmp_path / 'deep' / 'run'
  text = (made / 'config.json').read_text()
  fields = json.loads(text)
  assert str(fields.pop('ceiling')) == 'nan'
  assert fields == {
    'experiment': 'Experiment',
    'workdir': 'x',
    'seed': 3,
    'loss': {'kl_coef': 0.001, 'schedule': [1, 2]},
    'version': r1jax.__version__,
    'machine_settings': ['command', 'workdir'],
    'command': "python -m experiments.mine --seed 3 --workdir 'a b'",
  }
  # Whoever goes on may say it in other words.
  monkeypatch.setattr(sys, 'argv', ['mine.py', '--seed=3'])
  again = Experiment(workdir=Path('x'), seed=3)
  assert open_workdir(tmp_path / 'deep' / 'run', again) == made
  assert (made / 'config.json').read_text() == text
  assert {file.name for file in made.iterdir()} == {'config.json', '.lock'}


def test_the_same_run_goes_on_and_its_config_stays_as_it_is(tmp_path):
  open_workdir(tmp_path, Experiment())
  (tmp_path / 'metrics.jsonl').write_text('{}\n')
  before = contents(tmp_path)
  # Another spelling of the directory is no other experiment.
  open_workdir(tmp_path, Experiment(workdir=tmp_path))
  assert contents(tmp_path) == before


def test_other_settings_are_named_with_both_values(tmp_path):
  open_workdir(tmp_path, Experiment())
  before = contents(tmp_path)
  changed = Experiment(seed=7, loss=Loss(kl_coef=0.5))
  with pytest.raises(WorkdirError) as error:
    open_workdir(tmp_path, changed)
  assert str(error.value) == (
    f'{tmp_path} holds a run with other settings: --seed is 0 there and 7 here; '
    '--loss.kl-coef is 0.001 there and 0.5 here. Choose another --workdir, or give '
    'the same settings to go on with that run'
  )
  assert contents(tmp_path) == before
  open_workdir(tmp_path, changed, may_change=('workdir', 'seed', 'loss.kl_coef'))


def test_a_field_known_only_on_one_side_is_a_difference(tmp_path):
  open_workdir(tmp_path, Other(seed=0))
  config = json.loads((tmp_path / 'config.json').read_text())
  config['gone'] = 1
  del config['seed']
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(WorkdirError) as error:
    open_workdir(tmp_path, Other(seed=0))
  assert '--seed is (absent) there and 0 here' in str(error.value)
  assert '--gone is 1 there and (absent) here' in str(error.value)


def test_a_directory_of_an_older_version_is_refused_and_left_alone(tmp_path):
  open_workdir(tmp_path, Experiment())
  fields = json.loads((tmp_path / 'config.json').read_text())
  # As version 0.1 wrote it, with settings that have other names now.
  del fields['version'], fields['machine_settings']
  text = json.dumps({**fields, 'grpo': {'kl_coef': 0.001}, 'rl_optim': {}})
  (tmp_path / 'config.json').write_text(text)
  before = contents(tmp_path)
  with pytest.raises(WorkdirError) as error:
    open_workdir(tmp_path, Experiment())
  assert str(error.value) == (
    f'{tmp_path}/config.json was written by r1jax 0.1.0, whose settings have other '
    f'names than those of {r1jax.__version__}; use that version for this folder, or '
    'choose another one'
  )
  assert contents(tmp_path) == before


@pytest.mark.parametrize(
  ('version', 'refused'),
  [('0.1.7', True), ('1.2.0', True), ('0.2.9', True), ('0.3.9', False)],
)
def test_versions_with_the_same_names_of_settings_go_on(tmp_path, version, refused):
  open_workdir(tmp_path, Experiment())
  file = tmp_path / 'config.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), 'version': version}))
  if not refused:
    open_workdir(tmp_path, Experiment())
    return
  with pytest.raises(WorkdirError, match=f'was written by r1jax {version}, whose'):
    open_workdir(tmp_path, Experiment())


@dataclasses.dataclass(frozen=True)
class Mesh:
  machine: ClassVar[bool] = True  # all of its fields are settings of the machine
  fsdp: int = 1
  hosts: int = 1


@dataclasses.dataclass(frozen=True)
class Training:
  steps: int = 1
  workers: int = dataclasses.field(default=2, metadata={'machine': True})
  mesh: Mesh = Mesh()


@dataclasses.dataclass(frozen=True)
class Launched:
  workdir: str = ''
  seed: int = 0
  data_dir: str = dataclasses.field(default='', metadata={'machine': True})
  training: Training = Training()


@dataclasses.dataclass(frozen=True)
class Relaunched(Launched):
  data_dir: str = 'data'  # another default does not make it a setting of the experiment


@pytest.mark.parametrize('config', [Launched(), Relaunched()])
def test_machine_settings_are_marked_fields_and_marked_groups(config):
  assert machine_settings(config) == {
    'workdir',
    'data_dir',
    'training.workers',
    'training.mesh.fsdp',
    'training.mesh.hosts',
  }


MESH = {
  f'mesh.{name}'
  for name in (
    *('data', 'fsdp', 'tensor', 'expert', 'context'),
    *('sampler_tensor', 'sampler_expert', 'sampler_gathers', 'sampler_slots'),
    *('coordinator', 'hosts', 'host'),
  )
}
RL = {f'rl.{name}' for name in ('profile_step', 'offload', 'reward_workers')} | {
  'rl.reward_timeout'
}


@pytest.mark.parametrize(
  ('config', 'expected'),
  [
    (final_rl.FinalRL(), {'workdir', 'data_dir'} | MESH | RL),
    (grpo.GRPO(), {'workdir', 'data_dir'} | MESH | RL),
    (thinking.Thinking(), {'workdir', 'data_dir'}),
  ],
)
def test_machine_settings_of_experiments(config, expected):
  assert machine_settings(config) == expected


def test_a_run_goes_on_with_other_machine_settings_and_no_others(tmp_path):
  config = Launched()
  may_change = machine_settings(config)
  open_workdir(tmp_path, config, may_change=may_change)
  written = json.loads((tmp_path / 'config.json').read_text())
  assert written['machine_settings'] == sorted({*may_change, 'command'})
  kept = contents(tmp_path)
  training = Training(workers=9, mesh=Mesh(fsdp=4))
  other = dataclasses.replace(config, data_dir='elsewhere', training=training)
  open_workdir(tmp_path, other, may_change=may_change)
  assert contents(tmp_path) == kept
  longer = dataclasses.replace(config, training=Training(steps=2))
  with pytest.raises(WorkdirError, match=r'--training\.steps is 1 there and 2 here'):
    open_workdir(tmp_path, longer, may_change=may_change)


def test_a_run_with_other_problems_is_refused_and_named(tmp_path):
  before, now = (
    {'countdown': '1.1.0', 'gsm8k': '1'},
    {'countdown': '2.0.0', 'gsm8k': '1'},
  )
  open_workdir(tmp_path, Experiment(), data=before)
  assert json.loads((tmp_path / 'config.json').read_text())['problems'] == before
  open_workdir(tmp_path, Experiment(), data=before)
  kept = contents(tmp_path)
  with pytest.raises(WorkdirError) as error:
    open_workdir(tmp_path, Experiment(), data=now)
  assert str(error.value) == (
    f'{tmp_path} holds a run with other problems: countdown is of version 1.1.0 there '
    'and 2.0.0 here. What it learned from may be held out now; choose another --workdir'
  )
  assert contents(tmp_path) == kept


def test_a_run_whose_problems_are_not_known_is_refused(tmp_path):
  open_workdir(tmp_path, Experiment())
  expected = r'countdown is of version \(unknown\) there and 2\.0\.0 here'
  with pytest.raises(WorkdirError, match=expected):
    open_workdir(tmp_path, Experiment(), data={'countdown': '2.0.0'})


def test_another_experiment_is_refused(tmp_path):
  open_workdir(tmp_path, Experiment())
  with pytest.raises(WorkdirError, match='a run of Experiment, not of Other'):
    open_workdir(tmp_path, Other())


def test_a_directory_with_anything_else_is_refused_and_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(WorkdirError, match=r'not empty \(thesis\.tex, \.\.\.\)'):
    open_workdir(tmp_path, Experiment())
  assert contents(tmp_path) == {'thesis.tex': b'years of work'}


def test_a_kill_before_the_config_was_complete_leaves_a_usable_directory(tmp_path):
  (tmp_path / '.lock').write_text('pid 1\n')
  (tmp_path / '.config.json.new').write_text('{"experiment": "Exp')
  open_workdir(tmp_path, Other(seed=5))
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 5


def test_a_config_appears_whole_or_not_at_all(tmp_path, monkeypatch):
  def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full_disk)
    with pytest.raises(WorkdirError, match='No space left on device'):
      open_workdir(tmp_path, Experiment())
  assert not (tmp_path / 'config.json').exists()
  open_workdir(tmp_path, Experiment())


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
  file = tmp_path / 'pairs.json'
  write_whole(file, 'żółw')
  assert file.read_bytes() == 'żółw'.encode()

  def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(Path, 'replace', full_disk)
    with pytest.raises(OSError, match=f'cannot write {file} .*make room for it'):
      write_whole(file, 'other')
  assert file.read_bytes() == 'żółw'.encode()
  write_whole(file, 'other')
  assert contents(tmp_path) == {'pairs.json': b'other'}


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('{"experiment": "Exper', 'is damaged'),
    ('', 'is damaged'),
    (b'\xff\xfe', 'is damaged'),
    ('[1, 2]', 'was not written by an experiment'),
    ('{"seed": 0}', 'was not written by an experiment'),
  ],
)
def test_a_damaged_config_is_named(tmp_path, text, reason):
  raw = text if isinstance(text, bytes) else text.encode()
  (tmp_path / 'config.json').write_bytes(raw)
  with pytest.raises(WorkdirError, match=reason) as error:
    open_workdir(tmp_path, Experiment())
  assert str(error.value).startswith(f'{tmp_path}/config.json ')
  assert (tmp_path / 'config.json').read_bytes() == raw


def test_a_file_in_the_way_is_named(tmp_path):
  file = tmp_path / 'notes'
  file.write_text('mine')
  with pytest.raises(WorkdirError, match='notes is not a directory; choose another'):
    open_workdir(file, Experiment())
  with pytest.raises(WorkdirError, match='Not a directory'):
    open_workdir(file / 'run', Experiment())
  assert file.read_text() == 'mine'


def test_a_parent_that_refuses_is_named(tmp_path, monkeypatch):
  def refuse(path: Path, **_: object) -> None:
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))

  # Not chmod: tests may run as root, whom it doesn't stop.
  monkeypatch.setattr(Path, 'mkdir', refuse)
  with pytest.raises(WorkdirError, match='Permission denied') as error:
    open_workdir(tmp_path / 'run', Experiment())
  assert str(tmp_path / 'run') in str(error.value)


HOLDER = """
import dataclasses, sys
from r1jax.runtime.workdir import open_workdir

@dataclasses.dataclass(frozen=True)
class Other:
  seed: int = 0

open_workdir(sys.argv[1], Other())
print('held', flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_one_run_and_a_kill_frees_it(tmp_path):
  repository = Path(workdir.__file__).parents[2]
  (tmp_path / '.lock').write_text('pid 123456789012\n')  # an earlier start's, longer
  with subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path)],
    cwd=repository,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as holder:
    assert holder.stdout is not None
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(WorkdirError, match=rf'another process \(pid {holder.pid}\)'):
      open_workdir(tmp_path, Other())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert open_workdir(tmp_path, Other()) == tmp_path


def test_a_function_is_recorded_by_its_name():
  @dataclasses.dataclass
  class Chosen:
    loss: object = json.dumps

  assert workdir.plain_config(Chosen()) == {
    'experiment': 'Chosen',
    'loss': 'json.dumps',
  }
