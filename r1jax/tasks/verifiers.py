"""Verifiers: whether an answer is right, given the true one.

A verifier is a function (answer, truth) -> bool of two texts. `VERIFIERS` has those
with a name, and `package.module:function` is one of your own. Some take more about the
truth as keyword arguments, such as the tolerance of a number.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from r1jax import choice
from r1jax.sandbox import SandboxError
from r1jax.tasks import expressions, gsm8k, mathematics, programs

Verifier = Callable[..., bool]  # (answer, truth) -> whether it is right

# A letter alone or with the text of the choice, also in LaTeX: (C), C. 4 apples
_LETTER = re.compile(r'\(?([A-Za-z])(?:\)|[.):](?=\s|$).*|\).*)?', re.DOTALL)
_MARKUP = re.compile(r'\\(?:boxed|text|textbf|mbox|mathrm|mathbf)(?![A-Za-z])|[{}$*]')


def number(answer: str, truth: str) -> bool:
  """Returns whether both have the same number; see `gsm8k.answer_key`."""
  value = gsm8k.answer_key(answer)
  return value is not None and value == gsm8k.answer_key(truth)


def exact(answer: str, truth: str) -> bool:
  """Returns whether both are the same text, with any white space between words."""
  words = answer.split()
  return bool(words) and words == truth.split()


def letter_of_choice(answer: str, truth: str) -> bool:
  """Returns whether both choose the same letter, written as C, (C) or C. with text."""
  letter = _letter(answer)
  return letter is not None and letter == _letter(truth)


def countdown(answer: str, truth: str) -> bool:
  """Returns whether an expression has the numbers and the value of a true one.

  Args:
    answer: numbers with + - * / and parentheses.
    truth: such an expression, or a value and the numbers: `16 = 3, 5, 2`.
  """
  goal = _goal(truth)
  return goal is not None and expressions.calculated(answer) == goal


VERIFIERS: dict[str, Verifier] = {
  'math': mathematics.equal,
  'number': number,
  'exact': exact,
  'choice': letter_of_choice,
  'countdown': countdown,
  'python': programs.passes,
}


@cache
def find(name: str) -> Verifier:
  """Returns the verifier of a name, or of `package.module:function`.

  Raises:
    ValueError: there is none.
  """
  if ':' in name:
    return choice.imported('data.verify', name)
  if name not in VERIFIERS:
    raise ValueError(
      f'data.verify: expected one of {", ".join(VERIFIERS)} or package.module:function,'
      f' got {name!r}'
    )
  return VERIFIERS[name]


def accepts(name: str, truth: str) -> bool:
  """Returns whether an answer can be right by a truth.

  This is so if the truth, as an answer, is right, if it is a goal of Countdown, or if
  it is tests in Python.
  """
  if name == 'countdown':
    return _goal(truth) is not None
  if name == 'python':
    return bool(programs.tests_of(truth))
  return bool(find(name)(truth, truth))


def imports(name: str) -> tuple[str, ...]:
  """Returns modules that a verifier needs and that take long to import."""
  if ':' in name:
    return (name.partition(':')[0],)
  return ('math_verify',) if name == 'math' else ()


def _runs_programs(name: str) -> bool:
  return find(name) in (programs.passes, programs.completes)


def timeout(name: str) -> float:
  """Returns the least time limit of an output, seconds; 0 if any will do.

  The sandbox of programs has its own limits, which don't count a busy machine.
  """
  return programs.TIMEOUT if _runs_programs(name) else 0


def check(flag: str, name: str) -> None:
  """Raises SandboxError if a verifier needs a sandbox, and there can't be one here.

  Args:
    flag: that asked for the verifier.
    name: of the verifier.
  """
  if _runs_programs(name):
    try:
      programs.check()
    except SandboxError as error:
      raise SandboxError(f'{flag}: it runs programs, but {error}') from error


def _goal(truth: str) -> tuple[list[int], Fraction] | None:
  """Returns the sorted numbers and the value that an expression must have."""
  if '=' not in truth:
    return expressions.calculated(truth)
  value, _, numbers = truth.partition('=')
  try:
    return sorted(map(int, numbers.split(','))), Fraction(int(value))
  except ValueError:
    return None


def _letter(text: str) -> str | None:
  found = _LETTER.fullmatch(_MARKUP.sub('', text).strip())
  return found[1].upper() if found else None
