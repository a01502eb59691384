"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021).

A published set: tensorflow-datasets fetches it once, where the network allows. Its test
split is ours; a hash holds out a part of its train split for validation.
"""

import dataclasses
import re
from collections.abc import Hashable
from fractions import Fraction
from typing import Any

from r1jax.tasks import Problem, splits

VERSION = '1.1.0'  # of the set, 1.0.0, with a part held out for validation
_NUMBER = re.compile(r'-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?')
LONGEST = 40  # characters of a number


@dataclasses.dataclass(frozen=True)
class Config:
  """There is one difficulty."""

  name: str = 'main'


def load(config: Config, split: str, data_dir: str | None = None) -> list[Problem]:
  """Returns the problems of a split, one of `splits.SPLITS`, in the order of the set.

  Raises:
    OSError: the set is neither on disk nor can it be fetched.
  """
  del config
  # late: it takes a second
  from tensorflow_datasets.text.gsm8k import gsm8k as published

  builder = published.Gsm8k(data_dir=data_dir, file_format='array_record')
  try:
    builder.download_and_prepare()
  except Exception as error:  # whatever a download raises
    raise OSError(
      f'GSM8K is not in {builder.data_dir} and could not be fetched '
      f'({str(error).splitlines()[0]:.200}); fetch it where the network allows, and '
      'give its folder as --data-dir'
    ) from error
  published_in = 'test' if split == 'test' else 'train'
  rows = builder.as_data_source(split=published_in)
  found = [problem(f'{published_in}-{n}', row) for n, row in enumerate(rows)]
  if split == 'test':
    return found
  return [one for one in found if splits.of_published(one.id) == split]


def problem(name: str, row: dict[str, Any]) -> Problem:
  """A row of the set: bytes of `question` and `short_answer`."""
  return Problem(
    id=name,
    task='gsm8k',
    question=row['question'].decode().strip(),
    truth={'answer': row['short_answer'].decode().strip()},
    language='latin',
  )


def group(problem: Problem) -> str:
  """The problem's name: no other is known to be its twin."""
  return problem.id


def verify(problem: Problem, answer: str) -> bool:
  """Whether the answer is that number: 1,000 and $1000.00 are the same."""
  value = answer_key(answer)
  return value is not None and value == answer_key(problem.truth['answer'])


def answer_key(answer: str) -> Hashable | None:
  """The number that an answer is, or None; a unit may stand around it."""
  found = _NUMBER.findall(answer) if len(answer) <= 10 * LONGEST else []
  if len(found) != 1 or len(found[0]) > LONGEST:
    return None
  return Fraction(found[0].replace(',', ''))
