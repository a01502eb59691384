"""The judge's points by hand, its bias and noise, and which pairs are kept."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from r1jax.miniature import judge
from r1jax.miniature.judge import JudgeConfig
from r1jax.tasks import Problem
from r1jax.text import parsing

TRUTH = {'left': 3, 'sign': '+', 'right': 4, 'result': 7}
ENGLISH = Problem('3+4', 'arithmetic', 'calculate 3+4', TRUTH)
POLISH = Problem('3+4', 'arithmetic', 'calculate 3+4', TRUTH, 'pl')
HINDI = Problem('3+4', 'arithmetic', 'calculate 3+4', TRUTH, 'hi')
SURE = JudgeConfig(noise=0.0, first_bias=0.0)


def shows(words):
  return f'<think>3 and 4</think> {words}'


@pytest.mark.parametrize(
  ('problem', 'shown', 'points'),
  [
    # 1 + right 4 + language 2 + kind 1.5 + brief 1.5
    (ENGLISH, 'Gladly: <answer>7</answer>', 10.0),
    (ENGLISH, 'Here you are: <answer> 7 </answer>', 10.0),
    (POLISH, 'Proszę bardzo: <answer>7</answer>', 10.0),
    # a wrong answer, no answer, and one that is not the end
    (ENGLISH, 'Gladly: <answer>8</answer>', 6.0),
    (ENGLISH, 'Gladly: 7', 6.0),
    (ENGLISH, '<answer>7</answer> gladly', 6.0),
    # numbers alone are half of each language: 1 + 4 + 1 + 0 + 1.5
    (ENGLISH, '<answer>7</answer>', 7.5),
    (POLISH, '<answer>7</answer>', 7.5),
    # another language has no kind words either: 1 + 4 + 0 + 0 + 1.5
    (POLISH, 'Gladly: <answer>7</answer>', 6.5),
    (HINDI, 'Gladly: <answer>7</answer>', 6.5),
    # one word of two: 1 + 4 + 1 + 1.5 + 1.5
    (ENGLISH, 'Gladly, proszę: <answer>7</answer>', 9.0),
    # the opposite of kind, and no word of the list
    (POLISH, 'Niechętnie: <answer>7</answer>', 6.5),
    # two kind phrases count as one; the same one again loses 1.5 / 6, twice 1.5 / 3
    (ENGLISH, 'Gladly, of course: <answer>7</answer>', 10.0),
    (ENGLISH, 'Gladly, gladly! <answer>7</answer>', 9.75),
    (ENGLISH, 'Gladly, gladly, gladly! <answer>7</answer>', 9.5),
    # numbers may come again
    (ENGLISH, 'Gladly: 3 7 3 7 <answer>7</answer>', 10.0),
    # gladly, eleven numbers, the answer: 13 words, one too many
    (ENGLISH, f'Gladly: {"1 " * 11} <answer>7</answer>', 9.75),
    (ENGLISH, f'Gladly: {"1 " * 99} <answer>7</answer>', 8.5),
    # nothing shown: without this rule an empty text would be neutral and brief
    (ENGLISH, '', 1.0),
    (ENGLISH, '<answer></answer>', 1.0),
  ],
)
def test_points_by_hand(problem, shown, points):
  assert judge.quality(problem, shows(shown)) == pytest.approx(points)


def test_thoughts_do_not_count():
  shown = '</think> Gladly: <answer>7</answer>'
  for thoughts in ('', '<think>', '<think> chętnie ', '<answer>8</answer>', 'a ' * 99):
    assert judge.quality(ENGLISH, thoughts + shown) == 10.0
  assert judge.quality(ENGLISH, '<think> Gladly: <answer>7</answer>') == 1.0


def test_no_other_part_is_worth_as_much_as_the_right_answer():
  points = {name: points for name, (points, _) in judge.PARTS.items()}
  assert judge.WORST + sum(points.values()) == 10.0
  assert max(points, key=points.__getitem__) == 'fulfilled'


PIECES = strategies.sampled_from([*parsing.TAGS, ' ', '7', '-', 'gladly', '½', '\x00'])


@hypothesis.given(strategies.lists(PIECES | strategies.text(max_size=5)).map(''.join))
def test_the_quality_of_any_text_is_1_to_10(output):
  for problem in (ENGLISH, POLISH, HINDI):
    for each in (output, shows(output)):
      assert 1 <= judge.quality(problem, each) <= 10


def test_wins_by_points():
  right, kinder, wrong = (
    shows(f'{words} <answer>{answer}</answer>')
    for words, answer in (('', 7), ('gladly', 7), ('', 8))
  )
  assert judge.wins(ENGLISH, kinder, right) == 1.0
  assert judge.wins(ENGLISH, wrong, right) == 0.0
  assert judge.wins(ENGLISH, right, f'<think>else{right}') == 0.5


@pytest.fixture
def points(monkeypatch):
  """Outputs are worth the number that they show first."""
  monkeypatch.setattr(
    judge, 'quality', lambda problem, output: float(parsing.visible(output).split()[0])
  )


@pytest.mark.usefixtures('points')
def test_a_verdict_favours_the_first_output():
  config = JudgeConfig(noise=0.0, first_bias=2.0)
  rng = np.random.default_rng(0)
  assert judge.judgement(ENGLISH, shows('5'), shows('4'), rng, config) == 1 + 2
  assert judge.judgement(ENGLISH, shows('4'), shows('5'), rng, config) == -1 + 2


@pytest.mark.usefixtures('points')
def test_random_order_cancels_the_bias():
  config = JudgeConfig(looks=1, noise=0.0, first_bias=2.0)
  rng = np.random.default_rng(0)
  verdicts = [
    judge.verdict(ENGLISH, shows('5'), shows('4'), rng, config) for _ in range(4000)
  ]
  assert set(verdicts) == {1 - 2, 1 + 2}
  # The deviation is 2, so the mean is within 4 * 2 / sqrt(4000) of 1.
  assert np.mean(verdicts) == pytest.approx(1, abs=0.127)


@pytest.mark.usefixtures('points')
def test_more_verdicts_have_less_noise():
  config = JudgeConfig(looks=4, noise=1.0, first_bias=0.0)
  rng = np.random.default_rng(0)
  verdicts = [
    judge.verdict(ENGLISH, shows('5'), shows('4'), rng, config) for _ in range(4000)
  ]
  # The variance is 1 / 4, known from 4000 to 4 * 1/4 * sqrt(2 / 4000).
  assert np.var(verdicts) == pytest.approx(0.25, abs=0.0224)


@pytest.mark.usefixtures('points')
def test_only_clear_pairs_are_kept():
  outputs = [shows('5'), shows('6'), shows('6.5')]
  pairs, statistics = judge.pairs([ENGLISH], [outputs], 0, SURE)
  # Of the differences 1, 0.5 and 1.5 the last alone is above 1.
  assert pairs == [judge.Pair(ENGLISH, shows('6.5'), shows('5'), 1.5)]
  assert statistics == judge.Statistics(3, 2, 0, 0, 1)


@pytest.mark.usefixtures('points')
def test_outputs_with_the_same_visible_text_are_no_pair():
  outputs = [shows('9'), '<think>other</think>9', shows('3'), shows('3 '), shows('3')]
  pairs, statistics = judge.pairs([ENGLISH], [outputs], 0, SURE)
  assert pairs == [judge.Pair(ENGLISH, shows('9'), shows('3'), 6.0)]
  assert statistics.judged == 1


@pytest.mark.usefixtures('points')
def test_pairs_per_problem_are_limited():
  config = JudgeConfig(pairs_per_problem=4, noise=0.0, first_bias=0.0, least_margin=0.0)
  outputs = [[shows(f'{worth}') for worth in range(1, 10)]] * 50
  pairs, statistics = judge.pairs([ENGLISH] * 50, outputs, 0, config)
  assert statistics.judged == 4 * 50
  # 9 outputs make 36 pairs, of which a problem's 4 are another random choice: that any
  # is missing after 50 has a chance of 36 (1 - 4/36)^50 = 10 %, not so with this seed.
  assert len({(pair.chosen, pair.rejected) for pair in pairs}) == 36


@pytest.mark.usefixtures('points')
def test_lengths_in_a_pair_are_similar():
  words = [[shows('9'), shows('5' + ' b' * more)] for more in (3, 4)]
  words += [[shows('5'), shows('9' + ' b' * more)] for more in (3, 4)]
  pairs, statistics = judge.pairs([ENGLISH] * 4, words, 0, SURE)
  # 4 words beside 1 are 4 times as many, 5 too many.
  assert statistics == judge.Statistics(4, 0, 2, 0, 2)
  assert {pair.chosen for pair in pairs} == {shows('9'), shows('9 b b b')}


@pytest.mark.usefixtures('points')
@pytest.mark.parametrize(('long_wins', 'short_wins'), [(5, 2), (2, 5)])
def test_the_longer_one_is_chosen_as_often_as_the_shorter(long_wins, short_wins):
  outputs = [
    *([shows('9 b'), shows(f'{worth}')] for worth in range(1, long_wins + 1)),
    *([shows('9'), shows(f'{worth} b')] for worth in range(1, short_wins + 1)),
    [shows('9 b'), shows('1 b')],
  ]
  pairs, statistics = judge.pairs([ENGLISH] * 8, outputs, 3, SURE)
  assert statistics == judge.Statistics(8, 0, 0, 3, 5)
  lengths = [len(pair.chosen) - len(pair.rejected) for pair in pairs]  # 2: " b"
  assert [lengths.count(longer) for longer in (2, -2, 0)] == [2, 2, 1]
  assert judge.pairs([ENGLISH] * 8, outputs, 3, SURE) == (pairs, statistics)


@pytest.mark.usefixtures('points')
def test_equal_outputs_for_all_problems_are_refused():
  # Noise alone would make some pairs clear.
  config = JudgeConfig(noise=5.0)
  outputs = [[shows('5 a'), shows('5 b')], [shows('7 a'), shows('7 b')]]
  with pytest.raises(ValueError, match=r'gives all outputs .* for each of 2'):
    judge.pairs([ENGLISH] * 2, outputs, 0, config)


@pytest.mark.usefixtures('points')
@pytest.mark.parametrize(
  ('outputs', 'counts'),
  [
    (['5', '5.5'], '1 judged: 1 were dropped for their margin, 0 for .*, 0 for'),
    (['9', '5' + ' b' * 9], '1 judged: 0 were dropped .*, 1 for their lengths, 0 for'),
    (['9 b', '5'], '1 judged: 0 were dropped .*, 0 for .*, 1 for balance'),
    (['9', '9'], '0 judged: 0 were dropped .*, 0 for .*, 0 for balance'),
  ],
)
def test_no_pair_left_names_the_reasons(outputs, counts):
  with pytest.raises(ValueError, match=f'got none of {counts}') as error:
    judge.pairs([ENGLISH], [[shows(words) for words in outputs]], 0, SURE)
  assert 'lower judge.least_margin' in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'looks': 0}, 'looks: expected a finite number of 1 or more, got 0'),
    ({'pairs_per_problem': 0}, 'pairs_per_problem: expected .* 1 or more, got 0'),
    ({'longest_ratio': 0.5}, 'longest_ratio: expected .* 1 or more, got 0.5'),
    ({'noise': -1.0}, 'noise: expected a finite number of 0 or more, got -1.0'),
    ({'noise': float('nan')}, 'noise: expected a finite number'),
    ({'first_bias': float('inf')}, 'first_bias: expected a finite number'),
  ],
)
def test_impossible_settings_are_named(fields, expected):
  with pytest.raises(ValueError, match=expected):
    JudgeConfig(**fields)
