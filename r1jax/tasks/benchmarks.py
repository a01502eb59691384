"""Published benchmarks: their files, and how answers are checked.

The files are not part of the package. `load` reads `DIR/NAME/test.jsonl` and accepts
the published problems only, so that results compare with those of others.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from r1jax.hub import paths
from r1jax.tasks import OWN, Problem, data, rows, splits
from r1jax.text import parsing

# The telephone number of a problem of IFEval, which some copies replace.
_NUMBER = re.compile(r'(?<=Call me at )[\d-]+')


class Benchmark(NamedTuple):
  """A published set of problems.

  Fields:
    title: as papers write it.
    question, answer: fields of a row; `a.0` goes into a list. The question may be a
      template with fields, see `rows.filled`.
    verify: see `verifiers.find`.
    rows: number of problems.
    digest: of the questions, answers and details; see `digest_of`.
    source: where to get the file.
    details: other fields of a row, by the argument of the verifier; rows may have none.
    form: of a good output; None is the one that the template asks for. Of programs the
      template's tags are taken too.
    file: name of the file.
    only: a field and its values in the rows of the test split; None takes all rows.
  """

  title: str
  question: str
  answer: str
  verify: str
  rows: int
  digest: str
  source: str
  details: Mapping[str, str] = {}
  form: parsing.Form | None = None
  file: str = 'test.jsonl'
  only: tuple[str, range] | None = None


_QWEN = 'QwenLM/Qwen2.5-Math on GitHub, evaluation/data'

BENCHMARKS: dict[str, Benchmark] = {
  'gsm8k': Benchmark(
    'GSM8K',
    'question',
    'answer',
    'number',
    1319,
    '9ba9db83465ec4c9450b62c0dc13a69505d69a27c6a0817d7dfa679b496276e9',
    'openai/grade-school-math on GitHub, grade_school_math/data/test.jsonl',
  ),
  'math500': Benchmark(
    'MATH-500',
    'problem',
    'answer',
    'math',
    500,
    'cc976e62f0457b6e026bf188f8a6f3d8c00675baaf63cf54c8a2c311b096118b',
    'the data set HuggingFaceH4/MATH-500 of Hugging Face, test.jsonl',
  ),
  'aime24': Benchmark(
    'AIME 2024',
    'problem',
    'answer',
    'number',
    30,
    '37a3c8de4d8ae359c111e20c28d2f12efff5ad99340d93e5f8ae3a22ce079afe',
    f'{_QWEN}/aime24/test.jsonl',
  ),
  'aime25': Benchmark(
    'AIME 2025',
    'problem',
    'answer',
    'number',
    30,
    'aea363f59973845287a6116c2a5ab8e8e4715d44e29f623bc4f01ea51138aeb2',
    'inclusionAI/AReaL on GitHub, evaluation/data/aime25/test.jsonl',
  ),
  'amc23': Benchmark(
    'AMC 2023',
    'problem',
    'answer',
    'math',
    40,
    '6d59dd9e3918d7dd5ed1269d089692aa21f49cc44d756689e523bc4de4e3ba2e',
    f'{_QWEN}/amc23/test.jsonl',
  ),
  'olympiadbench': Benchmark(
    'OlympiadBench',
    'question',
    'final_answer.0',
    'math',
    675,
    '863a1bc2b9e1eea136af9043f42d532776b35441cdd23c727b88dbd4d5f08b86',
    f'{_QWEN}/olympiadbench/test.jsonl',
    details={'unit': 'unit', 'tolerance': 'error'},
  ),
  'ifeval': Benchmark(
    'IFEval',
    'prompt',
    'instruction_id_list',
    'r1jax.tasks.ifeval:follows',
    541,
    '3133f155a6d5e91301a87d19a90424a474aa85ef4941669d5257903fa88210fb',
    'google-research/google-research on GitHub, instruction_following_eval/data',
    details={'kwargs': 'kwargs'},
    form='text',
    file='input_data.jsonl',
  ),
  'humaneval': Benchmark(
    'HumanEval',
    'Complete this function:\n\n```python\n{prompt}\n```',
    'test',
    'r1jax.tasks.programs:completes',
    164,
    '673d46d0c8dacef55ef2e1f917927aaff353ea8e4da54513f1f3d5fc80f82f99',
    'openai/human-eval on GitHub, data/HumanEval.jsonl.gz, unpacked',
    details={'prompt': 'prompt', 'entry_point': 'entry_point'},
    form='code',
    file='HumanEval.jsonl',
  ),
  'mbpp': Benchmark(
    'MBPP',
    '{prompt} The program must pass this test:\n\n{test_list.0}',
    'test_list',
    'r1jax.tasks.programs:passes',
    257,
    'ebaca92fdddd7b3bee8a9d68bcd1ae91e1c2ecad4704aea8e8119c1d1475822a',
    'google-research/google-research on GitHub, mbpp/sanitized-mbpp.json, a row a line',
    details={'setup': 'test_imports'},
    form='code',
    file='sanitized-mbpp.jsonl',
    only=('task_id', range(11, 511)),
  ),
}


def check_names(names: Sequence[str]) -> None:
  """Raises ValueError unless these are some of `BENCHMARKS`, each once."""
  known = ', '.join(BENCHMARKS)
  for name in names:
    if name not in BENCHMARKS:
      raise ValueError(f'benchmarks: expected some of {known}, got {name!r}')
  if not names or len(set(names)) < len(names):
    raise ValueError(
      f'benchmarks: expected some of {known}, each once, got '
      f'{" ".join(names) or "none"}'
    )


def load(
  name: str, data_dir: str, form: parsing.Form = 'tags', limit: int = 0
) -> list[Problem]:
  """Returns the problems of a benchmark, in the order of its file.

  Args:
    name: of the benchmark.
    data_dir: the folder with NAME/test.jsonl.
    form: that the template asks for.
    limit: that many problems at most, the first ones of a fixed shuffle; 0 takes all.

  Raises:
    ValueError: the file is missing, cannot be read, or has not the published problems.
  """
  benchmark = BENCHMARKS[name]
  file = paths.local('data_dir', data_dir) / name / benchmark.file
  if not file.is_file():
    raise ValueError(
      f'data_dir: {benchmark.title} is expected at {file}, and there is no such file; '
      f'get it from {benchmark.source}'
    )
  found = [
    _read(file, number, row, benchmark)
    for number, row in rows.read('data_dir', file)
    if _is_tested(row, benchmark)
  ]
  if (count := len(found)) != benchmark.rows:
    raise ValueError(
      f'data_dir: expected the {benchmark.rows} problems of {benchmark.title} in '
      f'{file}, got {count}; get the file from {benchmark.source}'
    )
  if (digest := digest_of(found)) != benchmark.digest:
    raise ValueError(
      f'data_dir: expected the published questions and answers of {benchmark.title} in '
      f'{file} (sha256 {benchmark.digest:.12}…), got others ({digest:.12}…); get the '
      f'file from {benchmark.source}'
    )
  problems = [
    Problem(
      f'{name}:{number}',
      OWN,
      row.question,
      {
        'answer': data.after_mark(row.answer),
        'verify': benchmark.verify,
        'details': row.details,
      },
      form=_form(benchmark, form),
    )
    for number, row in enumerate(found, 1)
  ]
  if not limit:
    return problems
  return sorted(problems, key=lambda problem: splits.rank(problem.id))[:limit]


def _is_tested(row: Any, benchmark: Benchmark) -> bool:
  if benchmark.only is None or not isinstance(row, dict):  # which `_read` refuses
    return True
  name, values = benchmark.only
  return row.get(name) in values


def _form(benchmark: Benchmark, asked: parsing.Form) -> parsing.Form:
  """Returns the form of a good output, where a template asks for that one."""
  in_tags = benchmark.form == 'code' and asked == 'tags'
  return asked if in_tags else benchmark.form or asked


class Row(NamedTuple):
  """What a row of a benchmark's file says."""

  question: str
  answer: str
  details: Mapping[str, Any]  # arguments of the verifier


