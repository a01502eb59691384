"""IFEval as a benchmark: its file, the four accuracies, and a model's evaluation."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hub import checkpoint

from experiments import evaluate
from experiments.evaluate import Evaluate
from r1jax.evaluation import benchmarks as results
from r1jax.evaluation.benchmarks import Draw, Outputs
from r1jax.rewards import ifeval, rules
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.sharding.rules import MeshError
from r1jax.tasks import benchmarks

# As in the published file: fields, and an instruction without arguments.
ROWS: list[dict[str, Any]] = [
  {
    'key': 1000,
    'prompt': 'Do not use any commas. Add a title.',
    'instruction_id_list': ['punctuation:no_comma', 'detectable_format:title'],
    'kwargs': [{}, {}],
  },
  {
    'key': 3198,
    'prompt': 'End with "Call me at 631-555-0167".',
    'instruction_id_list': ['startend:end_checker'],
    'kwargs': [{'end_phrase': 'Call me at 631-555-0167'}],
  },
]


def put(folder, rows):
  file = folder / 'ifeval' / 'input_data.jsonl'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture
def data(tmp_path, monkeypatch):
  put(tmp_path / 'data', ROWS)
  contents = [
    [row['prompt'], json.dumps(row['instruction_id_list']), {'kwargs': row['kwargs']}]
    for row in ROWS
  ]
  text = json.dumps(contents).replace('631-555-0167', '')
  digest = hashlib.sha256(text.encode()).hexdigest()
  known = benchmarks.BENCHMARKS['ifeval']._replace(rows=2, digest=digest)
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'ifeval', known)
  return tmp_path / 'data'


@pytest.fixture
def problems(data):
  return benchmarks.load('ifeval', str(data), 'boxed')


def test_the_whole_text_is_judged_whatever_the_template_asks_for(problems):
  assert [problem.form for problem in problems] == ['text', 'text']
  assert rules.accuracy(problems[0], 'a title: <<a>>') == 1
  assert rules.accuracy(problems[0], 'a title, <<a>>') == 0
  assert rules.accuracy(problems[1], 'Call me at 631-555-0167') == 1


def test_copies_with_null_arguments_or_another_telephone_number_are_taken(data):
  text = json.dumps(ROWS[1]).replace('555-0167', '555-0199')
  padded = {**ROWS[0], 'kwargs': [{'keywords': None}, {'num_words': None}]}
  put(data, [padded, json.loads(text)])
  first, second = benchmarks.load('ifeval', str(data))
  assert rules.accuracy(first, '<<a>>') == 1
  assert rules.accuracy(second, 'Call me at 631-555-0199') == 1


@pytest.mark.parametrize(
  'change',
  [
    {'prompt': 'Do not use commas.'},
    {'instruction_id_list': ['punctuation:no_comma', 'startend:quotation']},
    {'kwargs': [{}, {'num_words': 3}]},
  ],
)
def test_other_prompts_instructions_and_arguments_are_refused(data, change):
  put(data, [{**ROWS[0], **change}, ROWS[1]])
  with pytest.raises(ValueError, match='expected the published questions and answers'):
    benchmarks.load('ifeval', str(data))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(ValueError, match=r'IFEval is expected at .*input_data.jsonl'):
    benchmarks.load('ifeval', str(tmp_path))


TEXTS = [
  *('<<a>>', 'Sure, here:\n<<a>>'),  # both strictly; the title strictly, both loosely
  *('Bye. Call me at 631-555-0167', 'none'),
]


@pytest.fixture
def outputs(problems, tmp_path):
  """Two outputs for each problem with their verdicts, as lines of a file."""
  lines = [
    {
      'problem': problems[n // 2].id,
      'sample': n % 2,
      'output': text,
      'answer': text,
      'right': bool(rules.accuracy(problems[n // 2], text)),
      **{one.name: one.function(problems[n // 2], text) for one in ifeval.MEASURES},
      'tokens': 4,
      'cut_off': False,
      'seconds': 0.5,
    }
    for n, text in enumerate(TEXTS)
  ]
  file = tmp_path / 'ifeval.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return Outputs(file, problems, Draw(2, 4, 8, SamplingConfig()))


def test_the_four_accuracies_are_those_of_a_calculation_by_hand(outputs):
  found = outputs.summary()
  assert found['pass_at_1']['mean'] == 2 / 4  # prompts, strict
  assert found['prompt_loose'] == 3 / 4
  # Of 2 x (2 + 1) instructions: 2, 1, 1 and 0; loosely 2, 2, 1 and 0.
  assert found['instruction_strict'] == pytest.approx(4 / 6)
  assert found['instruction_loose'] == pytest.approx(5 / 6)
  assert 'maj_at_k' not in found


def test_texts_have_no_majority_in_the_table(outputs):
  head, _, row = results.table({'ifeval': outputs.summary()})
  cells = [[x.strip() for x in line.strip('|').split('|')] for line in (head, row)]
  found = dict(zip(*cells, strict=True))
  assert found['benchmark'] == 'IFEval'
  assert found['pass@1, %'] == '50.0'
  assert found['pass@2, %'] == '100.0'
  assert found['maj@2, %'] == '–'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ifeval') / 'model'
  checkpoint(folder)
  return folder


@pytest.fixture
def config(model, data, tmp_path):
  return Evaluate(
    model=str(model),
    benchmarks=('ifeval',),
    data_dir=str(data),
    workdir=str(tmp_path / 'run'),
    samples=2,
    max_length=8,
    prompts_per_batch=2,
    workers=1,
    mesh=MeshConfig(sampler_slots=3),
  )


def test_a_model_is_evaluated_without_a_request_for_a_box(config, prompts):
  lines = evaluate.evaluate(config)
  assert len(prompts) == 2
  assert all('boxed' not in prompt for prompt in prompts)
  assert ROWS[0]['prompt'] in prompts[0]
  assert 'template chat,' in '\n'.join(lines)
  text = next(line for line in lines if line.startswith('IFEval: '))
  found = json.loads((Path(config.workdir) / 'results.json').read_text())
  shares = found['benchmarks']['ifeval']
  assert text == (
    f'IFEval: prompt strict {100 * shares["pass_at_1"]["mean"]:.1f} %, '
    f'prompt loose {100 * shares["prompt_loose"]:.1f} %, '
    f'instruction strict {100 * shares["instruction_strict"]:.1f} %, '
    f'instruction loose {100 * shares["instruction_loose"]:.1f} %'
  )
  # Random letters have no comma, so of four outputs' two instructions some are right.
  assert 0 < shares['instruction_strict'] < 1
  assert any(line.startswith('| DeepSeek-R1 ') for line in lines)
  kept = (Path(config.workdir) / 'ifeval.jsonl').read_text().splitlines()
  assert {name for line in kept for name in json.loads(line)} >= {
    *('right', 'prompt_loose', 'instruction_strict', 'instruction_loose')
  }


def test_an_evaluation_that_does_not_fit_leaves_nothing(config, monkeypatch):
  monkeypatch.setattr(evaluate.memory, 'of_device', lambda device: 100_000)
  with pytest.raises(MeshError, match=r'mesh.sampler_slots: expected outputs that fit'):
    evaluate.evaluate(config)
  assert not Path(config.workdir).exists()  # other settings may use it
