"""Documents about all tasks, checked with regular expressions and `eval`."""

import dataclasses
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from r1jax import tasks
from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.miniature.writers import WriterConfig
from r1jax.rewards import filters
from r1jax.tasks import arithmetic, equations, instructions, splits
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.tasks.countdown import CountdownConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.text import language, parsing, templates
from r1jax.text.language import PHRASES
from r1jax.text.tokenizer import Tokenizer

TASKS = TaskConfigs()
# Trying aside, which may end without a solution.
RIGHT = CorpusConfig(slip=0.0, trying=0.0)
SEARCH = WriterConfig(schoolbook=0.0)
MODULES = {
  'equations': equations,
  'arithmetic': arithmetic,
  'instructions': instructions,
}


def written(task, config, count=300, keep=lambda problem: True):
  """Triples of a problem, its parsed output and the output itself."""
  done = 0
  for index in range(100 * count):
    rng = random.Random(index)
    problem = MODULES[task].draw(getattr(TASKS, task), rng)
    if not keep(problem):
      continue
    output = corpus.write(config, problem, rng)
    parsed = parsing.parse(output)
    assert parsed is not None
    yield problem, parsed, output
    done += 1
    if done == count:
      return


def equalities(parsed):
  """Pairs of neighbours in chains of numbers that are said to be equal."""
  for line in parsed.think.splitlines():
    chain = line.partition('?')[0].rpartition(' ')[2].split('=')
    terms = [term for term in chain if 'x' not in term]
    yield from itertools.pairwise(terms)


# --- Documents ----------------------------------------------------------------------


def test_a_document_depends_only_on_seed_and_index():
  def several(seed):
    return [corpus.document(CorpusConfig(), TASKS, seed, index) for index in range(60)]

  here = several(0)
  assert several(0) == here
  assert len(set(here)) > 50
  # A question may come again, an output hardly; short ones may be alike.
  assert len(set(here) & set(several(1))) < 5
  code = (
    'from r1jax.miniature import corpus\n'
    'config, tasks = corpus.CorpusConfig(), corpus.TaskConfigs()\n'
    'print(ascii([corpus.document(config, tasks, 0, i) for i in range(60)]))'
  )
  environment = {**os.environ, 'PYTHONHASHSEED': '7'}
  there = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, check=True
  )
  assert there.stdout.decode().strip() == ascii(here)


def test_tasks_have_the_configured_shares():
  config = CorpusConfig(
    equations=0.3, arithmetic=0.2, instructions=0.1, countdown=SEARCH, slip=0.0
  )
  firsts = Counter(
    corpus.document(config, TASKS, 0, index)[0].split()[0] for index in range(2000)
  )
  # Four deviations of at most 22
  assert abs(firsts['solve'] - 600) < 90
  assert abs(firsts['calculate'] - 400) < 80
  assert abs(firsts['make'] - 800) < 95
  assert set(firsts) == {
    *('solve', 'calculate', 'make'),
    *('in', 'sort', 'backwards', 'count', 'explain,'),
  }


EQUATION = re.compile(r'^(\d*)x([+-]\d+)=(?:(\d*)(x)\+)?(\d+)$', re.MULTILINE)
CALCULATION = re.compile(r'(?<!\d)(?=(\d+)([-+*])(\d+)(?!\d))')
EXPRESSION = re.compile(r'(?<![\dx])[\d(][\d()+*-]*[\d)](?![\dx])')


class Read:
  """What documents state, by task, in forms that twins share.

  Countdown: the sorted numbers of every calculation with so many of them. Equations:
  factor, term and right side with all x on the left. Arithmetic: numbers and sign.
  Instructions: what is asked about.
  """

  def __init__(self, numbers):
    self.numbers = numbers
    self.seen: dict[str, set[Any]] = {name: set() for name in TASK_NAMES}

  def document(self, question, output):
    task, _, asked = question.partition(' ')
    everything = f'{asked}\n{output}'
    if task == 'make':
      self.seen['countdown'].add(tuple(sorted(map(int, asked.split()[2:]))))
    for found in EXPRESSION.findall(everything):
      numbers = tuple(sorted(map(int, re.findall(r'\d+', found))))
      if len(numbers) == self.numbers:
        self.seen['countdown'].add(numbers)
    for factor, term, other, x, right in EQUATION.findall(everything):
      less = int(other or 1) if x else 0  # x alone stands for 1x
      self.seen['equations'].add((int(factor or 1) - less, int(term), int(right)))
    for left, sign, right in CALCULATION.findall(everything):
      larger, smaller = int(left), int(right)
      if sign != '-':
        larger, smaller = max(larger, smaller), min(larger, smaller)
      self.seen['arithmetic'].add((larger, sign, smaller))
    if task not in ('make', 'solve', 'calculate', 'practise'):
      self.seen['instructions'].add(content(question))


