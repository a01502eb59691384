"""Training and held-out problems of a chain of stages."""

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grain

from r1jax import tasks
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import corpus
from r1jax.miniature.corpus import TaskConfigs
from r1jax.plain import Config
from r1jax.stages import fit
from r1jax.stages.artifact import Artifact, ArtifactError
from r1jax.stages.rejection import RejectionConfig
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.supervised import PretrainConfig, SFTConfig
from r1jax.tasks import GENERAL, REASONING, Difficulty, Problem, splits, store
from r1jax.text import parsing
from r1jax.text.tokenizer import Tokenizer, pad_left

TASKS = (*REASONING, *GENERAL)
PROMPT_MULTIPLE = 32  # tokens


@dataclasses.dataclass(frozen=True)
class Problems:
  """Training and held-out problems of a chain of stages, and its length limits.

  Fields:
    train: problems to learn from, a list for each of `TASKS`.
    validation: held-out problems for curves and choices, a list for each task.
    max_prompt_length: S, tokens.
    max_positions: of the base model; T of its training if it is trained here.
    test: held-out problems for the final results, a list for each task; empty if
      nothing is reported.
    remarks: what the user should know about the problems.
  """

  train: list[list[Problem]]
  validation: list[list[Problem]]
  max_prompt_length: int
  max_positions: int
  test: list[list[Problem]] = dataclasses.field(default_factory=list)
  remarks: tuple[str, ...] = ()

  def reasoning(self, split: str) -> list[Problem]:
    """Returns reasoning problems of 'validation' or 'test'; tasks alternate."""
    return store.by_turns(self._held_out(split)[: len(REASONING)])

  def general(self, split: str) -> list[Problem]:
    """Returns instructions of 'validation' or 'test'."""
    return store.by_turns(self._held_out(split)[len(REASONING) :])

  def _held_out(self, split: str) -> list[list[Problem]]:
    return {'validation': self.validation, 'test': self.test}[split]

  def in_form(self, form: parsing.Form) -> 'Problems':
    """Returns the problems with another form of a good output."""

    def changed(sources: list[list[Problem]]) -> list[list[Problem]]:
      return [[dataclasses.replace(p, form=form) for p in one] for one in sources]

    return dataclasses.replace(
      self,
      train=changed(self.train),
      validation=changed(self.validation),
      test=changed(self.test),
    )

  def check_length(self, field: str, max_length: int) -> None:
    """Raises ValueError if outputs may exceed the base model's positions."""
    most = self.max_positions - self.max_prompt_length
    if most < 1:
      raise ValueError(
        f'max_prompt_length: expected less than the {self.max_positions} positions '
        f'that the model knows, got {self.max_prompt_length}'
      )
    if max_length > most:
      raise ValueError(
        f'{field}: expected at most {most}, as the base model was trained on rows of '
        f'{self.max_positions} tokens with prompts of {self.max_prompt_length}, got '
        f'{max_length}'
      )

  def check_prompts(self, tokenizer: Tokenizer, template: str) -> int:
    """Checks that all prompts fit, and returns the tokens of the longest one.

    Raises:
      ValueError: a prompt is longer than `max_prompt_length`.
    """
    sources = [*self.train, *self.validation, *self.test]
    prompts = (
      tokenizer.prompt_ids(template, p.question) for source in sources for p in source
    )
    longest = max(prompts, key=len, default=[])
    pad_left([longest], self.max_prompt_length, tokenizer.pad_id)
    return len(longest)

  def without_padding(
    self, tokenizer: Tokenizer, template: str, shards: int = 1
  ) -> 'Problems':
    """Returns the problems with the smallest S that holds all prompts.

    It is a multiple of `PROMPT_MULTIPLE`, so that similar problems share compiled
    programs, and of `shards`, the devices that share a row (`mesh.context`).

    Raises:
      ValueError: a prompt is longer than `max_prompt_length`.
    """
    longest = self.check_prompts(tokenizer, template)
    multiple = math.lcm(PROMPT_MULTIPLE, shards)
    length = max(1, -(-longest // multiple)) * multiple
    return dataclasses.replace(
      self, max_prompt_length=min(length, self.max_prompt_length)
    )

  def check(self, config: Config) -> None:
    """Raises ValueError if a length in a stage's config does not fit.

    Outputs must fit into the positions and into the rows of a base model, and what
    rejection sampling keeps into the rows of SFT.
    """
    parts = list(fit.parts(config))
    outputs: list[int] = []
    kept = [part.max_length for _, part in parts if isinstance(part, RejectionConfig)]
    for name, part in parts:
      if isinstance(part, RejectionConfig | SuiteConfig):
        self.check_length(f'{name}.max_length', part.max_length)
      if isinstance(part, RLConfig):
        self.check_length(f'{name}.max_length', part.longest)
        outputs.append(part.longest)
      if isinstance(part, SuiteConfig):
        outputs.append(part.max_length)
      if isinstance(part, SFTConfig) and kept:
        self.check_row(f'{name}.row_length', part.row_length, max(kept))
    for name, part in parts:
      if isinstance(part, PretrainConfig):
        self.check_row(f'{name}.row_length', part.row_length, max(outputs, default=0))

  def check_row(self, field: str, row_length: int, max_length: int) -> None:
    """Raises ValueError for rows shorter than a prompt and its output."""
    least = self.max_prompt_length + max_length
    if row_length < least:
      raise ValueError(
        f'{field}: expected at least {least}, for prompts of {self.max_prompt_length} '
        f'tokens and outputs of {max_length}, got {row_length}'
      )


def check_shares(shares: Sequence[float], names: Sequence[str]) -> None:
  """Raises ValueError unless there is a share of 0 or more for each task, not all 0."""
  usable = len(shares) == len(names) and all(0 <= x < math.inf for x in shares)
  if not usable or not sum(shares):
    raise ValueError(
      f'shares: expected {len(names)} finite numbers of 0 or more, not all 0, for '
      f'{", ".join(names)}, got {shares}'
    )


def check_general(share: float, after: int, steps: int) -> None:
  """Raises ValueError unless a share of instructions follows some of `steps` steps."""
  if not 0 <= share <= 1:
    raise ValueError(f'general_share: expected 0 to 1, got {share}')
  if not 0 <= after <= steps:
    raise ValueError(f'general_after: expected 0 to rl.steps = {steps}, got {after}')


def check_seed(seed: int) -> None:
  """Raises ValueError unless the seed fits into 32 bits."""
  if not 0 <= seed < 2**32:
    raise ValueError(f'seed: expected 0 to 4294967295, got {seed}')


def check_folders(workdir: str, data_dir: str | None) -> None:
  """Raises ValueError for an empty path."""
  if not workdir or data_dir == '':
    raise ValueError('workdir and data_dir: expected the path of a folder, got none')


def own_seed(seed: int, stage: str) -> int:
  """Returns a stage's seed, which differs from its parent's.

  With the same seed the stage would begin with the parent's problems, which the parent
  may have memorized.
  """
  return zlib.crc32(f'{seed} {stage}'.encode())


def problems_of(stage: Artifact, data_dir: str | None) -> Problems:
  """Returns the problems of the chain of stages that `stage` belongs to.

  Raises:
    ArtifactError: they had another version when the chain began, so it may have learned
      from problems that are held out now.
  """
  first = stage.ancestor('r1_zero')
  check_versions(first.path, first.record.get('data') or {})
  config = first.record['config']
  return new_problems(
    corpus.tasks_of(config['tasks']),
    data_dir,
    max_prompt_length=config['rl']['max_prompt_length'],
    max_positions=config['base']['row_length'],
  )


def check_versions(path: Path, found: Mapping[str, str]) -> None:
  """Raises ArtifactError unless the problems of the stage at `path` are current.

  `found` are their versions by task.
  """
  differing = [
    f'{task} was {found.get(task, "none")} there and is {version} here'
    for task, version in tasks.versions(TASKS).items()
    if found.get(task) != version
  ]
  if differing:
    raise ArtifactError(
      f'{path} was made with other problems, and may have learned from what is held '
      f'out now ({"; ".join(differing)}); run it again in another folder'
    )


def new_problems(
  difficulty: TaskConfigs,
  data_dir: str | None,
  *,
  max_prompt_length: int,
  max_positions: int,
) -> Problems:
  """Returns the problems of this difficulty; builds their files on first use."""
  train, validation, test = (
    store.sources(TASKS, difficulty, split, data_dir) for split in splits.SPLITS
  )
  return Problems(train, validation, max_prompt_length, max_positions, test)


def problems_of_task(
  task: str,
  difficulty: Difficulty,
  data_dir: str | None,
  *,
  max_prompt_length: int,
  max_positions: int,
) -> Problems:
  """Returns the problems of one task."""
  train, validation, test = (
    store.load(task, difficulty, split, data_dir) for split in splits.SPLITS
  )
  return Problems([train], [validation], max_prompt_length, max_positions, [test])


def problem_stream(
  sources: Sequence[Sequence[Problem]],
  shares: Sequence[float],
  seed: int,
  begin: Sequence[int] | None = None,
) -> Callable[[int], Problem]:
  """Returns index -> problem: a mix of endless, shuffled passes over each source.

  Args:
    sources: lists of problems.
    shares: of the sources, in any range of indices.
    seed: of the shuffles.
    begin: number of problems to skip, by source; None skips none.
  """
  passes = [
    grain.MapDataset.source(problems)
    .seed(seed + n)
    .shuffle()
    .repeat()[begin[n] if begin else 0 :]
    for n, problems in enumerate(sources)
    if shares[n]
  ]
  mixed = grain.MapDataset.mix(passes, [share for share in shares if share])
  return lambda index: mixed[index]


def stream_with_general(
  sources: Sequence[Sequence[Problem]],
  shares: Sequence[float],
  seed: int,
  *,
  general_share: float,
  first: int,
) -> Callable[[int], Problem]:
  """Returns index -> problem: reasoning, from index `first` on mixed with instructions.

  No problem is repeated before all problems of its task were used.

  Args:
    sources: lists of problems, one for each of `TASKS`.
    shares: of the reasoning tasks, among themselves.
    seed: of the shuffles.
    general_share: of instructions, from index `first` on.
    first: number of problems before it.
  """
  reasoning = problem_stream(sources[: len(REASONING)], shares, seed)
  used = Counter(reasoning(index).task for index in range(first))
  mix = [(1 - general_share) * share / sum(shares) for share in shares]
  begin = [used[task] for task in TASKS]
  everything = problem_stream(sources, [*mix, general_share], seed, begin)

  def problem_at(index: int) -> Problem:
    return reasoning(index) if index < first else everything(index - first)

  return problem_at
