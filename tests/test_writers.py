"""Documents about Countdown, checked with regular expressions and `eval`."""

import dataclasses
import itertools
import random
import re
from collections import Counter

import pytest

from r1jax import tasks
from r1jax.miniature import writers
from r1jax.miniature.writers import WriterConfig
from r1jax.tasks import Problem, countdown, expressions
from r1jax.tasks.countdown import CountdownConfig
from r1jax.text import parsing
from r1jax.text.language import ENGLISH, POLISH

TASK = CountdownConfig(3, 8, 60)
SEARCH = WriterConfig(schoolbook=0.0)
CAREFUL = dataclasses.replace(SEARCH, miscalculation=0.0, misjudgement=0.0)
QUESTION = re.compile(r'make (\d+) from (\d+(?: \d+)*)')
# A chain of equal calculations, what its result is compared with, and a verdict.
ATTEMPT = re.compile(r'([0-9+*()-]+(?:=[0-9+*()-]+)+)\?(\d+) (\w+)')
WORDS = {what: {*ENGLISH[what], *POLISH[what]} for what in ENGLISH}


def document(config, task, index, seed=0):
  return writers.document(config, task, random.Random(f'{seed} {index}'))


def documents(config, count=200, seed=0, task=TASK):
  """Triples of a problem, its parsed output and the output itself."""
  for index in range(count):
    question, output = document(config, task, index, seed)
    match = QUESTION.fullmatch(question)
    assert match is not None
    target, numbers = int(match[1]), [int(n) for n in match[2].split()]
    identity = countdown.problem_id(tuple(numbers), target)
    truth = {'numbers': numbers, 'target': target}
    parsed = parsing.parse(output)
    assert parsed is not None
    yield Problem(identity, 'countdown', question, truth), parsed, output


def verdict(result, target):
  """The words that say truly how the result compares."""
  return WORDS['low' if result < target else 'high' if result > target else 'yes']


def attempts(problem, thoughts):
  """Pairs of the first calculation and the verdict, of every attempt."""
  found = ATTEMPT.findall(thoughts)
  assert len(found) == thoughts.count('?')
  assert all(int(target) == problem.truth['target'] for _, target, _ in found)
  return [(chain, word) for chain, _, word in found]


def words(output):
  return set(re.findall(r'[^\W\d_]+', re.sub(r'</?\w+>', ' ', output)))


def vocabulary(language):
  return {
    word for said in language.values() for phrase in said for word in phrase.split()
  }


@pytest.mark.parametrize('task', [TASK, CountdownConfig(2, 12, 100)])
def test_no_search_is_about_a_held_out_problem(task):
  train = {problem.id for problem in countdown.generate(task, 'train')}
  for problem, *_ in documents(SEARCH, 200, task=task):
    assert problem.id in train  # solvable, and within the difficulty


def test_careful_writers_calculate_and_judge_rightly():
  total = doubts = 0
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, recheck=0.3)):
    for chain, word in attempts(problem, parsed.think):
      start, *steps = chain.split('=')
      assert {eval(step) for step in steps} == {eval(start)}
      assert steps[-1].isdigit()
      numbers = map(int, re.findall(r'\d+', start))
      assert sorted(numbers) == sorted(problem.truth['numbers'])
      assert word in verdict(eval(start), problem.truth['target'])
      total += 1
    doubts += sum(
      line.split()[0] in WORDS['wait'] | WORDS['check']
      for line in parsed.think.splitlines()
    )
  assert total > 400
  assert 0.2 < doubts / (total - doubts) < 0.4  # 0.3 +- 4 deviations at 400


def test_the_answer_is_the_solution_that_was_found_or_a_bluff():
  solved = 0
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, bluff=0.0)):
    found = bool(words(parsed.think) & WORDS['yes'])
    assert tasks.verify(problem, parsed.answer) == found
    assert found or parsed.answer in WORDS['stop']
    solved += found
  assert 20 < solved < 180
  for problem, parsed, _ in documents(dataclasses.replace(CAREFUL, bluff=1.0)):
    found = bool(words(parsed.think) & WORDS['yes'])
    assert tasks.verify(problem, parsed.answer) == found
    numbers = map(int, re.findall(r'\d+', parsed.answer))
    assert sorted(numbers) == sorted(problem.truth['numbers'])


def test_careless_writers_are_wrong():
  total = 0
  config = dataclasses.replace(CAREFUL, miscalculation=1.0)
  for problem, parsed, _ in documents(config, 50):
    for chain, word in attempts(problem, parsed.think):
      first, *_, last = chain.split('=')
      # A slip below 0 is written as 0, and so is right where 0 is.
      assert eval(first) != int(last) or eval(first) == 0
      assert abs(eval(first) - int(last)) <= 10
      assert word in verdict(int(last), problem.truth['target'])
      total += 1
  assert total > 50
  config = dataclasses.replace(CAREFUL, misjudgement=1.0, recheck=0.0)
  for problem, parsed, _ in documents(config, 50):
    for chain, word in attempts(problem, parsed.think):
      result = eval(chain.split('=')[0])
      assert word in WORDS['low'] | WORDS['high'] | WORDS['yes']
      assert word not in verdict(result, problem.truth['target'])


