"""Tests of the report of a run: sentences follow from numbers, the page is valid."""

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from r1jax import report
from r1jax.report.chart import Curve, line_chart, running_mean, ticks
from r1jax.text.templates import render


def interval(mean: float, reach: float) -> dict[str, float]:
  return {'mean': mean, 'low': mean - reach, 'high': mean + reach}


def evaluation(step: int, solved: float, reach: float = 0.03, **other) -> dict:
  return {
    'phase': 'eval',
    'step': step,
    'pass_at_1': interval(solved, reach),
    'pass_at_k': None,
    'consensus': interval(solved + 0.1, reach),
    'k': 16,
    'problems': 64,
    'length': 40.0 + step,
    'reflective': 0.25,
    'cut_off': 0.125,
    'unparsable': 0.0,
    **other,
  }


def rl(step: int, **other) -> dict:
  time = {'seconds': 3.0, 'tokens_per_second': 1000.0}
  return {'phase': 'rl', 'step': step, 'reward': 0.5, 'time': time, **other}


def sample(step: int, output: str, **other) -> dict:
  return {
    'phase': 'eval',
    'step': step,
    'problem': 'p1',
    'prompt': render('r1_zero', 'make 16 from 3 5 2'),
    'output': output,
    'correct': False,
    'cut_off': False,
    **other,
  }


def write_run(workdir: Path, metrics: list[dict], samples: list[dict] | None = None):
  command = 'python -m experiments.r1_zero --seed 3'
  config = {
    'experiment': 'R1Zero',
    'seed': 3,
    'grpo': {'kl_coef': 0.001},
    'command': command,
  }
  (workdir / 'config.json').write_text(json.dumps(config))
  for name, lines in ('metrics.jsonl', metrics), ('samples.jsonl', samples or []):
    (workdir / name).write_text(''.join(json.dumps(line) + '\n' for line in lines))


class Page(HTMLParser):
  """The text of a page; fails where tags are not closed in order."""

  def __init__(self, source: str) -> None:
    super().__init__()
    self.html = source
    self.texts: list[str] = []
    self._open: list[str] = []
    self.feed(source)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    if tag != 'meta':
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self._open:
      self.texts.append(data)

  @property
  def text(self) -> str:
    return re.sub(r'\s+', ' ', ' '.join(self.texts))


def page_of(workdir: Path) -> Page:
  path = report.write(workdir)
  assert path == workdir / 'report.html'
  return Page(path.read_text(encoding='utf-8'))


def test_a_clear_rise_is_called_a_rise(tmp_path):
  metrics = [
    evaluation(0, 0.125, right=[2] * 8),
    rl(1),
    rl(40),
    evaluation(40, 0.7, length=80.0, right=[10] * 8),
  ]
  write_run(tmp_path, metrics)
  text = page_of(tmp_path).text
  assert 'The base model solves 12.5 % (9.5–15.5) of the validation problems' in text
  assert 'after 40 steps of reinforcement learning it solves 70.0 % (67.0–73.0)' in text
  # 8 of 16 more on each of 8 problems: of the 2^8 patterns of signs, 2 are as extreme.
  assert 'differ by +50.0 points (+50.0 to +50.0; sign-flip test, p = 0.008);' in text
  assert 'right for 80.0 % of the problems (22.5 % before)' in text
  assert 'Outputs grow, from 40 to 80 tokens on average.' in text
  assert 'checks itself stays about the same, from 25.0 % to 25.0 %' in text
  assert '40 steps of reinforcement learning in 6 s' in text  # 2 lines of 3 s


def test_a_difference_that_may_be_chance_has_its_p_value(tmp_path):
  # The problems that both evaluations hold: 4 of 16 more on one, 4 fewer on the other.
  first, last = (
    evaluation(0, 0.4, right=[4, 8, 16, 0]),
    evaluation(40, 0.4, right=[8, 4]),
  )
  write_run(tmp_path, [first, last])
  text = page_of(tmp_path).text
  assert 'differ by +0.0 points (−25.0 to +25.0; sign-flip test, p = 1.000);' in text


def test_evaluations_without_results_by_problem_are_not_compared(tmp_path):
  write_run(tmp_path, [evaluation(0, 0.3), evaluation(40, 0.4, right=[8, 4])])
  assert 'sign-flip' not in page_of(tmp_path).text


