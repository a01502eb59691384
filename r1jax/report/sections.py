"""Sections of a run's report as data for the templates: results, samples, settings."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from r1jax.plain import JsonObject
from r1jax.report.reader import (
  MODELS,
  Estimate,
  ModelColumn,
  PipelineFiles,
  RunFiles,
  estimate,
)
from r1jax.runtime.workdir import MACHINE
from r1jax.text.parsing import REFLECTIVE
from r1jax.text.templates import TEMPLATES

PROBLEMS_SHOWN = 6
SHOWN = {'reasoning': 3, 'general': 2}  # the first problems, not the best ones
_METRICS = (  # name, meaning, key, whether it is a share; {k} is the number of outputs
  ('pass@1', 'solved by one output', 'pass_at_1', True),
  ('pass@{k}', 'solved by at least one of {k} outputs', 'pass_at_k', True),
  ('cons@{k}', 'solved by majority vote of {k} outputs', 'consensus', True),
  ('Length', 'tokens of an output, on average', 'length', False),
  ('Self-checks', 'outputs with a word such as “wait” or “check”', 'reflective', True),
  ('Cut off', 'outputs that reach the length limit', 'cut_off', True),
  ('Unparsable', 'outputs without an answer in valid form', 'unparsable', True),
)


class ResultRow(NamedTuple):
  """A quantity at the first and at the last evaluation."""

  name: str
  meaning: str
  before: Estimate | None
  after: Estimate | None
  share: bool

  @property
  def change(self) -> str:
    """The difference as text; empty if either was not measured."""
    if self.before is None or self.after is None:
      return ''
    difference = self.after.mean - self.before.mean
    text = f'{difference * 100:+.1f} points' if self.share else f'{difference:+.1f}'
    return text.replace('-', '−')


class SampleOutput(NamedTuple):
  """An output; `thinking` is HTML with reflective words marked."""

  title: str
  correct: bool
  verdict: str
  thinking: Markup
  answer: str


class Sample(NamedTuple):
  """Outputs to one question."""

  question: str
  outputs: list[SampleOutput]


def result_columns(run: RunFiles) -> list[str]:
  """Returns the names of the first and of the last evaluation, without repetition."""
  ends = run.evaluations[:1] + run.evaluations[1:][-1:]
  return [_evaluation_name(line) for line in ends]


def result_rows(run: RunFiles) -> list[ResultRow]:
  """Returns the rows of the result table; none before the first evaluation."""
  if not run.evaluations:
    return []
  base, last = run.evaluations[0], run.evaluations[-1]
  k = last.get('k', 'k')
  return [
    ResultRow(
      name.format(k=k),
      meaning.format(k=k),
      estimate(base, key),
      estimate(last, key),
      share,
    )
    for name, meaning, key, share in _METRICS
  ]


def _evaluation_name(line: JsonObject) -> str:
  return 'base' if line['step'] == 0 else f'step {line["step"]:,}'


def samples(run: RunFiles) -> list[Sample]:
  """Returns outputs to the same problems at the first and at the last evaluation."""
  if not run.samples:
    return []
  steps = [sample['step'] for sample in run.samples]
  shown = dict.fromkeys([min(steps), max(steps)])
  by_problem: dict[str, list[JsonObject]] = {}
  for line in run.samples:
    by_problem.setdefault(str(line.get('problem')), []).append(line)
  found = []
  for problem, lines in list(by_problem.items())[:PROBLEMS_SHOWN]:
    # An evaluation may write several outputs: the first one is shown, not the best.
    firsts = [next((x for x in lines if x['step'] == step), None) for step in shown]
    outputs = [_output(x, _evaluation_name(x)) for x in firsts if x is not None]
    found.append(Sample(question(str(lines[0].get('prompt', problem))), outputs))
  return found


def side_by_side(pipeline: PipelineFiles) -> list[Sample]:
  """Returns the outputs of all models to the same problems."""
  found = []
  for kind, count in SHOWN.items():
    shown = {
      model: {str(line.get('problem')): line for line in _shown(pipeline, model, kind)}
      for model in MODELS
    }
    for problem in _most_answered(list(shown.values()))[:count]:
      lines = {m: lines[problem] for m, lines in shown.items() if problem in lines}
      outputs = [_output(line, f'{m.title}: {m.meaning}') for m, line in lines.items()]
      prompt = str(next(iter(lines.values())).get('prompt', problem))
      found.append(Sample(question(prompt), outputs))
  return found


def _most_answered(shown: Sequence[Mapping[str, JsonObject]]) -> list[str]:
  """Returns the problems, those first that most models answered."""
  counts = Counter(problem for lines in shown for problem in lines)
  return sorted(counts, key=lambda problem: -counts[problem])


def _shown(
  pipeline: PipelineFiles, model: ModelColumn, kind: str
) -> Sequence[JsonObject]:
  return (pipeline.evaluation(model).get(kind) or {}).get('shown') or []


def question(prompt: str) -> str:
  """Returns the question of a prompt, without the template around it."""
  for template in TEMPLATES.values():
    start, end = template.split('{question}')
    if prompt.startswith(start) and prompt.endswith(end):
      return prompt[len(start) : len(prompt) - len(end)]
  return prompt


def _output(line: JsonObject, title: str) -> SampleOutput:
  correct = bool(line.get('correct'))
  wrong = '✗ cut off' if line.get('cut_off') else '✗ wrong'
  # Everything before the end of thinking is thinking, whether or not it ends.
  think, end, answer = str(line.get('output', '')).partition('</think>')
  verdict = '✓ right' if correct else wrong
  return SampleOutput(title, correct, verdict, _marked(think + end), answer)


def _marked(text: str) -> Markup:
  """Returns the text as HTML with its reflective words marked."""

  def mark(word: re.Match[str]) -> str:
    found = word.group()
    return f'<mark>{found}</mark>' if found.lower() in REFLECTIVE else found

  return Markup(re.sub(r'[^\W\d_]+', mark, escape(text)))


def settings(run: RunFiles) -> list[tuple[str, str]]:
  """Returns each setting of a run: its flag on the command line, and its value."""
  other = ('experiment', 'command', 'data', 'version', MACHINE)
  return _flags({name: x for name, x in run.config.items() if name not in other})


def command(run: RunFiles) -> str:
  """Returns the command that started the run; empty if it is not known."""
  found = run.config.get('command')
  return found if isinstance(found, str) else ''


def _flags(fields: JsonObject, prefix: str = '') -> list[tuple[str, str]]:
  flags = []
  for name, value in fields.items():
    flag = prefix + name.replace('_', '-')
    if isinstance(value, dict):
      flags += _flags(value, flag + '.')
    else:
      flags.append((flag, ' '.join(_words(value))))
  return flags


def _words(value: object) -> list[str]:
  """Returns a value as the command line takes it; lists are flattened."""
  if isinstance(value, list):
    return [word for item in value for word in _words(item)]
  return [str(value)]
