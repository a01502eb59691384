"""The judge of R1's fourth stage in miniature: which of two outputs helps a user more.

The paper uses a large model as judge. Here a program has its weaknesses: verdicts are
noisy and favour the output that comes first. So a pair is judged several times in
random order and kept only if the mean verdict is clear. Only the part of an output that
a user sees counts. Thoughts do not, so that the model stays free to search (Nature
version, on R1's last stage).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from r1jax import tasks
from r1jax.rewards import Reward
from r1jax.tasks import Problem
from r1jax.text import language, parsing

WORST = 1.0  # of a scale from 1 to 10
ENOUGH = 12  # words without a penalty
FAULTS = 6  # surplus or repeated words at which `brief` is 0


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How the judge compares outputs, and which pairs are kept."""

  pairs_per_problem: int = 4  # at most, drawn from all pairs of its outputs
  looks: int = 4  # verdicts per pair, each in random order (the paper: 4)
  noise: float = 1.0  # standard deviation of a verdict, in points
  first_bias: float = 0.5  # points in favour of the first output
  least_margin: float = 1.0  # below the |mean verdict| of kept pairs (the paper: 1)
  longest_ratio: float = 4.0  # of the word counts of a pair: 1 word against 4

  def __post_init__(self) -> None:
    for name in ('pairs_per_problem', 'looks', 'longest_ratio'):
      if not 1 <= getattr(self, name) < math.inf:
        raise ValueError(
          f'{name}: expected a finite number of 1 or more, got {getattr(self, name)}'
        )
    for name in ('noise', 'first_bias', 'least_margin'):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f'{name}: expected a finite number of 0 or more, got {getattr(self, name)}'
        )


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two outputs for a problem; the judge prefers `chosen`."""

  problem: Problem
  chosen: str  # the whole output, thoughts and tags included
  rejected: str
  margin: float  # mean verdict in points, above 0


@dataclasses.dataclass(frozen=True)
class Statistics:
  """How many pairs were judged, dropped and kept."""

  judged: int
  dropped_margin: int  # the verdict was not clear
  dropped_length: int  # one was much longer than the other
  dropped_balance: int  # surplus of pairs whose longer (or shorter) output won
  kept: int


def _words(output: str) -> int:
  return len(parsing.visible(output).split())


# --- Quality of an output: rewards from 0 to 1, and their points ---------------------


def fulfilled(problem: Problem, output: str) -> float:
  """Returns 1.0 if the text after the thoughts has the strict form and is right."""
  _, _, rest = output.partition('</think>')
  parsed = parsing.parse(f'<think></think>{rest}')
  return float(parsed is not None and tasks.verify(problem, parsed.answer))


def in_language(problem: Problem, output: str) -> float:
  """Returns the share of visible words in the problem's language; 0.5 for no words."""
  text = parsing.visible(output)
  return language.share(text, problem.language) if language.words(text) else 0.5


def kind(problem: Problem, output: str) -> float:
  """Returns 1.0 if there is a kind phrase in the problem's language, else 0.0."""
  phrases = language.PHRASES.get(problem.language, {}).get('kind', ())
  text = f' {" ".join(language.words(parsing.visible(output)))} '
  return float(any(f' {phrase} ' in text for phrase in phrases))


def brief(problem: Problem, output: str) -> float:
  """Returns 1.0 for few words, 1/6 less for each after the 12th and each repetition.

  Numbers count as words, but may be repeated.
  """
  del problem  # every problem asks for a short answer
  words = language.words(parsing.visible(output))
  repeated = len(words) - len(set(words))
  faults = max(0, _words(output) - ENOUGH) + repeated
  return max(0.0, 1 - faults / FAULTS)


# Points of each part. With WORST the sum is 10. A kind phrase is worth more than the
# margin of 1 that a pair needs, or it would never be learned.
PARTS: dict[str, tuple[float, Reward]] = {
  'fulfilled': (4.0, fulfilled),
  'in_language': (2.0, in_language),
  'kind': (1.5, kind),
  'brief': (1.5, brief),
}


def quality(problem: Problem, output: str) -> float:
  """Returns the quality of an output, from 1 (also if nothing is visible) to 10."""
  if not parsing.visible(output):
    return WORST
  return WORST + sum(points * part(problem, output) for points, part in PARTS.values())


