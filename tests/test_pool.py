"""The reward pool. Workers import this file to run the functions below."""

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from r1jax.rewards import Weighted, rules
from r1jax.rewards import pool as pool_module
from r1jax.rewards.pool import RewardError, RewardPool
from r1jax.tasks import Problem

PROBLEM = Problem(
  'p1', 'countdown', '16 from 3 5 2', {'numbers': [3, 5, 2], 'target': 16}
)
OTHER = Problem('p2', 'countdown', '1 from 3 2', {'numbers': [3, 2], 'target': 1})


def length(problem, output):
  return len(output)


def moody(problem, output):
  """The number that the text spells, or the misdeed that it names."""
  if output == 'raise':
    raise RuntimeError('out of\nluck')
  if output == 'exit':
    sys.exit(3)
  if output == 'die':
    os._exit(7)
  if output == 'hang':
    threading.Event().wait()
  values = {'none': None, 'text': '1', 'huge': 1e300, 'true': np.True_}
  return values[output] if output in values else float(output)


def slow(problem, output):
  threading.Event().wait(0.3)
  return 1.0


def process(problem, output):
  return os.getpid()


@pytest.fixture(scope='module')
def pool():
  rewards = [Weighted('moody', moody, 2.0), Weighted('length', length, 0.5)]
  # One second: enough for the honest ones, short enough for the test of a hang.
  with RewardPool(rewards, workers=2, timeout=1.0) as pool:
    yield pool


def score(pool, texts):
  return pool.submit([PROBLEM] * len(texts), texts).result()


@pytest.mark.parametrize(
  ('output', 'accuracy', 'form'),
  [
    ('<think>3+5=8</think><answer>(3+5)*2</answer>', 1.0, 1.0),
    ('<think></think>\n<answer> 2*(5+3) </answer>', 1.0, 1.0),
    ('<think>3+5=8</think><answer>3+5*2</answer>', 0.0, 1.0),
    ('<think>3+5=8</think><answer>16</answer>', 0.0, 1.0),
    ('<think>3+5=8</think><answer></answer>', 0.0, 1.0),
    ('(3+5)*2', 0.0, 0.0),
    ('<answer>(3+5)*2</answer>', 0.0, 0.0),
    ('<think>a</think><answer>(3+5)*2</answer> done', 0.0, 0.0),
  ],
)
def test_rules_score_the_answer_and_the_form(output, accuracy, form):
  assert rules.accuracy(PROBLEM, output) == accuracy
  assert rules.format_reward(PROBLEM, output) == form


@hypothesis.given(
  strategies.text()
  | strategies.text('0123456789+-*/()., e_\n\x00²٣').map(
    lambda answer: f'<think></think><answer>{answer}</answer>'
  )
)
@hypothesis.example('<think></think><answer>' + '(' * 100_000 + '</answer>')
@hypothesis.example('<think></think><answer>' + '9**' * 1_000 + '9</answer>')
def test_accuracy_never_raises_and_needs_a_solution(output):
  paid = rules.accuracy(PROBLEM, output)
  assert paid in (0.0, 1.0)
  if paid:  # checked again by Python itself
    assert eval(output.split('<answer>')[1].split('</answer>')[0].strip()) == 16


def test_scores_are_in_the_order_of_outputs_and_weighted(pool):
  texts = [str(number) for number in range(300)]
  scores = score(pool, texts)
  lengths = [1] * 10 + [2] * 90 + [3] * 200
  np.testing.assert_array_equal(scores.values, np.stack([range(300), lengths], axis=1))
  assert scores.total[[3, 299]].tolist() == [2 * 3 + 0.5 * 1, 2 * 299 + 0.5 * 3]
  assert scores.values.dtype == scores.total.dtype == np.float32
  assert (scores.errors, scores.failures, scores.timeouts) == ([], 0, 0)


def test_equal_rewards_have_equal_totals_in_batches_of_any_size():
  rng = np.random.default_rng(0)
  for outputs in range(1, 80):
    row, weights = rng.random((2, 3 + outputs % 4)).astype(np.float32)
    totals = pool_module.weighted_sum(np.tile(row, (outputs, 1)), weights.tolist())
    assert set(totals.tolist()) == {totals[0]}
    # one rounding to float32, of the sum of exact products
    exact = math.fsum(float(x) * float(w) for x, w in zip(row, weights, strict=True))
    assert totals[0] == np.float32(exact)


def test_two_batches_may_be_scored_at_once(pool):
  first, second = (pool.submit([PROBLEM], [text]) for text in '12')
  assert second.result().values[0, 0] == 2
  assert first.result().values[0, 0] == 1


