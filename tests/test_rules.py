"""Rewards for language and readability; those of R1-Zero are in test_pool."""

import hypothesis
import pytest
from hypothesis import strategies

from r1jax.rewards import rules
from r1jax.tasks import arithmetic, instructions

ENGLISH = arithmetic.problem(25, '+', 12)
POLISH = instructions.translate('in Polish', 3, 4)


@pytest.mark.parametrize(
  ('output', 'english', 'polish'),
  [
    ('<think>let me try</think><answer>37</answer>', 1, 0),
    ('<think>więc 25+12=37 yes</think>', 1 / 2, 1 / 2),
    # only the thoughts count, and they go on while nothing ends them
    ('<think>so</think>\nbiorę <answer>siedem</answer>', 1, 0),
    ('<think>so więc tak', 1 / 3, 2 / 3),
    ('<think>25+12=37</think> gladly <answer>37</answer>', 0, 0),
    ('', 0, 0),
  ],
)
def test_language_is_the_share_of_the_thoughts_words(output, english, polish):
  assert rules.language_consistency(ENGLISH, output) == english
  assert rules.language_consistency(POLISH, output) == polish


def test_readable_allows_only_a_wrong_answer():
  assert rules.readable(ENGLISH, '<think>so</think><answer>37</answer>') == 1
  assert rules.readable(ENGLISH, '<think>so</think><answer>36</answer>') == 1
  assert rules.readable(ENGLISH, '<think>więc</think><answer>36</answer>') == 0
  assert rules.readable(ENGLISH, '<think>so\nso</think><answer>37</answer>') == 0
  assert rules.readable(ENGLISH, '37') == 0


def test_the_reasoning_reward_ignores_instructions():
  assert rules.reasoning(ENGLISH, '<think>so</think><answer>37</answer>') == 1
  assert rules.reasoning(ENGLISH, '<think>so</think><answer>36</answer>') == 0
  right = '<think>so</think><answer>siedem</answer>'
  assert rules.accuracy(POLISH, right) == 1
  assert rules.reasoning(POLISH, right) == 0


@hypothesis.given(
  strategies.text()
  | strategies.text().map(lambda t: f'<think>{t}</think><answer>{t}</answer>')
)
def test_rewards_of_any_text_are_between_0_and_1(output):
  for problem in (ENGLISH, POLISH):
    assert 0 <= rules.language_consistency(problem, output) <= 1
    assert rules.readable(problem, output) in (0, 1)
