"""The result of a finished stage: a model, and a record of its provenance.

A finished stage has `stage.json` in its work directory: its config, the versions of its
data, the digests of its parameters and its tokenizer, and the digests of its parents'
records. So every model can be traced to a seed. The next stage needs only the path of
that directory.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from r1jax import __version__
from r1jax.hub import chat_template, paths, tokenizer_files, weights
from r1jax.hub.hf_checkpoint import HFCheckpoint, open_checkpoint
from r1jax.model import lora
from r1jax.model.config import from_dict
from r1jax.plain import Config, JsonObject
from r1jax.rollout.policy import Policy
from r1jax.runtime import hosts
from r1jax.runtime.checkpoint import CheckpointError, Checkpoints
from r1jax.runtime.digest import digest_of
from r1jax.runtime.run import Run
from r1jax.runtime.workdir import (
  RECORD,
  WorkdirError,
  check_version,
  plain_config,
  write_whole,
)
from r1jax.sharding.place import param_shardings, replicate, unbox
from r1jax.text.tokenizer import Tokenizer

FIELDS = (
  *('stage', 'config', 'model', 'rows', 'lora', 'template', 'files', 'params'),
  'parents',
)
TOKENIZER = 'tokenizer.json'
HUB = 'hub'  # subfolder of a run: files of its hub checkpoint, without the weights
SOURCE = 'source.json'  # in it: the path of the weights


class ArtifactError(WorkdirError):
  """A stage can't start from this parent; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A finished stage, loaded from its work directory."""

  path: Path
  record: JsonObject  # stage.json
  digest: str  # of stage.json
  policy: Policy

  @property
  def name(self) -> str:
    """The stage's name, such as 'cold_start'."""
    return self.record['stage']

  @property
  def digests(self) -> dict[str, str]:
    """Digests of the files that a child's checkpoints depend on; see `run.start`."""
    return {str(self.path.absolute() / RECORD): self.digest}

  def params(self, mesh: jax.sharding.Mesh, name: str = 'final') -> optax.Params:
    """Returns the parameters saved under a name, on the mesh, with their saved dtypes.

    Raises ArtifactError if their digest is not the record's.
    """
    policy = self.policy
    if not policy.lora.rank:
      shapes, places = unbox(policy.names), param_shardings(mesh, policy.names)
      like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        places,
      )
      return self._saved(name, like, own=True)
    adapters = self.adapters(name)
    dtype = self.record['config']['model']['param_dtype']
    base = weights.read(self.source(), param_shardings(mesh, policy.names), dtype)
    whole = lora.attach(base, replicate(mesh, adapters), policy.lora.scale)
    return jax.jit(lora.merged_in_dtype)(whole)

  def adapters(self, name: str = 'final') -> optax.Params:
    """Returns the adapters saved under a name; the stage must have trained adapters.

    Raises ArtifactError if their digest is not the record's.
    """
    init = functools.partial(lora.init, self.policy.config, self.policy.lora)
    return self._saved(name, jax.eval_shape(init, jax.random.key(0)))

  def _saved(self, name: str, like: optax.Params, own: bool = False) -> optax.Params:
    """Returns what was saved under a name, with its own dtypes or those of `like`.

    Raises ArtifactError if its digest is not the record's, or it can't be read.
    """
    saved = Checkpoints(self.path / 'checkpoints' / f'model-{name}', own=False)

    def wrong(reason: str) -> ArtifactError:
      return ArtifactError(
        f'{self.path}: the parameters {name!r} do not match their digest in {RECORD}'
        f'{reason}; restore checkpoints/, or run that stage again in another folder'
      )

    try:
      if saved.manifest()['digest'] != self.record['params'][name]:
        raise wrong('')
      return saved.restore(saved.in_own_types(like) if own else like)
    except CheckpointError as error:
      # Without the advice, which is for a run that resumes from its own checkpoint.
      raise wrong(f' ({str(error).split(";")[0]})') from error

  def source(self) -> HFCheckpoint:
    """Returns the hub checkpoint that the model comes from.

    Raises ArtifactError if there is none, or it is gone or has changed.
    """
    file = self.path / HUB / SOURCE
    if not file.exists():
      raise ArtifactError(f'{self.path}: its model does not come from a checkpoint')
    kept = read_source(self.path)
    try:
      found = open_checkpoint(kept.path)
    except ValueError as error:
      raise ArtifactError(
        f'{self.path}: the checkpoint that its model comes from is needed: {error}'
      ) from error
    if found.digest != kept.digest:
      raise ArtifactError(
        f'{found.folder} has changed since {self.path} was made from it; restore it'
      )
    return found

  def ancestor(self, name: str) -> Artifact:
    """Returns the stage of this name among this one and its ancestors.

    Raises ArtifactError if there is none, or it has changed.
    """
    found = self._find(name)
    if found is None:
      raise ArtifactError(f'{self.path}: expected {name} among its parents, found none')
    return found

  def _find(self, name: str) -> Artifact | None:
    if self.name == name:
      return self
    for parent in self.record['parents']:
      path = self.path / parent['path']
      if not (path / RECORD).is_file():
        raise ArtifactError(
          f'{path} has no {RECORD}, but {self.path} was trained from the '
          f'{parent["stage"]} that was there; restore that folder'
        )
      stage = load(path)
      if stage.digest != parent['digest']:
        raise ArtifactError(
          f'{path} is not the {parent["stage"]} that {self.path} was trained from; '
          'restore that one, or run the later stages again in other folders'
        )
      if found := stage._find(name):
        return found
    return None