TASK_NAMES = ('countdown', *MODULES)


def content(question):
  """What an instruction is about, whatever its order, layout or language."""
  words = re.sub('[:+]', ' ', question).split()
  if words[0] == 'count':
    return 'count', tuple(words[1:4])
  if words[0] in ('sort', 'backwards'):
    return words[0], tuple(sorted(words[1:]))
  return 'sum', tuple(sorted(words[-2:]))


def forms(task, difficulties, split):
  """The problems of a split as `Read` sees them."""
  found = set()
  for problem in tasks.module(task).generate(getattr(difficulties, task), split):
    truth = problem.truth
    match task:
      case 'countdown':
        found.add(tuple(sorted(truth['numbers'])))
      case 'equations':
        factor = truth['factor'] - truth['other']
        found.add((factor, truth['term'], factor * truth['x'] + truth['term']))
      case 'arithmetic':
        found.add((truth['left'], truth['sign'], truth['right']))
      case 'instructions':
        found.add(content(problem.question))
  return found


@pytest.mark.parametrize(
  ('config', 'difficulties', 'count', 'expected'),
  [
    # A sixth of what a base model reads; all 126 multisets of Countdown's train split
    # are combined in it.
    (CorpusConfig(), TASKS, 20_000, {'countdown': 126, 'instructions': 200}),
    # Numbers up to 20 go beyond the least of arithmetic, in schoolbooks too.
    (
      CorpusConfig(),
      TaskConfigs(CountdownConfig(3, 20, 100)),
      2000,
      {'countdown': 500},
    ),
    (CorpusConfig(), TaskConfigs(CountdownConfig(2, 12, 100)), 1000, {'countdown': 50}),
    (CorpusConfig(slip=0.5, trying=0.8, equations=0.6, arithmetic=0.4, instructions=0),
     TaskConfigs(equations=EquationsConfig(9, 20, 40)), 3000, {'countdown': 100}),
  ],
)  # fmt: skip
def test_no_document_states_or_calculates_any_held_out_problem(
  config, difficulties, count, expected
):
  read = Read(difficulties.countdown.numbers)
  for index in range(count):
    read.document(*corpus.document(config, difficulties, 0, index))
  for task in TASK_NAMES:
    for split in ('validation', 'test'):
      assert not read.seen[task] & forms(task, difficulties, split)
    # The search has found something: problems of the train split.
    if config.instructions or task != 'instructions':
      known = read.seen[task] & forms(task, difficulties, 'train')
      assert len(known) >= expected.get(task, 50)


def test_rejected_documents_exist_and_are_rare():
  rng = random.Random(0)
  stating: Counter[str] = Counter()
  for task in TASK_NAMES:
    for _ in range(1000):
      _, output = corpus._document(CorpusConfig(), TASKS, task, rng)
      others = None if task == 'countdown' else TASKS.countdown
      stating[task] += corpus.states_held_out(output, others)
  # Searches with products like 4*8*9, and equations that are tried.
  assert 5 < stating['countdown'] < 50
  assert 100 < stating['equations'] < 250
  assert stating['arithmetic'] < 20
  assert stating['instructions'] == 0


def test_prompts_of_all_tasks_are_short_in_the_corpus_tokens():
  documents = (
    corpus.document(CorpusConfig(), TASKS, 0, index) for index in range(1000)
  )
  texts = [
    f'{templates.render("plain", question)} {output}' for question, output in documents
  ]
  tokenizer = Tokenizer.train(texts, 400)
  for task in ('countdown', *MODULES):
    module = tasks.module(task)
    for split in splits.SPLITS:
      for problem in module.generate(getattr(TASKS, task), split):
        assert len(problem.question) <= 28
        assert len(tokenizer.encode(templates.render('plain', problem.question))) <= 32


