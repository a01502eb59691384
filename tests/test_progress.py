"""Tests of r1jax.stages.progress: what a run says about itself, and when."""

import io
import re
from collections.abc import Iterable

import pytest
from rich.console import Console

from r1jax.runtime.diagnose import diagnose
from r1jax.runtime.progress import Progress
from r1jax.statistics import Interval

HEALTHY = {
  'reward': 0.4,
  'rewards': {'accuracy': 0.3},
  'reward_spread': 1.0,
  'zero_variance_groups': 0.4,
  'zero_advantages': 0.4,
  'cut_off': 0.05,
  'unparsable': 0.1,
  'clip_up': 0.02,
  'clip_down': 0.01,
  'drift': 1e-5,
  'grad_norm': 0.7,
  'kl': 0.02,
}


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    (
      {
        'reward': 0.0,
        'reward_spread': 0.0,
        'zero_advantages': 1.0,
        'rewards': {'accuracy': 0.0},
      },
      'Every reward of this step is 0',
    ),
    (
      {'zero_advantages': 0.94, 'rewards': {'accuracy': 0.0}},
      '94% .* hardly any .* easier',
    ),
    (
      {'zero_advantages': 0.94, 'rewards': {'accuracy': 1.0}},
      '94% .* nearly every .*harder',
    ),
    (
      {'zero_advantages': 0.94, 'rewards': {'accuracy': 0.5}},
      r'94% .* raise rl\.temperature',
    ),
    (
      {'zero_advantages': 0.94, 'rewards': {'helpful': 0.5}},
      '94% .* same reward',
    ),
    ({'cut_off': 0.31}, r'31% .* cut off .* raise rl\.max_length'),
    ({'unparsable': 0.62}, r'62% .* not of the form .*--model\.template: chat_boxed'),
    (
      {'clip_up': 0.2, 'clip_down': 0.15},
      '35% of the tokens .* lower the learning rate',
    ),
    ({'drift': 0.02}, r'disagree by 0\.02 nats'),
    ({'grad_norm': 0.0}, 'gradient is exactly 0'),
    ({'kl': 1.5}, r'1\.5 nats a token away from its reference'),
  ],
)
def test_one_thing_wrong_gives_one_sentence(change, sentence):
  (said,) = diagnose(HEALTHY | change)
  assert re.search(sentence, said)


def test_the_form_is_spoken_of_where_a_reward_asks_for_it():
  assert diagnose({'unparsable': 1.0, 'rewards': {'helpful': 0.3}}) == []
  for name in ('accuracy', 'format', 'reasoning'):
    (said,) = diagnose({'unparsable': 1.0, 'rewards': {name: 0.3}})
    assert 'not of the form' in said


@pytest.mark.parametrize(
  'values',
  [
    HEALTHY,
    {},
    dict.fromkeys(HEALTHY),
    # One output a prompt, and all of the batch compared: nothing differs in a group.
    HEALTHY | {'zero_variance_groups': 1.0, 'zero_advantages': 0.0},
    # Rewards of 1 and -1.
    HEALTHY | {'reward': 0.0, 'reward_spread': 2.0, 'rewards': {'own': 0.0}},
  ],
)
def test_healthy_or_unmeasured_numbers_give_no_sentence(values):
  assert diagnose(values) == []


def lines_shown(updates: Iterable[tuple], seconds: Iterable[float]) -> list[str]:
  """The lines that `updates`, one each at the given time, leave in a file."""
  file, clock = io.StringIO(), iter(seconds)
  with Progress(Console(file=file, width=20), clock=lambda: next(clock)) as progress:
    for update in updates:
      progress.update(*update)
  return file.getvalue().splitlines()


def test_without_a_terminal_a_line_comes_every_five_seconds_and_at_the_end():
  updates = [('base', step, 9, {'loss': 1.0}) for step in range(1, 10)]
  lines = lines_shown(updates, seconds=range(9))
  assert [line.split(' · ')[0] for line in lines] == [
    'base 1/9',
    'base 6/9',
    'base 9/9',
  ]


def test_a_line_holds_the_numbers_and_the_time_left():
  values = {
    'reward': 0.42,
    'length': 57.13,
    'kl': 0.0213,
    'clip_up': 0.01,
    'clip_down': 0.02,
    'loss': 0.5,
    'time': {'tokens_per_second': 3412.4},
  }
  lines = lines_shown(
    [
      ('rl', 41, 100, values),
      ('eval', 41, 100, {'pass_at_1': Interval(0.31, 0.25, 0.37), 'k': 16}),
      ('rl', 43, 100, values),
    ],
    seconds=[100, 120],
  )
  numbers = 'length 57.1 · KL 0.0213 · clipped 3.0%'
  assert lines == [
    f'rl 41/100 · tokens/s 3,412 · reward 0.420 · {numbers}',
    'eval step 41 · pass@1 31.0% (25.0%–37.0%)',
    # 2 steps in 20 s, 57 to go: 570 s.
    f'rl 43/100 · tokens/s 3,412 · reward 0.420 · pass@1 31.0% · {numbers} · 9:30 left',
  ]


def test_rejection_sampling_shows_the_share_that_is_accepted():
  lines = lines_shown([('rejection', 1, 30, {'accepted': 0.125})], seconds=[100])
  assert lines == ['rejection 1/30 · accepted 12.5%']


def test_the_same_finding_is_said_every_twenty_steps():
  updates = [('rl', step, 100, HEALTHY | {'kl': 2.0}) for step in range(1, 43)]
  lines = lines_shown(updates, seconds=range(42))
  said = [line.split(':')[0] for line in lines if 'reference' in line]
  assert said == ['Step 1', 'Step 21', 'Step 41']


def test_on_a_terminal_the_panel_stays_below_what_is_said():
  file = io.StringIO()
  console = Console(file=file, force_terminal=True, width=80, color_system=None)
  with Progress(console, clock=lambda: 0.0) as progress:
    progress.update('rl', 1, 10, {'reward': 0.25})
    progress.say('A sentence with [brackets].')
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', file.getvalue())
  sentence = text.index('A sentence with [brackets].')
  assert text.index('rl 1/10') < sentence < text.rindex('rl 1/10')
  assert 'reward' in text
  assert '0.250' in text