def digest_of(found: Sequence[Row]) -> str:
  """Returns the sha256 of questions, answers and details, whatever else a row has."""
  content = [
    [row.question, row.answer, *([row.details] if row.details else [])] for row in found
  ]
  text = _NUMBER.sub('', json.dumps(content, sort_keys=True))
  return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path, number: int, row: Mapping, benchmark: Benchmark) -> Row:
  """Returns question and answer of a row as texts, and its details."""
  found: list[str] = []
  for name, read in ((benchmark.question, rows.filled), (benchmark.answer, _text)):
    try:
      value = read(row, name)
    except KeyError:
      value = None
    if not value:
      raise ValueError(
        f'data_dir: expected text or a number in the field {name!r} of line {number} '
        f'of {file}, got none; get the file from {benchmark.source}'
      )
    found.append(value)
  details = {name: row.get(field) for name, field in benchmark.details.items()}
  question, answer = found
  return Row(question, answer, _without_none(details))


def _text(row: Any, name: str) -> str | None:
  """Returns a list in JSON, and any other field as `rows.text` does."""
  value = rows.field(row, name)
  return json.dumps(value) if isinstance(value, list) else rows.text(value)


def _without_none(value: Any) -> Any:
  """Returns a value without the fields of its objects that are null."""
  if isinstance(value, list):
    return [_without_none(one) for one in value]
  if isinstance(value, dict):
    return {name: _without_none(one) for name, one in value.items() if one is not None}
  return value
