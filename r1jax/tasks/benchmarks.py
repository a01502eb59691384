"""Published benchmarks of mathematics: their files, and how answers are checked.

The files are not part of the package. `load` reads `DIR/NAME/test.jsonl` and accepts
the published problems only, so that results compare with those of others.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from r1jax.hub import paths
from r1jax.tasks import OWN, Problem, data, rows, splits
from r1jax.text import parsing

FILE = 'test.jsonl'


class Benchmark(NamedTuple):
  """A published set of problems.

  Fields:
    title: as papers write it.
    question, answer: fields of a row; `a.0` goes into a list.
    verify: a name in `verifiers.VERIFIERS`.
    rows: number of problems.
    digest: of the questions and answers; see `digest_of`.
    source: where to get the file.
  """

  title: str
  question: str
  answer: str
  verify: str
  rows: int
  digest: str
  source: str


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
    '7fc4254f70d75fc52c3405f58dbd168a65714d2034ea75381edb8463454896f9',
    f'{_QWEN}/olympiadbench/test.jsonl',
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
    form: of a good output.
    limit: that many problems at most, the first ones of a fixed shuffle; 0 takes all.

  Raises:
    ValueError: the file is missing, cannot be read, or has not the published problems.
  """
  benchmark = BENCHMARKS[name]
  file = paths.local('data_dir', data_dir) / name / FILE
  if not file.is_file():
    raise ValueError(
      f'data_dir: {benchmark.title} is expected at {file}, and there is no such file; '
      f'get it from {benchmark.source}'
    )
  pairs = [
    _pair(file, number, row, benchmark) for number, row in rows.read('data_dir', file)
  ]
  if (count := len(pairs)) != benchmark.rows:
    raise ValueError(
      f'data_dir: expected the {benchmark.rows} problems of {benchmark.title} in '
      f'{file}, got {count}; get the file from {benchmark.source}'
    )
  if (found := digest_of(pairs)) != benchmark.digest:
    raise ValueError(
      f'data_dir: expected the published questions and answers of {benchmark.title} in '
      f'{file} (sha256 {benchmark.digest:.12}…), got others ({found:.12}…); get the '
      f'file from {benchmark.source}'
    )
  problems = [
    Problem(
      f'{name}:{number}',
      OWN,
      question,
      {'answer': data.after_mark(answer), 'verify': benchmark.verify},
      form=form,
    )
    for number, (question, answer) in enumerate(pairs, 1)
  ]
  if not limit:
    return problems
  return sorted(problems, key=lambda problem: splits.rank(problem.id))[:limit]


def digest_of(pairs: Sequence[tuple[str, str]]) -> str:
  """Returns the sha256 of questions and answers, whatever else a row has."""
  return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _pair(
  file: Path, number: int, row: Mapping, benchmark: Benchmark
) -> tuple[str, str]:
  """Returns question and answer of a row as texts."""
  found = []
  for name in (benchmark.question, benchmark.answer):
    try:
      value = rows.text(rows.field(row, name))
    except KeyError:
      value = None
    if not value:
      raise ValueError(
        f'data_dir: expected text or a number in the field {name!r} of line {number} '
        f'of {file}, got none; get the file from {benchmark.source}'
      )
    found.append(value)
  return found[0], found[1]
