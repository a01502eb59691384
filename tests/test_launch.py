"""The launch scripts, with stand-ins for the commands of clouds and clusters."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / 'scripts' / 'launch'
WORDS = ['experiments.grpo', '--workdir', '/mnt/a run', '--mesh.fsdp', '64']
STAND_IN = '#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\nexit ${STATUS:-0}\n'


@pytest.fixture
def launch(tmp_path):
  """Runs a script; what it started prints its words, one a line."""
  for name in ('gcloud', 'xpk', 'srun', 'scontrol'):
    (tmp_path / name).write_text(STAND_IN)
    (tmp_path / name).chmod(0o755)

  def run(script, *words, **variables):
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
      [LAUNCH / script, *words],
      capture_output=True,
      text=True,
      timeout=60,
      env={'PATH': path, **variables},
    )
    return done.returncode, done.stdout.splitlines(), done.stderr

  return run


def module_command(shell_words):
  """What a shell makes of the last line of a command, as a list."""
  line = f'exec() {{ printf "%s\\n" "$@"; }}; {shell_words}'
  return subprocess.run(
    ['bash', '-c', line], capture_output=True, text=True, check=True
  ).stdout.splitlines()


def test_a_slice_runs_the_words_on_all_workers(launch):
  status, said, _ = launch('tpu_vm', *WORDS, TPU='pod', ZONE='z')
  assert status == 0
  assert said[:8] == [
    'compute',
    'tpus',
    'tpu-vm',
    'ssh',
    'pod',
    '--zone',
    'z',
    '--worker',
  ]
  assert said[8:10] == ['all', '--command']
  python = said[10].split('&& ')[-1]
  assert module_command(python) == ['.venv/bin/python', '-m', *WORDS]


def test_a_cluster_gets_a_workload_with_the_words(launch):
  variables = {'CLUSTER': 'c', 'TPU_TYPE': 'v5p-512', 'IMAGE': 'i', 'SLICES': '2'}
  status, said, _ = launch('gke', 'zero', *WORDS, **variables)
  assert status == 0
  assert said[:4] == ['workload', 'create', '--workload', 'zero']
  options = dict(zip(said[4::2], said[5::2], strict=True))
  assert options['--num-slices'] == '2'
  assert options['--max-restarts'] == '10'
  assert module_command(options['--command']) == ['python', '-m', *WORDS]


def test_a_job_starts_a_process_a_node(launch):
  status, said, _ = launch('slurm', *WORDS, SLURM_JOB_ID='7')
  assert status == 0
  assert said == ['--kill-on-bad-exit=0', '.venv/bin/python', '-m', *WORDS]


@pytest.mark.parametrize('ended', [0, 1, 130])
def test_a_job_that_was_stopped_goes_back_into_the_queue(launch, ended):
  status, said, _ = launch('slurm', *WORDS, SLURM_JOB_ID='7', STATUS=str(ended))
  assert status == ended
  assert (said[-2:] == ['requeue', '7']) == (ended == 130)


@pytest.mark.parametrize(
  ('script', 'variables', 'missing'),
  [
    ('tpu_vm', {'TPU': 'pod'}, 'ZONE: expected its zone'),
    ('gke', {'CLUSTER': 'c', 'IMAGE': 'i'}, 'TPU_TYPE: expected a type'),
    ('gke', {'CLUSTER': 'c', 'IMAGE': 'i', 'TPU_TYPE': 't'}, 'name of the workload'),
  ],
)
def test_what_is_missing_is_named(launch, script, variables, missing):
  status, _, errors = launch(script, **variables)
  assert status != 0
  assert missing in errors
