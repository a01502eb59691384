"""Instructions and their solutions, by hand and from the question alone."""

import itertools
import random
import re
from collections import Counter

import hypothesis
import pytest
from hypothesis import strategies

from r1jax import tasks
from r1jax.tasks import instructions, splits
from r1jax.tasks.instructions import InstructionsConfig, draw, generate, solution
from r1jax.text import language

POLISH = instructions.translate('in Polish', 3, 4)
ENGLISH = instructions.translate('in English', 3, 4)
ONE_LINE = instructions.count(3, 5, 'in one line')
LINE_BY_LINE = instructions.count(3, 5, 'line by line')
EXPLAIN = instructions.explain(3, 4)
SORT = instructions.sort((5, 2, 9))
BACKWARDS = instructions.backwards(('cat', 'sun', 'tree'))
KINDS = (POLISH, ENGLISH, ONE_LINE, LINE_BY_LINE, EXPLAIN, SORT, BACKWARDS)


def every(config):
  return [p for split in splits.SPLITS for p in generate(config, split)]


@pytest.mark.parametrize(
  ('problem', 'question', 'answer'),
  [
    (POLISH, 'in Polish: 3+4', 'siedem'),
    (ENGLISH, 'in English: 3+4', 'seven'),
    (ONE_LINE, 'count 3 to 5 in one line', '3 4 5'),
    (LINE_BY_LINE, 'count 3 to 5 line by line', '3\n4\n5'),
    (EXPLAIN, 'explain, then answer: 3+4', 'because 3+4=7: 7'),
    (SORT, 'sort 5 2 9', '2 5 9'),
    (BACKWARDS, 'backwards cat sun tree', 'tree sun cat'),
  ],
)
def test_each_kind_by_hand(problem, question, answer):
  assert problem.question == question
  assert solution(problem) == answer
  spaced = answer.replace(' ', '  ').replace('\n', ' \n  ')
  assert tasks.verify(problem, f'\n {spaced} ')
  assert tasks.answer_key(problem, spaced) == tasks.answer_key(problem, answer)
  for other in KINDS:
    assert tasks.verify(other, answer) == (other == problem)


@pytest.mark.parametrize(
  ('problem', 'answer'),
  [
    (POLISH, '7'),
    (POLISH, 'siedem seven'),
    (ENGLISH, 'Seven'),
    (ONE_LINE, '3 4 5 6'),
    (ONE_LINE, '345'),
    (ONE_LINE, '3, 4, 5'),
    (LINE_BY_LINE, '3\n\n4\n5'),
    (EXPLAIN, '7'),
    (EXPLAIN, 'because 3+4=8: 8'),
    (SORT, '9 5 2'),
    (SORT, '2 5 5 9'),
    (BACKWARDS, 'cat sun tree'),
    (BACKWARDS, ''),
  ],
)
def test_almost_right_is_wrong(problem, answer):
  assert not tasks.verify(problem, answer)


# From two on, the least sum.
ENGLISH_NUMBERS = 'two three four five six seven eight nine ten eleven twelve'
POLISH_NUMBERS = (
  'dwa trzy cztery pięć sześć siedem osiem dziewięć dziesięć jedenaście dwanaście'
)


def done(question):
  """What the question asks for, and its language."""
  first, *rest = question.split()
  if first == 'sort':
    return ' '.join(sorted(rest)), 'en'  # of one digit each
  if first == 'backwards':
    return ' '.join(rest[::-1]), 'en'
  if first == 'in':
    words = POLISH_NUMBERS if rest[0] == 'Polish:' else ENGLISH_NUMBERS
    return words.split()[eval(rest[1]) - 2], 'pl' if rest[0] == 'Polish:' else 'en'
  if first == 'count':
    numbers = [str(n) for n in range(int(rest[0]), int(rest[2]) + 1)]
    return (' ' if rest[3:] == ['in', 'one', 'line'] else '\n').join(numbers), 'en'
  assert [first, *rest[:2]] == ['explain,', 'then', 'answer:']
  return f'because {rest[2]}={eval(rest[2])}: {eval(rest[2])}', 'en'


@pytest.mark.parametrize('config', [InstructionsConfig(), InstructionsConfig(4, 40)])
def test_every_solution_follows_from_the_question(config):
  for problem in every(config):
    answer, spoken = done(problem.question)
    assert tasks.verify(problem, answer)
    assert problem.language == spoken
    words = language.words(answer)
    assert all(language.is_of(word, spoken) for word in words)