# --- Careful writers ------------------------------------------------------------------


@pytest.mark.parametrize('task', MODULES)
def test_careful_writers_make_no_mistakes(task):
  kind = 0
  for problem, parsed, output in written(task, corpus.CAREFUL, 500):
    assert tasks.verify(problem, parsed.answer)
    assert filters.faults(problem, output) == []
    assert language.share(output, problem.language) == 1
    assert len(set(parsed.think.splitlines())) > 1 or task == 'instructions'
    kind += parsed.summary in PHRASES[problem.language]['kind']
    assert all(eval(a) == eval(b) for a, b in equalities(parsed))
  if task == 'instructions':
    assert 100 < kind < 200  # 0.3 of 500, with a deviation of 10


def test_an_equation_is_solved_in_steps_that_all_hold_for_its_solution():
  steps = 0
  for problem, parsed, _ in written('equations', RIGHT):
    lines = parsed.think.splitlines()[1:]
    assert lines[0] == problem.id
    assert lines[-1].startswith('x=')
    for line in lines:
      plain = re.sub(r'(\d)x', r'\1*x', line)
      values = {eval(side, {'x': problem.truth['x']}) for side in plain.split('=')}
      assert len(values) == 1
      steps += 1
    assert parsed.answer == str(problem.truth['x'])
  assert steps > 800


def test_a_calculation_goes_by_tens_and_ones():
  for problem, parsed, _ in written('arithmetic', RIGHT):
    lines = parsed.think.splitlines()[1:]
    assert len(lines) == (3 if problem.truth['sign'] == '*' else 2)
    assert re.match(r'\d0\*' if len(lines) == 3 else r'\d+[-+]\d0=', lines[0])
    assert len(list(equalities(parsed))) == len(lines)
    assert all(eval(a) == eval(b) for a, b in equalities(parsed))
    assert int(parsed.answer) == eval(problem.id)


def test_trying_goes_from_number_to_number_until_one_fits():
  config = dataclasses.replace(RIGHT, trying=1.0)
  found = 0
  for problem, parsed, _ in written(
    'equations', config, keep=lambda problem: not problem.truth['other']
  ):
    x, lines = problem.truth['x'], parsed.think.splitlines()[1:]
    tried = [int(line.removeprefix('x=').split()[0]) for line in lines]
    assert 1 <= tried[0] <= 6
    assert len(tried) <= 8
    for number, line in zip(tried, lines, strict=True):
      verdict = 'low' if number < x else 'high' if number > x else 'yes'
      assert line.rpartition(' ')[2] in {PHRASES[n][verdict][0] for n in ('en', 'pl')}
    direction = 1 if tried[0] < x else -1
    assert tried == [tried[0] + direction * n for n in range(len(tried))]
    assert all(eval(a) == eval(b) for a, b in equalities(parsed))
    assert parsed.answer == str(tried[-1])  # right or given up
    found += tried[-1] == x
  assert 100 < found < 300


# --- Sloppy writers -------------------------------------------------------------------


def test_lines_are_wrong_at_the_rate_of_slips():
  config = dataclasses.replace(RIGHT, slip=0.2)
  pairs = [
    eval(a) == eval(b)
    for _, parsed, _ in written('arithmetic', config, 1000)
    for a, b in equalities(parsed)
  ]
  assert len(pairs) > 2000
  # Five deviations of 0.008
  assert abs(pairs.count(False) / len(pairs) - 0.2) < 0.04


def test_a_slip_makes_an_equation_wrong():
  config = dataclasses.replace(RIGHT, slip=0.2)
  pairs, right = [], 0
  for problem, parsed, _ in written('equations', config, 1000):
    for line in parsed.think.splitlines()[1:]:
      difference = re.search(r'=(\d+[+-]\d+)=(\d+)$', line)
      if difference:
        pairs.append(eval(difference[1]) == int(difference[2]))
    right += tasks.verify(problem, parsed.answer)
  assert len(pairs) == 1000
  assert abs(pairs.count(False) / 1000 - 0.2) < 0.065  # five deviations
  # Two slips spoil an answer, but one before a division may be rounded away.
  assert 0.6 < right / 1000 < 0.85


