"""Writers of the miniature's corpus: documents that search for a Countdown solution.

A base model needs text to be trained on. These writers differ in method, patience and
language (English, Polish, or both mixed). They try combinations in order or at random,
miscalculate, misjudge, correct themselves, bluff and give up. So a model of this text
has all abilities that reasoning needs, but rarely combines them. No writer combines the
numbers of a held-out problem.
"""

import dataclasses
import random

from r1jax.tasks import countdown, expressions
from r1jax.tasks.countdown import CountdownConfig
from r1jax.tasks.expressions import Tree
from r1jax.tasks.splits import held_out
from r1jax.text.language import ENGLISH, POLISH


@dataclasses.dataclass(frozen=True)
class WriterConfig:
  """Traits of the writers; rates are shares of documents or of attempts."""

  tenacious: float = 0.25  # writers who never give up
  impatience: float = 0.4  # probability that others give up after a failed attempt
  orderly: float = 0.9  # searches that try the combinations in order
  polish: float = 0.3  # documents in Polish
  mixed: float = 0.2  # documents that mix both languages, phrase by phrase
  miscalculation: float = 0.01  # attempts with a wrong result
  misjudgement: float = 0.02  # attempts taken for a solution, or solutions missed
  recheck: float = 0.15  # verdicts that are doubted and calculated again
  bluff: float = 0.7  # writers without a solution who answer anyway
  schoolbook: float = 0.4  # documents of calculation and comparison drills
  drill_lines: int = 12  # calculations in a schoolbook document

  def __post_init__(self) -> None:
    if self.drill_lines < 1:
      raise ValueError(f'drill_lines: expected 1 or more, got {self.drill_lines}')
    for name in (
      'tenacious',
      'impatience',
      'orderly',
      'polish',
      'mixed',
      'miscalculation',
      'misjudgement',
      'recheck',
      'bluff',
      'schoolbook',
    ):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}: expected 0 to 1, got {getattr(self, name)}')
    if self.polish + self.mixed > 1:
      raise ValueError(
        f'polish: expected at most 1 - mixed={self.mixed}, got {self.polish}'
      )


def document(
  config: WriterConfig, task: CountdownConfig, rng: random.Random
) -> tuple[str, str]:
  """Returns a question, and a writer's thoughts and answer."""
  writer = Writer(config, rng)
  if writer.happens(config.schoolbook):
    return 'practise', writer.drill(task)
  numbers, target, candidates = _problem(task, rng)
  return countdown.question(numbers, target), writer.solve(candidates, target)


def _problem(
  task: CountdownConfig, rng: random.Random
) -> tuple[tuple[int, ...], int, tuple[Tree, ...]]:
  """Returns numbers, a target, and all expressions; the problem is not held out."""
  while True:
    numbers = tuple(rng.choices(range(1, task.largest + 1), k=task.numbers))
    if held_out(countdown.group_of(numbers)):
      continue
    candidates = expressions.candidates(numbers)
    target = expressions.value(rng.choice(candidates))
    if 1 <= target <= task.highest_target:
      return numbers, target, candidates


VERDICTS = ('low', 'high', 'yes')


def judge(result: int, target: int) -> str:
  """Returns the true verdict on a result, one of `VERDICTS`."""
  return 'yes' if result == target else 'low' if result < target else 'high'


