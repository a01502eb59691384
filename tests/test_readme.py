"""The README: short, plain, and its code and tables right."""

import re

import jax.numpy as jnp
import pytest
from pages import DOCS, README, ROOT, fenced, tables

from r1jax import grpo

TEXT = README.read_text()


def test_it_is_short():
  assert len(TEXT.splitlines()) <= 200
  assert len(TEXT.split()) <= 1800


@pytest.fixture
def names():
  (code,) = fenced(TEXT, 'python')
  names: dict = {}
  exec(code, names)
  return names


def test_its_reward_counts_characters(names):
  assert [names['brevity'](None, 'x' * n) for n in (200, 201)] == [1, 0]


def test_its_advantage_is_a_sign(names):
  reward = jnp.array([[0.0, 0, 3, 0], [0.1, 0.1, 0.1, 0.1]])
  got = names['sign_advantage'](grpo.outcomes(reward), None)
  assert got.tolist() == [[-1, -1, 1, -1], [0, 0, 0, 0]]


def test_its_stage_table_is_that_of_the_results_without_intervals():
  (ours,) = (t for t in tables(TEXT) if t[0][:2] == ['%', 'base'])
  (full, *_) = (
    t for t in tables((DOCS / 'results.md').read_text()) if t[0][:2] == ['%', 'base']
  )
  assert ours == [[re.sub(r' \(.*\)', '', cell) for cell in row] for row in full]


def test_its_seconds_are_those_of_the_page_on_performance():
  (ours,) = (t for t in tables(TEXT) if t[0][1:] == ['r1jax', 'TRL', 'Tunix'])
  (full,) = (
    t
    for t in tables((DOCS / 'performance.md').read_text())
    if t[0][1:] == ['r1jax', 'TRL', 'Tunix', 'transformers']
  )
  measured = [row[1:4] for row in full]
  assert all(row[1:] in measured for row in ours[2:])


def test_its_map_names_every_room_and_every_equation():
  (map_of_the_code,) = (block for block in fenced(TEXT) if block.startswith('r1jax/'))
  top = ROOT / 'r1jax'
  rooms = {f'{path.parent.name}/' for path in top.glob('*/__init__.py')}
  equations = {path.stem for path in top.glob('*.py')} - {'__init__'}
  named = re.findall(r'^  ([a-z]+/)', map_of_the_code, re.MULTILINE)
  assert sorted(named) == sorted(rooms)
  assert equations <= set(map_of_the_code.split())
