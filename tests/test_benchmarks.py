"""Published benchmarks: their files, and outputs that are kept."""

import hashlib
import json
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hub import checkpoint

from experiments import evaluate
from experiments.evaluate import Evaluate
from experiments.paper.results import OTHERS, PASS_AT_1
from r1jax import tasks
from r1jax.evaluation.benchmarks import Draw, Outputs
from r1jax.rewards import rules
from r1jax.rewards.pool import Pending, Scores
from r1jax.runtime import cli
from r1jax.runtime.workdir import WorkdirError
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import product_type
from r1jax.tasks import benchmarks, verifiers

ROWS: list[dict[str, Any]] = [
  {'id': n, 'problem': f'make {n} from 3 5 2', 'answer': n} for n in range(1, 7)
]


def put(folder, name, rows):
  """The file of a benchmark."""
  file = folder / name / 'test.jsonl'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def publish(monkeypatch, name, rows):
  """Makes these rows the published ones."""
  pairs = [[row['problem'], str(row['answer'])] for row in rows]
  digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
  known = benchmarks.BENCHMARKS[name]._replace(rows=len(rows), digest=digest)
  monkeypatch.setitem(benchmarks.BENCHMARKS, name, known)


@pytest.fixture
def data(tmp_path, monkeypatch):
  for name in ('aime24', 'amc23'):
    put(tmp_path / 'data', name, ROWS)
    publish(monkeypatch, name, ROWS)
  return tmp_path / 'data'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('benchmarks') / 'model'
  checkpoint(folder)
  return folder


@pytest.fixture
def config(model, data, tmp_path):
  return Evaluate(
    model=str(model),
    benchmarks=('aime24',),
    data_dir=str(data),
    workdir=str(tmp_path / 'run'),
    samples=2,
    max_length=8,
    prompts_per_batch=4,
    workers=1,
    dtype='float32',
    draw=SamplingConfig(),
    mesh=MeshConfig(sampler_slots=3),
  )


def changed(config, **fields):
  return Evaluate(**{**vars(config), **fields})


def test_each_set_has_the_size_that_its_authors_publish():
  # GSM8K's README, PRM800K's README, the contests, AMC 12 A and B without those whose
  # answer is no integer, and OlympiadBench's English text-only mathematics.
  sizes = {name: one.rows for name, one in benchmarks.BENCHMARKS.items()}
  assert sizes == {
    'gsm8k': 1319,
    'math500': 500,
    'aime24': 30,
    'aime25': 30,
    'amc23': 40,
    'olympiadbench': 675,
    'ifeval': 541,  # the paper's abstract: "around 500 prompts"
    'humaneval': 164,
    'mbpp': 257,  # sanitized, of the tasks 11 to 510
  }
  for one in benchmarks.BENCHMARKS.values():
    assert callable(verifiers.find(one.verify))
    assert len(bytes.fromhex(one.digest)) == 32


def test_fields_that_results_do_not_depend_on_may_differ(data):
  rows = [{**row, 'answer': float(row['answer']), 'url': 'x'} for row in ROWS]
  put(data, 'aime24', rows)  # 3.0 is 3
  problems = benchmarks.load('aime24', str(data), 'boxed')
  assert [(p.id, p.truth['answer'], p.form) for p in problems[:2]] == [
    ('aime24:1', '1', 'boxed'),
    ('aime24:2', '2', 'boxed'),
  ]


def test_the_answer_of_gsm8k_follows_its_mark(tmp_path, monkeypatch):
  row = {'question': 'How many?', 'answer': '3 + 4 = <<3+4=7>>7.\n#### 1,007'}
  put(tmp_path, 'gsm8k', [row])
  digest = hashlib.sha256(json.dumps([[*row.values()]]).encode()).hexdigest()
  known = benchmarks.BENCHMARKS['gsm8k']._replace(rows=1, digest=digest)
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'gsm8k', known)
  assert benchmarks.load('gsm8k', str(tmp_path))[0].truth['answer'] == '1,007'


