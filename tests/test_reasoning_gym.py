"""Data sets of reasoning-gym as tasks: problems, verdicts, settings, refusals."""

import functools
import importlib.metadata
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import reasoning_gym as library
from reasoning_gym.factory import DATASETS

from experiments.grpo import GRPO
from r1jax import tasks
from r1jax.rewards import Weighted, rules
from r1jax.rewards.pool import RewardPool
from r1jax.runtime import cli
from r1jax.tasks import Problem, reasoning_gym, settings, splits, store
from r1jax.tasks.data import DataConfig

USED = sorted(DATASETS.keys() - reasoning_gym.REFUSED.keys())
SUMS = 'reasoning_gym:chain_sum'
EASY = '{"max_terms": 2, "max_digits": 1}'
# What a model may write where a number, a list or a word is asked for.
ODD = (
  *('', 'no idea', 'null', '[]', '{}', '[[]]', '{"a": 1}', '[1, 2]', ',', ':', '1:1:1'),
  *('inf', '1e999', 'NaN', 'nan+nanj', 'nani', '[NaN, NaN, NaN]', '\x00', 'é😀', 'x=1'),
  *('9' * 5000, '[' * 5000, '(1, 2)', '1 days, 1:1', '"x"', 'a=1,b'),
)


@functools.cache
def entries(dataset: str) -> list[Problem]:
  """The first two problems of a data set."""
  config = reasoning_gym.config_of(dataset, {'size': 2})
  return list(reasoning_gym.problems(config))


def of(task: str, text: str = '') -> dict[str, list[Problem]]:
  """The problems of a task by split."""
  config, module = settings.read(task, text), tasks.module(task)
  return {split: list(module.generate(config, split)) for split in splits.SPLITS}


def test_problems_of_the_splits_are_those_of_the_library_once_each():
  found = of(SUMS, EASY)
  questions = {split: {p.question for p in found[split]} for split in found}
  assert sum(map(len, questions.values())) == sum(map(len, found.values()))
  assert len(set.union(*questions.values())) == sum(map(len, found.values()))
  # 10 * 10 pairs with + and -, all of which occur among 2000.
  assert set.union(*questions.values()) == {
    f'State the final answer to the following arithmetic problem: {a} {sign} {b} ='
    for a in range(10)
    for b in range(10)
    for sign in '+-'
  }
  for p in (*found['train'], *found['validation'], *found['test']):
    a, sign, b = p.text.split()[-4:-1]
    right = int(a) + int(b) if sign == '+' else int(a) - int(b)
    assert tasks.verify(p, f' {right}\n')
    assert not tasks.verify(p, str(right + 1))
    assert not tasks.verify(p, f'It is {right}')  # the library gives it a share


def test_a_seed_gives_other_problems_and_a_level_other_terms():
  first, second = (
    {p.question for p in of(SUMS, json.dumps({'size': 50, 'seed': seed}))['train']}
    for seed in (0, 1000)
  )
  assert len(first & second) < 5
  found = of(SUMS, '{"curriculum_level": 1, "size": 200}')
  facts = [p.truth['metadata'] for split in found.values() for p in split]
  # Levels 0 and 1 of the attributes are 2 and 3 terms, 1 and 2 digits.
  assert {fact['num_terms'] for fact in facts} == {2, 3}
  assert {fact['num_digits'] for fact in facts} == {1, 2}
  found = of(SUMS, '{"curriculum_level": 1, "size": 200, "max_digits": 1}')
  facts = [p.truth['metadata'] for split in found.values() for p in split]
  assert {fact['num_digits'] for fact in facts} == {1}


@pytest.mark.parametrize('dataset', USED)
def test_the_own_answers_are_right_in_a_worker_and_odd_ones_are_not(dataset):
  problems = entries(dataset)
  assert 1 <= len(problems) <= 2
  for one in problems:
    assert json.loads(json.dumps(one.truth)) == one.truth
    sent = pickle.loads(pickle.dumps(one))
    gold = one.truth['answer']
    assert tasks.verify(sent, gold)
    assert tasks.verify(sent, f'\n {gold} ')
    assert sent.truth == one.truth  # no scorer changed it
    for answer in ODD:
      assert not tasks.verify(sent, answer) or answer == gold.strip(), answer


def test_fractions_in_the_metadata_survive_json():
  found = of('reasoning_gym:gsm_symbolic', '{"size": 60}')  # entry 7 has some
  assert 'gsm_symbolic-7' in {p.id for split in found.values() for p in split}


