"""The pages of docs/ and the README: code runs, links lead somewhere, words are few."""

import dataclasses
import importlib.util
import re

import jax.numpy as jnp
import numpy as np
import pytest
from pages import DOCS, PAGES, ROOT, anchors, commands, fenced, paragraphs, prose

from experiments.paper import choices
from r1jax import grpo
from r1jax.grpo import GRPOConfig
from scripts import algorithm_page, module_map

EXTENDING = (DOCS / 'extending.md').read_text()
# Spellings that a command no longer has; docs/stages.md lists them in a table.
OLD_FLAGS = re.compile(
  r'--(?:(?:base|sft|rl|preference)-optim|grpo|evaluate|scoreboard)\b(?!-)'
)

every_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)


@pytest.fixture
def examples():
  """The names that the code of docs/extending.md defines, block after block."""
  names: dict = {}
  for code in fenced(EXTENDING, 'python'):
    exec(code, names)
  return names


def test_the_example_of_a_reward_counts_characters(examples):
  assert [examples['brevity'](None, 'x' * n) for n in (200, 201)] == [1, 0]


def test_the_example_of_an_advantage_is_a_sign(examples):
  reward = jnp.array([[0.0, 0, 3, 0], [0.1, 0.1, 0.1, 0.1]])
  config = GRPOConfig(advantage=examples['sign_advantage'])
  got = grpo.group_advantage(grpo.outcomes(reward), config=config)
  assert got.tolist() == [[-1, -1, 1, -1], [0, 0, 0, 0]]


def test_the_notebook_computes_a_loss(examples):
  # On policy the loss is minus the mean of A over the 5 + 3 + 4 + 4 tokens, where A is
  # 1/2 over std = sqrt(1/3), and over 1e-4 more, with the signs + - - +.
  expected = -(5 - 3 - 4 + 4) / 16 * 0.5 / (3**-0.5 + 1e-4)
  np.testing.assert_allclose(examples['loss'], expected, rtol=1e-5)
  assert examples['metrics']['ratio'] == 1


def test_the_page_of_choices_is_generated_from_them():
  assert (DOCS / 'paper_choices.md').read_text() == choices.markdown()
  assert algorithm_page.FILE.read_text() == algorithm_page.markdown()


def test_the_table_of_modules_is_generated_from_their_docstrings():
  page = module_map.PAGE.read_text()
  assert page == module_map.updated(page), 'run python -m scripts.module_map'


@every_page
def test_links_lead_somewhere(page):
  text = page.read_text()
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if target.startswith('https://'):
      continue
    path, _, anchor = target.partition('#')
    there = (page.parent / path).resolve() if path else page
    assert there.exists(), f'{page.name}: {target}'
    assert not anchor or anchor in anchors(there.read_text()), f'{page.name}: {target}'


@every_page
def test_paths_in_the_text_exist(page):
  folders = '|'.join(('r1jax', 'experiments', 'scripts', 'tests', 'docs', 'findings'))
  for path in re.findall(rf'`(?:\./)?((?:{folders})/[\w./]*)`', page.read_text()):
    assert (ROOT / path).exists(), f'{page.name}: {path}'


@every_page
def test_commands_name_modules_that_exist(page):
  for module, *_ in commands(page.read_text()):
    assert importlib.util.find_spec(module), f'{page.name}: python -m {module}'


@every_page
def test_commands_have_the_flags_of_today(page):
  for words in commands(page.read_text()):
    assert not [word for word in words if OLD_FLAGS.match(word)], words


@every_page
def test_prose_is_wrapped_and_paragraphs_are_short(page):
  text = page.read_text()
  assert [line for line in prose(text).splitlines() if len(line) > 100] == []
  assert [p for p in paragraphs(text) if len(p.split()) > 70] == []


def _fields(config, prefix=''):
  for field in dataclasses.fields(config):
    yield prefix + field.name
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from _fields(value, f'{prefix}{field.name}.')


@every_page
def test_flags_of_experiments_are_fields_of_their_configs(page):
  for module, *words in commands(page.read_text()):
    if not module.startswith('experiments.'):
      continue
    own = [
      value
      for value in vars(importlib.import_module(module)).values()
      if dataclasses.is_dataclass(value)
      and isinstance(value, type)
      and value.__module__ == module
      and 'workdir' in value.__dataclass_fields__
    ]
    # A module of ablations has none of its own.
    if not own:
      continue
    known = {name for config in own for name in _fields(config())}
    flags = {w[2:].replace('-', '_') for w in words if w.startswith('--')}
    assert flags <= known | {'help'}, f'{page.name}: {sorted(flags - known)}'