def test_units_and_tolerances_of_olympiadbench_reach_the_verifier(
  tmp_path, monkeypatch
):
  rows: list[dict[str, Any]] = [  # 317, 231, and one without
    {'question': 'r', 'final_answer': ['4.2'], 'unit': '%', 'error': '1e-1'},
    {'question': 'v', 'final_answer': ['$\\frac{600}{7}$'], 'unit': 'km/h'},
    {'question': 'x', 'final_answer': ['4.2'], 'unit': None, 'error': None},
  ]
  put(tmp_path, 'olympiadbench', rows)
  contents = [
    ['r', '4.2', {'tolerance': '1e-1', 'unit': '%'}],
    ['v', '$\\frac{600}{7}$', {'unit': 'km/h'}],
    ['x', '4.2'],
  ]
  digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
  known = benchmarks.BENCHMARKS['olympiadbench']._replace(rows=3, digest=digest)
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'olympiadbench', known)
  close, speed, exact = benchmarks.load('olympiadbench', str(tmp_path))
  assert [tasks.verify(close, x) for x in ('4.15\\%', '4.35')] == [True, False]
  assert tasks.verify(speed, '\\frac{600}{7} km/h')
  assert [tasks.verify(exact, x) for x in ('4.15', '4.2')] == [False, True]
  put(tmp_path, 'olympiadbench', [{**rows[0], 'error': '1'}, *rows[1:]])
  with pytest.raises(ValueError, match='expected the published questions and answers'):
    benchmarks.load('olympiadbench', str(tmp_path))


def test_a_limit_takes_the_beginning_of_a_larger_one(data):
  found = [
    [p.id for p in benchmarks.load('aime24', str(data), limit=n)] for n in (2, 4, 6)
  ]
  assert found[0] == found[1][:2]
  assert found[1] == found[2][:4]
  assert sorted(found[2]) == [f'aime24:{n}' for n in range(1, 7)]
  assert found[2] != sorted(found[2])


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (None, r'AIME 2024 is expected at .*aime24/test.jsonl.*get it from QwenLM/'),
    (ROWS[:5], r'expected the 6 problems of AIME 2024 in .*, got 5; get the file'),
    ([{**ROWS[0], 'answer': 9}, *ROWS[1:]], 'expected the published questions and'),
    ([*ROWS[:2], {'problem': 'x'}, *ROWS[3:]], r"field 'answer' of line 3 of .*, got"),
  ],
)
def test_a_file_with_other_problems_is_refused(data, rows, message):
  if rows is None:
    (data / 'aime24' / 'test.jsonl').unlink()
  else:
    put(data, 'aime24', rows)
  with pytest.raises(ValueError, match=message):
    benchmarks.load('aime24', str(data))


def lines_of(config, name='aime24'):
  return (Path(config.workdir) / f'{name}.jsonl').read_text().splitlines()


def without_seconds(lines):
  return [{**json.loads(line), 'seconds': 0} for line in lines]


def test_a_stopped_evaluation_goes_on_to_the_same_outputs(config, tmp_path):
  table = evaluate.evaluate(config)
  whole = lines_of(config)
  assert [(x['problem'], x['sample']) for x in map(json.loads, whole)] == [
    (f'aime24:{n}', m) for n in range(1, 7) for m in (0, 1)
  ]
  assert table[2].startswith('| AIME 2024')
  assert 'max-length 8' in '\n'.join(table)
  assert any(line.startswith('| DeepSeek-R1 ') for line in table)
  # Stopped in the second batch of four problems, in the middle of a line.
  file = tmp_path / 'run' / 'aime24.jsonl'
  marked = [line.replace('"seconds": ', '"seconds": 7') for line in whole]
  file.write_text('\n'.join([*marked[:9], marked[9][:20]]))
  evaluate.evaluate(config)
  again = lines_of(config)
  assert again[:8] == marked[:8]  # not sampled again
  assert without_seconds(again) == without_seconds(whole)