def test_a_scorer_that_writes_into_an_entry_changes_no_problem(monkeypatch):
  (one, *_) = entries('lcm')
  before = json.dumps(one.truth)

  def writing(self, answer, entry):
    entry['metadata']['answers'] = [answer]
    return 1.0

  monkeypatch.setattr(DATASETS['lcm'][0], 'score_answer', writing)
  assert tasks.verify(one, '7')
  assert json.dumps(one.truth) == before


def test_an_answer_of_another_form_is_right_if_its_value_is():
  (problem, *_) = of(SUMS, EASY)['train']
  gold = problem.truth['answer']
  assert tasks.verify(problem, f'{gold}.0')
  assert {tasks.answer_key(problem, text) for text in (gold, f' {gold} ')} == {
    tasks.answer_key(problem, gold)
  }


@pytest.mark.parametrize('dataset', ['complex_arithmetic', 'number_sorting'])
def test_nan_is_wrong_though_the_library_finds_it_right(dataset):
  (one, *_) = entries(dataset)
  count = one.truth['answer'].count(',') + 1
  nan = 'nan' if dataset == 'complex_arithmetic' else f'[{", ".join(["NaN"] * count)}]'
  there = library.create_dataset(dataset, seed=0, size=2)
  assert there.score_answer(nan, there[0]) == 1
  assert not tasks.verify(one, nan)


def test_data_sets_are_refused_for_a_reason_that_holds():
  assert {'coin_flip', 'game_of_life_halting'} <= reasoning_gym.REFUSED.keys()
  flips = library.create_dataset('coin_flip', seed=0, size=20)
  flip = next(entry for entry in flips if entry['answer'] == '0.3125')
  assert flips.score_answer('0', flip) == 1
  lives = library.create_dataset('game_of_life_halting', seed=0, size=5)
  assert {lives.score_answer('False', entry) for entry in lives} == {1}
  assert {entry['answer'] for entry in lives} == {'True', 'False'}
  for dataset, reason in reasoning_gym.REFUSED.items():
    if 'tuples' in reason:
      entry = json.loads(json.dumps(library.create_dataset(dataset, seed=0)[0]))
      there = library.create_dataset(dataset, seed=0)
      assert there.score_answer(entry['answer'], there[0]) == 1
      assert there.score_answer(entry['answer'], entry) < 1
    if 'no right answers' in reason:
      assert library.create_dataset(dataset, seed=0)[0]['answer'] is None


QUESTIONS = """
import contextlib, io, json, sys
import reasoning_gym
found = {}
for name in sys.argv[1:]:
  there = reasoning_gym.create_dataset(name, seed=0, size=2)
  with contextlib.redirect_stdout(io.StringIO()):
    found[name] = [there[n]['question'] for n in range(2)]
print(json.dumps(found))
"""


def test_questions_are_the_same_in_another_process_unless_refused():
  changing = [
    x for x, why in reasoning_gym.REFUSED.items() if 'process to process' in why
  ]
  seed = '2' if os.environ.get('PYTHONHASHSEED') == '1' else '1'
  done = subprocess.run(
    [sys.executable, '-c', QUESTIONS, *USED, *changing],
    env={**os.environ, 'PYTHONHASHSEED': seed},
    stdout=subprocess.PIPE,
    timeout=300,
    check=True,
  )
  there = json.loads(done.stdout)
  for dataset in USED:
    for one in entries(dataset):
      assert one.question == there[dataset][int(one.id.rpartition('-')[2])]
  for dataset in changing:
    here = library.create_dataset(dataset, seed=0)
    assert [here[n]['question'] for n in range(2)] != there[dataset]


