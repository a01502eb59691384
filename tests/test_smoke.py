"""The whole of R1-Zero with a tiny model, as a user starts it, kills it, damages it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1jax.runtime.checkpoint import Checkpoints

FINAL = {'base': 20, 'rl': 12}  # last steps of experiments.smoke


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """Starts the experiment in a work directory, as a process of its own."""
  shared = tmp_path_factory.mktemp('shared')
  environment = {
    **os.environ,
    # Restarts would spend their time on compiling the same functions again.
    'JAX_COMPILATION_CACHE_DIR': str(shared / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'XLA_FLAGS': '',  # compiled as for a user, not as in other tests
    'JAX_DEBUG_KEY_REUSE': '1',
  }

  def start(
    workdir: Path, *words: str, module: str = 'experiments.smoke'
  ) -> subprocess.Popen:
    command = [sys.executable, '-m', module, '--workdir', str(workdir)]
    command += ['--data-dir', str(shared / 'data'), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
      command, stdout=pipe, stderr=pipe, text=True, env=environment
    )

  return start


@pytest.fixture(scope='module')
def unbroken(start, tmp_path_factory):
  """The work directory and output of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('runs') / 'unbroken'
  process = start(workdir)
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  return workdir, output


def lines(path: Path) -> list[dict]:
  """The lines of a log, without what the clock says."""
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'time'} for line in found]


def digests(workdir: Path) -> dict[str, str]:
  return {
    phase: Checkpoints(workdir / 'checkpoints' / phase).manifest()['digest']
    for phase in FINAL
  }


def assert_same_run(workdir: Path, unbroken: Path) -> None:
  assert digests(workdir) == digests(unbroken)
  for name in ('metrics.jsonl', 'samples.jsonl', 'tokenizer.json'):
    if name.endswith('.jsonl'):
      assert lines(workdir / name) == lines(unbroken / name)
    else:
      assert (workdir / name).read_bytes() == (unbroken / name).read_bytes()


def newest(workdir: Path, phase: str) -> int:
  folder = workdir / 'checkpoints' / phase
  steps = [int(entry.name) for entry in folder.glob('*') if entry.name.isdigit()]
  return max(steps, default=0)


def wait_for(process: subprocess.Popen, workdir: Path, phase: str, step: int) -> None:
  deadline = time.monotonic() + 600
  while newest(workdir, phase) < step:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline, f'{phase} did not reach step {step}'
    time.sleep(0.01)


def test_run_writes_its_files_and_three_lines_of_result(unbroken):
  workdir, output = unbroken
  metrics = lines(workdir / 'metrics.jsonl')
  steps = {
    phase: [line['step'] for line in metrics if line['phase'] == phase]
    for phase in ('base', 'rl', 'eval')
  }
  assert steps == {
    'base': [5, 10, 15, 20],
    'rl': list(range(1, 13)),
    'eval': [0, 6, 12],
  }
  # Curves are on validation problems, the rows of the stage table on test problems.
  assert {x['split'] for x in metrics if x['phase'] == 'eval'} == {'validation'}
  asked = {
    x['problem'] for x in lines(workdir / 'samples.jsonl') if x['phase'] == 'eval'
  }
  for name in ('base', 'final'):
    row = json.loads((workdir / f'evaluation-{name}.json').read_text())
    for kind in ('reasoning', 'general'):
      assert row[kind]['split'] == 'test'
      assert asked
      assert not asked & {x['problem'] for x in row[kind]['shown']}
  assert len(list((workdir / 'tensorboard' / 'rl').iterdir())) == 1
  last = output.strip().splitlines()[-4:]
  assert last[0] == f'Report: {workdir}/report.html'
  assert [line.split()[0] for line in last[1:]] == ['pass@1', 'cons@4', 'length']
  assert all('base' in line and '-> trained' in line for line in last[1:])
  page = (workdir / 'report.html').read_text()
  assert 'pass@1' in page
  assert '<svg' in page


def test_sampler_and_learner_agree(unbroken):
  # Same float32 products in another order: 2 layers of width 32 differ by rounding.
  drifts = [line['drift'] for line in lines(unbroken[0] / 'metrics.jsonl')
            if line['phase'] == 'rl']  # fmt: skip
  assert len(drifts) == FINAL['rl']
  assert max(drifts) < 1e-5


def test_lower_precision_and_a_trace_are_settings(start, tmp_path):
  words = '--base.steps 5 --rl.steps 3 --rl.profile-step 3 --rl.int8-rollout True'
  words += ' --model.dtype bfloat16 --model.remat dots'
  process = start(tmp_path / 'run', *words.split())
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  for line in lines(tmp_path / 'run' / 'metrics.jsonl'):
    if line['phase'] == 'rl':
      # The sampler's weights are rounded to 1/127, the learner's products to 1/512.
      assert 1e-5 < line['drift'] < 0.1
      assert abs(line['importance'] - 1) < 0.01
      assert line['importance_capped'] == 0
  assert f'The trace of this step is in {tmp_path}/run/profile.' in output
  assert len(list((tmp_path / 'run/profile').rglob('perfetto_trace.json.gz'))) == 1