def wins(problem: Problem, output: str, other: str) -> float:
  """Returns 1.0 if `output` is better, 0.0 if `other` is better, 0.5 for equals."""
  difference = quality(problem, output) - quality(problem, other)
  return 0.5 + 0.5 * float(np.sign(difference))


# --- Pairs ----------------------------------------------------------------------------


def judgement(
  problem: Problem,
  first: str,
  second: str,
  rng: np.random.Generator,
  config: JudgeConfig,
) -> float:
  """Returns one noisy verdict: by how many points `first` is better than `second`."""
  difference = quality(problem, first) - quality(problem, second)
  return difference + config.first_bias + rng.normal(0, config.noise)


def verdict(
  problem: Problem,
  output: str,
  other: str,
  rng: np.random.Generator,
  config: JudgeConfig,
) -> float:
  """Returns the mean of several verdicts in random order, positive for `output`."""
  total = 0.0
  for _ in range(config.looks):
    if rng.random() < 0.5:
      total += judgement(problem, output, other, rng, config)
    else:
      total -= judgement(problem, other, output, rng, config)
  return total / config.looks


def pairs(
  problems: Sequence[Problem],
  outputs: Sequence[Sequence[str]],
  seed: int,
  config: JudgeConfig,
) -> tuple[list[Pair], Statistics]:
  """Returns pairs for the preference model, in the order of the problems, and counts.

  The visible texts of a pair differ and have similar numbers of words. Over all pairs
  the longer text wins as often as the shorter: a random surplus is dropped.

  Args:
    problems: P of them.
    outputs: several for each problem.
    seed: of the noise and of all random choices.
    config: see `JudgeConfig`.

  Raises:
    ValueError: for every problem the judge finds all outputs equal, or no pair is left.
  """
  rng = np.random.default_rng(seed)
  judged, differ = [], False
  for problem, texts in zip(problems, outputs, strict=True):
    different = _different(texts)
    differ |= len({quality(problem, output) for output in different}) > 1
    candidates = list(itertools.combinations(different, 2))
    drawn = rng.permutation(len(candidates))[: config.pairs_per_problem]
    for output, other in (candidates[index] for index in sorted(drawn)):
      margin = verdict(problem, output, other, rng, config)
      better, worse = (output, other) if margin > 0 else (other, output)
      judged.append(Pair(problem, better, worse, abs(margin)))
  if judged and not differ:
    raise ValueError(
      f'the judge gives all outputs of a problem the same quality, for each of '
      f'{len(problems)} problems, so there is nothing to learn; raise the temperature, '
      'or sample from an earlier model'
    )
  clear = [pair for pair in judged if pair.margin > config.least_margin]
  similar = [pair for pair in clear if _ratio(pair) <= config.longest_ratio]
  kept = _balanced(similar, rng)
  statistics = Statistics(
    judged=len(judged),
    dropped_margin=len(judged) - len(clear),
    dropped_length=len(clear) - len(similar),
    dropped_balance=len(similar) - len(kept),
    kept=len(kept),
  )
  if not kept:
    raise ValueError(
      f'expected at least 1 pair for the preference model, got none of '
      f'{statistics.judged} judged: {statistics.dropped_margin} were dropped for their '
      f'margin, {statistics.dropped_length} for their lengths, '
      f'{statistics.dropped_balance} for balance; lower judge.least_margin, raise '
      'judge.longest_ratio, or provide more outputs that differ'
    )
  return kept, statistics


def _different(texts: Sequence[str]) -> list[str]:
  """Returns the outputs without those whose visible text repeats an earlier one."""
  by_text: dict[str, str] = {}
  for output in texts:
    by_text.setdefault(parsing.visible(output), output)
  return list(by_text.values())


def _ratio(pair: Pair) -> float:
  shorter, longer = sorted((_words(pair.chosen), _words(pair.rejected)))
  return longer / shorter if shorter else math.inf


def _balanced(pairs: list[Pair], rng: np.random.Generator) -> list[Pair]:
  """Returns pairs in which the longer text wins as often as the shorter."""
  difference = [_words(pair.chosen) - _words(pair.rejected) for pair in pairs]
  longer = [index for index, words in enumerate(difference) if words > 0]
  shorter = [index for index, words in enumerate(difference) if words < 0]
  more, fewer = sorted((longer, shorter), key=len, reverse=True)
  surplus = set(rng.permutation(more)[: len(more) - len(fewer)].tolist())
  return [pair for index, pair in enumerate(pairs) if index not in surplus]
