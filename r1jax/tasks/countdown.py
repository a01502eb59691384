"""Countdown: reach a target from given numbers with + - *, each used exactly once.

The problems are enumerated, not drawn: every multiset of numbers, and every target
that some expression over it reaches. A hash of the problem decides its split, so
train and test share no problem whatever the difficulty.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from r1jax.tasks import Problem, expressions

TEST_SHARE = 0.15  # of all problems, held out
VERSION = '1.0.0'  # of the files: to be raised with what they hold


@dataclasses.dataclass(frozen=True)
class Config:
  """How hard the problems are."""

  numbers: int = 3  # how many numbers a problem has, 2 to 4
  largest: int = 9  # numbers are drawn from 1 to this
  highest_target: int = 100  # targets are 1 to this

  def __post_init__(self) -> None:
    if not 2 <= self.numbers <= 4:
      raise ValueError(f'task.numbers: expected 2 to 4, got {self.numbers}')
    if not 2 <= self.largest <= 20:
      raise ValueError(f'task.largest: expected 2 to 20, got {self.largest}')
    if self.highest_target < 1:
      raise ValueError(
        f'task.highest_target: expected 1 or more, got {self.highest_target}'
      )

  @property
  def name(self) -> str:
    """The builder's config name: one per difficulty."""
    return f'n{self.numbers}_largest{self.largest}_target{self.highest_target}'


def question(numbers: tuple[int, ...], target: int) -> str:
  """The problem as text: `make 16 from 3 5 2`."""
  return f'make {target} from {" ".join(map(str, numbers))}'


def problem_id(numbers: tuple[int, ...], target: int) -> str:
  """A name that depends on the multiset of numbers and the target alone."""
  return f'{"-".join(map(str, sorted(numbers)))}={target}'


def held_out(identity: str) -> bool:
  """Whether the problem belongs to the test split: a hash of its name decides."""
  return _uniform('split', identity) < TEST_SHARE


def _uniform(purpose: str, identity: str) -> float:
  digest = hashlib.blake2b(f'{purpose} {identity}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'big') / 2**64


@functools.cache
def _all_problems(config: Config) -> tuple[Problem, ...]:
  found = []
  every = range(1, config.largest + 1)
  for leaves in itertools.combinations_with_replacement(every, config.numbers):
    # Shown in a fixed but arbitrary order: sorted numbers would be a hint.
    orders = sorted(set(itertools.permutations(leaves)))
    values = {expressions.value(tree) for tree in expressions.candidates(leaves)}
    for target in sorted(v for v in values if 1 <= v <= config.highest_target):
      identity = problem_id(leaves, target)
      shown = orders[int(_uniform('order', identity) * len(orders))]
      truth = {'numbers': list(shown), 'target': target}
      found.append(Problem(identity, 'countdown', question(shown, target), truth))
  # Hash order: neighbours in a split are unrelated, so any prefix is a fair sample.
  return tuple(sorted(found, key=lambda problem: _uniform('rank', problem.id)))


def generate(config: Config, split: str) -> Iterator[Problem]:
  """Yields every problem of a split ('train' or 'test') in a fixed order."""
  if split not in ('train', 'test'):
    raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
  for problem in _all_problems(config):
    if held_out(problem.id) == (split == 'test'):
      yield problem


def verify(problem: Problem, answer: str) -> bool:
  """Whether `answer` uses each number once and evaluates to the target, exactly."""
  tree = expressions.read(answer)
  if tree is None:
    return False
  numbers_used = sorted(expressions.numbers(tree))
  return (
    numbers_used == sorted(problem.truth['numbers'])
    and expressions.value(tree) == problem.truth['target']
  )


def answer_key(answer: str) -> Hashable | None:
  """The expression's canonical form: 2+3 and 3+2 vote together, 1+4 does not."""
  tree = expressions.read(answer)
  return None if tree is None else expressions.canonical(tree)


def load(config: Config, split: str, data_dir: str | None = None) -> list[Problem]:
  """Returns a split's problems from disk, building the data set on first use.

  Args:
    config: the difficulty; each has its own folder.
    split: 'train' or 'test'.
    data_dir: where tensorflow-datasets keeps data; None is its own default.

  Raises:
    OSError: the files can't be written or read, or are damaged.
    ValueError: no problem is that easy or that hard in one of the splits.
  """
  import tensorflow_datasets as tfds  # late: it takes a second

  place = Path(data_dir or tfds.core.constants.DATA_DIR)
  folder = place / 'countdown' / config.name / VERSION
  if folder.exists():
    _check_readable(folder)
  else:
    _check_splits(config)
    _prepare(_builder(config, data_dir))
  try:
    return [
      Problem(
        id=row['id'].decode(),
        task='countdown',
        question=row['question'].decode(),
        truth=json.loads(row['truth']),
      )
      for row in _builder(config, data_dir).as_data_source(split=split)
    ]
  except Exception as error:  # whatever a damaged file makes its reader raise
    raise OSError(
      f'the problems in {folder} are damaged ({type(error).__name__}); delete that '
      'folder and start again: it is built anew'
    ) from error


def _check_readable(folder: Path) -> None:
  try:
    for path in folder.iterdir():
      path.open('rb').close()
  except OSError as error:
    raise OSError(
      f'data_dir: {error.filename} cannot be read ({error.strerror}); mend that, or '
      'choose another --data-dir'
    ) from error


def _prepare(builder: Any) -> None:
  try:
    with contextlib.redirect_stdout(None):  # it speaks of a download of unknown size
      builder.download_and_prepare()
  except Exception as error:  # what is made of a full disk is no OSError
    raise OSError(
      f'data_dir: the problems could not be written to {builder.data_dir} '
      f'({str(error).splitlines()[0]:.200}); make room, or choose another --data-dir'
    ) from error


def _check_splits(config: Config) -> None:
  for split in ('train', 'test'):
    if next(generate(config, split), None) is None:
      raise ValueError(
        f'task: expected problems in both splits, got none in {split!r} with {config}; '
        'raise task.largest or task.highest_target'
      )


def _builder(config: Config, data_dir: str | None) -> Any:
  """The tensorflow-datasets builder of a difficulty."""
  import tensorflow_datasets as tfds

  # The registry takes a name once, and this class is made anew for each call.
  class Countdown(  # type: ignore[call-arg]  # the argument is of an untyped base
    tfds.core.GeneratorBasedBuilder, skip_registration=True
  ):
    """Countdown problems with exact ground truth."""

    VERSION = tfds.core.Version(VERSION)
    pkg_dir_path = Path(__file__).parent  # a class made here has no package of its own

    def _info(self) -> Any:
      text = tfds.features.Text()
      features = tfds.features.FeaturesDict(
        {'id': text, 'question': text, 'truth': text}
      )
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: Any) -> Any:
      del dl_manager  # nothing to download
      return {split: self._generate_examples(split) for split in ('train', 'test')}

    def _generate_examples(self, split: str) -> Any:
      for index, problem in enumerate(generate(config, split)):
        yield (
          index,
          {
            'id': problem.id,
            'question': problem.question,
            'truth': json.dumps(problem.truth),
          },
        )

  tfds.disable_progress_bar()
  logging.getLogger('absl').setLevel(logging.ERROR)  # it warns of every custom config
  return Countdown(
    config=tfds.core.BuilderConfig(name=config.name, version=VERSION),
    data_dir=data_dir,
    file_format='array_record',
  )
