"""Rewritten outputs by hand, and of all kinds of writers."""

import dataclasses
import random
import re

import pytest

from r1jax import tasks
from r1jax.miniature import corpus, writers
from r1jax.miniature.corpus import CorpusConfig
from r1jax.miniature.rewriting import rewrite
from r1jax.miniature.writers import WriterConfig
from r1jax.rewards import filters
from r1jax.tasks import Problem, arithmetic, equations, instructions
from r1jax.tasks.countdown import CountdownConfig
from r1jax.text import parsing

COUNTDOWN = Problem(
  '4-8-9=44', 'countdown', 'make 44 from 4 8 9', {'numbers': [4, 8, 9], 'target': 44}
)
SEARCH = """<think>so
4*8+9=32+9=41?44 low
wait 4*8+9=32+9=41?44 low
4*9-8=36-8=44?44 yes
check 4*9-8=36-8=28?44 low
{last}</think>
<answer>4*9+8</answer>"""
CLEAN = """<think>so
4*8+9=32+9=41?44 low
4*9-8=36-8=28?44 low
4*9+8=36+8=44?44 yes</think>
I use 4*9+8=36+8=44
<answer>4*9+8</answer>"""


@pytest.mark.parametrize(
  'last',
  [
    '4*9+8=36+8=44?44 yes',
    '4*9+8=36+8=46?44 high\nwait 4*9+8=36+8=44?44 yes',
    'check 4*9+8=36+8=44?44 yes',  # of nothing that stands before it
    '4*9+8=36+8=44?44 yes\n\n  check\nwait check 4*9+8=36+8=44?44 yes',
    # to an older line
    '4*9+8=36+8=44?44 yes\nczekaj 4*8+9=32+9=41?44 low',
  ],
)
def test_a_repeated_calculation_replaces_the_first(last):
  output = SEARCH.format(last=last)
  assert filters.faults(COUNTDOWN, output) in ([], ['language'])
  assert rewrite(COUNTDOWN, output) == CLEAN


def test_the_summary_shows_every_step_of_the_answer_not_of_the_thoughts():
  # Taken for a solution by a writer who was right in spite of two mistakes.
  output = '<think>4*9+8=35+8=43?44 yes</think><answer>8+(4*9)</answer>'
  assert rewrite(COUNTDOWN, output) == (
    '<think>4*9+8=35+8=43?44 yes</think>\nI use 8+4*9=8+36=44\n<answer>8+(4*9)</answer>'
  )


def test_equations_and_calculations_are_summed_up_as_results():
  output = '<think>tak</think>\nwięc\n<answer>x=5</answer>'
  problem = dataclasses.replace(equations.problem(3, 4, 0, 5), language='pl')
  assert rewrite(problem, output) == (
    '<think>tak</think>\nbiorę x=5\n<answer>x=5</answer>'
  )
  output = '<think></think><answer> 282 </answer>'
  assert rewrite(arithmetic.problem(47, '*', 6), output) == (
    '<think></think>\nI use 47*6=282\n<answer>282</answer>'
  )


def test_an_instruction_keeps_its_summary():
  problem = instructions.count(3, 5, 'line by line')
  output = '<think>so</think>gladly <answer>3\n4\n5</answer>'
  assert rewrite(problem, output) == (
    '<think>so</think>\ngladly\n<answer>3\n4\n5</answer>'
  )
  output = '<think>so</think>\n<answer>3\n4\n5</answer>'
  assert rewrite(problem, output) == output


def test_malformed_outputs_are_refused():
  with pytest.raises(ValueError, match="expected thoughts and an answer, got 'x=5'"):
    rewrite(equations.problem(3, 4, 0, 5), 'x=5')


def searches(config, count):
  """Pairs of a problem and the output of somebody who searches."""
  for index in range(count):
    question, output = writers.document(config, CountdownConfig(), random.Random(index))
    target, *numbers = map(int, re.findall(r'\d+', question))
    truth = {'numbers': numbers, 'target': target}
    yield Problem(str(index), 'countdown', question, truth), output


def others(config, count):
  """Pairs of a problem of another task and somebody's output."""
  for index in range(count):
    rng = random.Random(index)
    module = rng.choice((equations, arithmetic, instructions))
    problem = module.draw(module.SETTINGS(), rng)
    yield problem, corpus.write(config, problem, rng)


SLOPPY = WriterConfig(schoolbook=0.0, miscalculation=0.2, misjudgement=0.1, recheck=0.5)
PATIENT = WriterConfig(schoolbook=0.0, polish=0.0, mixed=0.0, tenacious=1.0)


@pytest.mark.parametrize(
  ('written', 'config', 'documents', 'fewest'),
  [
    (searches, SLOPPY, 1500, 100),
    (searches, PATIENT, 300, 200),
    (others, corpus.CAREFUL, 600, 600),
    (others, CorpusConfig(slip=0.3, summary=0.5), 1500, 200),
  ],
)
def test_a_faultless_output_is_rewritten_without_fault(
  written, config, documents, fewest
):
  count = 0
  for problem, output in written(config, documents):
    if filters.faults(problem, output):
      continue
    count += 1
    rewritten = rewrite(problem, output)
    assert filters.faults(problem, rewritten) == []
    before, after = parsing.parse(output), parsing.parse(rewritten)
    assert before is not None
    assert after is not None
    assert after.answer == before.answer
    assert not re.search('wait|check', after.think)
    # Every attempt is still there, once.
    attempts = [set(re.findall(r'\S+?(?==)', t)) for t in (before.think, after.think)]
    assert attempts[0] == attempts[1]
    if problem.task in tasks.REASONING:
      used, steps = after.summary.rsplit(' ', 1)
      assert used == 'I use'
      right = {'x': problem.truth.get('x')}
      assert len({eval(step, right) for step in steps.split('=')}) == 1
    else:
      assert after.summary == before.summary
    assert rewrite(problem, rewritten) == rewritten
  assert count >= fewest