class Writer:
  """The author of one document, with patience and languages drawn at random."""

  def __init__(self, config: WriterConfig, rng: random.Random) -> None:
    self.config, self.rng = config, rng
    self.impatience = 0.0 if self.happens(config.tenacious) else config.impatience
    language = rng.random()
    if language < config.mixed:
      self.languages = [ENGLISH, POLISH]
    else:
      self.languages = [POLISH if language < config.mixed + config.polish else ENGLISH]

  def say(self, what: str) -> str:
    """Returns a random phrase with this role, in one of the languages."""
    return self.rng.choice(self.rng.choice(self.languages)[what])

  def happens(self, rate: float) -> bool:
    """Returns True with this probability."""
    return self.rng.random() < rate

  def solve(self, candidates: tuple[Tree, ...], target: int) -> str:
    """Tries combinations until one seems right or patience ends; returns the output.

    Tries none of them twice, in random order or in order from a random start.
    """
    if self.happens(self.config.orderly):
      start = self.rng.randrange(len(candidates))
      order = [*candidates[start:], *candidates[:start]]
      thoughts = [self.say('orderly')]
    else:
      order = [
        self.shuffled(tree) for tree in self.rng.sample(candidates, len(candidates))
      ]
      thoughts = [self.say('open')]
    for tree in order:
      text, accepted = self.attempt(tree, target)
      thoughts.append(text)
      if accepted:
        return self.finish(thoughts, expressions.write(tree))
      if self.happens(self.impatience):
        break
    if self.happens(self.config.bluff):
      return self.finish(thoughts, expressions.write(tree))
    stop = self.say('stop')
    return self.finish([*thoughts, stop], stop)

  def drill(self, task: CountdownConfig) -> str:
    """Returns sums, differences and products, each compared with a target.

    Half of the results equal the target. In a search few do, and a small model would
    need many documents to learn the comparison.
    """
    lines: list[str] = []
    while len(lines) < self.config.drill_lines:
      right = self.rng.randint(1, task.largest)
      op = self.rng.choice('+-*')
      most = task.largest if op == '*' and self.happens(0.7) else 2 * task.largest
      left = self.rng.randint(right if op == '-' else 1, max(right, most))
      if op != '-' and self.happens(0.5):
        left, right = right, left
      if task.numbers == 2 and held_out(countdown.group_of((left, right))):
        continue  # the line would be the solution of a held-out problem
      result = expressions.value((op, left, right))
      near = max(1, result + self.rng.randint(-12, 12))
      target = result if self.happens(0.5) else near
      verdict = self.say(judge(result, target))
      lines.append(f'{left}{op}{right}={result}?{target} {verdict}')
    return '\n'.join(lines)

  def finish(self, thoughts: list[str], answer: str) -> str:
    """Returns the output with these thoughts and this answer."""
    lines = '\n'.join(thoughts)
    return f'<think>{lines}</think>\n<answer>{answer}</answer>'

  def shuffled(self, tree: Tree) -> Tree:
    """Returns the expression with the operands of + and * in random order."""
    if isinstance(tree, int):
      return tree
    op, left, right = tree[0], self.shuffled(tree[1]), self.shuffled(tree[2])
    if op != '-' and self.happens(0.5):
      left, right = right, left
    return (op, left, right)

  def attempt(self, tree: Tree, target: int) -> tuple[str, bool]:
    """Calculates, judges and sometimes doubts; returns the text and the verdict."""
    text, result = self.calculate(tree)
    verdict = judge(result, target)
    if self.happens(self.config.misjudgement):
      verdict = self.rng.choice([other for other in VERDICTS if other != verdict])
    text += f'?{target} {self.say(verdict)}'
    if self.happens(self.config.recheck):
      again, result = self.calculate(tree)
      verdict = judge(result, target)
      doubt = self.say('wait' if self.happens(0.5) else 'check')
      text += f'\n{doubt} {again}?{target} {self.say(verdict)}'
    return text, verdict == 'yes'

  def calculate(self, tree: Tree) -> tuple[str, int]:
    """Returns the steps, `(3+5)*2=8*2=16`, and the result, which may be wrong."""
    steps = [expressions.write(tree)]
    while not isinstance(tree, int):
      tree = expressions.reduce_once(tree)
      if isinstance(tree, int) and self.happens(self.config.miscalculation):
        tree = max(0, tree + self.rng.choice((-10, -2, -1, 1, 2, 10)))
      steps.append(expressions.write(tree))
    return '='.join(steps), expressions.value(tree)
