"""Rejection sampling from a model whose outputs are fixed."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from r1jax.rewards import filters
from r1jax.runtime.errors import Interruption, TrainingError
from r1jax.runtime.run import start
from r1jax.sampling.sampler import SamplingConfig
from r1jax.stages import rejection
from r1jax.stages.rejection import RejectionConfig, rejection_sample, select, statistics
from r1jax.tasks import Problem


def say(answer: object, think: str = 'sprawdź') -> str:
  return f'<think>{think}</think><answer>{answer}</answer>'


def problem(number: int) -> Problem:
  """1+1, 2+1, ..., with Polish as its language, so that words have accents."""
  truth = {'left': number, 'sign': '+', 'right': 1, 'result': number + 1}
  question = f'calculate {number}+1'
  return Problem(f'{number}+1', 'arithmetic', question, truth, language='pl')


CONFIG = RejectionConfig(
  problems=6,
  samples=4,
  most_a_problem=2,
  prompts_per_batch=2,
  max_length=50,
  draw=SamplingConfig(0.5),
)


class Written:
  """Stands for a sampler: of four outputs, three are right and two the same."""

  def __init__(self, right=1, act=lambda batch: None):
    self.right, self.act, self.asked, self.keys = right, act, [], []

  def sample(self, params, key, problems, *, group_size, max_length, draw):
    assert (params, group_size, max_length, draw.temperature) == ('params', 4, 50, 0.5)
    self.act(len(self.asked))
    self.asked.append([problem.id for problem in problems])
    self.keys.append(tuple(jax.random.key_data(key).tolist()))
    results = [problem.truth['result'] + 1 - self.right for problem in problems]
    mark = f'{self.keys[-1][1] % 1000}'  # what was drawn with this key
    return SimpleNamespace(
      rows=np.arange(len(problems)),
      own=np.ones(len(problems), bool),
      texts=[[say(x), say(x), say(x - 1), say(x, f'sprawdź\n{mark}')] for x in results],
      lengths=np.array([[10 * n + i for i in range(4)] for n in range(len(problems))]),
    )


@dataclasses.dataclass(frozen=True)
class Experiment:
  workdir: str


def sample(workdir, sampler, config=CONFIG):
  """What is kept, by a run that is new or goes on."""
  asked: Any = sampler
  with start(Experiment(str(workdir)), phases=()) as run:
    asked.run = run
    return rejection_sample(
      run, 'params', problem, sampler=asked, config=config, seed=3
    )


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """The folder, what was kept, and the sampler of a run without interruption."""
  workdir, sampler = tmp_path_factory.mktemp('runs') / 'run', Written()
  return workdir, sample(workdir, sampler), sampler


def test_every_output_is_written_down_with_what_is_wrong_with_it(unbroken):
  workdir, _, _ = unbroken
  lines = [json.loads(x) for x in (workdir / 'outputs.jsonl').read_text().splitlines()]
  assert [line['problem'] for line in lines] == [
    f'{n}+1' for n in range(6) for _ in 'four'
  ]
  assert lines[5] == {
    'problem': '1+1',
    'task': 'arithmetic',
    'question': 'calculate 1+1',
    'output': say(2),
    'tokens': 11,  # the second output of the second problem of its batch
    'faults': [],
  }
  # Outputs that selection leaves out are not marked: the file holds all outputs,
  # whichever are selected later.
  assert [line['faults'] for line in lines] == [[], [], ['wrong'], []] * 6


def test_the_first_good_outputs_are_kept_without_duplicates(unbroken):
  _, kept, _ = unbroken
  # Of each problem the first and the fourth: the second says the same as the first.
  assert [line['problem'] for line in kept] == [
    f'{n}+1' for n in range(6) for _ in 'ab'
  ]
  assert [line['tokens'] for line in kept] == [0, 3, 10, 13] * 3
  assert all(not line['faults'] for line in kept)


def test_the_counts_are_written_down(unbroken):
  workdir, _, _ = unbroken
  assert json.loads((workdir / 'rejection.json').read_text()) == {
    'arithmetic': {
      'problems': 6,
      'outputs': 24,
      'kept': 12,
      'tokens': 6.5,  # of 0, 3, 10 and 13
      'dropped': {'duplicate': 6, 'wrong': 6},
    }
  }
  assert {path.name for path in workdir.iterdir()} >= {
    'outputs.jsonl',
    'rejection.json',
  }
  assert not list(workdir.glob('*.partial'))


def test_every_batch_has_other_problems_and_another_key(unbroken):
  _, _, sampler = unbroken
  assert sampler.asked == [['0+1', '1+1'], ['2+1', '3+1'], ['4+1', '5+1']]
  assert len(set(sampler.keys)) == 3


def logged(workdir) -> list[tuple[str, int, float]]:
  """Phase, step and accepted share of each line of the log."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [(line['phase'], line['step'], line['accepted']) for line in lines]


