"""Runs of several hosts, each a process on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import machines
import numpy as np
import pytest
import stages

from r1jax.runtime import checkpoint
from r1jax.runtime.checkpoint import Checkpoints
from r1jax.runtime.digest import by_path
from r1jax.runtime.workdir import RECORD
from r1jax.sharding.mesh import MeshConfig
from r1jax.sharding.rules import MeshError

ENVIRONMENT = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': os.pathsep.join(sys.path)}


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def begin(command, count, folder, environment=ENVIRONMENT):
  """Starts a process for each host; {index} in the command is the host's number."""
  processes = []
  for index in range(count):
    with (folder / f'host{index}.log').open('w') as log:
      words = [word.format(index=index) for word in command]
      processes.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
  return processes


def ends(processes, folder, limit=240):
  """The output and the exit status of each host, once all have ended."""
  try:
    statuses = [process.wait(limit) for process in processes]
  finally:
    for process in processes:
      process.kill()
  logs = [(folder / f'host{index}.log').read_text() for index in range(len(processes))]
  return logs, statuses


def arrays(folder):
  return checkpoint._read(folder, 1, checkpoint._shapes(folder, 1))[0]


# --- One step -------------------------------------------------------------------------


def on_hosts(script, count, folder):
  """Runs a script of this folder on `count` hosts."""
  file = str(Path(__file__).with_name(script))
  words = (sys.executable, file, '{index}', str(count), str(free_port()))
  logs, statuses = ends(begin([*words, str(folder)], count, folder), folder)
  assert statuses == [0] * count, logs


@pytest.fixture(scope='module')
def steps(tmp_path_factory):
  """By number of hosts: the numbers of one step, and the folder of its state."""
  found = {}
  for count in (1, 2, 4):
    folder = tmp_path_factory.mktemp(f'hosts{count}')
    on_hosts('host.py', count, folder)
    found[count] = json.loads((folder / 'found.json').read_text()), folder
  return found


@pytest.mark.parametrize('count', [2, 4])
def test_a_step_of_several_hosts_equals_a_step_of_one(steps, count):
  (expected, alone), (found, folder) = steps[1], steps[count]
  assert expected['held'] == [8]
  assert found['held'] == [4] * count  # nobody has all outputs
  assert found['tokens'] == expected['tokens']
  for number, logp in expected['logp'].items():
    np.testing.assert_allclose(found['logp'][number], logp, rtol=0, atol=1e-5)
  for name in ('loss', 'grad_norm', 'kl', 'entropy'):
    assert found['metrics'][name] == pytest.approx(
      expected['metrics'][name], rel=1e-5, abs=1e-5
    )
  # Each host has written its parts; one process reads them here.
  assert len(list((folder / 'state' / '1' / 'arrays').glob('ocdbt.process_*'))) == count
  opened = Checkpoints(folder / 'state')
  assert (opened.step, opened.warnings) == (1, [])
  before, after = arrays(alone / 'state'), arrays(folder / 'state')
  assert before.keys() == after.keys()
  for name in before:
    np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-5)


# --- Stages ---------------------------------------------------------------------------


def test_stages_of_two_hosts_sample_and_learn_as_one_does(tmp_path):
  alone, both = tmp_path / 'alone', tmp_path / 'both'
  for folder in (alone, both):
    folder.mkdir()
  on_hosts('stages.py', 2, both)
  one = MeshConfig(), jax.devices()[:1]
  expected = stages.learn(alone / 'run', *one, 'sampled', 'on_policy', 'preferred')
  for name in ('outputs.jsonl', 'rejection.json'):
    written = (both / 'run' / name).read_text()
    assert written == (alone / 'run' / name).read_text()
  assert len(lines(both / 'run', 'outputs.jsonl')) == 32
  found, before = arrays(both / 'found'), by_path(expected)
  assert found.keys() == before.keys()
  for name in before:
    np.testing.assert_allclose(found[name], before[name], rtol=0, atol=1e-5)
  stages.check_lines(both / 'run', alone / 'run')


# --- A run ----------------------------------------------------------------------------


SHORT = [
  *('--mesh.fsdp', '4', '--base.steps', '2', '--base.checkpoint-every', '2'),
  *('--rl.steps', '6', '--rl.evaluate-every', '6', '--rl.checkpoint-every', '1'),
  *('--rl.minibatches', '1', '--evals.problems', '4'),
  *('--suite.reasoning', '4', '--suite.general', '4'),
]


