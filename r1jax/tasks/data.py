"""A file of problems as a task: rows with a question and an answer.

The rows become problems of the task `data`, whose truth names the verifier. All rows
are checked when they are read, before a model is.
"""

import dataclasses
import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from r1jax.hub import download
from r1jax.tasks import OWN, Problem, mathematics, rows, splits, verifiers

VERSION = '1.0.0'  # of how rows become problems and are split
SHOWN = 3  # rows that an error describes; the rest are counted
MARK = '####'  # GSM8K writes a solution, and after this mark the answer


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Problems of your own, instead of those of a task; `--data FILE` sets `path`."""

  # A file (.jsonl, .json, .csv or .parquet), or hf://datasets/owner/name/file.
  path: str = ''
  question: str = 'question'  # field of a row; `a.b.0` goes into objects and lists
  answer: str = 'answer'  # field of a row
  # 'math', 'number', 'exact', 'choice', 'countdown' or package.module:function
  verify: str = 'math'
  held_out: str = ''  # such a file for evaluations; '' holds out 15 % of the questions
  limit: int = 0  # training problems at most, the first ones; 0 takes all

  def __post_init__(self) -> None:
    if self.limit < 0:
      raise ValueError(f'data.limit: expected 0 or more, got {self.limit}')
    if self.held_out and not self.path:
      raise ValueError('data.held_out: expected --data as well, got none')
    verifiers.find(self.verify)  # says which there are


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


def load(config: DataConfig) -> Files:
  """Reads, checks and splits the problems of a config.

  Raises:
    HubError: a download failed.
    ValueError: a file cannot be read, its rows are wrong, the verifier does not accept
      them, or a split is empty.
  """
  file = download.dataset_file(config.path, 'data.path')
  problems = _problems(file, 'data.path', config)
  digests, remarks = (
    {_name(config.path, file): _digest(file)},
    _repeated(problems, file),
  )
  if config.held_out:
    other = download.dataset_file(config.held_out, 'data.held_out')
    validation = _problems(other, 'data.held_out', config)
    digests[_name(config.held_out, other)] = _digest(other)
    remarks += _repeated(validation, other)
    known = set(map(group, validation))
    train = [one for one in problems if group(one) not in known]
    if dropped := len(problems) - len(train):
      remarks.append(
        f'{dropped} of {len(problems)} questions of {file.name} are in {other.name} '
        'too; they are left out of training.'
      )
  else:
    split = [splits.of_published(group(one)) for one in problems]
    pairs = list(zip(problems, split, strict=True))
    train = [one for one, name in pairs if name == 'train']
    validation = [one for one, name in pairs if name == 'validation']
  for found, what, remedy in (
    (train, 'training', 'give more rows, or others than those of --data.held-out'),
    (validation, 'validation', 'give more rows, or a file as --data.held-out'),
  ):
    if not found:
      raise ValueError(
        f'data.path: expected questions for {what} among the '
        f'{len(set(map(group, problems)))} different ones of {file}, got none; {remedy}'
      )
  return Files(train[: config.limit or None], validation, digests, tuple(remarks))


def group(problem: Problem) -> str:
  """Returns the question without case and white space: what is held out together."""
  return ''.join(problem.question.lower().split())


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


def _repeated(problems: Sequence[Problem], file: Path) -> list[str]:
  """Returns a remark if questions repeat, which names one with two answers."""
  first: dict[str, Problem] = {}
  pairs = [(first.setdefault(group(one), one), one) for one in problems]
  repeats = [(one, again) for one, again in pairs if again is not one]
  if not repeats:
    return []
  remark = f'{len(repeats)} of {len(problems)} rows of {file.name} repeat a question'
  answers = [
    f'{one.id} and {again.id}'
    for one, again in repeats
    if one.truth['answer'] != again.truth['answer']
  ]
  if answers:
    remark += f', {len(answers)} of them with another answer: {_first(answers)}'
  return [f'{remark}.']


def _name(path: str, file: Path) -> str:
  """Returns a file's name among the digests."""
  return path if path.startswith(download.REMOTE) else str(file.absolute())


def _digest(file: Path) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()


def _problems(file: Path, flag: str, config: DataConfig) -> list[Problem]:
  """Returns the problems of a file, all of which its verifier accepts."""
  read = rows.read(flag, file)
  found: list[Problem] = []
  wrong: list[str] = []
  for number, row in read:
    try:
      question = _field(row, 'data.question', config.question)
      answer = _field(row, 'data.answer', config.answer)
    except ValueError as error:
      wrong.append(f'{"row" if file.suffix == ".parquet" else "line"} {number} {error}')
      continue
    truth = {'answer': after_mark(answer), 'verify': config.verify}
    found.append(Problem(f'{file.name}:{number}', OWN, question, truth, 'latin'))
  if wrong:
    raise ValueError(
      f'{flag}: {len(wrong)} of {len(read)} rows of {file} are wrong: '
      f'{_first(wrong)}; correct or remove them'
    )
  _check_truths(found, flag, file, config.verify)
  return found


def _field(row: Any, flag: str, name: str) -> str:
  """Returns a field of a row as text.

  Raises:
    ValueError: with the end of a sentence whose subject is the row.
  """
  if not isinstance(row, dict):
    raise ValueError(f'is no object but {type(row).__name__}')
  try:
    text = rows.text(rows.field(row, name))
  except KeyError as error:
    raise ValueError(
      f'has no field {name!r} (it has {", ".join(map(str, row))}; set --{flag})'
    ) from error
  if not text:
    what = 'an empty field' if text == '' else 'neither text nor a number in the field'
    raise ValueError(f'has {what} {name!r}')
  return text


def after_mark(answer: str) -> str:
  """Returns what follows the last `MARK` that begins a line; without one, all of it."""
  _, mark, last = f'\n{answer}'.rpartition(f'\n{MARK}')
  return last.strip() if mark else answer


def _check_truths(
  problems: Sequence[Problem], flag: str, file: Path, verifier: str
) -> None:
  """Raises ValueError unless the verifier finds every true answer right."""
  wrong = []
  for one in problems:
    truth = one.truth['answer']
    try:
      right, why = verify(one, truth), ''
    except Exception as error:  # a verifier of the user's can raise anything
      right, why = False, f' ({type(error).__name__}: {error})'
    if not right:
      wrong.append(f'{one.id} {truth!r:.60}{why}')
  if wrong:
    raise ValueError(
      f'{flag}: the verifier {verifier} rejects the true answers of {len(wrong)} of '
      f'{len(problems)} rows of {file} as answers to themselves: {_first(wrong)}; '
      'correct or remove these rows, or choose another --data.verify'
    )


def _first(faults: Sequence[str]) -> str:
  more = len(faults) - SHOWN
  return '; '.join(faults[:SHOWN]) + (f'; and {more} more' if more > 0 else '')
