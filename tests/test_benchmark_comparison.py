"""Comparisons of two evaluations on published benchmarks."""

import json

import pytest

from r1jax import statistics
from r1jax.evaluation import benchmarks


def results(folder, name, right, samples=2):
  folder.mkdir()
  mean = sum(right.values()) / samples / len(right)
  content = {
    'problems': len(right),
    'samples': samples,
    'right': right,
    'pass_at_1': {'mean': mean},
  }
  text = json.dumps({'settings': {}, 'benchmarks': {name: content}})
  (folder / benchmarks.RESULTS).write_text(text)
  return folder


def test_a_comparison_is_paired_by_problem(tmp_path):
  # The second run lists its problems in another order. All four differ by +1/2, so of
  # 16 patterns of signs two are as far from zero: p = 2/16.
  a = results(tmp_path / 'a', 'aime24', {'p': 0, 'q': 1, 'r': 0, 's': 1})
  b = results(tmp_path / 'b', 'aime24', {'s': 2, 'r': 1, 'q': 2, 'p': 1})
  row = benchmarks.compare(a, b)[1]
  expected = ['AIME 2024', '4', '25.0', '75.0', '+50.0', '+50.0 to +50.0', '0.125']
  assert list(row) == expected
  assert statistics.paired([0, 0.5, 0, 0.5], [0.5, 1, 0.5, 1], seed=1).p == 0.125


@pytest.mark.parametrize(
  ('name', 'right', 'message'),
  [
    ('amc23', {'p': 1}, 'a benchmark that .* have in common, got aime24 and amc23'),
    ('aime24', {'q': 1}, 'compare: expected the same problems of aime24, got 1 in'),
  ],
)
def test_runs_without_the_same_problems_are_not_compared(
  tmp_path, name, right, message
):
  a = results(tmp_path / 'a', 'aime24', {'p': 0})
  with pytest.raises(ValueError, match=message):
    benchmarks.compare(a, results(tmp_path / 'b', name, right))


def test_a_folder_without_results_is_not_compared(tmp_path):
  with pytest.raises(ValueError, match='expected the work directory of a finished eva'):
    benchmarks.compare(tmp_path, tmp_path)
  (tmp_path / benchmarks.RESULTS).write_text('{')
  with pytest.raises(ValueError, match=r'compare: .*results.json is damaged'):
    benchmarks.compare(tmp_path, tmp_path)
