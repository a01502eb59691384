"""Starts a run from a checkpoint of the Hugging Face hub.

The run copies all files of the checkpoint except its weights to `hub/` in its folder,
so that the trained model can be exported in the same layout.
"""

import dataclasses
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

from r1jax.hub import (
  chat_template,
  checkpoint_files,
  families,
  peft,
  peft_config,
  tokenizer_files,
  weights,
)
from r1jax.hub.download import download
from r1jax.hub.hf_checkpoint import HFCheckpoint, open_checkpoint
from r1jax.model import lora
from r1jax.model.config import DTYPES, REMAT
from r1jax.model.lora import LoraConfig
from r1jax.rollout.policy import Policy
from r1jax.runtime import hosts
from r1jax.runtime.workdir import write_whole
from r1jax.sharding.place import param_shardings, replicate
from r1jax.stages import artifact, problem_sets, product_type
from r1jax.stages.artifact import Artifact, ArtifactError
from r1jax.stages.experiment import Origin
from r1jax.stages.fitting_prompts import fitting
from r1jax.stages.problem_sets import Problems
from r1jax.tasks import data, dataset_of, settings
from r1jax.text import templates


@dataclasses.dataclass(frozen=True)
class HubConfig:
  """Which checkpoint, its prompt template and its precision."""

  # A folder with config.json, safetensors and tokenizer.json; a GGUF file; or
  # hf://owner/name.
  path: str = ''
  # 'chat', 'chat_boxed', 'chat_answer', 'chat_tags', 'r1_zero', 'plain' or 'r1_chat';
  # see `text.templates`.
  template: str = templates.CHAT
  # Variables for the checkpoint's chat template, in JSON: {"enable_thinking": false}
  chat_template_kwargs: str = ''
  system: str = ''  # message with which every chat begins
  remat: Literal['none', 'dots', 'full'] = 'dots'  # see `ModelConfig`
  # Of products, keys and values; 'auto': the one that the device computes faster.
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'float32'
  # Of the policy, the reference and the sampler; see docs/precision.md.
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  adapter: str = ''  # folder of a PEFT adapter that is merged into the weights first
  lora: LoraConfig = LoraConfig()  # adapters to train instead of all parameters

  def __post_init__(self) -> None:
    types = *DTYPES, 'auto'
    for name, known in (('remat', REMAT), ('dtype', types), ('param_dtype', DTYPES)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'model.{name}: expected one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    if self.adapter and self.lora.rank:
      raise ValueError(
        'model.adapter: expected none with model.lora.rank, since trained adapters are '
        'saved without the weights they were trained on; train all parameters, or '
        f'merge that adapter into a checkpoint first; got {self.adapter!r}'
      )
    variables = chat_template.read_variables(self.chat_template_kwargs)
    names = (*templates.CHATS, *templates.TEMPLATES)
    if self.template not in names:
      raise ValueError(
        f'model.template: expected one of {", ".join(names)}, got {self.template!r}'
      )
    if self.template not in templates.CHATS:
      if self.system:
        raise ValueError(
          f'model.system: expected none with the template {self.template!r}, which is '
          f'no chat, got {self.system!r}; choose the template {templates.CHAT!r}'
        )
      if variables:
        raise ValueError(
          f'chat_template_kwargs: expected none with the template {self.template!r}, '
          f'which reads no variables, got {self.chat_template_kwargs!r}; choose the '
          f'template {templates.CHAT!r}'
        )


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint of the hub, without its parameters."""

  checkpoint: HFCheckpoint
  policy: Policy
  config: HubConfig
  adapter: tuple[LoraConfig, optax.Params] | None
  time: datetime.datetime  # passed to the chat template

  @property
  def digests(self) -> dict[str, str]:
    """Digests of the files that the run's checkpoints depend on; see `run.start`."""
    folder = self.checkpoint.folder.absolute()
    files = [folder / name for name in checkpoint_files.files(folder)]
    if self.config.adapter:
      adapter = Path(self.config.adapter).expanduser().absolute()
      files += [adapter / name for name in (peft_config.CONFIG, peft_config.FILE)]
    clock = {}
    if self.config.template in templates.CHATS and checkpoint_files.reads_clock(folder):
      clock[f'{artifact.HUB}/{artifact.SOURCE}'] = self.time.isoformat()
    return {
      str(folder): self.checkpoint.digest,
      **{str(file): _digest(file) for file in files},
      artifact.TOKENIZER: self.policy.tokenizer.digest,
      **clock,
    }

  def params(self, mesh: jax.sharding.Mesh) -> optax.Params:
    """Returns the parameters, read from the checkpoint and placed on the mesh."""
    places = param_shardings(mesh, self.policy.names)
    base = weights.read(self.checkpoint, places, self.config.param_dtype)
    if self.adapter is None:
      return base
    config, adapters = self.adapter
    there = replicate(mesh, adapters)
    return jax.jit(lora.merged_in_dtype)(lora.attach(base, there, config.scale))

  def keep(self, workdir: Path) -> None:
    """Copies the checkpoint's files except its weights to a new run's folder."""
    folder = workdir / artifact.HUB
    if (folder / artifact.SOURCE).exists():
      return
    checkpoint_files.copy(self.checkpoint.folder, folder)
    source = {
      'path': str(self.checkpoint.folder.absolute()),
      'digest': self.checkpoint.digest,
      'time': self.time.isoformat(),
      'chat_template_kwargs': self.config.chat_template_kwargs,
      'dtype': self.config.dtype,
      'system': self.config.system,
    }
    write_whole(folder / artifact.SOURCE, json.dumps(source) + '\n')


def _digest(file: Path) -> str:
  return hashlib.sha256(checkpoint_files.read_bytes(file)).hexdigest()


def origin(config: Any) -> Origin:
  """Returns the checkpoint's model, all but its parameters, and its problems.

  These are the problems of a task, or those of data files.

  Args:
    config: of the stage, with the fields model (`HubConfig`), task, task_settings,
      data (`DataConfig`), rl and mesh.
  """
  files = data.load(config.data, config.data_dir) if config.data.path else None
  started = began(config.workdir, config.model.dtype)
  model = dataclasses.replace(config.model, dtype=started.dtype)
  found = look_up(model, started.time)
  policy = found.policy
  limits = {
    'max_prompt_length': config.rl.max_prompt_length,
    'max_positions': families.max_positions(found.checkpoint.raw),
  }
  if files:
    problems = Problems(
      [files.train], [files.validation], **limits, remarks=files.remarks
    )
  else:
    difficulty = settings.read(config.task, config.task_settings)
    problems = problem_sets.problems_of_task(
      config.task, difficulty, config.data_dir, **limits
    )
  if files or dataset_of(config.task) is not None:  # their prompts have any length
    problems = fitting(problems, policy)
  problems = problems.in_form(templates.form(policy.template)).without_padding(
    policy.tokenizer, policy.template, config.mesh.context
  )
  digests = {**found.digests, **(files.digests if files else {})}
  return Origin(
    policy,
    problems,
    digests,
    keep=found.keep,
    params=found.params,
    remarks=started.remarks,
  )


class Start(NamedTuple):
  """What a run found at its start, and must find again when it resumes."""

  time: datetime.datetime  # a chat template may print the date
  dtype: str  # of products
  remarks: tuple[str, ...] = ()  # to be said


def began(workdir: str | os.PathLike[str], dtype: str) -> Start:
  """Returns when the run in this folder began, and its type of products.

  They are those of a new run if there is none. Equal on all hosts.

  Args:
    workdir: of the run.
    dtype: see `HubConfig`; 'auto' is measured by a new run.

  Raises:
    ArtifactError: the run's file with both is damaged.
  """
  chosen = dtype != 'auto'
  if (Path(workdir) / artifact.HUB / artifact.SOURCE).exists():
    source = artifact.read_source(Path(workdir))
    here = Start(source.time, dtype if chosen else source.dtype)
  elif chosen:
    here = Start(tokenizer_files.now(), dtype)
  else:
    found, reason = product_type.choose()
    here = Start(tokenizer_files.now(), found, (f'model.dtype: {reason}',))
  return hosts.all_gather('the start', here)[0]


def look_up(config: HubConfig, time: datetime.datetime | None = None) -> Pretrained:
  """Opens and checks a checkpoint without reading its weights.

  Args:
    config: see `HubConfig`.
    time: passed to its chat template; None is now.

  Raises:
    ValueError: there is no checkpoint at that path, or it can't be used; see
      `hf_checkpoint`, `tokenizer_files`.
  """
  if not config.path:
    raise ValueError(
      'model.path: expected the folder of a checkpoint or a GGUF file, got none'
    )
  if config.dtype == 'auto':
    raise ValueError(
      "model.dtype: expected float32 or bfloat16, as only a run chooses, got 'auto'"
    )
  checkpoint = open_checkpoint(download(config.path))
  time = time or tokenizer_files.now()
  variables = chat_template.read_variables(config.chat_template_kwargs)
  tokenizer = tokenizer_files.open_tokenizer(
    checkpoint.folder, variables, time, config.system
  )
  if tokenizer.vocab_size > checkpoint.vocab_size:
    raise ValueError(
      f'{checkpoint.folder}: expected at most {checkpoint.vocab_size} tokens, the rows '
      f'of the embedding, got a tokenizer of {tokenizer.vocab_size}'
    )
  tokenizer.prompt_ids(config.template, '')  # raises if the template can't be encoded
  changed = dataclasses.replace(
    checkpoint.config, remat=config.remat, dtype=config.dtype
  )
  if config.lora.rank:
    lora.targets(changed, config.lora)  # raises for unknown ones
  policy = Policy(
    changed, tokenizer, config.template, checkpoint.vocab_size, config.lora
  )
  adapter = peft.read(config.adapter, checkpoint) if config.adapter else None
  return Pretrained(checkpoint, policy, config, adapter, time)


def kept(stage: Artifact) -> HFCheckpoint | None:
  """Returns the checkpoint that a stage's model comes from, or None.

  If the checkpoint is gone, returns the run's copy of it, which has no weights.
  """
  folder = stage.path / artifact.HUB
  if not folder.exists():
    return None
  try:
    return stage.source()
  except ArtifactError:
    raw = json.loads((folder / 'config.json').read_bytes())
    return HFCheckpoint(folder, raw, stage.policy.config, {})


def positions(stage: Artifact) -> int:
  """Returns the positions of a stage's model: those of its config or its training."""
  like = kept(stage)
  if like is not None:
    return families.max_positions(like.raw)
  config = stage.record['config']
  base = config if 'base' in config else stage.ancestor('r1_zero').record['config']
  return base['base']['row_length']