def load(path: str | os.PathLike[str], *expected: str) -> Artifact:
  """Returns the finished stage in a work directory; its name must be `expected`.

  Raises:
    ArtifactError: there is none, it is another stage, or its tokenizer has changed.
    ValueError: the path is not on this machine.
  """
  paths.check_local('parent', os.fspath(path))
  path = Path(path)
  if not (path / RECORD).is_file():
    what = ' or '.join(expected) or 'stage'
    command = f'python -m experiments.{expected[0] if expected else "r1"}'
    raise ArtifactError(
      f'parent: expected the work directory of a finished {what}, but {path} has no '
      f'{RECORD}; run `{command} --workdir {path}` first'
    )
  content = (path / RECORD).read_bytes()
  try:
    record = json.loads(content)
    check_version(path / RECORD, record)
    read = {name: record[name] for name in FIELDS}
    config, digest = from_dict(read['model']), read['files'][TOKENIZER]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ArtifactError(
      f'{path / RECORD} is damaged ({error!r}); restore it, or delete it and start '
      'that stage again: it writes a new record'
    ) from error
  if expected and read['stage'] not in expected:
    raise ArtifactError(
      f'parent: expected the work directory of {" or ".join(expected)}, got that of '
      f'{read["stage"]} ({path})'
    )
  tokenizer = _tokenizer(path, digest)
  adapters = lora.LoraConfig(**read['lora'])
  policy = Policy(config, tokenizer, read['template'], read['rows'], adapters)
  return Artifact(path, record, hashlib.sha256(content).hexdigest(), policy)


class Source(NamedTuple):
  """The hub checkpoint that a run started from, as stored by the run."""

  path: str  # of the checkpoint
  digest: str  # of the checkpoint
  time: datetime.datetime  # start of the run; its prompts may contain the date
  chat_template_kwargs: JsonObject  # variables of its chat template
  dtype: str  # of the run's products
  system: str  # message with which its conversations begin, or ''


