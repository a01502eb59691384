"""The judge of R1's fourth stage in miniature: which of two outputs helps a user more.

The paper asks a large model; here a program stands for it, with that model's failings:
its verdicts are noisy and favour what it reads first. So a pair is judged several times
in random order and kept where the mean is clear. Only what a user is shown counts,
never the thoughts: those stay free to search (Nature version, on R1's last stage).
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

WORST = 1.0  # of a scale that ends at 10
ENOUGH = 12  # words; an output loses by each one more
FAULTS = 6  # words too many or said again that leave nothing of `brief`


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How the judge is asked, and which of its verdicts are believed."""

  pairs_per_problem: int = 4  # at most, chosen at random from all of its outputs
  looks: int = 4  # verdicts a pair, each in a random order (the paper: 4)
  noise: float = 1.0  # standard deviation of a verdict, points
  first_bias: float = 0.5  # points that the output read first gets for that
  least_margin: float = 1.0  # |mean verdict| of a kept pair is above it (the paper: 1)
  longest_ratio: float = 4.0  # of words in a pair: an answer, and one said in 3 more

  def __post_init__(self) -> None:
    for name in ('pairs_per_problem', 'looks', 'longest_ratio'):
      if not 1 <= getattr(self, name) < math.inf:
        raise ValueError(
          f'judge.{name}: expected a finite number of 1 or more, got '
          f'{getattr(self, name)}'
        )
    for name in ('noise', 'first_bias', 'least_margin'):
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(
          f'judge.{name}: expected a finite number of 0 or more, got '
          f'{getattr(self, name)}'
        )


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two outputs for a problem, of which the judge prefers one."""

  problem: Problem
  chosen: str  # the whole output, thoughts and tags included
  rejected: str
  margin: float  # mean verdict, points; above 0


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Where the judged pairs went."""

  judged: int
  dropped_margin: int  # the verdict was not clear
  dropped_length: int  # one was too long beside the other
  dropped_balance: int  # surplus of those where the longer (or the shorter) was chosen
  kept: int


def _words(output: str) -> int:
  return len(parsing.visible(output).split())


# --- What an output is worth: parts from 0 to 1, each a reward, and their points ------


def fulfilled(problem: Problem, output: str) -> float:
  """1.0 when what follows the thoughts has the strict form and answers rightly."""
  _, _, rest = output.partition('</think>')
  parsed = parsing.parse(f'<think></think>{rest}')
  return float(parsed is not None and tasks.verify(problem, parsed.answer))


def in_language(problem: Problem, output: str) -> float:
  """The share of shown words in the problem's language; a half without any words."""
  shown = parsing.visible(output)
  return language.share(shown, problem.language) if language.words(shown) else 0.5


def kind(problem: Problem, output: str) -> float:
  """1.0 with a kind phrase of the problem's language, however often it comes."""
  phrases = language.PHRASES.get(problem.language, {}).get('kind', ())
  said = f' {" ".join(language.words(parsing.visible(output)))} '
  return float(any(f' {phrase} ' in said for phrase in phrases))


def brief(problem: Problem, output: str) -> float:
  """1.0 for few words, 1/6 less for each beyond 12 and for each said before.

  Numbers count for the length, but may be repeated.
  """
  del problem  # every problem asks for a short answer
  said = language.words(parsing.visible(output))
  repeated = len(said) - len(set(said))
  faults = max(0, _words(output) - ENOUGH) + repeated
  return max(0.0, 1 - faults / FAULTS)


# Points of each part; with WORST they make up 10. A kind phrase alone is worth more
# than the margin of 1 that a pair needs, or it would never be learned.
PARTS: dict[str, tuple[float, Reward]] = {
  'fulfilled': (4.0, fulfilled),
  'in_language': (2.0, in_language),
  'kind': (1.5, kind),
  'brief': (1.5, brief),
}


def quality(problem: Problem, output: str) -> float:
  """What the judge thinks of an output, 1 (also: it shows nothing) to 10."""
  if not parsing.visible(output):
    return WORST
  return WORST + sum(points * part(problem, output) for points, part in PARTS.values())


