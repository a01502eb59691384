"""The pretraining corpus of the miniature, with documents about all tasks.

Most documents are about Countdown (see `writers`). Others solve equations and
calculations, in ways of different lengths and with mistakes, or follow an instruction,
or ignore it. With `CAREFUL` the same writers make no mistakes; they write the general
data of R1's third stage. Document `index` of a seed is always the same. No document is
about a held-out problem, contains a held-out equation or calculation, or calculates
with the numbers of a held-out Countdown problem.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping

from r1jax import tasks
from r1jax.miniature import writers
from r1jax.miniature.writers import Writer, WriterConfig
from r1jax.plain import JsonObject
from r1jax.tasks import (
  Problem,
  arithmetic,
  countdown,
  equations,
  expressions,
  instructions,
)
from r1jax.tasks.arithmetic import ArithmeticConfig
from r1jax.tasks.countdown import CountdownConfig
from r1jax.tasks.equations import EquationsConfig
from r1jax.tasks.instructions import InstructionsConfig
from r1jax.tasks.splits import held_out
from r1jax.text.language import NUMBERS, PHRASES

MOST_TRIES = 8  # numbers that a writer tries in an equation


@dataclasses.dataclass(frozen=True)
class TaskConfigs:
  """The difficulty of each task."""

  countdown: CountdownConfig = CountdownConfig()
  equations: EquationsConfig = EquationsConfig()
  arithmetic: ArithmeticConfig = ArithmeticConfig()
  instructions: InstructionsConfig = InstructionsConfig()


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """The mix of documents; rates are shares of documents."""

  equations: float = 0.1  # documents that solve an equation
  arithmetic: float = 0.09  # documents that calculate
  instructions: float = 0.18  # documents that follow or ignore an instruction
  slip: float = 0.07  # lines of an equation or calculation with a wrong number
  trying: float = 0.4  # writers who try numbers in an equation of one x
  obedient: float = 0.5  # writers who follow an instruction
  native: float = 0.0  # writers who use the problem's language
  kind: float = 0.3  # writers who put a kind phrase before the answer to an instruction
  summary: float = 0.1  # writers who summarise a solution before the answer
  countdown: WriterConfig = WriterConfig()

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, float | int) and not 0 <= value <= 1:
        raise ValueError(f'{field.name}: expected 0 to 1, got {value}')
    if self.equations + self.arithmetic + self.instructions > 1:
      raise ValueError(
        'instructions: expected at most 1 as the sum of equations, arithmetic and '
        f'instructions, got {self.equations + self.arithmetic + self.instructions:g}'
      )


def tasks_of(fields: Mapping[str, JsonObject]) -> TaskConfigs:
  """Returns the config that `dataclasses.asdict` has turned into `fields`."""
  configs = {name: tasks.module(name).SETTINGS(**fields[name]) for name in fields}
  return TaskConfigs(**configs)


def config_of(fields: JsonObject) -> CorpusConfig:
  """Returns the config that `dataclasses.asdict` has turned into `fields`."""
  return CorpusConfig(**{**fields, 'countdown': WriterConfig(**fields['countdown'])})


# For `write`: writers without mistakes, who follow instructions and use the language.
CAREFUL = CorpusConfig(slip=0.0, trying=0.0, obedient=1.0, native=1.0)


def document(
  config: CorpusConfig, tasks: TaskConfigs, seed: int, index: int
) -> tuple[str, str]:
  """Returns document `index`: a question, and a writer's thoughts and answer."""
  rng = random.Random(f'{seed} {index} web')
  task = _task(config, rng)
  # 2 % of the Countdown documents are rejected, and 17 % of those about equations. Of
  # those that try numbers it is 45 %: 3*4+5 would also solve a Countdown problem.
  while True:
    question, output = _document(config, tasks, task, rng)
    # Countdown documents do not combine held-out numbers to begin with.
    others = None if task == 'countdown' else tasks.countdown
    if not states_held_out(output, others):
      return question, output


def states_held_out(text: str, search: CountdownConfig | None = None) -> bool:
  """Returns whether `text` contains a held-out equation or calculation.

  With `search`, a difficulty of Countdown, also whether it calculates with the numbers
  of a held-out problem of that difficulty.
  """
  stated: Iterable[str] = itertools.chain(
    equations.stated(text), arithmetic.stated(text)
  )
  if search is not None:
    stated = itertools.chain(stated, countdown.stated(text, search))
  return any(map(held_out, stated))


def _task(config: CorpusConfig, rng: random.Random) -> str:
  shares = [config.equations, config.arithmetic, config.instructions]
  names = ('equations', 'arithmetic', 'instructions', 'countdown')
  return rng.choices(names, [*shares, 1 - sum(shares)])[0]


def _document(
  config: CorpusConfig, tasks: TaskConfigs, task: str, rng: random.Random
) -> tuple[str, str]:
  if task == 'countdown':
    return writers.document(config.countdown, tasks.countdown, rng)
  problem = _draw(task, getattr(tasks, task), rng)
  return problem.text, write(config, problem, rng)


def _draw(task: str, config: object, rng: random.Random) -> Problem:
  """Returns a random problem that is not held out."""
  module = tasks.module(task)
  while True:
    problem = module.draw(config, rng)
    if not held_out(module.group(problem)):
      return problem


Solution = tuple[list[str], str, str]  # thoughts, summary, answer


