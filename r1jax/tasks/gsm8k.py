"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021).

A published data set, see `published`. The test split is the set's own; a hash holds out
a part of its train split for validation.
"""

import dataclasses
import re
from collections.abc import Hashable
from fractions import Fraction

from r1jax.tasks import Problem, published, splits

VERSION = '1.1.0'  # 1.0.0 of the set, with a validation split
LONGEST = 40  # characters of a number

# Patterns and their replacements in plain text, applied in this order.
_PLAIN = (
  (r'[\u2010-\u2015\u2212\ufe63\uff0d]', '-'),  # dashes and the minus sign
  (r'(?i)\b(?:minus|negative)\s', '-'),
  (r'\{,\}|,\\!', ','),  # thousands in LaTeX
  (r'(?<=[A-Za-z])\}?\s?\^\{?[23]\}?', ' '),  # of a unit: m^2
  (r'\\[,;:! ]|[~\u00a0\u2000-\u200a\u202f\u205f\u3000]', ' '),
  (r'\\[A-Za-z]+', ' '),  # \boxed, \text
)
# What changes the value of the number after it.
_OPERATION = re.compile(r'\\[dt]?frac|\\sqrt|\\binom|\\pm|[√±]')
# A number may begin with a decimal point, unless it ends a word: 'Rs.5' is 5.
_NUMBER = re.compile(
  r'(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}'
  r'|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?![0-9])'
  r'(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+'
)
# The only letters between a minus sign and its number are those of a currency: -USD 5,
# -C$5, -Rs 5.
_BEFORE = re.compile(r'\W*(?:\b(?:[A-Z]{3}|[A-Z]{1,3}(?=\\?\$)|Rs)\b\W*)?$')
_SCALES = {
  'k': 10**3,
  'hundred': 10**2,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
}
_SCALE = re.compile(rf'(?i)[\s$)}}\]*]*({"|".join(_SCALES)})\b')


@dataclasses.dataclass(frozen=True)
class GSM8KConfig:
  """The only difficulty."""

  name: str = 'main'


SETTINGS = GSM8KConfig  # the class of its settings, under this name in each task


def load(config: GSM8KConfig, split: str, data_dir: str | None = None) -> list[Problem]:
  """Returns the problems of a split, one of `splits.SPLITS`, in the order of the set.

  Raises:
    OSError: the set is not on disk and the download failed; see `published.read_split`.
    ValueError: `data_dir` is not a local folder.
  """
  del config
  set_split = 'test' if split == 'test' else 'train'
  rows, _ = published.read_split('gsm8k:1.0.0', set_split, data_dir)
  found = [problem(f'{set_split}-{n}', row) for n, row in enumerate(rows)]
  if split == 'test':
    return found
  return [one for one in found if splits.of_published(one.id) == split]


def problem(name: str, row: published.Row) -> Problem:
  """Returns the problem of a row, which has `question` and `short_answer`."""
  return Problem(
    id=name,
    task='gsm8k',
    question=row['question'].strip(),
    truth={'answer': row['short_answer'].strip()},
    language='latin',
  )


def group(problem: Problem) -> str:
  """Returns the problem's name; every problem is a group of its own."""
  return problem.id


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether the answer is the right number; 1,000 equals $1000.00."""
  value = answer_key(answer)
  return value is not None and value == answer_key(problem.truth['answer'])


def answer_key(answer: str) -> Hashable | None:
  """Returns the number of an answer, which may have a unit, or None.

  A minus sign counts across spaces, brackets and currency signs (-$5, $-5, - 5).
  Thousands may be separated by commas or spaces, also those of LaTeX, and `5 thousand`
  is 5000. Fractions, powers, roots and calculations are None: all truths of the set are
  integers, and an answer must be worked out.
  """
  if len(answer) > 10 * LONGEST or _OPERATION.search(answer) or _other_digits(answer):
    return None
  for pattern, plain in _PLAIN:
    answer = re.sub(pattern, plain, answer)
  found = list(_NUMBER.finditer(answer))
  if len(found) != 1 or len(found[0][0]) > LONGEST:
    return None
  before, after = answer[: found[0].start()], answer[found[0].end() :]
  between = _BEFORE.search(before)
  minus = between[0].count('-') if between else 0
  if minus > 1:
    return None
  value = Fraction(re.sub('[, ]', '', found[0][0]))
  if scale := _SCALE.match(after):
    value *= _SCALES[scale[1].lower()]
  return -value if minus else value


def _other_digits(answer: str) -> bool:
  """Returns whether there are numerals other than 0 to 9 (½, ², １), except units."""
  rest = re.sub(r'(?<=[A-Za-z])[²³]', '', answer)
  return any(c.isnumeric() and not c.isascii() for c in rest)