def test_many_seeds_start_from_its_base(start, unbroken, tmp_path):
  sizes = '--rl.steps 2 --rl.prompts-per-step 2 --rl.group-size 2 --rl.max-length 0 16'
  words = [*sizes.split(), *['--rl.max-prompt-length', '32', '--rl.minibatches', '1']]
  process = start(
    tmp_path / 'fused',
    *('--parent', str(unbroken[0]), '--seeds', '2', *words),
    module='experiments.fused',
  )
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  rows = lines(tmp_path / 'fused/metrics.jsonl')
  assert [(row['seed'], row['step']) for row in rows] == [
    (0, 1),
    (0, 2),
    (1, 1),
    (1, 2),
  ]
  assert 'nothing was learned' in output  # the base has read 20 batches


def test_killed_run_ends_with_the_same_bits(start, unbroken, tmp_path):
  rng = random.Random(0)
  for phase, step in (('base', 5), ('base', 10), ('rl', 2), ('rl', 6)):
    process = start(tmp_path / 'run')
    wait_for(process, tmp_path / 'run', phase, step)
    time.sleep(rng.uniform(0, 0.3))  # a checkpoint half written, or a step half done
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest(tmp_path / 'run', 'rl') < FINAL['rl'], (
      'killed too late to show anything'
    )
  process = start(tmp_path / 'run')
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  assert_same_run(tmp_path / 'run', unbroken[0])


def test_ctrl_c_saves_and_the_same_command_goes_on(start, unbroken, tmp_path):
  process = start(tmp_path / 'run')
  wait_for(process, tmp_path / 'run', 'rl', 2)
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130
  stopped = newest(tmp_path / 'run', 'rl')
  assert f'Stopped at step {stopped} of rl; the checkpoint is written.' in errors
  assert 'Traceback' not in errors
  process = start(tmp_path / 'run')
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  assert f'Resuming from step {stopped} of rl' in output
  assert_same_run(tmp_path / 'run', unbroken[0])


def test_damaged_checkpoint_costs_only_its_own_steps(start, unbroken, tmp_path):
  process = start(tmp_path / 'run')
  wait_for(process, tmp_path / 'run', 'rl', 4)
  process.send_signal(signal.SIGKILL)
  process.wait()
  damaged = newest(tmp_path / 'run', 'rl')
  files = [
    p for p in (tmp_path / f'run/checkpoints/rl/{damaged}').rglob('*') if p.is_file()
  ]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 255
  largest.write_bytes(content)
  process = start(tmp_path / 'run')
  output, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors
  assert f'The checkpoint of step {damaged} in' in output
  assert 'is damaged' in output
  assert f'Resuming from step {damaged - 2} of rl' in output
  assert_same_run(tmp_path / 'run', unbroken[0])


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (['--rl.group-size', '1'], 'rl.group_size: the advantage'),
    (['--rl.prompts-per-step', '5'], 'set it to 6'),
    (['--rl.temperature', '0', '-1'], 'rl.temperature'),
    (['--rl.grpo.kl-coeff', '0'], '--rl.grpo.kl-coef'),
    (['--grpo.kl-coef', '0'], '--grpo.kl-coef is called --rl.grpo.kl-coef now'),
    (['--rl.max-prompt-length', '5'], 'max_prompt_length'),
  ],
)
def test_impossible_setting_is_one_sentence_before_anything_is_written(
  start, tmp_path, words, expected
):
  process = start(tmp_path / 'run', *words)
  _, errors = process.communicate(timeout=60)
  assert process.returncode in (1, 2)
  assert errors.startswith('error: ')
  assert expected in errors
  assert 'Traceback' not in errors
  assert len(errors.strip().splitlines()) <= 2
  assert not (tmp_path / 'run').exists()


def cut_the_last_line(path: Path) -> None:
  content = path.read_bytes()
  path.write_bytes(content[:-20])


def swap_two_digits(path: Path) -> None:
  text = path.read_text()
  for old, new in (('"1": ', '"@@": '), ('"2": ', '"1": '), ('"@@": ', '"2": ')):
    assert text.count(old) == 1
    text = text.replace(old, new)
  path.write_text(text)


@pytest.mark.parametrize(
  ('name', 'damage', 'expected'),
  [
    ('metrics.jsonl', cut_the_last_line, 'expected 19 lines .* got 18; restore it'),
    ('metrics.jsonl', Path.unlink, 'expected 19 lines .* got 0; restore it'),
    ('tokenizer.json', swap_two_digits, 'has changed since .* step 12 of rl'),
  ],
)
def test_a_log_or_tokenizer_that_does_not_fit_the_checkpoint_is_refused(
  start, unbroken, tmp_path, name, damage, expected
):
  shutil.copytree(unbroken[0], tmp_path / 'run')
  damage(tmp_path / 'run' / name)
  before = digests(tmp_path / 'run')
  _, errors = start(tmp_path / 'run').communicate(timeout=60)
  assert re.fullmatch(f'error: .*{name}.*{expected}.*\n', errors)
  assert digests(tmp_path / 'run') == before


def test_settings_that_change_no_number_may_change(start, unbroken, tmp_path):
  shutil.copytree(unbroken[0], tmp_path / 'run')
  words = ('--rl.reward-workers', '1', '--rl.reward-timeout', '9')
  process = start(tmp_path / 'run', *words)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert_same_run(tmp_path / 'run', unbroken[0])


def test_another_experiments_directory_is_refused_and_untouched(start, unbroken):
  workdir, _ = unbroken
  before = digests(workdir)
  process = start(workdir, '--seed', '1')
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert errors.startswith('error: ')
  assert 'seed' in errors
  assert '--workdir' in errors
  assert digests(workdir) == before