def test_always_slipping_is_never_right():
  config = dataclasses.replace(RIGHT, slip=1.0)
  for _, parsed, _ in written('arithmetic', config):
    for a, b in equalities(parsed):
      # A slip below 0 is written as 0, and so is right where 0 is.
      assert eval(a) != int(b) or int(b) == 0
      assert abs(eval(a) - int(b)) <= 10 or int(b) == 0


def test_writers_try_and_summarise_at_their_rates():
  config = dataclasses.replace(RIGHT, trying=0.4, summary=0.3)
  found = list(
    written('equations', config, 1000, lambda problem: not problem.truth['other'])
  )
  tried = sum(parsed.think.splitlines()[1].startswith('x=') for _, parsed, _ in found)
  assert abs(tried / 1000 - 0.4) < 0.08  # five deviations
  summaries = [parsed for _, parsed, _ in found if parsed.summary]
  assert abs(len(summaries) / 1000 - 0.3) < 0.075
  used = {PHRASES[name]['used'][0] for name in ('en', 'pl')}
  for parsed in summaries:
    said, result = parsed.summary.rsplit(' ', 1)
    assert said in used
    assert result == f'x={parsed.answer}'
  for problem, parsed, _ in written(
    'arithmetic', dataclasses.replace(RIGHT, summary=1)
  ):
    assert parsed.summary.rsplit(' ', 1)[1] == f'{problem.id}={parsed.answer}'


def test_some_writers_follow_an_instruction_and_others_nearly():
  config = CorpusConfig(obedient=0.5, kind=0.3)
  seen: Counter[str] = Counter()
  obeyed: Counter[str] = Counter()
  for problem, parsed, _ in written('instructions', config, 3000):
    kind = problem.truth['kind']
    seen[kind] += 1
    obeyed[kind] += tasks.verify(problem, parsed.answer)
    seen['kind'] += bool(parsed.summary)
    if kind in ('sort', 'backwards'):
      items = map(str, problem.truth['items'])
      assert sorted(parsed.answer.split()) == sorted(items)
  for kind in ('translate', 'count', 'explain'):
    # Of 600 each; five deviations of 0.02
    assert abs(obeyed[kind] / seen[kind] - 0.5) < 0.1
  for kind in ('sort', 'backwards'):
    # An order at random is the right one of 6 sometimes.
    assert abs(obeyed[kind] / seen[kind] - (0.5 + 0.5 / 6)) < 0.1
  assert abs(seen['kind'] / 3000 - 0.3) < 0.042


def test_ignored_instructions_are_right_by_chance_only_in_orders():
  config = CorpusConfig(obedient=0.0)
  for problem, parsed, _ in written('instructions', config):
    if problem.truth['kind'] not in ('sort', 'backwards'):
      assert not tasks.verify(problem, parsed.answer)
      assert parsed.answer


def test_native_writers_use_the_problems_language():
  def mixed(native):
    config = CorpusConfig(native=native, obedient=1.0)
    return sum(
      language.share(output, problem.language) < 1
      for problem, _, output in written('instructions', config, 500)
    )

  assert mixed(1.0) == 0
  # Polish 0.3 and mixed 0.2 of those that are to be English, most of the rest else.
  assert mixed(0.0) > 150


# --- Settings -------------------------------------------------------------------------


def test_configs_come_back_from_plain_data():
  difficulties = TaskConfigs(CountdownConfig(2, 6, 9), arithmetic=ArithmeticConfig(50))
  assert corpus.tasks_of(dataclasses.asdict(difficulties)) == difficulties


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'slip': 1.5}, 'slip: expected 0 to 1, got 1.5'),
    ({'native': -0.1}, 'native: expected 0 to 1, got -0.1'),
    ({'equations': float('nan')}, 'equations: expected 0 to 1, got nan'),
    ({'equations': 0.5, 'arithmetic': 0.6, 'instructions': 0.0},
     'expected at most 1 as the sum of .*, got 1.1'),
  ],
)  # fmt: skip
def test_impossible_settings_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    CorpusConfig(**fields)