def test_shrinking_outputs_are_named(tmp_path):
  write_run(tmp_path, [evaluation(0, 0.3), evaluation(9, 0.5, length=20.0)])
  assert 'Outputs shrink, from 40 to 20 tokens' in page_of(tmp_path).text


def test_the_table_compares_base_and_trained(tmp_path):
  metrics = [evaluation(0, 0.125), evaluation(20, 0.9), evaluation(40, 0.0625, 0.0125)]
  write_run(tmp_path, metrics)
  rows = re.findall('<tr>.*?</tr>', page_of(tmp_path).html, re.DOTALL)
  texts = [re.split('<[^>]+>', html.unescape(row)) for row in rows]
  cells = [[text.strip() for text in row if text.strip(' \n')] for row in texts]
  percent = '\u202f%'
  assert cells[0] == ['base', 'step 40', 'change', '0 to 100' + percent]
  assert cells[1] == [
    'pass@1',
    'solved by one output',
    '12.5' + percent,
    '9.5–15.5',
    '6.2' + percent,
    '5.0–7.5',
    '−6.2 points',
  ]
  assert cells[2][0] == 'pass@16'
  assert cells[2][2:] == ['not measured', 'not measured']
  assert cells[4] == [
    'Length',
    'tokens of an output, on average',
    '40.0',
    '80.0',
    '+40.0',
  ]


def test_outputs_are_escaped_judged_and_marked(tmp_path):
  samples = [
    sample(0, '<think>no <script>alert(1)</script></think><answer>3</answer>'),
    sample(20, 'from the middle of the run'),
    sample(40, '<think>Wait, &amp; waiting', cut_off=True),
    sample(0, '<think></think><answer>1</answer>', problem='p2', correct=True),
    sample(41, 'seen in training', phase='rl'),
  ]
  write_run(tmp_path, [evaluation(0, 0.1)], samples)
  page = page_of(tmp_path)
  assert '<h3>make 16 from 3 5 2</h3>' in page.html
  assert 'User:' not in page.text
  assert '<script' not in page.html
  assert '&lt;script&gt;alert(1)&lt;/script&gt;' in page.html
  assert '&lt;/think&gt;</span>&lt;answer&gt;3&lt;/answer&gt;</pre>' in page.html
  assert '<mark>Wait</mark>, &amp;amp; waiting</span></pre>' in page.html
  assert re.findall('[✓✗] [a-z ]+', page.text) == ['✗ wrong ', '✗ cut off ', '✓ right ']
  assert 'from the middle of the run' not in page.text
  assert 'seen in training' not in page.text


def test_the_page_loads_nothing(tmp_path):
  metrics = [evaluation(0, 0.1), *map(rl, range(1, 100)), evaluation(99, 0.5)]
  write_run(tmp_path, metrics, [sample(0, 'x')])
  page = page_of(tmp_path).html
  for foreign in 'http', 'src=', '<link', '<script', '@import', 'url(':
    assert foreign not in page
  assert 'prefers-color-scheme: dark' in page


def test_settings_are_named_as_on_the_command_line(tmp_path):
  write_run(tmp_path, [evaluation(0, 0.1)])
  page = page_of(tmp_path)
  assert 'python -m experiments.r1_zero --seed 3' in page.text
  assert '<tr><th>--grpo.kl-coef</th><td>0.001</td></tr>' in page.html


@pytest.mark.parametrize(
  ('metrics', 'sentence'),
  [
    ([], 'Nothing has been measured yet'),
    (
      [{'phase': 'base', 'step': 1200, 'loss': 1.5}],
      'Base training has reached step 1,200 with a loss of 1.5. Nothing has been eval',
    ),
    ([rl(7, loss=None)], 'Reinforcement learning has reached step 7. Nothing has been'),
    (
      [evaluation(0, 0.1)],
      'The base model solves 10.0 % (7.0–13.0) of the validation problems',
    ),
    ([{'phase': 'eval', 'step': 0, 'pass_at_1': None}], 'hold no pass@1'),
    ([rl(1, kl=2.0)], 'At step 1: The policy is 2 nats a token away'),
    ([rl(1, reward=None)], 'Too few values for a curve so far: Accuracy on validation'),
    (
      [rl(1, entropy=0.0), {'phase': 'later', 'step': 1, 'x': [1]}],
      'has reached step 1',
    ),
  ],
)
def test_the_page_names_what_is_missing(tmp_path, metrics, sentence):
  write_run(tmp_path, metrics)
  assert sentence in page_of(tmp_path).text


