"""Sentences of a report, and how its numbers are written."""

from collections.abc import Sequence

from r1jax import statistics
from r1jax.plain import JsonObject
from r1jax.report.reader import Estimate, RunFiles, estimate, number
from r1jax.runtime.diagnose import diagnose

LEVEL = 0.05  # of all tests of a page together: the chance that any of them is wrong


def percent(share: float) -> str:
  """Returns a share in per cent, with one decimal."""
  return f'{share * 100:.1f}\u202f%'


def facts(run: RunFiles) -> list[str]:
  """Returns phrases on the size of a run: steps, minutes, problems."""
  found = []
  if run.base:
    found.append(f'{run.base[-1]["step"]:,} steps of base training')
  if run.rl:
    found.append(f'{run.rl[-1]["step"]:,} steps of reinforcement learning')
    seconds = [number(line.get('time') or {}, 'seconds') for line in run.rl]
    total = sum(second for second in seconds if second is not None)
    if total:
      long = total >= 120
      found[-1] += f' in {total / 60:.0f} minutes' if long else f' in {total:.0f} s'
  if run.evaluations:
    problems, k = (number(run.evaluations[-1], name) for name in ('problems', 'k'))
    if problems and k:
      found.append(f'{problems:g} validation problems × {k:g} outputs')
  return found


def warnings(run: RunFiles) -> list[str]:
  """Returns sentences on why the last RL step may learn little."""
  if not run.rl:
    return []
  last = run.rl[-1]
  return [f'At step {last["step"]}: {sentence}' for sentence in diagnose(last)]


def summary(run: RunFiles) -> list[str]:
  """Returns sentences on the result of a run."""
  if not run.evaluations:
    return [_reached(run), 'Nothing has been evaluated yet.']
  base, last = run.evaluations[0], run.evaluations[-1]
  before, after = estimate(base, 'pass_at_1'), estimate(last, 'pass_at_1')
  if before is None or after is None:
    return ['The evaluations of this run hold no pass@1.']
  if base is last:
    return [
      f'{_model(base)} solves {with_interval(before)} of the validation problems with '
      'one output. There is no other evaluation yet to compare it with.'
    ]
  return [*_solving(base, last, before, after), *_writing(base, last)]


def result(run: RunFiles) -> list[str]:
  """Returns up to three lines for a terminal: base -> trained, with intervals."""
  if not run.evaluations:
    return []
  base, last = run.evaluations[0], run.evaluations[-1]
  lines = []
  for key, name in (
    ('pass_at_1', 'pass@1'),
    ('consensus', f'cons@{last.get("k", "k")}'),
    ('length', 'length'),
  ):
    before, after = estimate(base, key), estimate(last, key)
    if before is not None and after is not None:
      texts = (
        f'{value.mean:.1f} tokens' if key == 'length' else with_interval(value)
        for value in (before, after)
      )
      lines.append(f'{name:8} base {" -> trained ".join(texts)}')
  return lines


def _reached(run: RunFiles) -> str:
  for name, lines in ('Reinforcement learning', run.rl), ('Base training', run.base):
    if lines:
      loss = number(lines[-1], 'loss')
      at = '' if loss is None else f' with a loss of {loss:.3g}'
      return f'{name} has reached step {lines[-1]["step"]:,}{at}.'
  return 'Nothing has been measured yet: metrics.jsonl is missing or empty.'


def _model(evaluation: JsonObject) -> str:
  step = evaluation['step']
  return 'The base model' if step == 0 else f'At step {step:,} the model'


def _solving(
  base: JsonObject, last: JsonObject, before: Estimate, after: Estimate
) -> list[str]:
  """Returns sentences on accuracy before and after, with the test of the change."""
  sentences = [
    f'{_model(base)} solves {with_interval(before)} of the validation problems with '
    f'one output; after {last["step"]:,} steps of reinforcement learning it solves '
    f'{with_interval(after)}.'
  ]
  difference = compared(base, last)
  if difference is not None:
    sentences.append(
      f'Compared problem by problem, these two models differ by {points(difference)}; '
      'one run cannot say how much another seed would differ.'
    )
  votes = estimate(base, 'consensus'), estimate(last, 'consensus')
  if votes[0] is not None and votes[1] is not None:
    sentences.append(
      f'The most frequent answer among {last.get("k", "several")} outputs is right for '
      f'{percent(votes[1].mean)} of the problems ({percent(votes[0].mean)} before).'
    )
  return sentences


def points(found: statistics.Paired) -> str:
  """Returns a difference in points with its interval and its p-value."""
  mean, low, high = (signed(x) for x in found.difference)
  p = f'p\u00a0=\u00a0{found.p:.3f}' if found.p >= 0.001 else 'p\u00a0<\u00a00.001'
  return f'{mean} points ({low} to {high}; sign-flip test, {p})'


def signed(share: float) -> str:
  """Returns a difference of shares in points, with its sign."""
  return f'{100 * share:+.1f}'.replace('-', '−')


def compared(
  base: JsonObject, last: JsonObject, confidence: float = 0.95
) -> statistics.Paired | None:
  """Returns the paired test of pass@1, `last` minus `base`, on their common problems.

  None if one of them has no results by problem.
  """
  shares, groups = [], base.get('groups')
  for line in (base, last):
    right, k = line.get('right'), number(line, 'k')
    if not right or not k or not isinstance(right, list):
      return None
    shares.append([count / k for count in right])
  both = min(map(len, shares))  # a shorter evaluation has the first problems
  if groups is not None:
    groups = groups[:both]
  return statistics.paired(shares[0][:both], shares[1][:both], 0, confidence, groups)


def _writing(base: JsonObject, last: JsonObject) -> list[str]:
  """Returns sentences on the length of outputs and on self-checks."""
  sentences = []
  short, long = estimate(base, 'length'), estimate(last, 'length')
  if short is not None and long is not None:
    verb = _verb(short, long, 'grow', 'shrink', 'stay about as long')
    sentences.append(
      f'Outputs {verb}, from {short.mean:.0f} to {long.mean:.0f} tokens on average.'
    )
  few, many = estimate(base, 'reflective'), estimate(last, 'reflective')
  if few is not None and many is not None:
    verb = _verb(few, many, 'rises', 'falls', 'stays about the same')
    sentences.append(
      f'The share of outputs in which the model checks itself {verb}, from '
      f'{percent(few.mean)} to {percent(many.mean)}.'
    )
  return sentences


def _verb(before: Estimate, after: Estimate, up: str, down: str, level: str) -> str:
  """Returns `up` or `down` if the intervals do not overlap, else `level`.

  That is stricter than a test at 5 %, because the problems are the same.
  """
  (before_low, before_high), (after_low, after_high) = map(_ends, (before, after))
  if after_low > before_high:
    return up
  return down if after_high < before_low else level


def _ends(value: Estimate) -> tuple[float, float]:
  if value.low is None or value.high is None:
    return value.mean, value.mean
  return value.low, value.high


def with_interval(value: Estimate | statistics.Interval) -> str:
  """Returns a share, with its interval in brackets if there is one."""
  if value.low is None or value.high is None:
    return percent(value.mean)
  return f'{percent(value.mean)} ({value.low * 100:.1f}–{value.high * 100:.1f})'


def aligned(rows: Sequence[Sequence[str]], between: str = '  ') -> list[str]:
  """Returns the rows of a table as lines: the first column left, the others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
    lines.append(between.join([first.ljust(widths[0]), *cells]))
  return lines
