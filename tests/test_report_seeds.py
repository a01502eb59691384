"""Means over runs that differ in their seed."""

import json

import pytest

from r1jax.report.seeds import compare_runs


def write_run(folder, seed, trained, evaluations=2, workers=2, **settings):
  folder.mkdir()
  config = {'experiment': 'R1Zero', 'seed': seed, 'workdir': str(folder), **settings}
  config['rl'] = {'steps': 40, 'reward_workers': workers}
  config['machine_settings'] = ['rl.reward_workers', 'workdir']
  (folder / 'config.json').write_text(json.dumps(config))
  lines = [
    {
      'phase': 'eval',
      'step': step,
      'pass_at_1': {'mean': value, 'low': 0, 'high': 1},
      'consensus': {'mean': value, 'low': 0, 'high': 1},
      'length': 100 * value,
    }
    for step, value in ((0, 0.2), (40, trained))
  ]
  text = '\n'.join(json.dumps(line) for line in lines[:evaluations])
  (folder / 'metrics.jsonl').write_text(text + '\n')
  return folder


def test_interval_is_student_t_compare_runs(tmp_path):
  runs = [write_run(tmp_path / str(n), n, v) for n, v in enumerate((0.7, 0.8, 0.9))]
  # Mean 80 %, deviation 10 %, t(0.975, 2 degrees) = 4.303: 80 +- 4.303 * 10 / sqrt(3),
  # and no rate is above 100 %.
  assert compare_runs(runs) == [
    '3 seeds (0, 1, 2), on validation problems:',
    'pass@1    base 20.0 (20.0 to 20.0) % -> trained 80.0 (55.2 to 100.0) %',
    'consensus base 20.0 (20.0 to 20.0) % -> trained 80.0 (55.2 to 100.0) %',
    'length    base 20.0 (20.0 to 20.0) tokens -> trained 80.0 (55.2 to 104.8) tokens',
  ]


def test_runs_on_other_machines_are_repetitions(tmp_path):
  first = write_run(tmp_path / 'a', 0, 0.7)
  lines = compare_runs([first, write_run(tmp_path / 'b', 1, 0.7, workers=9)])
  assert lines[0] == '2 seeds (0, 1), on validation problems:'


def test_runs_that_are_no_repetitions_are_refused(tmp_path):
  first = write_run(tmp_path / 'a', 0, 0.7)
  with pytest.raises(ValueError, match='a different seed for every run'):
    compare_runs([first, write_run(tmp_path / 'b', 0, 0.7)])
  with pytest.raises(ValueError, match='other settings'):
    compare_runs([first, write_run(tmp_path / 'c', 1, 0.7, vocab_size=9)])
  other = write_run(tmp_path / 'e', 1, 0.7, data={'countdown': '1.1.0'})
  with pytest.raises(ValueError, match='other settings'):
    compare_runs([first, other])
  with pytest.raises(
    ValueError, match='expected an evaluation at step 40, the last one is at 0'
  ):
    compare_runs([first, write_run(tmp_path / 'd', 1, 0.7, evaluations=1)])