@pytest.mark.parametrize(
  'twins',
  [
    [
      instructions.translate(how, *pair)
      for how in instructions.LANGUAGES
      for pair in ((3, 4), (4, 3))
    ]
    + [instructions.explain(3, 4), instructions.explain(4, 3)],
    [instructions.count(3, 5, how) for how in instructions.LAYOUTS],
    [instructions.sort(order) for order in itertools.permutations((5, 2, 9))],
    [
      instructions.backwards(order)
      for order in itertools.permutations(('cat', 'sun', 'tree'))
    ],
  ],
)
def test_problems_with_the_same_content_are_a_group(twins):
  assert len({problem.id for problem in twins}) == len(twins)
  assert len({instructions.group(problem) for problem in twins}) == 1


def test_different_content_is_another_group():
  problems = [
    *KINDS,
    instructions.count(3, 6, 'in one line'),
    instructions.sort((1, 2)),
  ]
  problems += [instructions.explain(3, 5), instructions.explain(2, 5)]
  # Three of `KINDS` are about 3+4, two about counting from 3 to 5.
  assert len({instructions.group(problem) for problem in problems}) == len(problems) - 3


def test_held_out_instructions_are_of_all_kinds():
  for split in ('validation', 'test'):
    kinds = {problem.truth['kind'] for problem in generate(InstructionsConfig(), split)}
    assert kinds == {'sort', 'backwards', 'translate', 'count', 'explain'}
  assert len(list(generate(InstructionsConfig(), 'test'))) >= 64  # as many are asked


def test_all_kinds_are_there():
  counts = Counter(
    re.sub(r':? [\d+ ]+', ' # ', p.question) for p in every(InstructionsConfig())
  )
  # Pairs of numbers from 1 with a sum of at most 12: 11 + 10 + … + 1 = 66.
  assert counts['in Polish # '] == counts['in English # '] == 66
  assert counts['explain, then answer # '] == 66
  # 20 beginnings and 3 lengths
  assert counts['count # to # line by line'] == counts['count # to # in one line'] == 60
  assert counts['sort # '] == 400  # of 9*8*7
  backwards = sum(n for name, n in counts.items() if name.startswith('backwards '))
  assert backwards == 400  # of 9*8*7
  assert sum(counts.values()) == 3 * 66 + 2 * 60 + 2 * 400


def test_draw_gives_every_kind_equally_often():
  rng = random.Random(0)
  kinds = Counter(draw(InstructionsConfig(), rng).truth['kind'] for _ in range(1000))
  assert set(kinds) == {'sort', 'backwards', 'translate', 'count', 'explain'}
  assert all(140 < count < 260 for count in kinds.values())  # 200, deviation 12.6


def test_draw_reaches_all_problems_of_a_small_difficulty():
  config, rng = InstructionsConfig(2, 1), random.Random(0)
  # 72 pairs of each of 2 kinds, 6 ways of counting, 3 * 66 sums: fewer than the most
  # of a kind. Of 1 in 5 * 132 each, 10,000 draws miss one once in 10^4.
  drawn = {draw(config, rng).id for _ in range(10_000)}
  assert drawn == {problem.id for problem in every(config)}
  assert len(drawn) == 2 * 72 + 6 + 3 * 66


@hypothesis.given(strategies.text() | strategies.text('3 4\n5seven', max_size=8))
def test_checking_never_raises(answer):
  for problem in KINDS:
    right = solution(problem).split()
    assert not tasks.verify(problem, answer) or answer.split() == right
    key = tasks.answer_key(problem, answer)
    assert key == tasks.answer_key(problem, f' {answer} ')
    assert (key is None) == (not answer.strip())


def test_an_unknown_kind_is_named():
  with pytest.raises(ValueError, match="expected one of the instructions, got 'sing'"):
    solution(tasks.Problem('1', 'instructions', 'sing', {'kind': 'sing'}))


def test_neighbours_are_of_different_kinds():
  kinds = [
    p.truth['kind']
    for p in itertools.islice(generate(InstructionsConfig(), 'train'), 100)
  ]
  assert all(10 < kinds.count(kind) < 30 for kind in set(kinds))  # 20, deviation 4
  assert len(set(kinds)) == 5


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'length': 1}, 'length: expected 2 to 5, got 1'),
    ({'length': 6}, 'length: expected 2 to 5, got 6'),
    ({'largest_start': 0}, 'largest_start: expected 1 to 90, got 0'),
  ],
)
def test_impossible_difficulties_are_refused(fields, message):
  with pytest.raises(ValueError, match=rf'^{message}$'):
    InstructionsConfig(**fields)