def read_source(workdir: Path) -> Source:
  """Returns the checkpoint that a run started from; see `from_hub.Pretrained.keep`.

  Raises ArtifactError if the file is damaged.
  """
  file = workdir / HUB / SOURCE
  try:
    kept = json.loads(file.read_bytes())
    return Source(
      kept['path'],
      kept['digest'],
      datetime.datetime.fromisoformat(kept['time']),
      chat_template.read_variables(kept['chat_template_kwargs']),
      kept['dtype'],
      kept['system'],
    )
  except KeyError as error:
    raise ArtifactError(
      f'{file} has no field {error}: another version of r1jax began this run; use that '
      'one for it, or choose another --workdir'
    ) from error
  except (OSError, ValueError, TypeError, AttributeError) as error:
    raise ArtifactError(f'{file} is damaged ({error!r}); restore it') from error


def _tokenizer(path: Path, digest: str) -> Tokenizer:
  kept = read_source(path) if (path / HUB).exists() else None
  folder = path / HUB if kept else path
  try:
    if kept:
      tokenizer = tokenizer_files.open_tokenizer(
        folder, kept.chat_template_kwargs, kept.time, kept.system
      )
    else:
      tokenizer = Tokenizer.load(folder / TOKENIZER)
  except (OSError, ValueError):  # gone, or damaged
    tokenizer = None
  if tokenizer is None or tokenizer.digest != digest:
    raise ArtifactError(
      f'{folder / TOKENIZER} does not match its digest in {RECORD}; restore it'
    )
  return tokenizer


def finished(run: Run) -> bool:
  """Returns whether the stage in this work directory is finished, and reports it."""
  if done := (run.workdir / RECORD).is_file():
    run.progress.say(f'The stage in {run.workdir} is finished.')
  return done


def finish(
  run: Run,
  stage: str,
  config: Config,
  policy: Policy,
  params: Mapping[str, optax.Params],
  parents: Sequence[Artifact] = (),
  versions: Mapping[str, str] | None = None,
) -> Artifact:
  """Writes a stage's models and, last, its record; returns the finished stage.

  An existing record of the same models is kept, since children depend on its digest.

  Args:
    run: of the stage, at its end.
    stage: its name.
    config: of the experiment.
    policy: the model of the parameters.
    params: by name; the next stage starts from 'final'.
    parents: stages whose models or data this one used.
    versions: of the problems, by task.
  """
  digests = {}
  for name, tree in params.items():
    saved = Checkpoints(run.workdir / 'checkpoints' / f'model-{name}')
    digests[name] = digest_of(tree)
    if saved.step is None or saved.manifest()['digest'] != digests[name]:
      saved.save(1, tree, {'phase': f'model-{name}'})
      saved.wait()
  if hosts.is_primary():
    if not any((run.workdir / name).exists() for name in (HUB, TOKENIZER)):
      policy.tokenizer.save(run.workdir / TOKENIZER)
    if not _recorded(run.workdir, digests):
      record = _record(
        run, stage, config, policy, params, digests, parents, versions or {}
      )
      content = json.dumps(record, indent=2, ensure_ascii=False) + '\n'
      write_whole(run.workdir / RECORD, content)
  hosts.all_gather('record', None)
  return load(run.workdir)


def _recorded(workdir: Path, digests: Mapping[str, str]) -> bool:
  try:
    return load(workdir).record['params'] == digests
  except ArtifactError:
    return False


def _record(
  run: Run,
  stage: str,
  config: Config,
  policy: Policy,
  params: Mapping[str, optax.Params],
  digests: Mapping[str, str],
  parents: Sequence[Artifact],
  versions: Mapping[str, str],
) -> JsonObject:
  return {
    'stage': stage,
    'version': __version__,
    'config': plain_config(config),
    'data': dict(versions),
    'model': dataclasses.asdict(policy.config),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params['final'])),
    'rows': policy.rows,
    'lora': dataclasses.asdict(policy.lora),
    'template': policy.template,
    'files': {TOKENIZER: policy.tokenizer.digest},
    'params': digests,
    'parents': [
      {
        'stage': parent.name,
        'path': os.path.relpath(parent.path, run.workdir),
        'digest': parent.digest,
      }
      for parent in parents
    ],
  }
