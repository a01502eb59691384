"""The paper's numbers, which the report shows next to its own."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from r1jax.report.reader import BASE, MODELS, ZERO, ModelColumn


class Paper(NamedTuple):
  """Results in per cent, apart from ratings; None if the paper does not give one.

  Fields:
    zero: AIME 2024 pass@1 of the base model and of R1-Zero.
    stages: by benchmark, R1-Zero, Dev1, Dev2, Dev3 and R1.
    benchmarks: the columns of `students` and `rl_32b`, AIME 2024 pass@1 first.
    students: by name; 'Qwen-32B' is compared with `rl_32b`.
    rl_32b: RL on the base of Qwen-32B.
    data: examples of the third stage's set, by domain.
    data_tokens: mean length of such an example.
  """

  zero: tuple[float | None, float | None]
  stages: Mapping[str, Sequence[float]]
  benchmarks: Sequence[str]
  students: Mapping[str, Sequence[float | None]]
  rl_32b: Sequence[float | None]
  data: Mapping[str, int]
  data_tokens: float


def number_text(value: float | None) -> str:
  """Returns a result as text; a number above 100 is a rating."""
  if value is None:
    return '–'
  return f'{value:,.0f}' if value > 100 else f'{value:.1f}'


def zero_sentence(paper: Paper | None) -> str:
  """Returns the paper's base and R1-Zero as a sentence; empty without a paper."""
  if paper is None:
    return ''
  return _sentence('AIME 2024', (BASE.title, ZERO.title), paper.zero)


def stages_sentence(
  paper: Paper | None, benchmark: str, before: ModelColumn, after: ModelColumn
) -> str:
  """Returns the paper's numbers of two stages; empty if it does not give them."""
  if paper is None or benchmark not in paper.stages:
    return ''
  of = dict(zip(MODELS[1:], paper.stages[benchmark], strict=True))
  return _sentence(benchmark, (before.title, after.title), (of[before], of[after]))


def students_sentence(paper: Paper | None) -> str:
  """Returns the paper's Qwen-32B after RL and distilled; empty without them."""
  if paper is None or 'Qwen-32B' not in paper.students:
    return ''
  numbers = paper.rl_32b[0], paper.students['Qwen-32B'][0]
  return _sentence(f'{paper.benchmarks[0]}, Qwen-32B', ('RL', 'distilled'), numbers)


def _sentence(
  benchmark: str, names: tuple[str, str], values: tuple[float | None, float | None]
) -> str:
  ends = (f'{name} {number_text(x)}' for name, x in zip(names, values, strict=True))
  return f'The paper, {benchmark}: {" → ".join(ends)}'
