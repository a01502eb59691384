"""Programs as answers: their tests, HumanEval's and MBPP's rows, rows of the user's."""

import hashlib
import json
from typing import Any

import pytest
from hub import checkpoint
from sandboxed import needs_sandbox

from experiments import evaluate
from experiments.evaluate import Evaluate
from experiments.grpo import GRPO
from r1jax.rewards import rules
from r1jax.sandbox import SandboxError, Verdict, isolation
from r1jax.sandbox.pool import Sandbox
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages.from_hub import HubConfig
from r1jax.tasks import Problem, benchmarks, data, programs, verifiers
from r1jax.tasks.data import DataConfig

pytestmark = needs_sandbox
DOUBLE = 'def double(x):\n  return 2 * x\n'
WRONG = 'def double(x):\n  return x + 1\n'
TESTS = ['assert double(1) == 2', 'assert double(3) == 6']


@pytest.mark.parametrize('truth', [json.dumps(TESTS), '\n'.join(TESTS)])
def test_a_program_is_right_if_all_tests_pass(truth):
  assert programs.passes(DOUBLE, truth)
  assert not programs.passes(WRONG, truth)  # passes the first one
  assert programs.passes(f'Try:\n```\n{WRONG}```\nNo:\n```python\n{DOUBLE}```', truth)
  for answer in ('', 'def double(x', 'double', '2', '\x00', '\ud800', 'import double'):
    assert not programs.passes(answer, truth)


def test_tests_have_their_setup_and_modules_of_their_own():
  tests = json.dumps(['assert math.isclose(double(1), 2)'])
  assert programs.passes(DOUBLE, tests, setup=['import math'])
  assert not programs.passes(DOUBLE, tests)  # no math
  assert programs.passes(f'import math\n{DOUBLE}', tests)
  cheating = 'class math:\n  isclose = lambda *x: True\n'
  assert not programs.passes(cheating + WRONG, tests)


@pytest.mark.parametrize(
  ('truth', 'error'),
  [
    ('[]', ValueError),
    ('', ValueError),
    ('["assert True", 3]', ValueError),
    ('[" "]', ValueError),
    ('assert double(1', SyntaxError),
    ('["assert True", "assert ("]', SyntaxError),
  ],
)
def test_truths_that_are_no_tests_are_refused(truth, error):
  with pytest.raises(error):
    verifiers.accepts('python', truth)
  assert verifiers.accepts('python', json.dumps(TESTS))


def test_a_machine_that_is_too_busy_is_no_fault_of_the_program(monkeypatch):
  monkeypatch.setattr(
    Sandbox, 'judge', lambda *args: Verdict('starved', (False,), 'starved')
  )
  with pytest.raises(SandboxError, match='too busy'):
    programs.passes(DOUBLE, TESTS[0])