def test_no_outputs_have_no_scores(pool):
  assert score(pool, []).values.shape == (0, 2)


@pytest.mark.parametrize(
  ('misdeed', 'reason'),
  [
    ('raise', 'raised RuntimeError: out of luck'),
    ('exit', 'raised SystemExit: 3'),
    ('x', "raised ValueError: could not convert string to float: 'x'"),
    ('nan', 'returned nan instead of a finite number'),
    ('-inf', 'returned -inf instead of a finite number'),
    ('huge', 'returned 1e+300 instead of a finite number'),  # no float32
    ('none', 'returned None instead of a finite number'),
    ('text', "returned '1' instead of a finite number"),
    ('die', 'ended its process with exit code 7'),
  ],
)
def test_a_failing_reward_counts_0_and_is_reported(pool, misdeed, reason):
  scores = pool.submit([PROBLEM, OTHER, PROBLEM], ['4', misdeed, 'true']).result()
  # The other outputs, and the other reward of the same output, keep their values.
  expected = [[4, 1], [0, len(misdeed)], [1, 4]]
  np.testing.assert_array_equal(scores.values, expected)
  assert scores.errors == [f"reward 'moody' on problem 'p2' {reason}"]
  assert (scores.failures, scores.timeouts) == (1, 0)


def test_a_hanging_reward_times_out(pool):
  scores = score(pool, ['4', 'hang', '5'])
  np.testing.assert_array_equal(scores.values, [[4, 1], [0, 4], [5, 1]])
  assert scores.errors == ["reward 'moody' on problem 'p1' timed out after 1 s"]
  assert (scores.failures, scores.timeouts) == (0, 1)


def test_only_the_first_failures_are_described(pool):
  scores = score(pool, ['nan'] * 40 + ['1'])
  assert scores.failures == 40
  assert len(scores.errors) == 5


@pytest.mark.parametrize(
  ('misdeed', 'remedy'),
  [
    ('raise', 'it raised RuntimeError: out of luck; fix its function'),
    ('hang', 'it timed out after 1 s; make it faster or raise the time limit'),
  ],
)
def test_a_reward_that_fails_on_every_output_ends_the_run(pool, misdeed, remedy):
  with pytest.raises(RewardError, match=f"'moody' failed on all 2 outputs.*{remedy}"):
    score(pool, [misdeed] * 2)
  assert score(pool, ['6']).values[0, 0] == 6  # and the pool is still of use


def test_a_reward_that_hangs_on_the_first_outputs_cancels_the_rest(
  monkeypatch,
):
  monkeypatch.setattr(pool_module, 'HOPELESS', 2)
  rewards = [Weighted('length', length, 1.0), Weighted('moody', moody, 1.0)]
  with RewardPool(rewards, workers=2, timeout=0.5) as pool:
    message = "'moody' timed out after 0.5 s on each of the first 2 outputs and on"
    with pytest.raises(RewardError, match=message):
      score(pool, ['hang'] * 1000)  # would take four minutes
    assert score(pool, ['6']).values.tolist() == [[1.0, 6.0]]


def test_hanging_on_only_the_first_outputs_is_no_error(monkeypatch):
  monkeypatch.setattr(pool_module, 'HOPELESS', 2)
  with RewardPool([Weighted('moody', moody, 1.0)], workers=2, timeout=0.5) as pool:
    scores = score(pool, ['hang', 'hang', '3', '4'])
  assert scores.values[:, 0].tolist() == [0, 0, 3, 4]
  assert scores.timeouts == 2


def test_rewards_that_are_too_slow_only_together_all_count(monkeypatch):
  monkeypatch.setattr(pool_module, 'HOPELESS', 2)
  rewards = [Weighted('one', slow, 1.0), Weighted('two', slow, 1.0)]
  with RewardPool(rewards, workers=2, timeout=0.5) as pool:
    scores = score(pool, ['a', 'b', 'c'])
  assert scores.values.tolist() == [[1.0, 1.0]] * 3
  assert (scores.failures, scores.timeouts) == (0, 0)


@pytest.mark.parametrize('weight', [math.nan, math.inf])
def test_weight_must_be_finite(weight):
  with pytest.raises(ValueError, match="weight of reward 'x': expected a finite"):
    Weighted('x', length, weight)