def write(config: CorpusConfig, problem: Problem, rng: random.Random) -> str:
  """Returns a writer's thoughts and answer to a problem, of any task but Countdown."""
  writer = Writer(config.countdown, rng)
  if writer.happens(config.native):
    writer.languages = [PHRASES[problem.language]]
  ways: dict[str, Callable[[CorpusConfig, Problem, Writer], Solution]] = {
    'equations': _solve,
    'arithmetic': _calculate,
    'instructions': _follow,
  }
  thoughts, summary, answer = ways[problem.task](config, problem, writer)
  lines = '\n'.join([writer.say('open'), *thoughts])
  middle = f'\n{summary}\n' if summary else '\n'
  return f'<think>{lines}</think>{middle}<answer>{answer}</answer>'


def _slip(config: CorpusConfig, number: int, writer: Writer) -> int:
  """Returns the number, or sometimes another one nearby."""
  if not writer.happens(config.slip):
    return number
  return max(0, number + writer.rng.choice((-10, -2, -1, 1, 2, 10)))


def _solve(config: CorpusConfig, problem: Problem, writer: Writer) -> Solution:
  """Solves an equation: undoes sum and product, or tries one number after another."""
  truth = problem.truth
  factor, term, other = truth['factor'], truth['term'], truth['other']
  right = (factor - other) * truth['x'] + term
  if not other and writer.happens(config.trying):
    return _try(config, truth, right, writer)
  thoughts = [problem.id]
  if other:
    factor -= other
    multiple = 'x' if factor == 1 else f'{factor}x'
    less = 'x' if other == 1 else f'{other}x'
    thoughts.append(f'{truth["factor"]}x-{less}={multiple}')
    thoughts.append(f'{multiple}{term:+d}={right}')
  rest = _slip(config, right - term, writer)
  if factor == 1:
    x = max(1, rest)
    thoughts.append(f'x={right}{-term:+d}={x}')
  else:
    # After a mistake it may not divide; then the writer rounds.
    x = max(1, _slip(config, round(rest / factor), writer))
    thoughts.append(f'{factor}x={right}{-term:+d}={rest}')
    thoughts.append(f'x={rest}/{factor}={x}')
  return thoughts, _summary(config, f'x={x}', writer), str(x)


def _try(
  config: CorpusConfig, truth: Mapping[str, int], right: int, writer: Writer
) -> Solution:
  """Tries numbers until one fits, and answers with the last one in any case."""
  factor, term = truth['factor'], truth['term']
  x, thoughts = writer.rng.randint(1, 6), []
  while True:
    product = factor * x
    result = _slip(config, product + term, writer)
    verdict = writers.judge(result, right)
    thoughts.append(
      f'x={x} {factor}*{x}{term:+d}={product}{term:+d}={result}?{right} '
      f'{writer.say(verdict)}'
    )
    tired = len(thoughts) == MOST_TRIES or writer.happens(writer.impatience / 2)
    if verdict == 'yes' or tired:
      return thoughts, _summary(config, f'x={x}', writer), str(x)
    x = max(1, x + (1 if verdict == 'low' else -1))


def _calculate(config: CorpusConfig, problem: Problem, writer: Writer) -> Solution:
  """Calculates by tens and ones."""
  left, sign, right = (problem.truth[name] for name in ('left', 'sign', 'right'))
  ones, tens = left % 10, left - left % 10
  if sign == '*':
    first = _slip(config, tens * right, writer)
    second = _slip(config, ones * right, writer)
    result = _slip(config, first + second, writer)
    thoughts = [
      f'{tens}*{right}={first}',
      f'{ones}*{right}={second}',
      f'{first}+{second}={result}',
    ]
  else:
    operate = expressions.OPERATIONS[sign]
    half = _slip(config, operate(left, right - right % 10), writer)
    result = _slip(config, operate(half, right % 10), writer)
    thoughts = [
      f'{left}{sign}{right - right % 10}={half}',
      f'{half}{sign}{right % 10}={result}',
    ]
  return thoughts, _summary(config, f'{problem.id}={result}', writer), str(result)


def _summary(config: CorpusConfig, result: str, writer: Writer) -> str:
  return f'{writer.say("used")} {result}' if writer.happens(config.summary) else ''


def _follow(config: CorpusConfig, problem: Problem, writer: Writer) -> Solution:
  """Follows an instruction, or gives a wrong answer of the same kind."""
  truth = problem.truth
  thoughts = []
  if truth['kind'] in ('translate', 'explain'):
    total = truth['left'] + truth['right']
    thoughts = [f'{truth["left"]}+{truth["right"]}={total}']
  obedient = writer.happens(config.obedient)
  answer = instructions.solution(problem) if obedient else _otherwise(problem, writer)
  kind = writer.say('kind') if writer.happens(config.kind) else ''
  return thoughts, kind, answer


def _otherwise(problem: Problem, writer: Writer) -> str:
  """Returns the answer of a writer who ignores the instruction."""
  truth = problem.truth
  match truth['kind']:
    case 'sort' | 'backwards':
      items = [str(item) for item in truth['items']]
      return ' '.join(writer.rng.sample(items, len(items)))
    case 'translate':
      other = 'en' if problem.language == 'pl' else 'pl'
      return NUMBERS[other][truth['left'] + truth['right']]
    case 'count':
      layouts = instructions.LAYOUTS.values()
      other = next(x for x in layouts if x != instructions.LAYOUTS[truth['how']])
      return other.join(map(str, range(truth['first'], truth['last'] + 1)))
  return str(truth['left'] + truth['right'])