def test_a_curve_needs_two_values_of_something_but_the_base(tmp_path):
  write_run(tmp_path, [evaluation(0, 0.1), rl(1), evaluation(1, 0.2)])
  page = page_of(tmp_path)
  assert '<h3>Accuracy on validation problems</h3>' in page.html
  assert 'Too few values for a curve so far: Mean length of an output' in page.text


def test_the_page_names_half_written_lines_and_a_damaged_config(tmp_path):
  write_run(tmp_path, [evaluation(0, 0.1)])
  (tmp_path / 'config.json').write_text('{"experiment"')
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"phase": "rl", "st')
  (tmp_path / 'samples.jsonl').unlink()
  text = page_of(tmp_path).text
  assert '1 of the 2 lines of metrics.jsonl cannot be read and are left out.' in text
  assert 'config.json is missing or damaged' in text
  assert 'No sample outputs have been written yet.' in text


def test_a_directory_without_a_run_is_refused_and_unchanged(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds neither config'):
    report.write(tmp_path)
  assert list(tmp_path.iterdir()) == []
  command = [sys.executable, '-m', 'r1jax.report', str(tmp_path / 'nowhere')]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert done.stderr == (
    f'error: {tmp_path / "nowhere"} is not a directory; give the --workdir of a run\n'
  )


@pytest.mark.parametrize(
  ('low', 'high', 'count', 'expected'),
  [
    (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0, 0.034, 3, [0, 0.02, 0.04]),  # 0.0113 apart is rounded up to 0.02
    (1, 150, 5, [0, 50, 100, 150]),  # 29.8 apart is rounded up to 50
    (-0.3, 0.9, 4, [-0.5, 0, 0.5, 1]),  # the first and last enclose the range
    (7, 7, 5, [7]),
  ],
)
def test_ticks_are_round_and_enclose_the_range(low, high, count, expected):
  assert ticks(low, high, count) == pytest.approx(expected)


def test_chart_puts_values_where_they_belong():
  # Without a name the data lie between x = 46 and 300 - 20; y = 12 is 4, y = 166 is 0.
  points = [(0, 0.0), (1, 4.0), (2, None), (3, 2.0), (4, 1.0)]
  svg = line_chart(
    [Curve('', 'one', points, band=[(0, 0.0, 4.0), (4, 0.0, 2.0)])],
    label='a < b',
    share=False,
    width=300,
    height=200,
  )
  root = ElementTree.fromstring(svg)
  assert root.get('aria-label') == 'a < b'
  paths = [element.get('d') for element in root.iter('path')]
  assert paths == ['M46.0 166.0L104.5 12.0M221.5 89.0L280.0 127.5']
  (band,) = root.iter('polygon')
  assert band.get('points') == '46.0,12.0 280.0,89.0 280.0,166.0 46.0,166.0'


def test_steps_on_the_axis_are_whole_numbers():
  curve = Curve('', 'one', [(1, 0.0), (3, 1.0)])  # 0.4 apart is rounded up to 0.5
  svg = line_chart([curve], label='', share=True, width=300, height=200)
  texts = [element.text or '' for element in ElementTree.fromstring(svg).iter('text')]
  assert [text for text in texts if '%' not in text] == ['1', '2', 'step 3']


def test_names_at_the_ends_of_lines_do_not_cover_each_other():
  curves = [Curve(name, 'one', [(0, 0.0), (9, 1.0)]) for name in ('a', 'b', 'c')]
  svg = line_chart(curves, label='', share=True, width=300, height=200)
  names = [e for e in ElementTree.fromstring(svg).iter('text') if e.text in list('abc')]
  rows = sorted(float(name.get('y', 'nan')) for name in names)
  assert len(rows) == 3
  assert rows[0] >= 12  # inside the picture
  assert min(rows[1] - rows[0], rows[2] - rows[1]) >= 12  # a line of 12 px type


def test_running_mean_skips_what_was_not_measured():
  values = [1.0, 2.0, 6.0, None, 4.0]
  # (1+2)/2, (1+2+6)/3, (2+6)/2, -, 4
  assert running_mean(values, 3) == [1.5, 3.0, 4.0, None, 4.0]