@pytest.mark.parametrize(
  ('rewards', 'settings', 'message'),
  [
    ([], {}, 'expected one or more'),
    ([Weighted('x', length, 1.0)] * 2, {}, r"unique names, got \['x', 'x'\]"),
    ([Weighted('x', length, 1.0)], {'workers': 0}, 'workers: expected at least 1'),
    ([Weighted('x', length, 1.0)], {'timeout': 0.0}, 'timeout: expected a number'),
    (
      [Weighted('x', lambda problem, output: 1.0, 1.0)],
      {},
      "reward 'x' cannot be sent to a worker.*top level of a module",
    ),
  ],
)
def test_invalid_settings_are_refused_before_anything_starts(
  rewards, settings, message
):
  with pytest.raises(ValueError, match=message):
    RewardPool(rewards, **settings)


def test_problems_and_texts_must_have_equal_lengths(pool):
  with pytest.raises(ValueError, match='a problem for every text, got 1 and 2'):
    pool.submit([PROBLEM], ['1', '2'])


def test_a_worker_killed_between_batches_is_replaced():
  with RewardPool([Weighted('process', process, 1.0)], workers=1) as pool:
    first = int(score(pool, ['']).values[0, 0])
    os.kill(first, signal.SIGKILL)
    # More than a pipe holds: some are still queued when the pool learns of the death.
    scores = score(pool, ['x' * 10_000] * 50)
  assert scores.failures == 0
  assert (scores.values > 0).all()
  assert first not in scores.values


def test_workers_that_stand_still_are_replaced(monkeypatch):
  monkeypatch.setattr(pool_module, 'LOST_AFTER', 1.0)
  with RewardPool([Weighted('process', process, 1.0)], workers=1, timeout=1.0) as pool:
    first = int(score(pool, ['']).values[0, 0])
    os.kill(first, signal.SIGSTOP)
    scores = score(pool, [''] * 3)
  assert (scores.failures, scores.timeouts) == (0, 0)
  assert (scores.values > 0).all()
  assert first not in scores.values


def test_closing_leaves_no_process():
  with RewardPool([Weighted('process', process, 1.0)], workers=2) as pool:
    processes = set(score(pool, [''] * 50).values[:, 0].astype(int).tolist())
  for one in processes:
    with pytest.raises(ProcessLookupError):
      os.kill(one, 0)


PROGRAM = """
import os
import signal
import sys
import test_pool
from r1jax.rewards import Weighted
from r1jax.rewards.pool import RewardPool

if __name__ == '__mp_main__' and 'early' in sys.argv:  # in a worker that is starting
  os.killpg(0, signal.SIGINT)

def moody(problem, text):
  return test_pool.moody(problem, text)

if __name__ == '__main__':
  rewards = [Weighted('moody', moody, 1.0)]
  with RewardPool(rewards, workers=1, timeout=1e6) as pool:
    pool.submit([test_pool.PROBLEM], ['1']).result()
    pending = pool.submit([test_pool.PROBLEM], ['hang'])
    print('ready', flush=True)
    pending.result()
"""


def start(arguments, **options):
  """A program with a pool, which leads a process group of its own."""
  here = Path(__file__).parent
  environment = {**os.environ, 'PYTHONPATH': f'{here.parent}{os.pathsep}{here}'}
  return subprocess.Popen(
    [sys.executable, *arguments],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    **options,
  )


@pytest.fixture
def program(tmp_path):
  path = tmp_path / 'program.py'
  path.write_text(PROGRAM)
  return str(path)


# In both, the pipes end only when every process that inherited them has ended.


def test_workers_end_when_their_parent_is_killed(program):
  parent = start([program])
  assert parent.stdout.readline() == 'ready\n'
  parent.kill()
  parent.communicate(timeout=60)


@pytest.mark.parametrize('when', ['early', 'late'])
def test_only_the_parent_receives_an_interrupt(program, when):
  parent = start([program, when])
  if when == 'late':  # Ctrl-C: the terminal signals the whole group
    assert parent.stdout.readline() == 'ready\n'
    os.killpg(parent.pid, signal.SIGINT)
  _, told = parent.communicate(timeout=60)
  assert told.splitlines()[-1] == 'KeyboardInterrupt'
  assert told.count('Traceback') == 1


def test_workers_import_the_main_module_only_for_a_reward_of_it(program):
  text = PROGRAM.replace("'moody', moody", "'moody', test_pool.moody")
  Path(program).write_text(f"{text}\nassert __name__ == '__main__'")
  parent = start([program])
  try:
    assert parent.stdout.readline() == 'ready\n'
  finally:
    parent.kill()
    parent.communicate(timeout=60)


def test_a_main_module_that_workers_cannot_import_is_reported():
  parent = start(['-'], stdin=subprocess.PIPE)  # there is no file to import
  _, told = parent.communicate(PROGRAM, timeout=60)
  assert 'RewardError: the reward workers died or could not start' in told
