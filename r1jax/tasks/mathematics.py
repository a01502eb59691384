"""Whether two answers in mathematical notation are equal, by math-verify.

`equal` first reads what math-verify reads otherwise than a person does: boxes, words,
percent, thousands, times of day, numbers with a base. It leaves the rest to
math-verify, which parses LaTeX with sympy.
"""

import itertools
import logging
import math
import re
import threading
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

from r1jax.text import parsing

LONGEST = 300  # characters of an answer; the longest of OlympiadBench has 224
# Of parsing, and of comparing. math-verify's alarm ends long work in Python code. It
# can't inside one operation on huge integers; there the limit of the reward pool does.
SECONDS = 1

_TEXT = r'\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|operatorname)\s*'
# Patterns and their replacements, applied in this order.
_PLAIN = (
  (r'[\u2010-\u2015\u2212\ufe63\uff0d]', '-'),  # dashes and the minus sign
  # The backslash of a command follows no other: \\\\ ends a row of a matrix.
  (r'(?<!\\)\\(?:!|(?:displaystyle|left|right|[bB]igg?[lr]?)(?![A-Za-z]))', ''),
  (r'(?<!\\)\\[()\[\]]|\\?\$|[€£¥]', ' '),
  (r'(?<=\d)(?:\{,\}|\\,|,\s)\s*(?=\d{3}(?!\d))(?=[^()\[\]]*$)', ','),
  (r'(?<!\\)\\[,;: ]|[~\u00a0\u2000-\u200a\u202f\u205f\u3000\s]+', ' '),
  (r'\\[dtc]frac(?![A-Za-z])', r'\\frac'),
  # TeX takes one token where braces are missing: \\frac\\pi2
  (r'\\frac\s*((?:\\(?!sqrt)[A-Za-z]+|\w))', r'\\frac{\1}'),
  (r'(\\frac\{[^{}]*\})\s*(\\(?!sqrt)[A-Za-z]+|\w)', r'\1{\2}'),
  (r'_\{\\(max|min) ?\}', r'_{\1}'),
  (r'^ ?\\approx', ''),
  (r'\^\s*\{?\s*\\circ\s*\}?|\\(?:degree|circ)(?![A-Za-z])|°', ''),
  (r'\\?%|' + _TEXT + r'\{\s*percent\s*\}|(?<=[\d}])\s*percent\b', '%'),
  (r'(?<=\d) (\d+)/(\d+)$', r'\\frac{\1}{\2}'),  # 3 1/2
)
_THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])')
# Words after a number are a unit, with its power: 5 \text{ square feet}, 5 cm^2. Two or
# three letters may also be variables, so only these units are known: 2ab is none.
_UNIT = re.compile(
  rf'(?<=[\d}}).])\s*(?:{_TEXT}\{{[^{{}}]*\}}'
  r'|(?<![A-Za-z])(?:[cmk]m|[mk]g|m[lL]|ft|sq|in|lbs?|oz|hrs?|min|sec|mph|USD|[A-Za-z]{4,})'
  r'(?:[ .]+[A-Za-z]+)*\.?)(?:\^\{?\d\}?)?\s*$'
)
_WORDS = re.compile(rf'{_TEXT}\{{([^{{}}]*)\}}')
_NAME = re.compile(r"[^\W\d_]{3,}|[^\W\d_]+(?:[\s'.-]+[^\W\d_]+)+")
_CHOICE = re.compile(r'\(?([A-Za-z])\)?')
_TIME = re.compile(r'0*(\d{1,2}):(\d\d(?::\d\d)?)\s*([AaPp])?\.?\s?(?:[Mm]\.*)?')
_IN_BASE = re.compile(r'(\w+)_\{?(\d+)\}?')
_PERCENT = re.compile(r'([^=,;()\[\]]*[^=,;()\[\]\s])\s*%')
_INTEGER = re.compile(r'[+-]?\d+')