def test_a_finished_evaluation_reads_no_weights(config, monkeypatch):
  evaluate.evaluate(config)
  before = lines_of(config)

  def read(*_):
    raise AssertionError('weights were read')

  monkeypatch.setattr('r1jax.hub.weights.read', read)
  evaluate.evaluate(config)
  assert lines_of(config) == before


def test_another_benchmark_joins_the_results(config):
  evaluate.evaluate(config)
  table = evaluate.evaluate(changed(config, benchmarks=('amc23',)))
  assert [line[:11] for line in table[2:4]] == ['| AIME 2024', '| AMC 2023 ']


def test_other_settings_and_checkpoints_are_refused(config, tmp_path):
  evaluate.evaluate(changed(config, limit=1))
  with pytest.raises(WorkdirError, match='--samples is 2 there and 3 here'):
    evaluate.evaluate(changed(config, limit=1, samples=3))
  checkpoint(tmp_path / 'other', 'llama')
  with pytest.raises(WorkdirError, match=r'--checkpoint is "[0-9a-f]+" there'):
    evaluate.evaluate(changed(config, limit=1, model=str(tmp_path / 'other')))


def test_an_evaluation_that_goes_on_keeps_its_type_of_products(config, monkeypatch):
  config = changed(config, limit=1, dtype='auto')
  speed = {'float32': 1.0, 'bfloat16': 2.0}  # as on a device with units for it
  monkeypatch.setattr(product_type, '_seconds', lambda dtype: 1 / speed[dtype])
  assert 'dtype bfloat16' in '\n'.join(evaluate.evaluate(config))
  speed['bfloat16'] = 0.5
  assert 'dtype bfloat16' in '\n'.join(evaluate.evaluate(config))
  with pytest.raises(WorkdirError, match='--dtype is "bfloat16" there and "float32" h'):
    evaluate.evaluate(changed(config, dtype='float32'))


def test_lengths_that_the_model_does_not_know_are_refused(config):
  # The model knows 256 positions.
  with pytest.raises(ValueError, match=r'max_length: expected at most \d+, as the mod'):
    evaluate.evaluate(changed(config, max_length=250))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'benchmarks': ('aime',)}, "benchmarks: expected some of gsm8k.*, got 'aime'"),
    ({'benchmarks': ('amc23', 'amc23')}, 'each once, got amc23 amc23'),
    ({'samples': 0}, 'samples: expected 1 or more, got 0'),
    ({'limit': -1}, 'limit: expected 0 or more, got -1'),
    ({'compare': ('a',)}, 'compare: expected two work directories, got 1'),
  ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Evaluate(**fields)


def test_no_model_is_a_sentence():
  with pytest.raises(ValueError, match='model: expected the folder of a checkpoint'):
    evaluate.main(Evaluate())


