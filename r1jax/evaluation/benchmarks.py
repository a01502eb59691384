"""A model on published benchmarks: its outputs with verdicts, and what they add up to.

`Outputs` has the outputs for one benchmark in a file, to which `sample` adds those that
are missing. `summary` turns them into pass@1, pass@k and consensus, `table` shows them,
and `compare` tests the difference of two models on the same problems.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from r1jax import statistics, tasks
from r1jax.evaluation import instruction_following
from r1jax.plain import JsonDict, JsonObject
from r1jax.rewards.pool import Rewarder
from r1jax.rollout.policy import Policy
from r1jax.rollout.sampler import Sampler
from r1jax.runtime.log import explained
from r1jax.runtime.workdir import WorkdirError, write_whole
from r1jax.sampling.sampler import SamplingConfig
from r1jax.tasks import Problem
from r1jax.tasks.benchmarks import BENCHMARKS
from r1jax.text import parsing

RESULTS = 'results.json'
MULTIPLE = 64  # tokens; prompts of similar benchmarks share a compiled program


class Draw(NamedTuple):
  """How outputs are sampled.

  Fields:
    samples: outputs per problem.
    prompts_per_batch: problems sampled at a time.
    max_length: T, tokens.
    config: temperature, top-k and top-p.
  """

  samples: int
  prompts_per_batch: int
  max_length: int
  config: SamplingConfig


class Outputs:
  """The outputs for a benchmark, by problem and sample, as lines of a file.

  A line has: problem (its id), sample (number), output, answer (None without one),
  right, other measures by name, tokens, cut_off, and seconds (its share of the time of
  its batch).
  """

  def __init__(self, file: Path, problems: Sequence[Problem], draw: Draw):
    """Reads the lines of whole batches; the others are sampled again.

    Raises:
      WorkdirError: a line is damaged or belongs to another problem.
    """
    self.file, self.problems, self.draw = file, problems, draw
    lines = file.read_text(encoding='utf-8').splitlines() if file.exists() else []
    batch = draw.prompts_per_batch * draw.samples
    total = len(problems) * draw.samples
    whole = total if len(lines) >= total else len(lines) // batch * batch
    self.lines: list[JsonDict] = [
      self._line(n, text) for n, text in enumerate(lines[:whole])
    ]

  def _line(self, number: int, text: str) -> JsonDict:
    expected = self.problems[number // self.draw.samples].id
    try:
      line = json.loads(text)
      found = line['problem']
    except (ValueError, LookupError, TypeError):
      found = None
    if found != expected:
      raise WorkdirError(
        f'{self.file}: expected an output for {expected} in line {number + 1}, got '
        f'{found or "a damaged line"}; delete the file, or choose another --workdir'
      )
    return line

  @property
  def finished(self) -> int:
    """Number of problems with all their outputs."""
    return len(self.lines) // self.draw.samples

  def sample(
    self,
    params: optax.Params,
    key: jax.Array,
    *,
    sampler: Sampler,
    rewarder: Rewarder,
    say: Callable[[str], None],
  ) -> None:
    """Samples the missing outputs; writes them to the file after each batch.

    Args:
      params: of the policy.
      key: of all samples; which ones were there before changes none.
      sampler: of the policy.
      rewarder: with the reward `accuracy` and other measures.
      say: gets a sentence after each batch.
    """
    draw, size = self.draw, self.draw.prompts_per_batch
    # Without lines of a batch that was not finished.
    write_whole(self.file, ''.join(map(_text, self.lines)))
    for start in range(self.finished, len(self.problems), size):
      chunk = list(self.problems[start : start + size])
      filled = chunk + [chunk[-1]] * (size - len(chunk))  # one shape, one compilation
      found = sampler.sample(
        params,
        jax.random.fold_in(key, start),
        filled,
        group_size=draw.samples,
        max_length=draw.max_length,
        draw=draw.config,
      )
      places = np.argsort(found.rows)[: len(chunk)]
      texts = [text for n in places for text in found.texts[n]]
      asked = [problem for problem in chunk for _ in range(draw.samples)]
      scores = rewarder.submit(asked, texts).result()
      for error in scores.errors:
        say(error)
      lengths, cut_off = found.lengths[places].ravel(), found.cut_off[places].ravel()
      lines: list[JsonDict] = [
        {
          'problem': problem.id,
          'sample': n % draw.samples,
          'output': text,
          'answer': parsed.answer
          if (parsed := parsing.parse(text, problem.form))
          else None,
          'right': bool(scores.values[n, 0]),
          **dict(zip(rewarder.names[1:], scores.values[n, 1:].tolist(), strict=True)),
          'tokens': int(lengths[n]),
          'cut_off': bool(cut_off[n]),
          'seconds': round(found.seconds / len(texts), 4),
        }
        for n, (problem, text) in enumerate(zip(asked, texts, strict=True))
      ]
      with (
        explained(self.file),
        self.file.open('a', encoding='utf-8', errors='backslashreplace') as file,
      ):
        file.write(''.join(map(_text, lines)))
      self.lines += lines
      right = np.mean([line['right'] for line in self.lines])
      say(
        f'{self.file.stem}: {self.finished} of {len(self.problems)} problems, pass@1 '
        f'{right:.1%}, {lengths.sum() / found.seconds:,.0f} tokens/s'
      )

  def summary(self) -> JsonDict:
    """Returns the results; intervals are bootstrapped over problems."""
    samples = self.draw.samples
    right_PG = np.array([line['right'] for line in self.lines]).reshape(-1, samples)
    tokens = [line['tokens'] for line in self.lines]
    count = right_PG.sum(1)
    found = {
      'pass_at_1': right_PG,
      'pass_at_k': statistics.pass_at_k(samples, count, samples),
    }
    if self.problems[0].form != 'text':  # texts can't vote
      found['maj_at_k'] = self._majority()
    ids = [problem.id for problem in self.problems]
    return {
      'problems': len(ids),
      'samples': samples,
      **{name: statistics.bootstrap(x, seed=0)._asdict() for name, x in found.items()},
      'mean_tokens': float(np.mean(tokens)),
      'cut_off': float(np.mean([line['cut_off'] for line in self.lines])),
      'no_answer': float(np.mean([line['answer'] is None for line in self.lines])),
      'tokens': sum(tokens),
      'seconds': sum(line['seconds'] for line in self.lines),
      'right': dict(zip(ids, count.tolist(), strict=True)),  # outputs, by problem
      **instruction_following.accuracies(self.problems, self.lines),
    }

  def _majority(self) -> np.ndarray:
    """Returns whether the most frequent answer of each problem is right, float [P]."""
    majority = []
    for n, problem in enumerate(self.problems):
      group = self.lines[n * self.draw.samples : (n + 1) * self.draw.samples]
      votes = [
        None if line['answer'] is None else tasks.answer_key(problem, line['answer'])
        for line in group
      ]
      winner = statistics.consensus(votes)
      majority.append(winner is not None and group[votes.index(winner)]['right'])
    return np.array(majority, float)


def prompt_length(
  policy: Policy, name: str, problems: Sequence[Problem], max_length: int, most: int
) -> int:
  """Returns S, tokens, for the prompts of a benchmark.

  Args:
    policy: of the model.
    name: of the benchmark.
    problems: its problems.
    max_length: T, tokens.
    most: positions that the model knows.

  Raises:
    ValueError: a prompt and an output exceed them.
  """
  ids = (policy.tokenizer.prompt_ids(policy.template, p.question) for p in problems)
  longest = max(map(len, ids))
  if longest >= most:
    raise ValueError(
      f'benchmarks: {BENCHMARKS[name].title} has a prompt of {longest} tokens, and the '
      f'model knows {most} positions; leave {name} out'
    )
  if longest + max_length > most:
    raise ValueError(
      f'max_length: expected at most {most - longest}, as the model knows {most} '
      f'positions and the longest prompt of {BENCHMARKS[name].title} has {longest} '
      f'tokens, got {max_length}'
    )
  return min(math.ceil(longest / MULTIPLE) * MULTIPLE, most - max_length)


def table(results: Mapping[str, JsonObject]) -> list[str]:
  """Returns a Markdown table with a row for each benchmark."""
  samples = next(iter(results.values()))['samples']
  head = (
    *('benchmark', 'problems', 'pass@1, %', '95 % interval', f'pass@{samples}, %'),
    *(f'maj@{samples}, %', 'mean tokens', 'cut off, %', 'no answer, %'),
    *('all tokens', 'time'),
  )
  rows = []
  for name, found in results.items():
    one = found['pass_at_1']
    minutes, seconds = divmod(round(found['seconds']), 60)
    rows.append(
      (
        BENCHMARKS[name].title,
        str(found['problems']),
        _percent(one['mean']),
        f'{_percent(one["low"])} to {_percent(one["high"])}',
        _percent(found['pass_at_k']['mean']),
        _percent(found['maj_at_k']['mean']) if 'maj_at_k' in found else '–',
        f'{found["mean_tokens"]:,.0f}',
        _percent(found['cut_off']),
        _percent(found['no_answer']),
        f'{found["tokens"]:,}',
        f'{minutes} min {seconds} s',
      )
    )
  return markdown([head, *rows])


def compare(before: Path, after: Path) -> list[Sequence[str]]:
  """Returns a table of the differences in pass@1 of two evaluations, its head first.

  The test is paired over problems: see `statistics.paired`.

  Raises:
    ValueError: a folder has no results, or they have no benchmark in common, or other
      problems of one.
  """
  a, b = (read_results(folder)['benchmarks'] for folder in (before, after))
  common = [name for name in a if name in b]
  if not common:
    raise ValueError(
      f'compare: expected a benchmark that {before} and {after} have in common, got '
      f'{", ".join(a)} and {", ".join(b)}'
    )
  rows = []
  for name in common:
    ours, theirs = a[name], b[name]
    if ours['right'].keys() != theirs['right'].keys():
      raise ValueError(
        f'compare: expected the same problems of {name}, got {ours["problems"]} in '
        f'{before} and {theirs["problems"]} in {after}; evaluate both with one --limit'
      )
    rates = [
      [found['right'][id_] / found['samples'] for id_ in ours['right']]
      for found in (ours, theirs)
    ]
    difference, p = statistics.paired(rates[0], rates[1], seed=0)
    rows.append(
      (
        BENCHMARKS[name].title,
        str(ours['problems']),
        *(_percent(x['pass_at_1']['mean']) for x in (ours, theirs)),
        f'{100 * difference.mean:+.1f}',
        f'{100 * difference.low:+.1f} to {100 * difference.high:+.1f}',
        f'{p:.3f}',
      )
    )
  head = (
    *('benchmark', 'problems', f'{before}, %', f'{after}, %', 'difference'),
    *('95 % interval', 'p'),
  )
  return [head, *rows]


def read_results(folder: Path) -> JsonDict:
  """Returns the results of a finished evaluation.

  Raises ValueError if there are none, or their file is damaged.
  """
  file = folder / RESULTS
  if not file.is_file():
    raise ValueError(
      f'compare: expected the work directory of a finished evaluation, but {folder} '
      f'has no {RESULTS}'
    )
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
    return {name: found[name] for name in ('settings', 'benchmarks')}
  except (ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f'compare: {file} is damaged; delete it and evaluate again: its outputs are kept'
    ) from error


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns the lines of a table, the first row of which is its head."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '| ' + ' | '.join(x.ljust(n) for x, n in zip(row, widths, strict=True)) + ' |'
    for row in rows
  ]
  return [lines[0], '|' + '|'.join('-' * (n + 2) for n in widths) + '|', *lines[1:]]


def _percent(share: float) -> str:
  return f'{100 * share:.1f}'


def _text(line: JsonObject) -> str:
  return json.dumps(line, ensure_ascii=False) + '\n'