def test_doubt_corrects_a_misjudgement():
  # Every verdict is wrong, then every one is doubted and calculated again rightly.
  config = dataclasses.replace(CAREFUL, misjudgement=1.0, recheck=1.0, bluff=0.0)
  for problem, parsed, _ in documents(config, 50):
    found = attempts(problem, parsed.think)
    for (chain, word), (again, corrected) in zip(found[::2], found[1::2], strict=True):
      assert chain == again
      right = verdict(eval(chain.split('=')[0]), problem.truth['target'])
      assert word not in right
      assert corrected in right
    assert tasks.verify(problem, parsed.answer) == (found[-1][1] in WORDS['yes'])


def test_impatience_is_the_probability_of_giving_up_after_a_failed_attempt():
  def last_verdicts(impatience, tenacious=0.0):
    config = dataclasses.replace(
      CAREFUL, tenacious=tenacious, impatience=impatience, recheck=0.0
    )
    for problem, parsed, _ in documents(config):
      found = attempts(problem, parsed.think)
      yield len(found), found[-1][1] in WORDS['yes']

  assert all(found for _, found in last_verdicts(0.0))
  assert all(found for _, found in last_verdicts(1.0, tenacious=1.0))
  assert all(count == 1 for count, _ in last_verdicts(1.0))
  seen = list(last_verdicts(0.3))
  failed = sum(count - found for count, found in seen)
  gave_up = sum(not found for _, found in seen)
  assert failed > 300
  assert 0.2 < gave_up / failed < 0.4  # 0.3 +- 4 deviations at 350


def first_calculations(config, count=80):
  """Of every document, the candidates and the places of its attempts among them."""
  config = dataclasses.replace(config, recheck=0.0, impatience=0.0)
  for problem, parsed, _ in documents(config, count):
    candidates = expressions.candidates(tuple(problem.truth['numbers']))
    keys = [expressions.canonical(tree) for tree in candidates]
    found = attempts(problem, parsed.think)
    trees = [expressions.read(chain.split('=')[0]) for chain, _ in found]
    yield keys, [keys.index(expressions.canonical(tree)) for tree in trees if tree]


def test_orderly_writers_try_all_candidates_from_a_random_start():
  starts = set()
  for keys, places in first_calculations(dataclasses.replace(CAREFUL, orderly=1.0)):
    start = places[0]
    assert places == [(start + n) % len(keys) for n in range(len(places))]
    starts.add(start)
  assert len(starts) > 10


def test_other_writers_try_in_random_order_and_nothing_twice():
  steps: Counter[int] = Counter()
  for keys, places in first_calculations(dataclasses.replace(CAREFUL, orderly=0.0)):
    assert len(set(places)) == len(places)
    steps.update((b - a) % len(keys) for a, b in itertools.pairwise(places))
  # About 450 steps over 10 to 18 lengths: no length takes much more than its share.
  assert max(steps.values()) < 0.2 * sum(steps.values())


def test_schoolbooks_are_right_and_half_of_their_results_are_the_target():
  config = WriterConfig(schoolbook=1.0, drill_lines=7)
  equal = 0
  for index in range(60):
    _, output = document(config, TASK, index)
    lines = [ATTEMPT.fullmatch(line) for line in output.splitlines()]
    assert len(lines) == 7
    for line in lines:
      assert line is not None
      calculation, result = line[1].split('=')
      assert eval(calculation) == int(result) >= 0
      assert line[3] in verdict(int(result), int(line[2]))
      equal += result == line[2]
  # Half of 420 and the near misses of no distance, about 10; deviation 10.
  assert 170 < equal < 270


def test_schoolbooks_have_the_configured_share():
  config = WriterConfig(schoolbook=0.3)
  drills = sum(
    not QUESTION.fullmatch(document(config, TASK, index)[0]) for index in range(200)
  )
  assert 30 < drills < 90  # 60, with a deviation of 6.5


def test_writers_speak_english_polish_or_both():
  english, polish = vocabulary(ENGLISH), vocabulary(POLISH)
  assert not english & polish

  def speaking(polish_share, mixed_share, count):
    config = dataclasses.replace(SEARCH, polish=polish_share, mixed=mixed_share)
    return [words(output) for *_, output in documents(config, count)]

  assert all(said <= english for said in speaking(0.0, 0.0, 50))
  assert all(said <= polish for said in speaking(1.0, 0.0, 50))
  assert sum(bool(said & english and said & polish) for said in speaking(0, 1, 50)) > 25
  used = speaking(0.3, 0.3, 200)
  assert all(said <= english | polish for said in used)
  # 60 each, of 200, with a deviation of 6.5; a short mixed one may seem pure.
  assert 30 < sum(bool(said & english and said & polish) for said in used) < 86
  assert 34 < sum(not said & english for said in used) < 100


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'polish': 1.5}, 'polish: expected 0 to 1, got 1.5'),
    ({'polish': 0.9, 'mixed': 0.9}, 'polish: expected at most 1 - mixed=0.9, got 0.9'),
    ({'impatience': -0.1}, 'impatience: expected 0 to 1, got -0.1'),
    ({'drill_lines': 0}, 'drill_lines'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    WriterConfig(**fields)


def test_schoolbooks_have_no_solution_of_a_held_out_problem():
  task = CountdownConfig(2, 12, 100)
  held_out = {
    tuple(sorted(problem.truth['numbers']))
    for split in ('validation', 'test')
    for problem in countdown.generate(task, split)
  }
  config = dataclasses.replace(CAREFUL, schoolbook=1.0)
  for index in range(50):
    _, output = document(config, task, index)
    for pair in re.findall(r'(\d+)[-+*](\d+)=', output):
      assert tuple(sorted(map(int, pair))) not in held_out