def wins(problem: Problem, output: str, other: str) -> float:
  """1.0 when `output` is the better one, 0.0 when `other` is, 0.5 for equals."""
  difference = quality(problem, output) - quality(problem, other)
  return 0.5 + 0.5 * float(np.sign(difference))


# --- Pairs: how much better is the first, and is that clear -------------------------


def judgement(
  problem: Problem,
  first: str,
  second: str,
  rng: np.random.Generator,
  config: JudgeConfig,
) -> float:
  """What one look says: by how many points `first`, which is read first, is better."""
  difference = quality(problem, first) - quality(problem, second)
  return difference + config.first_bias + rng.normal(0, config.noise)


def verdict(
  problem: Problem,
  output: str,
  other: str,
  rng: np.random.Generator,
  config: JudgeConfig,
) -> float:
  """The mean of several looks in random order: by how much `output` is the better."""
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
  """Returns the pairs to learn from, in the order of the problems, and their counts.

  A pair shows different texts, of similar lengths in words. Over all pairs the longer
  text is chosen as often as the shorter: what is dropped for that is drawn at random.

  Args:
    problems: P of them.
    outputs: several for each problem.
    seed: of the verdicts' noise and of all choices.
    config: see `Config`.

  Raises:
    ValueError: the judge finds all outputs of a problem equal, for every problem, or no
      pair is left.
  """
  rng = np.random.default_rng(seed)
  judged, told_apart = [], False
  for problem, texts in zip(problems, outputs, strict=True):
    different = _different(texts)
    told_apart |= len({quality(problem, output) for output in different}) > 1
    candidates = list(itertools.combinations(different, 2))
    drawn = rng.permutation(len(candidates))[: config.pairs_per_problem]
    for output, other in (candidates[index] for index in sorted(drawn)):
      margin = verdict(problem, output, other, rng, config)
      better, worse = (output, other) if margin > 0 else (other, output)
      judged.append(Pair(problem, better, worse, abs(margin)))
  if judged and not told_apart:
    raise ValueError(
      f'the judge gives all outputs of a problem the same number, in each of '
      f'{len(problems)} problems, so there is nothing to learn; expected outputs that '
      'differ in quality: raise the temperature, or sample from an earlier model'
    )
  clear = [pair for pair in judged if pair.margin > config.least_margin]
  alike = [pair for pair in clear if _ratio(pair) <= config.longest_ratio]
  kept = _balanced(alike, rng)
  statistics = Statistics(
    judged=len(judged),
    dropped_margin=len(judged) - len(clear),
    dropped_length=len(clear) - len(alike),
    dropped_balance=len(alike) - len(kept),
    kept=len(kept),
  )
  if not kept:
    raise ValueError(
      f'expected at least 1 pair for the preference model, got none of '
      f'{statistics.judged} judged: {statistics.dropped_margin} were dropped for their '
      f'margin, {statistics.dropped_length} for their lengths, '
      f'{statistics.dropped_balance} for balance; lower judge.least_margin, raise '
      'judge.longest_ratio, or give more outputs that differ'
    )
  return kept, statistics


def _different(texts: Sequence[str]) -> list[str]:
  """The first output of each that shows the same."""
  by_shown: dict[str, str] = {}
  for output in texts:
    by_shown.setdefault(parsing.visible(output), output)
  return list(by_shown.values())


def _ratio(pair: Pair) -> float:
  shorter, longer = sorted((_words(pair.chosen), _words(pair.rejected)))
  return longer / shorter if shorter else math.inf


def _balanced(alike: list[Pair], rng: np.random.Generator) -> list[Pair]:
  """Without the surplus of those whose chosen text is longer, or of the others."""
  difference = [_words(pair.chosen) - _words(pair.rejected) for pair in alike]
  longer = [index for index, words in enumerate(difference) if words > 0]
  shorter = [index for index, words in enumerate(difference) if words < 0]
  more, fewer = sorted((longer, shorter), key=len, reverse=True)
  surplus = set(rng.permutation(more)[: len(more) - len(fewer)].tolist())
  return [pair for index, pair in enumerate(alike) if index not in surplus]