HUMANEVAL = {
  'task_id': 'HumanEval/38',
  'prompt': (
    'import math\n\ndef half(x):\n    """The half."""\n    return x / 2\n\n\n'
    'def quarter(x):\n    """The quarter of x.\n    >>> quarter(8)\n    2.0\n    """\n'
  ),
  'entry_point': 'quarter',
  'canonical_solution': '    return half(half(x))\n',
  'test': 'def check(candidate):\n  assert math.isclose(candidate(half(9)), 1.125)\n',
}
MBPP: list[dict[str, Any]] = [
  {
    'task_id': n,
    'prompt': f'Write a function to add {n}.',
    'code': f'def add(x):\r\n  return x + {n}',
    'test_imports': ['import math'],
    'test_list': [f'assert math.floor(add(0.5)) == {n}', f'assert add(1) == {n + 1}'],
  }
  for n in (10, 11, 510, 511)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A data folder with rows of these shapes as the published ones."""
  details = {'prompt': HUMANEVAL['prompt'], 'entry_point': 'quarter'}
  prompt = HUMANEVAL['prompt'].strip()
  question = f'Complete this function:\n\n```python\n{prompt}\n```'
  contents = {'humaneval': [[question, HUMANEVAL['test'].strip(), details]], 'mbpp': []}
  for row in MBPP[1:3]:
    question = (
      f'{row["prompt"]} The program must pass this test:\n\n{row["test_list"][0]}'
    )
    details = {'setup': row['test_imports']}
    contents['mbpp'].append([question, json.dumps(row['test_list']), details])
  for name, rows in (('humaneval', [HUMANEVAL]), ('mbpp', MBPP)):
    known = benchmarks.BENCHMARKS[name]
    file = tmp_path / 'data' / name / known.file
    file.parent.mkdir(parents=True)
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    text = json.dumps(contents[name], sort_keys=True)
    known = known._replace(
      rows=len(contents[name]), digest=hashlib.sha256(text.encode()).hexdigest()
    )
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, known)
  return tmp_path / 'data'


def fenced(code):
  return f'<think>a</think>It is:\n```python\n{code}\n```'


def test_humaneval_takes_a_function_with_and_without_its_prompt(folder):
  (problem,) = benchmarks.load('humaneval', str(folder), 'boxed')
  assert problem.form == 'code'
  body = f'def quarter(x):\n{HUMANEVAL["canonical_solution"]}'
  for code in (body, HUMANEVAL['prompt'] + HUMANEVAL['canonical_solution']):
    assert rules.accuracy(problem, fenced(code)) == 1
    assert rules.accuracy(problem, code) == 0  # no block
  for code in (
    '',
    'def other(x):\n  return x / 4',
    'def quarter(x):\n  return x / 2',
    'def check(candidate): pass',
    'def half(x): return 0\n' + body,  # its own half is 0, that of the test is not
  ):
    assert rules.accuracy(problem, fenced(code)) == 0
  (in_tags,) = benchmarks.load('humaneval', str(folder), 'tags')
  assert rules.accuracy(in_tags, f'<think>a</think><answer>{body}</answer>') == 1
  block = f'<think>a</think><answer>\n```\n{body}\n```\n</answer>'
  assert rules.accuracy(in_tags, block) == 1


def test_mbpp_asks_the_tasks_of_its_test_split(folder):
  problems = benchmarks.load('mbpp', str(folder), 'boxed')
  assert [problem.question for problem in problems] == [
    f'Write a function to add {n}. The program must pass this test:\n\n'
    f'assert math.floor(add(0.5)) == {n}'
    for n in (11, 510)
  ]
  for problem, row in zip(problems, MBPP[1:3], strict=True):
    assert rules.accuracy(problem, fenced(row['code'])) == 1
    assert rules.accuracy(problem, fenced('def add(x):\n  return x + 12')) == 0


def test_a_model_is_asked_for_a_program(folder, tmp_path, prompts, monkeypatch):
  checkpoint(tmp_path / 'model')
  config = Evaluate(
    model=str(tmp_path / 'model'),
    benchmarks=('mbpp',),
    data_dir=str(folder),
    workdir=str(tmp_path / 'run'),
    samples=2,
    max_length=8,
    prompts_per_batch=2,
    workers=1,
    mesh=MeshConfig(sampler_slots=3),
  )
  lines = evaluate.evaluate(config)
  assert len(prompts) == 2
  assert all('add(0.5)' in prompt and '```python' in prompt for prompt in prompts)
  assert not any('boxed' in prompt for prompt in prompts)
  assert 'template chat_code,' in '\n'.join(lines)
  monkeypatch.setattr(isolation.sys, 'platform', 'darwin')
  isolation.bubblewrap.cache_clear()
  with pytest.raises(SandboxError, match=r'benchmarks mbpp: .*Linux only'):
    evaluate.evaluate(config)
  monkeypatch.undo()
  isolation.bubblewrap.cache_clear()


def test_rows_of_your_own_have_tests_as_a_list_or_a_text(tmp_path):
  rows = [
    {'question': f'Double {n}.', 'tests': TESTS if n % 2 else '\n'.join(TESTS)}
    for n in range(20)
  ]
  file = tmp_path / 'mine.jsonl'
  file.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  config = DataConfig(str(file), answer='tests', verify='python')
  found = data.load(config)
  problems = [*found.train, *found.validation]
  assert len(problems) == 20
  problem = Problem(**{**vars(problems[0]), 'form': 'code'})
  assert rules.accuracy(problem, fenced(DOUBLE)) == 1
  assert rules.accuracy(problem, fenced(WRONG)) == 0
  with file.open('a') as lines:
    lines.write(json.dumps({'question': 'Triple.', 'tests': ['assert (']}) + '\n')
  with pytest.raises(ValueError, match=r'no tests .* mine.jsonl:21 .*SyntaxError'):
    data.load(config)


def test_a_template_for_boxes_is_refused():
  mine = DataConfig('mine.jsonl', verify='python')
  for template in ('chat_code', 'chat_tags', 'r1_zero'):
    GRPO(data=mine, model=HubConfig(template=template))
  for template in ('chat_boxed', 'chat_line'):
    with pytest.raises(ValueError, match=f'model.template: .*chat_code.*{template}'):
      GRPO(data=mine, model=HubConfig(template=template))


def test_the_time_limit_of_a_worker_is_above_those_of_the_sandbox():
  assert verifiers.timeout('python') == verifiers.timeout(
    'r1jax.tasks.programs:completes'
  )
  assert verifiers.timeout('python') > 20 * programs.LIMITS.clock
  assert verifiers.timeout('math') == 0