@pytest.mark.parametrize(
  ('task', 'text', 'message'),
  [
    ('chess', '', r"task: expected one of .*, 'reasoning_gym:NAME'\], got 'chess'"),
    ('reasoning_gym', '', 'task: expected reasoning_gym:NAME with .* chain_sum, '),
    ('reasoning_gym:sum', '', 'one of the data sets ab, .*, got reasoning_gym:sum'),
    ('reasoning_gym:n_queens', '', 'reasoning_gym:n_queens cannot be used: .*sandbox'),
    (SUMS, '{"terms": 1}', "chain_sum has no setting 'terms'; it has min_terms = 2, "),
    (SUMS, '{"max_terms": "3"}', "chain_sum expects max_terms .* default 6, got '3'"),
    (SUMS, '{"max_terms": true}', 'expects max_terms .* default 6, got True'),
    (SUMS, '{"allow_negation": 1}', 'expects allow_negation .* default False, got 1'),
    (SUMS, '{"max_terms": 1}', 'task_settings: chain_sum: max_terms must be >= min'),
    (SUMS, '{"size": 0}', 'task_settings: chain_sum: size must be positive'),
    (SUMS, '{"curriculum_level": 11}', 'curriculum_level: expected 0 to 10 .* got 11'),
    (SUMS, '{"curriculum_level": -1}', 'curriculum_level: expected 0 to 10 .* got -1'),
    (SUMS, '[1]', r'task_settings: expected an object in JSON, .* got .\[1\]'),
    (SUMS, '{', r'task_settings: expected an object in JSON, .* got .\{'),
    ('reasoning_gym:acre', '{"curriculum_level": 0}', 'acre of .* has no curriculum'),
    ('countdown', '{"number": 4}', "has no setting 'number'; it has numbers = 3, "),
    ('countdown', '{"numbers": 9}', 'task_settings: numbers: expected 2 to 4, got 9'),
    ('gsm8k', '{"name": "x"}', "task_settings: gsm8k has no setting 'name'; it has no"),
  ],
)
def test_a_wrong_task_or_setting_is_named(task, text, message, capsys):
  with pytest.raises(SystemExit):
    cli.parse(GRPO(), ['--task', task, '--task-settings', text])
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(message, line), line


def test_settings_are_those_of_any_task_but_not_of_a_file():
  assert settings.read('countdown', '{"numbers": 4}').name == 'n4_largest9_target100'
  with pytest.raises(ValueError, match='task_settings: expected none with --data'):
    GRPO(task_settings='{}', data=DataConfig('mine.jsonl'))


def test_entries_that_cannot_be_generated_or_checked_are_named(monkeypatch):
  config = reasoning_gym.config_of('aiw', {'task_types': ['siblings'], 'size': 2})
  message = r'fails to generate entry 0 of aiw with .*; choose other settings'
  with pytest.raises(ValueError, match=message):
    list(reasoning_gym.generate(config, 'train'))
  kind, _ = DATASETS['lcm']
  monkeypatch.setattr(kind, 'score_answer', lambda self, answer, entry: 0.9)
  config = reasoning_gym.config_of('lcm', {'size': 3})
  with pytest.raises(ValueError, match=r'lcm cannot be used .* none of its own answ'):
    list(reasoning_gym.generate(config, 'train'))


def test_entries_with_an_empty_answer_are_left_out():
  # Of 16 programs of two tokens, A# #A and B# #B become nothing.
  found = of('reasoning_gym:ab', '{"length": 2, "size": 300}')
  kept = [p for split in found.values() for p in split]
  assert len(kept) == 14
  assert all(p.truth['answer'] for p in kept)


def test_problems_come_back_from_disk_in_a_folder_of_the_version(tmp_path):
  text = '{"size": 60}'
  config = settings.read(SUMS, text)
  found = store.load(SUMS, config, 'train', str(tmp_path))
  by_id = {p.id: p for p in of(SUMS, text)['train']}
  assert {p.id: p for p in found} == by_id
  (folder,) = (tmp_path / 'reasoning_gym').iterdir()
  installed = importlib.metadata.version('reasoning-gym')
  assert folder.name.startswith(f'chain_sum_{installed}_')
  assert tasks.versions([SUMS]) == {SUMS: f'1.0.0+{installed}'}


def test_workers_check_answers_of_the_library():
  (problem, *_) = of(SUMS, EASY)['train']
  gold = problem.truth['answer']
  reward = Weighted('accuracy', rules.accuracy, 1.0)
  form = '<think></think><answer>{}</answer>'
  with RewardPool([reward], workers=1, imports=tasks.imports(SUMS)) as pool:
    texts = [form.format(gold), form.format(f'+{gold}.00'), form.format('nan'), gold]
    scores = pool.submit([problem] * 4, texts).result()
  assert scores.values.ravel().tolist() == [1, 1, 0, 0]
  assert not scores.errors


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'version', missing)
  monkeypatch.delitem(sys.modules, 'r1jax.tasks.reasoning_gym')
  message = r"expected the package reasoning-gym .*pip install 'r1jax\[reasoning_gym\]'"
  with pytest.raises(ValueError, match=message):
    tasks.module(SUMS)
