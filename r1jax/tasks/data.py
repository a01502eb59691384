"""Problems of the user's as a task: rows with a question and an answer.

The rows become problems of the task `data`, whose truth names the verifier. All rows
are checked when they are read, before a model is.
"""

import dataclasses
import json
from collections.abc import Hashable, Sequence
from typing import Any

from r1jax.tasks import (
  OWN,
  Problem,
  conversations,
  mathematics,
  rows,
  sources,
  splits,
  verifiers,
)
from r1jax.tasks.sources import Source
from r1jax.text import templates

VERSION = '1.0.0'  # of how rows become problems and are split
SHOWN = 3  # rows that an error describes; the rest are counted
MARK = '####'  # GSM8K writes a solution, and after this mark the answer


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Problems of your own, instead of those of a task; `--data PATH` sets `path`."""

  # A file (.jsonl, .json, .csv or .parquet, local or hf://datasets/owner/name/file), or
  # a data set: hf://datasets/owner/name, tfds:name, both also with /config
  path: str = ''
  split: str = 'train'  # of a data set
  # Field of a row, with a text or the messages of a chat; `a.b.0` goes into objects and
  # lists, and a text such as '{story} {choices.text}' has fields in it
  question: str = 'question'
  answer: str = 'answer'  # the same
  # 'math', 'number', 'exact', 'choice', 'countdown', 'python' or
  # package.module:function
  verify: str = 'math'
  # A file or data set for evaluations; '' holds out 15 % of the questions
  held_out: str = ''
  # Of the data set `held_out`, there '' is 'test'; without that, of `path`
  held_out_split: str = ''
  limit: int = 0  # training problems at most, the first ones; 0 takes all
  skip_wrong: bool = False  # leave out wrong rows, instead of refusing them

  def __post_init__(self) -> None:
    if self.limit < 0:
      raise ValueError(f'data.limit: expected 0 or more, got {self.limit}')
    if (self.held_out or self.held_out_split) and not self.path:
      raise ValueError('data.held_out: expected --data as well, got none')
    for flag, given, path in (
      ('split', self.split != 'train', self.path),
      ('held_out_split', self.held_out_split, self.held_out or self.path),
    ):
      if given and path and not sources.has_splits(path):
        raise ValueError(
          f'data.{flag}: expected a data set (hf://datasets/owner/name or tfds:name) '
          f'for a split, got the file {path}'
        )
    verifiers.find(self.verify)  # says which there are

  @property
  def held_out_from(self) -> tuple[str, str]:
    """The path and split of evaluations; two empty texts if a hash holds them out."""
    if self.held_out:
      return self.held_out, self.held_out_split or 'test'
    return (self.path, self.held_out_split) if self.held_out_split else ('', '')


SETTINGS = DataConfig


@dataclasses.dataclass(frozen=True)
class Files:
  """The problems of a config's files.

  Fields:
    train, validation: problems of the two splits.
    digests: of the files, by path.
    remarks: what the user should know about them.
  """

  train: list[Problem]
  validation: list[Problem]
  digests: dict[str, str]
  remarks: tuple[str, ...]


def load(config: DataConfig, data_dir: str | None = None) -> Files:
  """Reads, checks and splits the problems of a config.

  Args:
    config: the files or data sets, and their fields.
    data_dir: the data folder of tensorflow-datasets; None is its default.

  Raises:
    HubError: a download failed.
    OSError: a set of tensorflow-datasets cannot be downloaded or read.
    SandboxError: the verifier needs a sandbox, and there can't be one here.
    ValueError: a file cannot be read, its rows are wrong, the verifier does not accept
      them, or a split is empty.
  """
  verifiers.check(f'data.verify {config.verify}', config.verify)
  remarks: list[str] = []

  def read(path: str, split: str, flag: str) -> tuple[Source, list[Problem]]:
    fields = [*rows.fields_of(config.question), *rows.fields_of(config.answer)]
    source = sources.read(path, split, flag=flag, fields=fields, data_dir=data_dir)
    problems, left_out = _problems(source, flag, config)
    remarks.extend([*left_out, *_repeated(problems, source.name)])
    return source, problems

  source, problems = read(config.path, config.split, 'data.path')
  digests = source.digests
  if any(config.held_out_from):
    flag = 'data.held_out' if config.held_out else 'data.held_out_split'
    other, validation = read(*config.held_out_from, flag)
    digests |= other.digests
    known = set(map(group, validation))
    train = [one for one in problems if group(one) not in known]
    if dropped := len(problems) - len(train):
      remarks.append(
        f'{dropped} of {len(problems)} questions of {source.name} are in {other.name} '
        'too; they are left out of training.'
      )
  else:
    train, validation = (
      [one for one in problems if splits.of_published(group(one)) == split]
      for split in ('train', 'validation')
    )
  for found, what, remedy in (
    (train, 'training', 'give more rows, or others than those of --data.held-out'),
    (validation, 'validation', 'give more rows, or a file or split as held out'),
  ):
    if not found:
      raise ValueError(
        f'data.path: expected questions for {what} among the '
        f'{len(set(map(group, problems)))} different ones of {source.path}, got none; '
        f'{remedy}'
      )
  return Files(train[: config.limit or None], validation, digests, tuple(remarks))


def group(problem: Problem) -> str:
  """Returns the question without case and white space: what is held out together."""
  return ''.join(problem.text.lower().split())


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether the verifier that the truth names finds the answer right.

  A benchmark's truth may have more arguments for it under `details`.
  """
  truth = problem.truth
  details = truth.get('details', {})
  return bool(verifiers.find(truth['verify'])(answer, truth['answer'], **details))


