"""Problems on disk as tensorflow-datasets: generated on first use, then read.

See `r1jax.tasks` for what a task defines.
"""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1jax import tasks
from r1jax.hub import paths
from r1jax.tasks import Difficulty, Problem, splits

FIELDS = ('id', 'question', 'truth', 'language')  # of a problem, as text


def load(
  task: str, config: Difficulty, split: str, data_dir: str | None = None
) -> list[Problem]:
  """Returns a split's problems from disk; generates the data set on first use.

  Args:
    task: its name.
    config: the difficulty; each has its own folder.
    split: 'train', 'validation' or 'test'.
    data_dir: the data folder of tensorflow-datasets; None is its default.

  Raises:
    OSError: the files cannot be written or read, or are damaged.
    ValueError: a split has no problem of this difficulty, or `data_dir` is not a local
      folder.
  """
  import tensorflow_datasets as tfds  # imported late, since it takes a second

  module, task = tasks.module(task), tasks.module_name(task)
  if task in tasks.PUBLISHED:
    return module.load(config, split, data_dir)
  place = paths.local('data_dir', data_dir or str(tfds.core.constants.DATA_DIR))
  folder = place / task / config.name / _version(module)
  if folder.exists():
    _check_readable(folder)
  else:
    _check_splits(task, config)
    _prepare(_builder(task, config, data_dir))
  try:
    return [
      Problem(
        id=row['id'].decode(),
        task=task,
        question=row['question'].decode(),
        truth=json.loads(row['truth']),
        language=row['language'].decode(),
      )
      for row in _builder(task, config, data_dir).as_data_source(split=split)
    ]
  except Exception as error:  # a damaged file can raise anything
    raise OSError(
      f'the problems in {folder} are damaged ({type(error).__name__}); delete that '
      'folder and start again to generate it'
    ) from error


def sources(
  names: Sequence[str], config: object, split: str, data_dir: str | None = None
) -> list[list[Problem]]:
  """Returns a split's problems of each task; `config` has a field for each of them."""
  return [load(name, getattr(config, name), split, data_dir) for name in names]


def by_turns(problems: Sequence[Sequence[Problem]]) -> list[Problem]:
  """Returns the problems of all tasks in turn, until one task has no more."""
  return [problem for turn in zip(*problems, strict=False) for problem in turn]


def _check_readable(folder: Path) -> None:
  try:
    for path in folder.iterdir():
      path.open('rb').close()
  except OSError as error:
    raise OSError(
      f'data_dir: {error.filename} cannot be read ({error.strerror}); fix the '
      'permissions or choose another --data-dir'
    ) from error


def _prepare(builder: Any) -> None:
  try:
    with contextlib.redirect_stdout(None):  # a message about a download
      builder.download_and_prepare()
  except Exception as error:  # a full disk does not raise OSError here
    if Path(builder.data_dir).exists():
      return  # another run has generated the same set; the final move is atomic
    raise OSError(
      f'data_dir: the problems could not be written to {builder.data_dir} '
      f'({str(error).splitlines()[0]:.200}); free some space or choose another '
      '--data-dir'
    ) from error


def _check_splits(task: str, config: Difficulty) -> None:
  for split in splits.SPLITS:
    if next(iter(tasks.module(task).generate(config, split)), None) is None:
      raise ValueError(
        f'tasks.{task}: expected problems in all splits, got none in {split!r} with '
        f'{config}; raise its limits'
      )


def _version(module: Any) -> str:
  """Returns the three numbers of a version, as tensorflow-datasets takes them."""
  return module.VERSION.partition('+')[0]


def _builder(task: str, config: Difficulty, data_dir: str | None) -> Any:
  """Returns the tensorflow-datasets builder of a difficulty."""
  import tensorflow_datasets as tfds

  module = tasks.module(task)

  def _info(self: Any) -> Any:
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(dict.fromkeys(FIELDS, text))
    return self.dataset_info_from_configs(features=features)

  def _split_generators(self: Any, dl_manager: Any) -> Any:
    del dl_manager  # nothing to download
    return {split: self._generate_examples(split) for split in splits.SPLITS}

  def _generate_examples(self: Any, split: str) -> Any:
    del self
    for index, problem in enumerate(module.generate(config, split)):
      row = {name: getattr(problem, name) for name in FIELDS}
      yield index, {**row, 'truth': json.dumps(problem.truth)}

  # The class has the task's name and is created per call, outside tfds's registry.
  builder = type(
    task.capitalize(),
    (tfds.core.GeneratorBasedBuilder,),
    {
      '__doc__': module.__doc__,
      'VERSION': tfds.core.Version(_version(module)),
      'pkg_dir_path': Path(__file__).parent,  # the class has no package of its own
      '_info': _info,
      '_split_generators': _split_generators,
      '_generate_examples': _generate_examples,
    },
    skip_registration=True,
  )
  tfds.disable_progress_bar()
  logging.getLogger('absl').setLevel(
    logging.ERROR
  )  # tfds warns about every custom config
  return builder(
    config=tfds.core.BuilderConfig(name=config.name, version=_version(module)),
    data_dir=data_dir,
    file_format='array_record',
  )