def equal(
  answer: str,
  truth: str,
  *,
  unit: str = '',
  tolerance: float | str | Sequence[float] = 0.0,
) -> bool:
  """Returns whether an answer equals the truth, whatever a model wrote.

  Of a text with boxes, the last complete box counts. Equal are numbers in any notation,
  with or without unit, currency or degrees; expressions, equations, sets, tuples,
  intervals and matrices that sympy finds equal; words and letters of choices in any
  case. 50 % is 0.5 and not 50. An empty truth equals nothing.

  Args:
    answer, truth: to compare.
    unit: of the truth, which an answer may have, such as km/h; with % 4.2 % is 4.2.
    tolerance: the most that numbers may differ by; of values in a list one for all, or
      one for each value of the truth, also as a text: '1e34, 1e-3'.

  Raises:
    ValueError: the tolerance is no number, or as many as the truth has values.
  """
  gold, given = plain(truth, unit), plain(answer, unit)
  if not gold or not given or max(len(gold), len(given)) > LONGEST:
    return False
  limits, values = _limits(tolerance), _values(gold)
  if len(limits) not in (1, len(values)):
    raise ValueError(
      f'tolerance: expected one, or one for each of {len(values)} values, got {limits}'
    )
  key, given_key = _key(gold), _key(given)
  if key == given_key:
    return True
  if time := _TIME.fullmatch(gold):
    return _same_time(time, _TIME.fullmatch(given))
  if based := _IN_BASE.fullmatch(gold):
    also = _IN_BASE.fullmatch(given)
    return given == based[1] or bool(also and also.groups() == based.groups())
  if isinstance(key, int) and isinstance(given_key, int) and not any(limits):
    return False
  if _NAME.fullmatch(gold) or {_is_set(gold), _is_set(given)} == {True, False}:
    return False
  if any(limits) and len(values) > 1:
    return _equal_lists(values, _values(given), limits)
  return _equal_by_sympy(gold, given, limits[0])


def _limits(tolerance: float | str | Sequence[float]) -> tuple[float, ...]:
  """Returns the tolerances, one for all values or one for each."""
  if isinstance(tolerance, int | float):
    return (float(tolerance),)
  values = tolerance.split(',') if isinstance(tolerance, str) else tolerance
  return tuple(map(float, values))


def _values(text: str) -> list[str]:
  """Returns the parts of a text between the commas outside of brackets."""
  parts, depth = [''], 0
  for letter in text:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def _equal_lists(
  gold: Sequence[str], given: Sequence[str], limits: Sequence[float]
) -> bool:
  """Returns whether values are equal in any order, each within its tolerance.

  A value of the truth takes the first that fits, as in OlympiadBench's own judge.
  """
  if len(gold) != len(given):
    return False
  left = list(given)
  for one, limit in zip(gold, itertools.cycle(limits), strict=False):
    same = (n for n, other in enumerate(left) if _equal_by_sympy(one, other, limit))
    if (found := next(same, None)) is None:
      return False
    del left[found]
  return True


def answer_key(answer: str) -> Hashable | None:
  """Returns what two answers must share to vote together; None for no answer.

  It is simpler than `equal`: 1/2 and 0.5 vote apart.
  """
  text = plain(answer)
  return _key(text) if text else None


def plain(text: str, unit: str = '') -> str:
  """Returns an answer without its box, units, currency and separators of thousands.

  `unit` is one that the answer may have besides those that are known.
  """
  boxed = parsing.last_box(text)
  text = text if boxed is None else boxed
  if len(text) > LONGEST:
    return text
  text = _tidy(text)
  if unit := _tidy(unit):  # of degrees nothing is left
    text = _without_unit(text, unit)
  if not re.search(r'[(\[]', text):
    text = _THOUSANDS.sub(lambda number: number[0].replace(',', ''), text)
  if not _TIME.fullmatch(_WORDS.sub(r'\1', text).strip()):
    text = _UNIT.sub('', text).strip()
  words = _WORDS.sub(r'\1', text).strip()
  if '\\' not in words:
    text = words
  return _PERCENT.sub(r'\\frac{\1}{100}', text)


