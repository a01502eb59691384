"""IFEval: whether a text follows the instructions of its prompt (arXiv 2311.07911).

`verdicts` has a strict and a loose verdict for each instruction; a prompt is followed
if each of its instructions is. `follows` is the strict one as a verifier.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from r1jax.tasks.instruction_checks import CHECKS

Arguments = Mapping[str, Any]  # of a check


class Verdicts(NamedTuple):
  """Whether a text follows each instruction, in their order."""

  strict: tuple[bool, ...]  # as it is
  loose: tuple[bool, ...]  # with one of `variants`


def follows(answer: str, truth: str, *, kwargs: Sequence[Arguments]) -> bool:
  """Returns whether a text follows all instructions of a prompt strictly.

  Args:
    answer: the text.
    truth: names of the instructions, a list in JSON.
    kwargs: the arguments of each.
  """
  return all(verdicts(answer, truth, kwargs).strict)


def verdicts(answer: str, truth: str, kwargs: Sequence[Arguments]) -> Verdicts:
  """Returns the verdicts for a text; see `follows`."""
  return _verdicts(answer, truth, json.dumps(kwargs))


@functools.lru_cache(1)  # of an output there are several measures
def _verdicts(answer: str, truth: str, kwargs: str) -> Verdicts:
  pairs = list(zip(json.loads(truth), json.loads(kwargs), strict=True))
  return Verdicts(
    tuple(_follows(answer, *pair) for pair in pairs),
    tuple(any(_follows(x, *pair) for x in variants(answer)) for pair in pairs),
  )


def variants(text: str) -> list[str]:
  """Returns the text and others with less around it: loose verdicts take any.

  They lack the first line, the last line or both, as models begin with an
  introduction and end with an offer, and the asterisks of Markdown.
  """
  lines = text.split('\n')
  parts = [lines[1:], lines[:-1], lines[1:-1]]
  cut = [text, *('\n'.join(part).strip() for part in parts)]
  return list(dict.fromkeys([*cut, *(x.replace('*', '') for x in cut)]))


def _follows(text: str, name: str, arguments: Arguments) -> bool:
  """Returns whether a text follows an instruction; an empty one follows none."""
  return bool(text.strip()) and CHECKS[name](text, **arguments)
