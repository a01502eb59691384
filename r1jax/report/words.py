"""The sentences of a report: what the run shows, as far as its numbers carry it."""

from r1jax import statistics
from r1jax.report.run import Line, Measured, Run, measured, number
from r1jax.runtime.diagnose import diagnose


def percent(share: float) -> str:
  """A share as it is written everywhere in the report, with one decimal."""
  return f'{share * 100:.1f}\u202f%'


def facts(run: Run) -> list[str]:
  """How much was done: steps, minutes, problems."""
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


def warnings(run: Run) -> list[str]:
  """What the last RL step says about why little is learned."""
  if not run.rl:
    return []
  last = run.rl[-1]
  return [f'At step {last["step"]}: {sentence}' for sentence in diagnose(last)]


def summary(run: Run) -> list[str]:
  """What the run shows, in a few sentences."""
  if not run.evaluations:
    return [_reached(run), 'Nothing has been evaluated yet.']
  base, last = run.evaluations[0], run.evaluations[-1]
  before, after = measured(base, 'pass_at_1'), measured(last, 'pass_at_1')
  if before is None or after is None:
    return ['The evaluations of this run hold no pass@1.']
  if base is last:
    return [
      f'{_model(base)} solves {with_interval(before)} of the validation problems with '
      'one output. There is no other evaluation yet to compare it with.'
    ]
  return [*_solving(base, last, before, after), *_writing(base, last)]


def result(run: Run) -> list[str]:
  """Three lines, base -> trained, with intervals; fewer if less was measured."""
  if not run.evaluations:
    return []
  base, last = run.evaluations[0], run.evaluations[-1]
  lines = []
  for key, name in (
    ('pass_at_1', 'pass@1'),
    ('consensus', f'cons@{last.get("k", "k")}'),
    ('length', 'length'),
  ):
    before, after = measured(base, key), measured(last, key)
    if before is not None and after is not None:
      texts = (
        f'{value.mean:.1f} tokens' if key == 'length' else with_interval(value)
        for value in (before, after)
      )
      lines.append(f'{name:8} base {" -> trained ".join(texts)}')
  return lines


def _reached(run: Run) -> str:
  for name, lines in ('Reinforcement learning', run.rl), ('Base training', run.base):
    if lines:
      loss = number(lines[-1], 'loss')
      at = '' if loss is None else f' with a loss of {loss:.3g}'
      return f'{name} has reached step {lines[-1]["step"]:,}{at}.'
  return 'Nothing has been measured yet: metrics.jsonl is missing or empty.'


def _model(evaluation: Line) -> str:
  step = evaluation['step']
  return 'The base model' if step == 0 else f'At step {step:,} the model'


def _solving(base: Line, last: Line, before: Measured, after: Measured) -> list[str]:
  """How often the problems are solved, and whether that can be luck."""
  sentences = [
    f'{_model(base)} solves {with_interval(before)} of the validation problems with '
    f'one output; after {last["step"]:,} steps of reinforcement learning it solves '
    f'{with_interval(after)}.'
  ]
  difference = compared(base, last)
  if difference is not None:
    sentences.append(
      'Of these two models, compared problem by problem, that is '
      f'{points(difference)}; how much another seed would differ, one run cannot say.'
    )
  votes = measured(base, 'consensus'), measured(last, 'consensus')
  if votes[0] is not None and votes[1] is not None:
    sentences.append(
      f'The most frequent answer among {last.get("k", "several")} outputs is right for '
      f'{percent(votes[1].mean)} of the problems ({percent(votes[0].mean)} before).'
    )
  return sentences


def points(found: statistics.Paired) -> str:
  """A difference with its interval and its test, in words."""
  mean, low, high = (signed(x) for x in found.difference)
  p = f'p\u00a0=\u00a0{found.p:.3f}' if found.p >= 0.001 else 'p\u00a0<\u00a00.001'
  return f'{mean} points ({low} to {high}; sign-flip test, {p})'


def signed(share: float) -> str:
  """A difference of shares in points, with its sign."""
  return f'{100 * share:+.1f}'.replace('-', '−')


def compared(
  base: Line, last: Line, confidence: float = 0.95
) -> statistics.Paired | None:
  """pass@1 of the last evaluation against the first, on the problems both hold."""
  shares, groups = [], base.get('groups')
  for line in (base, last):
    right, k = line.get('right'), number(line, 'k')
    if not right or not k or not isinstance(right, list):
      return None
    shares.append([count / k for count in right])
  both = min(map(len, shares))  # a shorter evaluation takes the first problems
  if groups is not None:
    groups = groups[:both]
  return statistics.paired(shares[0][:both], shares[1][:both], 0, confidence, groups)


def _writing(base: Line, last: Line) -> list[str]:
  """How the outputs themselves have changed."""
  sentences = []
  short, long = measured(base, 'length'), measured(last, 'length')
  if short is not None and long is not None:
    verb = _verb(short, long, 'grow', 'shrink', 'stay about as long')
    sentences.append(
      f'Outputs {verb}, from {short.mean:.0f} to {long.mean:.0f} tokens on average.'
    )
  few, many = measured(base, 'reflective'), measured(last, 'reflective')
  if few is not None and many is not None:
    verb = _verb(few, many, 'rises', 'falls', 'stays about the same')
    sentences.append(
      f'The share of outputs in which the model checks itself {verb}, from '
      f'{percent(few.mean)} to {percent(many.mean)}.'
    )
  return sentences


def _verb(before: Measured, after: Measured, up: str, down: str, level: str) -> str:
  """The verb for a change; it is not called one where the intervals overlap.

  That is stricter than a test at 5 %, as the problems are the same.
  """
  (before_low, before_high), (after_low, after_high) = map(_ends, (before, after))
  if after_low > before_high:
    return up
  return down if after_high < before_low else level


def _ends(value: Measured) -> tuple[float, float]:
  if value.low is None or value.high is None:
    return value.mean, value.mean
  return value.low, value.high


def with_interval(value: Measured | statistics.Interval) -> str:
  """A share, and in brackets its interval if there is one."""
  if value.low is None or value.high is None:
    return percent(value.mean)
  return f'{percent(value.mean)} ({value.low * 100:.1f}–{value.high * 100:.1f})'
