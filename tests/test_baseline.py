"""The baseline of the preference measure, and who wins against it."""

import pytest

from r1jax.miniature import baseline, judge
from r1jax.tasks import Problem, instructions
from r1jax.tasks.instructions import InstructionsConfig
from r1jax.text import parsing

PROBLEMS = list(instructions.generate(InstructionsConfig(), 'test'))[:100]


def ideal(problem: Problem) -> str:
  """Does what is asked for, kindly, in few words of the right language."""
  kind = {'en': 'gladly', 'pl': 'chętnie'}[problem.language]
  return f'<think></think>\n{kind}\n<answer>{instructions.solution(problem)}</answer>'


def test_the_baseline_always_gives_the_same_answer():
  for problem in PROBLEMS[:20]:
    assert baseline.answer(problem) == baseline.answer(problem)
    assert parsing.parse(baseline.answer(problem)) is not None
  assert len(set(map(baseline.answer, PROBLEMS))) > 50


def test_the_baseline_has_average_quality():
  right = [judge.fulfilled(p, baseline.answer(p)) for p in PROBLEMS]
  kind = [judge.kind(p, baseline.answer(p)) for p in PROBLEMS]
  # Rates of 0.75 and 0.3: four standard deviations of 100 draws are 0.17 and 0.18.
  assert sum(right) / 100 == pytest.approx(0.75, abs=0.18)
  assert sum(kind) / 100 == pytest.approx(0.3, abs=0.19)


def test_the_baselines_own_answer_is_a_draw():
  for problem in PROBLEMS:
    assert baseline.preference(problem, baseline.answer(problem)) == 0.5


def test_nobody_wins_against_the_ideal_and_garbage_never_wins():
  results = [baseline.preference(problem, ideal(problem)) for problem in PROBLEMS]
  assert set(results) <= {0.5, 1.0}
  assert results.count(1.0) > 50  # 0.75 x 0.3 of its answers are ideal too
  for garbage in ('', '<think>', '</think>', '<answer>\x00</answer>', '\ud800 ' * 99):
    assert all(baseline.preference(problem, garbage) == 0 for problem in PROBLEMS)


def test_other_problems_have_no_preference():
  problem = Problem('2-3=5', 'countdown', 'make 5 from 2 3', {})
  assert baseline.preference(problem, '<think></think><answer>2+3</answer>') == 0
