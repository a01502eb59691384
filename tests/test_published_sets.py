"""Rows in the shapes of published sets, with the flags that docs/data.md gives them."""

import dataclasses
import re
import shlex
from typing import Any

import pyarrow
import pytest
from pages import DOCS
from pyarrow import parquet

from experiments.grpo import GRPO
from r1jax import tasks
from r1jax.runtime import cli
from r1jax.tasks import data, sources

PAGE = (DOCS / 'data.md').read_text().split('## Published sets')[1].split('\n## ')[0]
FLAGS = dict(re.findall(r'^\| ([^|`]+) \| `(--[^`]+)`', PAGE, re.MULTILINE))
# A row of each set: its columns, with questions and numbers of our own.
SHAPES: dict[str, Any] = {
  'GSM8K': {'question': 'N and 1?', 'answer': 'N+1 = <<N+1=M>>M.\n#### M'},
  'GSM8K of tensorflow-datasets': {
    'question': 'N and 1?',
    'answer': 'N+1 = M.\n#### M',
    'annotation': 'N+1 = <<N+1=M>>M.\n#### M',
    'short_answer': 'M',
  },
  'MATH': {
    'problem': 'What is $N+1$?',
    'solution': 'It is $\\boxed{M}$.',
    'answer': 'M',
    'subject': 'Algebra',
    'level': 1,
    'unique_id': 'train/algebra/N.json',
  },
  'DeepScaleR, measured on MATH-500': {
    'problem': 'What is $N+1$?',
    'answer': 'M',
    'solution': 'Add.',
  },
  'OpenR1-Math-220k': {
    'problem': 'What is $N+1$?',
    'solution': 'Add.',
    'answer': 'M',
    'generations': ['<think>\nN</think> M', 'M'],
    'is_reasoning_complete': [True, False],
    'messages': [{'role': 'user', 'content': 'What is $N+1$?'}],
  },
  'DeepMath-103K': {
    'question': 'What is $N+1$?',
    'final_answer': 'M',
    'difficulty': 4.5,
    'r1_solution_1': 'M',
  },
  'DAPO-Math-17k': {
    'data_source': 'math_dapo',
    'prompt': [{'role': 'user', 'content': 'What is $N+1$? End with Answer: $Answer'}],
    'reward_model': {'ground_truth': 'M', 'style': 'rule'},
    'extra_info': {'index': 'N'},
  },
  'Countdown': {'target': 'INT', 'nums': [3, 'INT', 3]},
  'ARC of tensorflow-datasets': {
    'id': 'N',
    'question': 'What is N+1?',
    'choices': {'label': ['A', 'B'], 'text': ['N', 'M']},
    'answerKey': 'B',
  },
}


def filled(value, n):
  """A row's value with the numbers of the n-th row."""
  if isinstance(value, dict):
    return {name: filled(inner, n) for name, inner in value.items()}
  if isinstance(value, list):
    return [filled(inner, n) for inner in value]
  if value == 'INT':
    return n
  if isinstance(value, str):
    return value.replace('N', str(n)).replace('M', str(n + 1))
  return value


def test_each_set_of_the_page_has_a_shape_here():
  assert FLAGS.keys() == SHAPES.keys()


@pytest.mark.parametrize('name', FLAGS)
def test_the_flags_of_the_page_read_the_shape_of_the_set(name, tmp_path):
  config = cli.parse(GRPO(), shlex.split(FLAGS[name])).data
  assert sources.has_splits(config.path)
  rows = [filled(SHAPES[name], n) for n in range(10, 60)]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'train.parquet')
  files = data.load(
    dataclasses.replace(
      config,
      path=str(tmp_path / 'train.parquet'),
      held_out='',
      held_out_split='',
    )
  )
  problems = {p.id.partition(':')[2]: p for p in (*files.train, *files.validation)}
  assert len(problems) == 50
  first = problems['1']  # of 10
  others = {'Countdown': ('10+3-3', '10'), 'ARC of tensorflow-datasets': ('B', 'A')}
  right, wrong = others.get(name, ('11', '10'))
  assert '10' in first.text
  assert tasks.verify(first, right)
  assert not tasks.verify(first, wrong)
