"""What the writers write, checked with regular expressions and with `eval`."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from r1jax import tasks, text
from r1jax.tasks import Problem, corpus, countdown

TASK = countdown.Config(3, 8, 60)
SEARCHES = corpus.Config(schoolbook=0.0)
CAREFUL = dataclasses.replace(SEARCHES, miscalculation=0.0, misjudgement=0.0)
QUESTION = re.compile(r'make (\d+) from (\d+(?: \d+)*)')
CHAIN = re.compile(r'[0-9+*()-]+(?:=[0-9+*()-]+)+')
VERDICT = re.compile(rf'({CHAIN.pattern})\?(\d+) (\w+)')
YES, LOW, HIGH = {'yes', 'tak'}, {'low', 'mało'}, {'high', 'dużo'}
STOP = {'I give up', 'poddaję się'}


def documents(config, count=200, seed=0, task=TASK):
  """Triples of a problem, its parsed output and the output itself."""
  for index in range(count):
    question, output = corpus.document(config, task, seed, index)
    match = QUESTION.fullmatch(question)
    assert match is not None
    target, numbers = int(match[1]), [int(n) for n in match[2].split()]
    identity = countdown.problem_id(tuple(numbers), target)
    truth = {'numbers': numbers, 'target': target}
    parsed = text.parse(output)
    assert parsed is not None
    yield Problem(identity, 'countdown', question, truth), parsed, output


def verdict(value, target):
  return YES if value == target else LOW if value < target else HIGH


def words(output):
  return set(re.findall(r'[^\W\d_]+', re.sub(r'</?\w+>', ' ', output)))


def vocabulary(language):
  return {
    word for said in language.values() for phrase in said for word in phrase.split()
  }


def test_a_document_depends_on_seed_and_index_alone():
  first, again = (list(documents(SEARCHES, 30)) for _ in range(2))
  assert first == again
  outputs = {output for *_, output in first}
  assert len(outputs) > 25
  assert not outputs & {output for *_, output in documents(SEARCHES, 30, seed=1)}
  code = (
    'from r1jax.tasks import corpus, countdown\n'
    'task = countdown.Config(3, 8, 60)\n'
    'config = corpus.Config(schoolbook=0.0)\n'
    'print(ascii([corpus.document(config, task, 0, i) for i in range(30)]))'
  )
  environment = {**os.environ, 'PYTHONHASHSEED': '7'}
  there = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, check=True
  )
  here = [(problem.question, output) for problem, _, output in first]
  assert there.stdout.decode().strip() == ascii(here)


@pytest.mark.parametrize('task', [TASK, countdown.Config(2, 12, 100)])
def test_no_document_is_about_a_held_out_problem(task):
  held_out = {problem.id for problem in countdown.generate(task, 'test')}
  train = {problem.id for problem in countdown.generate(task, 'train')}
  for problem, *_ in documents(SEARCHES, 200, task=task):
    assert problem.id not in held_out
    assert problem.id in train  # solvable, and within the difficulty


def test_careful_writers_calculate_and_judge_rightly():
  attempts = doubts = 0
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, recheck=0.3)):
    for match in VERDICT.finditer(parsed.think):
      chain, compared, word = match.groups()
      start, *steps = chain.split('=')
      assert {eval(step) for step in steps} == {eval(start)}
      assert steps[-1].isdigit()
      assert sorted(map(int, re.findall(r'\d+', start))) == sorted(
        problem.truth['numbers']
      )
      assert int(compared) == problem.truth['target']
      assert word in verdict(eval(start), int(compared))
      attempts += 1
    assert len(CHAIN.findall(parsed.think)) == len(VERDICT.findall(parsed.think))
    doubts += len(re.findall(r'\b(?:wait|check|czekaj|sprawdź)\b', parsed.think))
  assert attempts > 400
  assert 0.2 < doubts / (attempts - doubts) < 0.4  # 0.3 +- 4 deviations at 400


def test_the_answer_is_the_solution_that_was_found_or_a_bluff():
  solved = 0
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, bluff=0.0)):
    found = any(word in YES for word in words(parsed.think))
    assert tasks.verify(problem, parsed.answer) == found
    assert found or parsed.answer in STOP
    solved += found
  assert 20 < solved < 180
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, bluff=1.0)):
    found = any(word in YES for word in words(parsed.think))
    assert tasks.verify(problem, parsed.answer) == found
    numbers = map(int, re.findall(r'\d+', parsed.answer))
    assert sorted(numbers) == sorted(problem.truth['numbers'])


def test_careless_writers_are_wrong():
  wrong = total = 0
  config = dataclasses.replace(
    SEARCHES, miscalculation=1.0, misjudgement=0.0, recheck=0.0
  )
  for _, parsed, _ in documents(config, 50):
    for chain in CHAIN.findall(parsed.think):
      first, *_, last = chain.split('=')
      total += eval(first) > 0  # a slip below 0 is written as 0, right where 0 is
      wrong += eval(first) > 0 and eval(first) != int(last)
      assert abs(eval(first) - int(last)) <= 10
  assert wrong == total > 50
  config = dataclasses.replace(
    SEARCHES, miscalculation=0.0, misjudgement=1.0, recheck=0.0
  )
  for problem, parsed, _ in documents(config, 50):
    for chain, compared, word in VERDICT.findall(parsed.think):
      assert int(compared) == problem.truth['target']
      assert word in (YES | LOW | HIGH)
      assert word not in verdict(eval(chain.split('=')[0]), int(compared))


def test_doubt_corrects_a_misjudgement():
  # Every verdict is wrong, then every one is doubted and calculated again rightly.
  config = dataclasses.replace(
    SEARCHES, miscalculation=0.0, misjudgement=1.0, recheck=1.0, bluff=0.0
  )
  for problem, parsed, _ in documents(config, 50):
    verdicts = VERDICT.findall(parsed.think)
    for (chain, _, word), (again, target, corrected) in zip(
      verdicts[::2], verdicts[1::2], strict=True
    ):
      assert chain == again
      right = verdict(eval(chain.split('=')[0]), int(target))
      assert word not in right
      assert corrected in right
    assert tasks.verify(problem, parsed.answer) == (verdicts[-1][2] in YES)


@pytest.mark.parametrize('patience', [1, 3])
def test_patience_is_the_greatest_number_of_attempts(patience):
  config = dataclasses.replace(
    CAREFUL, shortest_patience=patience, longest_patience=patience, recheck=0.0
  )
  for _, parsed, _ in documents(config, 50):
    found = any(word in YES for word in words(parsed.think))
    attempts = len(CHAIN.findall(parsed.think))
    assert attempts == patience or (found and attempts < patience)


def test_writers_speak_english_polish_or_both():
  english, polish = vocabulary(corpus.ENGLISH), vocabulary(corpus.POLISH)
  assert not english & polish
  settings = {'english': (0, 0), 'polish': (1, 0), 'mixed': (0, 1)}
  for name, (polish_share, mixed_share) in settings.items():
    config = dataclasses.replace(SEARCHES, polish=polish_share, mixed=mixed_share)
    used = [words(output) for *_, output in documents(config, 50)]
    assert all(said <= english | polish for said in used)
    languages = [(bool(said & english), bool(said & polish)) for said in used]
    if name == 'mixed':
      assert languages.count((True, True)) > 25
    else:
      assert set(languages) == {(name == 'english', name == 'polish')}
  used = [
    words(output)
    for *_, output in documents(dataclasses.replace(SEARCHES, polish=0.3, mixed=0.3))
  ]
  # 60 each, of 200, with a deviation of 6.5; a short mixed one may seem pure.
  assert 30 < sum(bool(said & english and said & polish) for said in used) < 86
  assert 34 < sum(not said & english for said in used) < 100


def test_schoolbooks_drill_right_results_half_of_them_equal():
  config = dataclasses.replace(CAREFUL, schoolbook=1.0)
  lines = []
  for index in range(100):
    question, output = corpus.document(config, TASK, 0, index)
    assert question == 'practise'
    assert len(output.splitlines()) == config.drill_lines
    lines += output.splitlines()
  equal = 0
  for line in lines:
    match = re.fullmatch(r'(\d+[-+*]\d+)=(\d+)\?(\d+) (\w+)', line)
    assert match is not None
    calculation, result, target, word = match.groups()
    assert eval(calculation) == int(result)
    assert word in verdict(int(result), int(target))
    equal += result == target
  # 1200 lines: a half are made equal, a 25th of the others are by chance; deviation 17.
  assert 550 < equal < 700
