"""Tests of the pipeline's report: verdicts follow from numbers, gaps are named."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from r1jax.report import evidence, findings, paper, pipeline, reader, seeds
from r1jax.report.evidence import SingleRunEvidence
from r1jax.report.reader import read_pipeline
from r1jax.statistics import Interval

STAGES = ('r1_zero', 'cold_start', 'reasoning_rl', 'rejection_sft', 'final_rl')
PAPER = paper.Paper(
  zero=(15.0, 77.0),
  stages={
    'AIME 2024': (77.0, 59.0, 74.0, 78.0, 79.0),
    'Codeforces': (1444, 1534, 1687, 1746, 2029),
    'IF-Eval': (46.0, 71.0, 72.0, 78.0, 83.0),
    'ArenaHard': (53.0, 77.0, 73.0, 75.0, 92.0),
    'R & D': (1.0, 2.0, 3.0, 4.0, 5.0),
  },
  benchmarks=('AIME 2024', 'Codeforces', 'S & T'),
  students={'Qwen-32B': (72.0, 1691, None), 'Llama <8B>': (50.0, None, None)},
  rl_32b=(47.0, None, None),
  data={'math': 300, 'code': 100},
  data_tokens=5355,
)

# Right answers of 16 to each of 16 problems; with equal numbers a difference has an
# interval of no width, and its sign-flip test p = 2 / 2^16 = 0.00003.
SOLVED = {'base': 2, 'zero': 12, 'dev1': 8, 'dev2': 12, 'dev3': 13, 'r1': 14}
FOLLOWED = {'base': 2, 'zero': 4, 'dev1': 8, 'dev2': 8, 'dev3': 10, 'r1': 12}
LANGUAGE = {'base': 0.6, 'zero': 0.6, 'dev1': 0.97, 'dev2': 0.98, 'dev3': 1, 'r1': 1}
READABLE = {'base': 0.2, 'zero': 0.3, 'dev1': 0.9, 'dev2': 0.9, 'dev3': 0.9, 'r1': 0.95}
PREFERRED = {'base': 0.1, 'zero': 0.1, 'dev1': 0.3, 'dev2': 0.3, 'dev3': 0.4, 'r1': 0.7}
FILES = {
  'base': 'r1_zero/evaluation-base.json',
  'zero': 'r1_zero/evaluation-final.json',
  'dev1': 'cold_start/evaluation-final.json',
  'dev2': 'reasoning_rl/evaluation-final.json',
  'dev3': 'rejection_sft/evaluation-final.json',
  'r1': 'final_rl/evaluation-final.json',
}


def interval(mean, reach=0.01):
  return {'mean': mean, 'low': mean - reach, 'high': mean + reach}


def shown(problem, output, **other):
  prompt = f'User: {problem}\nAssistant:'
  return {'problem': problem, 'prompt': prompt, 'output': output, **other}


def row(solved, followed=4, language=0.9, readable=0.9, preferred=0.5, outputs=()):
  """An evaluation of 16 problems, each with this count of 16 right ones.

  Or with those of a list of 8, twice.
  """

  def half(count, **rewards):
    right = 2 * (count if isinstance(count, list) else [count] * 8)
    return {
      'problems': len(right),
      'k': 16,
      'temperature': 0.6,
      'top_p': 0.95,
      'pass_at_1': interval(sum(right) / 16 / len(right)),
      'right': right,
      'rewards': {name: interval(value) for name, value in rewards.items()},
    }

  reasoning = half(solved, language=language, readable=readable)
  return {
    'reasoning': {
      **reasoning,
      'tasks': {'countdown': interval(0.625, 0.125)},
      'shown': list(outputs),
    },
    'general': half(followed, preference=preferred),
  }


def dump(path, value):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(value))


def write_stage(root, name, seed=0, **config):
  folder = root / name
  command = f'python -m experiments.r1 --seed {seed}'
  settings = {'experiment': name, 'seed': seed, 'parent': str(root), 'command': command}
  dump(folder / 'config.json', {**settings, **config})
  (folder / 'metrics.jsonl').write_text(
    json.dumps({'phase': 'rl', 'step': 7, 'time': {'seconds': 90.0}}) + '\n'
  )
  parents = [{'stage': 'the_parent', 'path': '../x', 'digest': 'abcdef0123456789'}]
  record = {'stage': name, 'parameters': 400_000, 'parents': parents}
  dump(folder / 'stage.json', record)


def write_pipeline(root, seed=0, students=(), **changes):
  """A finished pipeline; `changes` names a model and what is other in its row."""
  root.mkdir(exist_ok=True)
  names = [*STAGES, *students]
  dump(root / 'pipeline.json', {name: name for name in names})
  for name in names:
    write_stage(root, name, seed)
  for model, file in FILES.items():
    values = {
      'solved': SOLVED[model],
      'followed': FOLLOWED[model],
      'language': LANGUAGE[model],
      'readable': READABLE[model],
      'preferred': PREFERRED[model],
      **changes.get(model, {}),
    }
    dump(root / file, row(**values))
  return root


def write_student(root, name, **solved):
  for method, count in solved.items():
    dump(root / name / f'evaluation-{method}.json', row(count))


def verdicts(root):
  found = findings.of_run(read_pipeline(root), PAPER)
  return [finding.verdict for finding in found]


class Page(HTMLParser):
  """The text of a page, spaces as one; fails where tags are not closed in order."""

  def __init__(self, html):
    super().__init__()
    self.html = html
    self.texts: list[str] = []
    self._open: list[str] = []
    self.feed(html)
    assert self._open == []
    self.text = re.sub(r'\s+', ' ', ' '.join(self.texts))

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

  def cells(self, name):
    """The texts of the first row of a table that begins with `name`."""
    source = self.html.replace('&#8239;', ' ').replace('\u202f', ' ')
    rows = re.findall('<tr[^>]*>.*?</tr>', source, re.DOTALL)
    texts = [[t.strip() for t in re.split('<[^>]+>', row) if t.strip()] for row in rows]
    return next(text for text in texts if text[:1] == [name])


def page_of(root, paper=PAPER):
  path = pipeline.write(root, paper)
  assert path == root / 'report.html'
  return Page(path.read_text(encoding='utf-8'))


REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_MEASURED = (
  'reproduced',
  'not reproduced',
  'inconclusive',
  'not measured',
)


def test_all_findings_of_the_paper_can_be_reproduced(tmp_path):
  write_pipeline(tmp_path, students=('distill_small',))
  write_student(tmp_path, 'distill_small', base=2, rl=4, answers=3, sft=9)
  assert verdicts(tmp_path) == [REPRODUCED] * 9
  text = page_of(tmp_path).text
  assert 'Of 9 findings in this run: 9 reproduced.' in text
  # 12 of 16 against 2 of 16 on each of 16 problems.
  assert (
    'Reasoning: base 12.5 % → Zero 75.0 %, +62.5 points (+62.5 to +62.5; sign-flip '
    'test, p < 0.001)'
  ) in text
  assert 'The paper, AIME 2024: base 15.0 → Zero 77.0' in text
  assert 'The paper, AIME 2024, Qwen-32B: RL 47.0 → distilled 72.0' in text
  assert (
    'RL alone, R1-Zero, solves 75.0 % (74.0–76.0): +62.5 points (+62.5 to +62.5; '
    'sign-flip test, p < 0.001) against the base model.'
  ) in text
  assert '95.0 % of its reasoning is readable (30.0 %)' in text


# Half of the problems better by 4 and half worse by 4: the interval holds zero.
TORN = [SOLVED['dev1'] + 4] * 4 + [SOLVED['dev1'] - 4] * 4


@pytest.mark.parametrize(
  ('finding', 'changes', 'verdict'),
  [
    (0, {'base': {'solved': 11}}, NOT_REPRODUCED),  # 6 points are not far
    (0, {'base': {'solved': 13}}, NOT_REPRODUCED),
    (0, {'base': {'solved': [12, 8] * 4}}, INCONCLUSIVE),  # 12.5 points, 3 to 22
    (1, {'zero': {'language': 0.99}}, NOT_REPRODUCED),
    (1, {'zero': {'language': 0.945}}, INCONCLUSIVE),  # 93.5 to 95.5 around 95
    (1, {'zero': {'readable': 0.7}}, NOT_REPRODUCED),
    (2, {'dev1': {'solved': 13}}, NOT_REPRODUCED),
    (2, {'dev1': {'solved': 12}}, INCONCLUSIVE),
    (3, {'dev1': {'readable': 0.2}}, NOT_REPRODUCED),
    (
      3,
      {'dev1': {'language': 0.61}},
      INCONCLUSIVE,
    ),  # +1 point, each interval 1 either way
    (3, {'dev1': {'followed': 3}}, NOT_REPRODUCED),
    (4, {'dev2': {'solved': 7}}, NOT_REPRODUCED),
    (4, {'dev2': {'solved': TORN}}, INCONCLUSIVE),
    (4, {'dev2': {'language': 0.9}}, NOT_REPRODUCED),
    (5, {'dev3': {'followed': 7}}, NOT_REPRODUCED),
    (5, {'dev3': {'followed': 8}}, INCONCLUSIVE),
    (
      6,
      {'dev1': {'preferred': 0.8}},
      NOT_REPRODUCED,
    ),  # whichever of the others is best
    (6, {'dev2': {'preferred': 0.7}}, INCONCLUSIVE),
    (6, {'dev3': {'solved': 15}}, NOT_REPRODUCED),
    (6, {'dev3': {'solved': 14}}, REPRODUCED),  # as good is enough
    (
      6,
      {'r1': {'solved': [13] * 6 + [12] * 2}},
      REPRODUCED,
    ),  # 1.6 less, 4.7 at the most
    (6, {'r1': {'solved': [13] * 4 + [10] * 4}}, INCONCLUSIVE),  # 9 less, or none
    (
      6,
      {'r1': {'solved': [16] * 4 + [6] * 4}},
      INCONCLUSIVE,
    ),  # wide: 12 less, up to 19 more
  ],
)
def test_a_verdict_follows_its_numbers(tmp_path, finding, changes, verdict):
  write_pipeline(tmp_path, **changes)
  assert verdicts(tmp_path)[finding] == verdict


@pytest.mark.parametrize(
  ('found', 'holds'),
  [
    (Interval(-0.15, -0.31, 0.01), None),  # a wide interval is no evidence
    (Interval(-0.001, -0.04, 0.04), True),
    (Interval(-0.02, -0.049, -0.01), True),  # surely worse, and by less than the margin
    (Interval(-0.02, -0.06, 0.02), None),
    (Interval(-0.10, -0.15, -0.051), False),
  ],
)
def test_reasoning_is_kept_if_it_is_at_most_the_margin_worse(found, holds):
  assert findings.MARGIN == 0.05
  assert findings._keeps(found) is holds


def test_checks_share_the_level(tmp_path):
  write_pipeline(tmp_path, students=('distill_small', 'distill_tiny'))
  whole = read_pipeline(tmp_path)
  for name in ('distill_small', 'distill_tiny'):
    write_student(tmp_path, name, base=2, rl=4, answers=3, sft=9)
  whole = read_pipeline(tmp_path)
  checks = [c for f in findings.of_run(whole, PAPER) for c in f.checks]
  assert len(checks) == 16
  assert findings.confidence(whole) == 1 - 0.05 / 16
  text = page_of(tmp_path).text
  assert 'Findings reproduced in this run' in text
  assert 'follow from intervals of 99.7 %' in text
  assert 'another seed' in text


def test_intervals_of_other_quantities_are_widened(tmp_path):
  write_pipeline(tmp_path)
  run = SingleRunEvidence(read_pipeline(tmp_path), 0.99)
  found = run.level(reader.LANGUAGE, reader.DEV1)
  assert found is not None
  # 0.01 either way at 95 %: 2.576 / 1.960 as much at 99 %
  assert found.interval == pytest.approx(
    (0.97, 0.97 - 0.01314, 0.97 + 0.01314), abs=1e-5
  )


@pytest.mark.parametrize(
  ('groups', 'verdict'),
  [
    # By chance all of 9 groups differ to the same side in 2 / 2^9 = 0.39 % of the
    # cases, all of 10 in 0.20 %; with 14 checks one may err in 0.36 %.
    (1, INCONCLUSIVE),
    (9, INCONCLUSIVE),
    (10, REPRODUCED),
  ],
)
def test_too_few_problems_are_inconclusive(tmp_path, groups, verdict):
  write_pipeline(tmp_path, students=('distill_small',))
  write_student(tmp_path, 'distill_small', base=2, rl=4, answers=3, sft=9)
  for path in tmp_path.glob('*/evaluation-*.json'):
    row = json.loads(path.read_text())
    for half in row.values():
      half['groups'] = [str(n % groups) for n in range(half['problems'])]
    path.write_text(json.dumps(row))
  assert verdicts(tmp_path) == [verdict] * 9
  said = f'+62.5 points, too few problems to tell ({groups})'
  assert (said in page_of(tmp_path).text) == (verdict == INCONCLUSIVE)


@pytest.mark.parametrize(
  ('small', 'tiny', 'verdict'),
  [
    ({'rl': 4, 'sft': 9}, {'rl': 4, 'sft': 9}, REPRODUCED),
    ({'rl': 4, 'sft': 9}, {'rl': 4}, REPRODUCED),  # the other student is not there yet
    ({'rl': 4, 'sft': 9}, {'rl': 9, 'sft': 4}, NOT_REPRODUCED),
    ({'rl': 4, 'sft': 9}, {'rl': 4, 'sft': 4}, INCONCLUSIVE),
    ({'sft': 9}, {}, NOT_MEASURED),
  ],
)
def test_distillation_is_judged_over_all_students(tmp_path, small, tiny, verdict):
  write_pipeline(tmp_path, students=('distill_small', 'distill_tiny'))
  write_student(tmp_path, 'distill_small', **small)
  write_student(tmp_path, 'distill_tiny', **tiny)
  assert verdicts(tmp_path)[7:] == [verdict, NOT_MEASURED]


def test_differences_treat_intervals_as_independent():
  before, after = Interval(0.5, 0.47, 0.54), Interval(0.7, 0.67, 0.76)
  # Down: 0.03 of the one and 0.04 of the other, 0.05; up: sqrt(0.06^2 + 0.03^2).
  found = evidence.independent_difference(before, after)
  assert found == pytest.approx((0.2, 0.15, 0.2 + 0.0045**0.5))
  assert evidence.independent_difference(None, after) is None


def test_cells_are_the_numbers_given(tmp_path):
  write_pipeline(tmp_path, students=('distill_small',))
  write_student(tmp_path, 'distill_small', base=2, sft=9)
  dump(tmp_path / 'distill_small' / 'stage.json', {'parameters': 100_000})
  dump(tmp_path / 'distill_small' / 'compute.json', {'sft': {'times_sft': 1.0}})
  page = page_of(tmp_path)
  reasoning = page.cells('Reasoning')
  assert reasoning[:4] == ['Reasoning', 'solved by one output', '12.5 %', '11.5–13.5']
  means = ['12.5 %', '75.0 %', '50.0 %', '75.0 %', '81.2 %', '87.5 %']
  assert reasoning[2::2] == means
  assert page.cells('countdown') == ['countdown', *['62.5 %', '50.0–75.0'] * 6]
  assert page.cells('equations') == ['equations', *['–'] * 6]
  assert page.cells('Preference')[2::2][-1] == '70.0 %'
  assert page.cells('IF-Eval')[1:] == ['–', '46.0', '71.0', '72.0', '78.0', '83.0']
  assert page.cells('AIME 2024')[:3] == ['AIME 2024', '15.0', '77.0']
  assert page.cells('Codeforces')[2:] == ['1,444', '1,534', '1,687', '1,746', '2,029']
  # 9 of 16; two students' rows have the same measures as the stages.
  assert page.cells('SFT on R1’s outputs')[1:3] == ['56.2 %', '55.2–57.2']
  assert page.cells('SFT on R1’s outputs')[-1] == '1.0 ×'
  assert page.cells('base model')[-1] == '–'
  assert 'Student small: 100,000 parameters, 25% of the teacher’s' in page.text
  assert page.cells('Qwen-32B, RL only')[1:] == ['47.0', '–', '–']
  assert page.cells('Llama &lt;8B&gt;')[1:] == ['50.0', '–', '–']
  assert '<th class="number">S &amp; T</th>' in page.html
  assert page.cells('R &amp; D')[1:] == ['–', '1.0', '2.0', '3.0', '4.0', '5.0']
  made = page.cells('cold_start')
  assert made[2:5] == ['400,000', 'rl 7', '1.5']  # 90 seconds
  assert made[-1] == 'the_parent abcdef01'
  assert 'python -m experiments.r1 --seed 0' in page.text


def test_sets_are_counted_by_task(tmp_path):
  write_pipeline(tmp_path)
  counts = {'problems': 50, 'outputs': 2000, 'kept': 300, 'tokens': 80.0}
  dropped = {'wrong': 1500, 'surplus': 200}
  other = {'problems': 5, 'outputs': 0, 'kept': 100, 'tokens': 40.0, 'dropped': {}}
  dump(
    tmp_path / 'cold_start' / 'rejection.json',
    {'countdown <b>': {**counts, 'dropped': dropped}, 'sorting': other},
  )
  pairs = {'judged': 60, 'kept': 20, 'dropped_margin': 30, 'dropped_length': 4}
  dump(tmp_path / 'final_rl' / 'pairs.json', {**pairs, 'dropped_balance': 6})
  page = page_of(tmp_path)
  cells = page.cells('countdown &lt;b&gt;')
  assert cells[1:] == ['50', '2,000', '300', '15%', '80', '1,500 wrong · 200 surplus']
  # (300 · 80 + 100 · 40) / 400
  assert 'Cold start: 400 examples of 70 tokens on average' in page.text
  assert 'compared 60 pairs of outputs and kept 20: 30 were too close' in page.text
  assert page.cells('math') == ['math', '300', '75.0%']


def test_stages_answer_the_same_problems_side_by_side(tmp_path):
  mine = [shown('p <script>', '<think>wait</think><answer>1', correct=True)]
  only = [shown('q', 'a'), shown('r', 'b'), shown('s', 'c'), *mine]
  write_pipeline(tmp_path, base={'outputs': only}, r1={'outputs': mine})
  page = page_of(tmp_path)
  first = page.html.index('<h3>p &lt;script&gt;</h3>')  # what more models have answered
  assert first < page.html.index('<h3>q</h3>') < page.html.index('<h3>r</h3>')
  assert '<h3>s</h3>' not in page.html  # three reasoning problems
  assert '<mark>wait</mark>' in page.html
  assert '<script' not in page.html
  assert page.text.count('R1: final RL') == 1


def test_the_page_loads_nothing(tmp_path):
  html = page_of(write_pipeline(tmp_path)).html
  for foreign in 'http', 'src=', '<link', '<script', '@import', 'url(':
    assert foreign not in html


def test_an_empty_pipeline_has_a_page(tmp_path):
  dump(tmp_path / 'pipeline.json', {name: name for name in (*STAGES, 'distill_tiny')})
  assert verdicts(tmp_path) == [NOT_MEASURED] * 9
  text = page_of(tmp_path).text
  assert '0 of 6 stages finished' in text
  assert 'No model has been measured yet.' in text
  assert 'Not started yet: R1-Zero, Cold start,' in text
  assert 'No RL stage has started yet.' in text
  assert 'No training set has been sampled yet.' in text
  assert 'No preference pairs have been judged yet.' in text
  assert 'No student has been measured yet.' in text
  assert 'No outputs have been kept yet.' in text


def test_the_page_names_what_a_half_done_pipeline_lacks(tmp_path):
  write_pipeline(tmp_path)
  for name in 'final_rl', 'rejection_sft':
    (tmp_path / name / 'stage.json').unlink()
    (tmp_path / name / 'evaluation-final.json').unlink()
  (tmp_path / 'cold_start' / 'evaluation-final.json').write_text('{"reasoning"')
  page = page_of(tmp_path, paper=None)
  assert 'Not finished yet: Rejection SFT, Final RL.' in page.text
  assert 'cold_start/evaluation-final.json is damaged and left out.' in page.text
  assert 'Too few values for a curve so far: R1-Zero: accuracy' in page.text
  assert page.cells('Reasoning')[2:] == [
    *('12.5 %', '11.5–13.5', '75.0 %', '74.0–76.0', '–', '75.0 %', '74.0–76.0'),
    *('–', '–'),
  ]
  assert 'Some of its numbers have not been measured yet.' in page.text
  assert 'The paper,' not in page.text
  assert verdicts(tmp_path) == [REPRODUCED, REPRODUCED, *[NOT_MEASURED] * 7]


def test_curves_of_the_rl_stages_have_one_scale(tmp_path):
  write_pipeline(tmp_path)
  for name, length in ('r1_zero', 100.0), ('reasoning_rl', 200.0):
    lines = [
      {'phase': 'rl', 'step': s, 'length': length, 'rewards': {'language': 0.5}}
      for s in (1, 2)
    ]
    lines += [{'phase': 'eval', 'step': s, 'pass_at_1': interval(0.5)} for s in (0, 2)]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (tmp_path / name / 'metrics.jsonl').write_text(text)
  html = page_of(tmp_path).html
  pattern = r'<figure><h3>([^<]*)</h3>\s*(<svg.*?</svg>)'
  charts = dict(re.findall(pattern, html, re.DOTALL))
  assert list(charts) == [
    f'{stage}: {quantity}'
    for stage in ('R1-Zero', 'Reasoning RL')
    for quantity in ('accuracy', 'tokens', 'language')
  ]
  for name, top in ('R1-Zero: tokens', '>200<'), ('R1-Zero: language', '>100 %<'):
    assert top in charts[name]


def test_the_terminal_gets_the_means(tmp_path):
  write_pipeline(tmp_path)
  (tmp_path / 'final_rl' / 'evaluation-final.json').unlink()
  lines = pipeline.result(tmp_path)
  assert lines[0] == f'Report: {tmp_path / "report.html"}'
  assert lines[1].split() == ['base', 'Zero', 'Dev1', 'Dev2', 'Dev3', 'R1']
  reasoning = ['Reasoning', '12.5%', '75.0%', '50.0%', '75.0%', '81.2%', '–']
  assert lines[2].split() == reasoning
  assert len({len(line) for line in lines[1:]}) == 1  # aligned


def test_over_seeds_is_a_markdown_table_with_t_intervals(tmp_path):
  roots = []
  for seed, solved in enumerate((4, 8, 12)):  # 25, 50 and 75 % of 16
    students = ('distill_small',)
    changes = {'zero': {'solved': solved}}
    root = write_pipeline(tmp_path / str(seed), seed, students, **changes)
    write_student(root, 'distill_small', base=2, sft=solved)
    roots.append(root)
  lines = seeds.compare_pipelines(roots)
  table = [[x.strip() for x in line.strip('|').split('|')] for line in lines if line]
  assert table[0] == ['', 'base', 'Zero', 'Dev1', 'Dev2', 'Dev3', 'R1']
  assert {character for cell in table[1] for character in cell} == {'-'}
  # Mean 50, deviation 25, t(0.975, 2 degrees) = 4.303: 50 +- 4.303 * 25 / sqrt(3), from
  # -12 to 112, cut where a rate ends.
  assert table[2][:3] == ['Reasoning', '12.5 % (12.5–12.5)', '50.0 % (0.0–100.0)']
  assert lines[0].index('|', 1) == lines[1].index('|', 1) == lines[2].index('|', 1)
  at = lines.index('Student small:')
  assert [x.strip() for x in lines[at + 2].strip('|').split('|')] == [
    '',
    'base model',
    'SFT on R1’s outputs',
  ]
  assert '50.0 % (0.0–100.0)' in lines[at + 4]


def test_findings_over_seeds_are_intervals_over_runs(tmp_path):
  pipelines = []
  for seed, zero in enumerate((11, 12, 13)):
    changes = {'zero': {'solved': zero}, 'dev1': {'solved': zero - 4}}
    pipelines.append(
      read_pipeline(write_pipeline(tmp_path / str(seed), seed, **changes))
    )
  far, _, costs, *_ = findings.of_seeds(pipelines)
  # Of 16: 9, 10 and 11 more, so 62.5 points with a deviation of 6.25. With 12 checks
  # t(1 - 0.05 / 24, 2 degrees) = 15.44, and 15.44 * 6.25 / sqrt(3) = 55.7.
  (check,) = far.checks
  assert check is not None
  assert check.text == (
    'Reasoning: base 12.5\u202f% → Zero 75.0\u202f%, +62.5 points (+6.8 to +118.2); by '
    'seed +56.2, +62.5, +68.8'
  )
  assert far.verdict == INCONCLUSIVE  # though each run alone is far
  assert verdicts(tmp_path / '0')[0] == REPRODUCED
  assert costs.verdict == REPRODUCED  # by 25 points with every seed
  lines = seeds.compare_pipelines([p.root for p in pipelines])
  assert (
    'Findings over 3 seeds, by t-intervals of 99.6 %, so that all share'
    in '\n'.join(lines)
  )
  assert f'- inconclusive: {far.claim}' in lines
  assert f'  - {check.text}' in lines


def test_pipelines_that_differ_in_more_than_the_seed_are_refused(tmp_path):
  first = write_pipeline(tmp_path / 'a', 0)
  with pytest.raises(ValueError, match='a different seed for every run'):
    seeds.compare_pipelines([first, write_pipeline(tmp_path / 'b', 0)])
  other = write_pipeline(tmp_path / 'c', 1)
  write_stage(other, 'cold_start', seed=1, epochs=9)
  with pytest.raises(ValueError, match='other settings'):
    seeds.compare_pipelines([first, other])
  (other / 'final_rl' / 'stage.json').unlink()
  with pytest.raises(ValueError, match='not finished: expected the stages r1_zero'):
    seeds.compare_pipelines([first, other])


def test_the_command_recognises_a_pipeline_and_refuses_other_folders(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'has no pipeline\.json'):
    pipeline.write(tmp_path)
  assert list(tmp_path.iterdir()) == []
  root = write_pipeline(tmp_path)
  command = [sys.executable, '-m', 'r1jax.report', str(root)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout.strip()) == (0, str(root / 'report.html'))
  assert 'Stage by stage' in (root / 'report.html').read_text()
  (root / 'pipeline.json').write_text('{')
  with pytest.raises(ValueError, match='is damaged'):
    pipeline.write(root)