# Of the four outputs to each problem one is wrong.
LOGGED = [('rejection', step, 0.75) for step in (1, 2, 3)]


def test_every_batch_has_a_line_in_the_log(unbroken):
  workdir, _, _ = unbroken
  assert logged(workdir) == LOGGED
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    assert json.loads(line)['time'].keys() == {'seconds'}


@pytest.mark.parametrize('batches', [0, 1, 2, 3])
def test_a_batch_that_was_logged_but_not_written_is_logged_once(
  unbroken, tmp_path, batches
):
  before, _, _ = unbroken
  workdir, again = tmp_path / 'run', Written()
  outputs = (before / 'outputs.jsonl').read_bytes().splitlines(keepends=True)
  metrics = (before / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
  with start(Experiment(str(workdir)), phases=()):
    (workdir / 'outputs.jsonl').write_bytes(b''.join(outputs[: batches * 2 * 4]))
  (workdir / 'metrics.jsonl').write_bytes(b''.join(metrics[: batches + 1]))
  sample(workdir, again)
  assert len(again.asked) == 3 - batches
  assert logged(workdir) == LOGGED


def test_the_log_of_the_batches_is_kept_when_a_later_phase_resumes(unbroken, tmp_path):
  _, kept, _ = unbroken
  experiment = Experiment(str(tmp_path / 'run'))
  asked: Any = Written()
  for step in (1, 2):
    with start(experiment, phases=('sft',)) as run:
      asked.run = run
      found = rejection_sample(
        run, 'params', problem, sampler=asked, config=CONFIG, seed=3
      )
      assert found == kept
      run.log.write('sft', step, accepted=0)
      run.save('sft', step, {'w': np.ones(2)})
  assert logged(tmp_path / 'run') == [*LOGGED, ('sft', 1, 0), ('sft', 2, 0)]
  assert len(asked.asked) == 3


def places(content: bytes) -> list[int]:
  """Where a kill may have cut the file, and what makes each place a special one."""
  ends = [n + 1 for n, byte in enumerate(content) if byte == ord('\n')]
  return [
    0,
    1,
    ends[0] - 1,  # a whole line that lacks its end
    content.index('ź'.encode()) + 1,  # inside of a character
    ends[2],  # whole lines, not a whole batch
    ends[7] - 30,
    ends[7],  # a whole batch
    ends[11] + 40,
    ends[-1] - 1,
    ends[-1],
  ]


def test_a_run_that_was_killed_anywhere_ends_with_the_same_files(unbroken, tmp_path):
  before, kept, sampler = unbroken
  content = (before / 'outputs.jsonl').read_bytes()
  missing = []
  for number, place in enumerate(places(content)):
    workdir, again = tmp_path / str(number), Written()
    with start(Experiment(str(workdir)), phases=()):
      (workdir / 'outputs.jsonl').write_bytes(content[:place])
    assert sample(workdir, again) == kept
    for name in ('outputs.jsonl', 'rejection.json'):
      assert (workdir / name).read_bytes() == (before / name).read_bytes()
    assert again.keys == sampler.keys[3 - len(again.keys) :]
    missing.append(len(again.asked))
  # Whole batches are not sampled again; a last line without its end is whole.
  assert missing == [3, 3, 3, 3, 3, 3, 2, 2, 0, 0]


def test_ctrl_c_stops_after_the_current_batch_and_the_run_resumes(unbroken, tmp_path):
  before, kept, _ = unbroken

  def press(batch):
    if batch == 1:
      sampler.run.interrupted = True

  sampler: Any = Written(act=press)
  with pytest.raises(Interruption, match=r'Stopped after 4 problems. The same command'):
    sample(tmp_path / 'run', sampler)
  lines = (tmp_path / 'run' / 'outputs.jsonl').read_bytes().splitlines()
  assert len(lines) == 2 * 2 * 4
  assert logged(tmp_path / 'run') == LOGGED[:2]
  assert not (tmp_path / 'run' / 'rejection.json').exists()
  again = Written()
  assert sample(tmp_path / 'run', again) == kept
  assert again.asked == [['4+1', '5+1']]
  name = 'outputs.jsonl'
  assert (tmp_path / 'run' / name).read_bytes() == (before / name).read_bytes()
  assert logged(tmp_path / 'run') == LOGGED


def test_nothing_to_learn_from_is_an_error_with_the_reason(tmp_path):
  # With right = 0 the third output of a problem is the right one, in English.
  class Foreign(Written):
    def sample(self, *args, **how):
      rollout = super().sample(*args, **how)
      rollout.texts = [
        [x.replace('sprawdź', 'check') for x in group] for group in rollout.texts
      ]
      return rollout

  expected = (
    'none of 24 outputs is kept, so there is nothing to learn from: 25.0% are right, '
    "and 24 have the fault 'language'; train the parent for longer, or raise "
    'rejection.samples in another --workdir'
  )
  with pytest.raises(TrainingError) as error:
    sample(tmp_path / 'run', Foreign(right=0))
  assert str(error.value) == expected
  counted = json.loads((tmp_path / 'run' / 'rejection.json').read_text())
  assert counted['arithmetic']['kept'] == 0
  assert counted['arithmetic']['tokens'] is None  # the mean of none
  # The same command says the same, and samples nothing again.
  with pytest.raises(TrainingError, match='none of 24 outputs is kept'):
    sample(tmp_path / 'run', Foreign(act=pytest.fail))


def line(problem, output, faults=(), task='countdown', tokens=1):
  return {
    'problem': problem,
    'task': task,
    'output': output,
    'faults': list(faults),
    'tokens': tokens,
  }


def test_selection_takes_the_first_of_each_problem_and_gives_reasons_for_the_rest():
  lines = [
    line('a', 'x'),
    line('a', 'x'),  # the same again
    line('b', 'x'),  # the same words, for another problem
    line('a', 'y', ['wrong', 'language']),
    line('a', 'y'),
    line('a', 'z'),  # the third of its problem
    line('a', 'x'),  # the same again, and too many
    line('b', 'y'),
  ]
  kept = select(lines, most_a_problem=2)
  assert kept == [lines[0], lines[2], lines[4], lines[7]]
  assert [found['faults'] for found in lines] == [
    [],
    ['duplicate'],
    [],
    ['wrong', 'language'],
    [],
    ['surplus'],
    ['duplicate'],
    [],
  ]
  # Chosen again, with another limit: what was left out before may come in.
  assert select(lines, most_a_problem=3) == [*kept[:3], lines[5], lines[7]]
  assert not lines[5]['faults']


def test_statistics_count_an_output_under_the_first_of_its_faults():
  lines = [
    line('a', 'x', tokens=10),
    line('a', 'y', ['wrong', 'language'], tokens=70),
    line('a', 'z', ['language'], tokens=70),
    line('b', 'x', ['wrong'], tokens=70),
    line('b', 'y', tokens=20),
    line('c', 'x', ['form'], task='equations'),
  ]
  counted = statistics(lines)
  assert counted['countdown'] == {
    'problems': 2,
    'outputs': 5,
    'kept': 2,
    'tokens': 15,
    'dropped': {'wrong': 2, 'language': 1},
  }
  assert list(counted['countdown']['dropped']) == [
    'wrong',
    'language',
  ]  # the most first
  assert np.isnan(counted['equations'].pop('tokens'))
  assert counted['equations'] == {
    'problems': 1,
    'outputs': 1,
    'kept': 0,
    'dropped': {'form': 1},
  }


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'samples': 0}, 'rejection.samples: expected 1 or more, got 0'),
    ({'most_a_problem': 0}, 'rejection.most_a_problem: expected 1 or more, got 0'),
    ({'max_length': 0}, 'rejection.max_length: expected 1 or more, got 0'),
    (
      {'problems': 50, 'prompts_per_batch': 16},
      'rejection.problems: expected a multiple of rejection.prompts_per_batch = 16',
    ),
    ({'problems': 0}, 'rejection.problems: expected a multiple'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    RejectionConfig(**fields)


def test_selection_and_filters_give_different_reasons():
  # `select` may look again at what it left out, never at an output with a fault.
  assert not set(rejection.SELECTION) & set(filters.FAULTS)
