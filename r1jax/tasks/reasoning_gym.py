"""reasoning-gym: the generated data sets of that library, by name.

`reasoning_gym:chain_sum` asks the questions of its data set `chain_sum`, whose own
scorer checks answers. An answer is right if its score is 1.0: the shares that scorers
give for nearly right ones count as 0. The settings are the fields of the data set's
config, or a level of its curriculum.

A problem's truth is the entry of the data set as plain JSON. Entries whose question
repeats, or whose own answer is empty or not right after that, are left out. `REFUSED`
names the data sets whose scorers can't be used.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import re
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

from r1jax.plain import JsonDict, JsonObject
from r1jax.tasks import LIBRARY, Problem, mathematics, settings
from r1jax.tasks.splits import of_split

PACKAGE = 'reasoning-gym'
try:
  INSTALLED = importlib.metadata.version(PACKAGE)
except importlib.metadata.PackageNotFoundError as error:
  raise ValueError(
    f'task: expected the package {PACKAGE} for its data sets, but it is not installed; '
    "pip install 'r1jax[reasoning_gym]'"
  ) from error

VERSION = f'1.0.0+{INSTALLED}'  # another version of the library has other problems
SIZE = 2000  # entries, of all splits together
LEVEL = 'curriculum_level'  # beside the fields of a config

_EVALUATES = 'its scorer evaluates the text of an answer as Python, and needs a sandbox'
_NO_ANSWER = 'it has no right answers of its own, by which its scorer could be checked'
_TUPLES = 'its scorer compares tuples, which do not survive JSON'
_CHANGES = 'its questions differ from process to process, whatever the seed'
REFUSED = {
  **dict.fromkeys(
    (
      *('binary_matrix', 'n_queens', 'spiral_matrix', 'string_insertion'),  # eval
      # sympy's parse_expr, which calls eval
      *('countdown', 'puzzle24', 'polynomial_multiplication'),
      *('intermediate_integration', 'simple_integration'),
    ),
    _EVALUATES,
  ),
  'codeio': 'it executes the programs of its questions, and needs a sandbox',
  'coin_flip': 'its scorer finds 0 right for any probability below 1',
  'game_of_life_halting': 'its scorer finds any answer right',
  **dict.fromkeys(
    ('boxnet', 'graph_color', 'propositional_logic', 'rubiks_cube', 'rush_hour'),
    _NO_ANSWER,
  ),
  **dict.fromkeys(('arc_agi', 'rearc'), _TUPLES),
  # Sets of texts, whose order depends on PYTHONHASHSEED, and numbers without a seed.
  **dict.fromkeys(('isomorphic_strings', 'list_functions', 'ransom_note'), _CHANGES),
  'composite': 'it mixes other data sets; name one of these',
}
# A number that passes the comparisons of some scorers with any other.
_NAN = re.compile(r'(?<![a-z])nan[ij]?(?![a-z])', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ReasoningGymConfig:
  """A data set and its settings; `config_of` makes one and checks it."""

  dataset: str
  settings: str  # fields of the library's config and `LEVEL`, in JSON

  @property
  def name(self) -> str:
    """The name of the difficulty on disk."""
    digest = hashlib.sha256(self.settings.encode()).hexdigest()
    return f'{self.dataset}_{INSTALLED}_{digest:.12}'


SETTINGS = ReasoningGymConfig


def config_of(dataset: str, values: JsonObject) -> ReasoningGymConfig:
  """Returns the config of a data set.

  Args:
    dataset: its name in the library.
    values: of fields of the library's config, and of `LEVEL`.

  Raises:
    ValueError: there is no such data set, it is refused, or the library refuses the
      settings.
  """
  from reasoning_gym.factory import DATASETS  # imported late, since it takes a second

  if dataset in REFUSED:
    raise ValueError(f'task: {LIBRARY}:{dataset} cannot be used: {REFUSED[dataset]}')
  if dataset not in DATASETS:
    known = ', '.join(sorted(DATASETS.keys() - REFUSED.keys()))
    raise ValueError(
      f'task: expected {LIBRARY}:NAME with one of the data sets {known}, got '
      f'{LIBRARY}:{dataset}'
    )
  config = ReasoningGymConfig(dataset, json.dumps(dict(values), sort_keys=True))
  _library(config)  # checks the settings
  return config


@functools.lru_cache(maxsize=8)
def _library(config: ReasoningGymConfig) -> Any:
  """Returns the library's data set.

  Raises:
    ValueError: it refuses the settings.
  """
  from reasoning_gym.factory import DATASETS

  kind, config_kind = DATASETS[config.dataset]
  values = json.loads(config.settings)
  start = {'seed': 0, 'size': SIZE}
  base = config_kind(**start)
  if LEVEL in values:
    base = _at_level(config.dataset, values.pop(LEVEL), start)
  chosen = settings.changed(base, values, config.dataset)
  try:
    return kind(chosen)
  except Exception as error:  # an AssertionError, mostly
    raise ValueError(f'{settings.FLAG}: {config.dataset}: {_reason(error)}') from error


def _reason(error: Exception) -> str:
  """Returns the first line of an error, or its type if it says nothing."""
  return str(error).partition('\n')[0] or type(error).__name__


def _at_level(dataset: str, level: object, start: JsonObject) -> Any:
  """Returns the library's config at a level of the data set's curriculum.

  Where an attribute has fewer levels, it has the last of them.
  """
  from reasoning_gym.factory import CURRICULA

  if dataset not in CURRICULA:
    raise ValueError(
      f'{settings.FLAG}: {dataset} of {PACKAGE} has no curriculum; leave out {LEVEL}'
    )
  curriculum = CURRICULA[dataset]()
  last = max(len(x.levels) for x in curriculum.attributes.values()) - 1
  if type(level) is not int or not 0 <= level <= last:
    raise ValueError(
      f'{settings.FLAG}: {LEVEL}: expected 0 to {last} for {dataset}, got {level!r}'
    )
  curriculum.set_global_level(level)
  return curriculum.generate_configuration(dict(start))


@functools.lru_cache(maxsize=2)
def problems(config: ReasoningGymConfig) -> tuple[Problem, ...]:
  """Returns the usable entries of a data set, in its order.

  Raises:
    ValueError: the library fails to generate one, or none can be used.
  """
  found: dict[str, Problem] = {}
  library = _library(config)
  for index in range(library.size):
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # one prints dots
        entry = library[index]
    except Exception as error:
      raise ValueError(
        f'task: {PACKAGE} fails to generate entry {index} of {config.dataset} with '
        f'{config.settings} ({_reason(error)}); choose other settings'
      ) from error
    one = _problem(config, index, entry)
    if verify(one, one.truth['answer']):
      found.setdefault(one.text, one)
  if not found:
    raise ValueError(
      f'task: {LIBRARY}:{config.dataset} cannot be used with {config.settings}: its '
      'scorer finds none of its own answers right'
    )
  return tuple(found.values())


def _problem(config: ReasoningGymConfig, index: int, entry: JsonDict) -> Problem:
  # Fractions and dates in the metadata become text; no scorer that is used reads them.
  plain = json.loads(json.dumps(entry, default=str))
  truth = {
    'dataset': config.dataset,
    'settings': config.settings,
    'answer': plain['answer'] or '',
    'metadata': plain['metadata'],
  }
  name = f'{config.dataset}-{index}'
  return Problem(name, LIBRARY, entry['question'], truth, 'latin')


def group(problem: Problem) -> str:
  """Returns the question: what is held out together."""
  return problem.text


def generate(config: ReasoningGymConfig, split: str) -> Iterator[Problem]:
  """Yields every problem of a split, one of `splits.SPLITS`, in a fixed order.

  Raises:
    ValueError: see `problems`.
  """
  return of_split(problems(config), split, group)


def verify(problem: Problem, answer: str) -> bool:
  """Returns whether the data set's scorer gives the answer 1.0.

  White space around the answer does not count. No answer, and NaN where the true answer
  is none, are wrong.
  """
  truth, answer = problem.truth, answer.strip()
  if not answer or (_NAN.search(answer) and not _NAN.search(truth['answer'])):
    return False
  library = _library(ReasoningGymConfig(truth['dataset'], truth['settings']))
  # A copy, since a scorer (of knight_swap) writes into the metadata.
  entry = copy.deepcopy({key: truth[key] for key in ('answer', 'metadata')})
  try:
    with warnings.catch_warnings():  # numpy's, of odd answers
      warnings.simplefilter('ignore')
      return bool(library.score_answer(answer, entry) == 1.0)
  except Exception:  # some scorers raise on answers that they don't expect
    return False


def answer_key(answer: str) -> Hashable | None:
  """Returns what answers vote together by: their value as mathematics, or text."""
  return mathematics.answer_key(answer)