def smoke(folder, workdir, count=2):
  words = [sys.executable, '-m', 'experiments.smoke', '--workdir', str(workdir), *SHORT]
  words += ['--mesh.coordinator', f'127.0.0.1:{free_port()}']
  words += ['--mesh.hosts', str(count), '--mesh.host', '{index}']
  devices = {'XLA_FLAGS': machines.cpus(4 // count)}
  return begin(words, count, folder, ENVIRONMENT | devices)


def wait_for(workdir, step, processes):
  deadline = time.monotonic() + 300
  while not (workdir / 'checkpoints' / 'rl' / str(step)).exists():
    assert all(process.poll() is None for process in processes)
    assert time.monotonic() < deadline
    time.sleep(0.05)


def lines(workdir, name):
  found = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
  return [{key: line[key] for key in line if key != 'time'} for line in found]


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unbroken')
  logs, statuses = ends(smoke(folder, folder / 'run'), folder)
  assert statuses == [0, 0], logs
  assert 'rl 6/6' in logs[0]
  assert 'rl 6/6' not in logs[1]  # written and shown once
  assert (
    len((folder / 'run' / 'metrics.jsonl').read_text().splitlines()) == 1 + 2 + 6
  )  # base, evaluations, RL
  return folder / 'run'


def test_a_host_that_stops_or_dies_ends_the_others_and_all_resume(unbroken, tmp_path):
  workdir = tmp_path / 'run'
  processes = smoke(tmp_path, workdir)
  wait_for(workdir, 1, processes)
  processes[1].send_signal(signal.SIGTERM)  # sent to one, followed by all
  logs, statuses = ends(processes, tmp_path)
  assert statuses == [130, 130], logs
  assert all('the checkpoint is written' in log for log in logs)
  for killed in (1, 0):
    found = (workdir / 'checkpoints' / 'rl').iterdir()
    newest = max(int(step.name) for step in found if step.name.isdigit())
    processes = smoke(tmp_path, workdir)
    wait_for(workdir, newest + 1, processes)
    processes[killed].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, statuses = ends(processes, tmp_path, limit=60)
    assert time.monotonic() - began < 60
    assert all(statuses)
    last = error_in(tmp_path / f'host{1 - killed}.log')
    pid = processes[killed].pid
    assert last.startswith(f'error: host {killed} ({socket.gethostname()}, pid {pid})')
    assert last.endswith('the run resumes from its last checkpoint')
  logs, statuses = ends(smoke(tmp_path, workdir), tmp_path)
  assert statuses == [0, 0], logs
  assert 'Resuming from step' in logs[0]
  records = [json.loads((w / RECORD).read_text()) for w in (workdir, unbroken)]
  assert records[0]['params'] == records[1]['params']
  for name in ('metrics.jsonl', 'samples.jsonl'):
    assert lines(workdir, name) == lines(unbroken, name)


def error_in(log):
  """The error of a host that has ended; a witness prints it after JAX ends the process.

  Python may print later what the reward processes have left behind.
  """
  deadline = time.monotonic() + 10
  while True:
    lines = log.read_text().splitlines()
    if errors := [line for line in lines if line.startswith('error: host')]:
      return errors[0]
    assert time.monotonic() < deadline
    time.sleep(0.1)


# --- Errors ---------------------------------------------------------------------------

HOST = """
import dataclasses, sys, time
from r1jax.runtime import hosts
from r1jax.runtime.errors import user_errors
from r1jax.sharding.mesh import MeshConfig

hosts.CONNECT_TIMEOUT, hosts.GATHER_TIMEOUT, hosts.HEARTBEAT_TIMEOUT = 5, 5, 30

@dataclasses.dataclass
class Config:
  mesh: MeshConfig
  seed: int

index, count, port, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
config = MeshConfig()
if what != 'slurm':
  config = MeshConfig(coordinator=f'127.0.0.1:{port}', hosts=count, host=index)
with user_errors(), hosts.connect(Config(config, index if what == 'seed' else 0)):
  assert hosts.all_gather('number', 10 * index) == [10 * n for n in range(count)]
  if what == 'fails' and index == 1:
    raise ValueError('reward: expected a number, got none')
  if what == 'sleeps' and index == 1:
    time.sleep(100)
  hosts.all_gather('rewards', index)
"""


def three(what, tmp_path, count=3):
  script = tmp_path / 'host.py'
  script.write_text(textwrap.dedent(HOST))
  port = str(free_port())
  words = [sys.executable, str(script), '{index}', '3', port, what]
  return ends(begin(words, count, tmp_path), tmp_path)


def test_hosts_gather_values_of_all(tmp_path):
  logs, statuses = three('', tmp_path)
  assert statuses == [0, 0, 0], logs


def test_hosts_of_a_slurm_job_connect(tmp_path):
  script = tmp_path / 'host.py'
  script.write_text(textwrap.dedent(HOST))
  job = {
    'SLURM_JOB_ID': str(free_port()),  # a port is made of it
    'SLURM_NTASKS': '2',
    'SLURM_STEP_NODELIST': 'localhost',
  }
  processes = []
  for index in range(2):
    words = [sys.executable, str(script), str(index), '2', '0', 'slurm']
    own = {'SLURM_PROCID': str(index), 'SLURM_LOCALID': str(index)}
    processes.append(subprocess.Popen(words, env=ENVIRONMENT | job | own))
  assert [process.wait(120) for process in processes] == [0, 0]


def test_a_host_with_another_setting_is_named_with_the_field(tmp_path):
  logs, statuses = three('seed', tmp_path)
  assert statuses == [1, 1, 1]
  for index, log in enumerate(logs):
    assert f'error: seed is {index} on host {index} (' in log


def test_an_error_on_one_host_ends_the_others_with_its_message(tmp_path):
  logs, statuses = three('fails', tmp_path)
  assert statuses == [1, 1, 1]
  sentence = 'reward: expected a number, got none'
  assert logs[1] == f'error: {sentence}\n'
  for log in logs[0], logs[2]:
    assert log.startswith('error: host 1 (')
    assert log.endswith(f') has stopped: {sentence}\n')


def test_a_host_that_hangs_is_named(tmp_path):
  logs, statuses = three('sleeps', tmp_path)
  assert statuses == [1, 1, 1]
  for log in logs[0], logs[2]:
    assert "waited 5 s for 'rewards' from host 1 of 3" in log


def test_a_host_that_does_not_start_is_reported(tmp_path):
  _logs, statuses = three('', tmp_path, count=2)
  assert all(statuses)
  time.sleep(2)
  for index in range(2):
    log = (tmp_path / f'host{index}.log').read_text()
    assert 'error: not all hosts have come within 5 s' in log


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_a_host_that_waits_for_others_can_be_stopped(sent, tmp_path):
  script = tmp_path / 'host.py'
  script.write_text(textwrap.dedent(HOST).replace('= 5, 5, 30', '= 300, 5, 30'))
  port = free_port()
  words = [sys.executable, str(script), '{index}', '2', str(port), '']
  (process,) = begin(words, 1, tmp_path)
  deadline = time.monotonic() + 120
  while True:
    try:
      socket.create_connection(('127.0.0.1', port)).close()
      break
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.1)
  time.sleep(2)
  process.send_signal(sent)
  _, (status,) = ends([process], tmp_path, limit=30)
  time.sleep(2)
  log = (tmp_path / 'host0.log').read_text()
  if sent == signal.SIGINT:
    assert status == 130
    assert 'error: ' not in log
  else:
    assert status == -signal.SIGTERM
    assert 'error: this host has ended after' in log
    assert 'within 300 s' not in log


@pytest.mark.parametrize('index', [0, 1])
def test_an_unusable_address_is_refused(index, tmp_path):
  script = tmp_path / 'host.py'
  script.write_text(textwrap.dedent(HOST))
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
    if index:  # nobody is there
      server.close()
    words = [sys.executable, str(script), str(index), '2', str(port), '']
    done = subprocess.run(
      words, capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
  assert done.returncode == 1
  expected = f'host 0 did not answer at 127.0.0.1:{port}'
  if not index:
    expected = f'expected a free port on this host, which is host 0, got {port}'
  assert done.stderr.startswith(f'error: mesh.coordinator: {expected}')
  assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'coordinator': 'here'}, r"mesh.coordinator: expected host:port, got 'here'"),
    ({'coordinator': 'a:65536'}, r"expected a port from 1 to 65535, got 'a:65536'"),
    ({'coordinator': '[::1]:0'}, r'mesh.coordinator: expected a port from 1'),
    ({'hosts': 2}, r'mesh.coordinator: expected an address with mesh.hosts 2'),
    ({'coordinator': 'a:1', 'hosts': 2, 'host': 2}, r'mesh.host: expected less than'),
    ({'host': -1}, r'mesh.host: expected 0 or more, got -1'),
  ],
)
def test_inconsistent_settings_of_hosts_are_refused(fields, message):
  with pytest.raises(MeshError, match=message):
    MeshConfig(**fields)