def written(folder, problems, verdicts, answers, samples):
  """The outputs of a benchmark, written by hand."""
  lines = [
    {
      'problem': problems[n // samples].id,
      'sample': n % samples,
      'output': '',
      'answer': answers[n],
      'right': verdicts[n],
      'tokens': 10 * n,
      'cut_off': answers[n] is None,
      'seconds': 0.5,
    }
    for n in range(len(verdicts))
  ]
  file = folder / 'aime24.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return Outputs(file, problems, Draw(samples, 4, 8, SamplingConfig()))


def test_results_are_those_of_a_calculation_by_hand(data, tmp_path):
  problems = benchmarks.load('aime24', str(data))[:2]
  answers = ['1', '01', '7', None, '5', '6']
  right = [True, True, False, False, False, False]
  found = written(tmp_path, problems, right, answers, 3).summary()
  assert found['pass_at_1']['mean'] == pytest.approx(2 / 6)
  assert found['pass_at_k']['mean'] == 0.5  # a right output of three for one of two
  assert found['maj_at_k']['mean'] == 0.5  # 1 and 01 vote together
  assert found['mean_tokens'] == 25  # (0 + 10 + ... + 50) / 6
  assert found['cut_off'] == found['no_answer'] == pytest.approx(1 / 6)
  assert found['right'] == {'aime24:1': 2, 'aime24:2': 0}
  assert (found['tokens'], found['seconds']) == (150, 3.0)


def test_lines_of_another_problem_are_refused(data, tmp_path):
  problems = benchmarks.load('aime24', str(data))[:2]
  file = written(tmp_path, problems, [True, True], ['1', '1'], 1).file
  with pytest.raises(WorkdirError, match='output for aime24:2 in line 1, got aime24:1'):
    Outputs(file, problems[::-1], Draw(1, 4, 8, SamplingConfig()))


class Written:
  """A sampler of written texts, whose rows come in another order; its own rewarder."""

  names = ('accuracy',)

  def __init__(self, texts):
    self.texts = texts

  def sample(self, params, key, problems, **settings):
    rows = np.arange(len(problems))[::-1]
    texts = [self.texts.get(problems[row].id, ['', '']) for row in rows]
    lengths = np.array([[len(text) for text in group] for group in texts])
    return types.SimpleNamespace(
      rows=rows, texts=texts, lengths=lengths, cut_off=lengths == 0, seconds=8.0
    )

  def submit(self, problems, texts):
    pairs = zip(problems, texts, strict=True)
    values = np.array([[rules.accuracy(*pair)] for pair in pairs])
    return Pending(lambda: Scores(values, values[:, 0], ['one failed'], 0, 0))


def test_each_output_gets_the_verdict_of_its_own_problem(data, tmp_path):
  problems = benchmarks.load('aime24', str(data), 'boxed')[:3]
  texts = {'aime24:2': [r'so \boxed{02}', '2'], 'aime24:3': [r'\boxed{2}', '']}
  outputs = Outputs(tmp_path / 'o.jsonl', problems, Draw(2, 2, 8, SamplingConfig()))
  said: list[str] = []
  both: Any = Written(texts)
  outputs.sample({}, jax.random.key(0), sampler=both, rewarder=both, say=said.append)
  lines = map(json.loads, (tmp_path / 'o.jsonl').read_text().splitlines())
  fields = ('problem', 'sample', 'answer', 'right', 'tokens', 'cut_off')
  assert [tuple(line[name] for name in fields) for line in lines] == [
    ('aime24:1', 0, None, False, 0, True),
    ('aime24:1', 1, None, False, 0, True),
    ('aime24:2', 0, '02', True, 13, False),
    ('aime24:2', 1, None, False, 1, False),
    ('aime24:3', 0, '2', False, 9, False),
    ('aime24:3', 1, None, False, 0, True),
  ]
  assert said[0] == 'one failed'
  assert said[-1].startswith('o: 3 of 3 problems, pass@1 16.7%')


def test_the_published_results_cover_the_same_models():
  assert PASS_AT_1['aime24'].keys() == PASS_AT_1['math500'].keys()
  assert OTHERS.keys() < PASS_AT_1['aime24'].keys()
  assert PASS_AT_1['ifeval'] == {'DeepSeek-R1': 83.3}  # the only one that is given


def test_the_command_line_takes_several_benchmarks_and_two_folders():
  words = ['--benchmarks', 'gsm8k', 'aime24', '--compare', 'a', 'b', '--model', 'm']
  found = cli.parse(Evaluate(), words)
  assert found.benchmarks == ('gsm8k', 'aime24')
  assert found.compare == ('a', 'b')
  assert (found.model, found.samples, found.max_length) == ('m', 4, 32768)
  assert (found.draw.temperature, found.draw.top_p) == (0.6, 0.95)  # the paper's