def _tidy(text: str) -> str:
  """Returns a text without what only sets it: spaces, sizes, currency, degrees."""
  for pattern, replacement in _PLAIN:
    text = re.sub(pattern, replacement, text)
  return text.strip().rstrip('.,; ')


def _without_unit(text: str, unit: str) -> str:
  """Returns a text without a unit at its end, also in the plural and set as text."""
  letters = r'\s*'.join(map(re.escape, unit.removesuffix('s')))
  words = _WORDS.sub(r'\1', text)
  found = re.fullmatch(rf'(.*[\d}})])\s*{letters}s?\s*', words, re.DOTALL)
  return found[1] if found else text


def _key(text: str) -> Hashable:
  """Returns an integer, or a text without spaces; words also without case."""
  if _INTEGER.fullmatch(text):
    return int(text)
  if choice := _CHOICE.fullmatch(text):
    return choice[1].lower()
  return re.sub(r'\s', '', text.lower() if _NAME.fullmatch(text) else text)


def _same_time(gold: re.Match[str], given: re.Match[str] | None) -> bool:
  """Returns whether times of day are the same; am and pm count where both say it."""
  if given is None or gold.groups()[:2] != given.groups()[:2]:
    return False
  half, other = (text and text.lower() for text in (gold[3], given[3]))
  return half == other or not half or not other


def _is_set(text: str) -> bool | None:
  """Returns whether brackets say a set, or no set; None without brackets."""
  # sympy finds the open interval (1, 2) equal to the set {1, 2}.
  if ',' not in text or text[0] not in '([\\':
    return None
  return text.startswith(r'\{')


def _equal_by_sympy(gold: str, given: str, tolerance: float) -> bool:
  """Returns whether math-verify finds two answers equal, within its time limits.

  Numbers may also differ by the tolerance.
  """
  import math_verify  # takes half a second

  # An alarm is for the main thread alone.
  alone = threading.current_thread() is not threading.main_thread()
  seconds: Any = None if alone else SECONDS
  parsed = [
    math_verify.parse(
      f'${text}$', _latex(), fallback_mode='no_fallback', parsing_timeout=seconds
    )
    for text in (gold, given)
  ]
  if not all(parsed):
    return False
  # The truth first: x = 5 is 5 and 1 < x < 2 is (1, 2), but not the other way round.
  pair = parsed[0][0], parsed[1][0]
  if math_verify.verify(*pair, timeout_seconds=seconds):
    return True
  return tolerance > 0 and _distance(*pair, seconds) <= tolerance * (1 + 1e-9)


def _distance(gold: Any, given: Any, seconds: Any) -> float:
  """Returns the distance of two numbers that sympy has read; inf for other things."""
  import sympy
  from math_verify.errors import TimeoutException
  from math_verify.utils import timeout

  def distance() -> float:
    # Of rounded values: a difference would compute powers with all their digits.
    values = [x.rhs if isinstance(x, sympy.Eq) else x for x in (gold, given)]
    return abs(float(sympy.N(values[0])) - float(sympy.N(values[1])))

  try:
    return timeout(seconds)(distance)()
  except (Exception, TimeoutException):  # sympy can raise anything
    return math.inf


@cache
def _latex() -> tuple[Any, ...]:
  """Returns how math-verify reads LaTeX."""
  import math_verify
  from latex2sympy2_extended import NormalizationConfig

  # It reports each of its time limits.
  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  reading = NormalizationConfig(
    basic_latex=True,
    units=False,  # they contain c, d, h and s, which are also variables
    malformed_operators=True,
    nits=True,
    boxed='none',
  )
  return (
    math_verify.LatexExtractionConfig(
      boxed_match_priority=0, normalization_config=reading
    ),
  )