def answer_key(answer: str) -> Hashable | None:
  """Returns what answers vote together by, whatever their verifier."""
  return mathematics.answer_key(answer)


def _repeated(problems: Sequence[Problem], name: str) -> list[str]:
  """Returns a remark if questions repeat, which names one with two answers."""
  first: dict[str, Problem] = {}
  pairs = [(first.setdefault(group(one), one), one) for one in problems]
  repeats = [(one, again) for one, again in pairs if again is not one]
  if not repeats:
    return []
  remark = f'{len(repeats)} of {len(problems)} rows of {name} repeat a question'
  answers = [
    f'{one.id} and {again.id}'
    for one, again in repeats
    if one.truth['answer'] != again.truth['answer']
  ]
  if answers:
    remark += f', {len(answers)} of them with another answer: {_first(answers)}'
  return [f'{remark}.']


def _problems(
  source: Source, flag: str, config: DataConfig
) -> tuple[list[Problem], list[str]]:
  """Returns the problems of rows, and a remark about wrong ones that are left out."""
  found: list[Problem] = []
  wrong: list[str] = []
  for name, place, row in source.rows:
    try:
      question = _question(row, 'data.question', config.question)
      answer = _answer(row, config)
    except ValueError as error:
      wrong.append(f'{place} {error}')
      continue
    truth = {'answer': answer, 'verify': config.verify}
    found.append(Problem(name, OWN, question, truth, 'latin'))
  if wrong and not config.skip_wrong:
    raise ValueError(
      f'{flag}: {len(wrong)} of {len(source.rows)} rows of {source.path} are wrong: '
      f'{_first(wrong)}; correct or remove them, or leave them out with '
      '--data.skip-wrong True'
    )
  rejected = _rejected(found, config.verify)
  if rejected and not config.skip_wrong:
    whose = f'the true answers of {len(rejected)} of {len(found)} rows of {source.path}'
    fault = (
      f'finds no tests in Python in {whose}'
      if config.verify == 'python'
      else f'rejects {whose} as answers to themselves'
    )
    raise ValueError(
      f'{flag}: the verifier {config.verify} {fault}: '
      f'{_first(list(rejected.values()))}; correct or remove these rows, leave them '
      'out with --data.skip-wrong True, or choose another --data.verify'
    )
  wrong += [f'{fault} is no answer for {config.verify}' for fault in rejected.values()]
  remark = (
    f'{len(wrong)} of {len(source.rows)} rows of {source.name} are wrong and left out: '
    f'{_first(wrong)}.'
  )
  return [one for one in found if one.id not in rejected], [remark] if wrong else []


def _question(row: Any, flag: str, name: str) -> templates.Question:
  """Returns a field of a row as a question, which may be a list of messages."""
  try:
    found = rows.field(row, name)
  except KeyError:  # a template, or no such field
    found = None
  if isinstance(found, list):
    return conversations.question(found, name)
  return _field(row, flag, name)


def _answer(row: Any, config: DataConfig) -> str:
  """Returns the true answer of a row; of programs, its tests."""
  if config.verify != 'python':
    return after_mark(_field(row, 'data.answer', config.answer))
  try:
    tests = rows.field(row, config.answer)
  except KeyError:  # a template, or no such field
    tests = None
  if isinstance(tests, list):
    return json.dumps(tests)
  return _field(row, 'data.answer', config.answer)


def _field(row: Any, flag: str, name: str) -> str:
  """Returns a field of a row as text, or a template with its fields.

  Raises:
    ValueError: with the end of a sentence whose subject is the row.
  """
  if not isinstance(row, dict):
    raise ValueError(f'is no object but {type(row).__name__}')
  try:
    text = rows.filled(row, name)
  except KeyError as error:
    raise ValueError(
      f'has no field {error.args[0]!r} (it has {", ".join(map(str, row))}; '
      f'set --{flag})'
    ) from error
  if not text:
    what = 'an empty field' if text == '' else 'neither text nor a number in the field'
    raise ValueError(f'has {what} {name!r}')
  return text


def after_mark(answer: str) -> str:
  """Returns what follows the last `MARK` that begins a line; without one, all of it."""
  _, mark, last = f'\n{answer}'.rpartition(f'\n{MARK}')
  return last.strip() if mark else answer


def _rejected(problems: Sequence[Problem], verifier: str) -> dict[str, str]:
  """Returns which problem's true answers the verifier rejects, by id, and why."""
  faults: dict[str, str | None] = {}  # by true answer; many problems can share one
  for truth in dict.fromkeys(one.truth['answer'] for one in problems):
    why = ''
    try:
      right = verifiers.accepts(verifier, truth)
    except Exception as error:  # a verifier of the user's can raise anything
      right, why = False, f' ({type(error).__name__}: {error})'
    faults[truth] = None if right else f'{truth!r:.60}{why}'
  return {
    one.id: f'{one.id} {fault}'
    for one in problems
    if (fault := faults[one.truth['answer']]) is not None
  }


def _first(faults: Sequence[str]) -> str:
  more = len(faults) - SHOWN
  return '; '.join(faults[:SHOWN]) + (f'; and {more} more' if more > 0 else '')
