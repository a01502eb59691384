"""A model of the hub as the start of a run, and what of it the run keeps.

The run's folder gets a copy of all files of the checkpoint but its weights, in `hub/`,
so that what the run ends with can be written back as the hub has it.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import jax

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
from r1jax.runtime import hosts
from r1jax.runtime.workdir import write_whole
from r1jax.sharding.place import param_shardings, replicate
from r1jax.stages import artifact
from r1jax.stages.artifact import Artifact, ArtifactError
from r1jax.stages.policy import Policy
from r1jax.text import templates


@dataclasses.dataclass(frozen=True)
class HubConfig:
  """Which checkpoint, how it is asked, and in which precision it learns."""

  # A folder with config.json, safetensors and tokenizer.json, or hf://owner/name.
  path: str = ''
  # Or 'chat_tags', 'r1_zero', 'plain', 'r1_chat'; see `text.templates`.
  template: str = templates.CHAT
  # Variables for the checkpoint's chat template, in JSON: {"enable_thinking": false}
  chat_template_kwargs: str = ''
  remat: Literal['none', 'dots', 'full'] = 'dots'  # see `ModelConfig`
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of products, keys and values
  # Of the parameters, of the reference and of samplers; see docs/precision.md.
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  adapter: str = ''  # a folder of PEFT whose adapters are added to the weights first
  lora: LoraConfig = LoraConfig()  # adapters to train, instead of all parameters

  def __post_init__(self) -> None:
    for name, known in (('remat', REMAT), ('dtype', DTYPES), ('param_dtype', DTYPES)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'model.{name}: expected one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    if self.adapter and self.lora.rank:
      raise ValueError(
        'model.adapter: expected none with model.lora.rank, since adapters are saved '
        'without what they were learned on; train all parameters, or merge the other '
        f'ones into a checkpoint first; got {self.adapter!r}'
      )
    variables = chat_template.read_variables(self.chat_template_kwargs)
    if self.template not in templates.CHATS:
      templates.render(self.template, '')  # says which there are
      if variables:
        raise ValueError(
          f'chat_template_kwargs: expected none with the template {self.template!r}, '
          f'which reads no variables, got {self.chat_template_kwargs!r}; choose the '
          f'template {templates.CHAT!r}'
        )


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that has been looked up: everything but its parameters."""

  checkpoint: HFCheckpoint
  policy: Policy
  config: HubConfig
  adapter: tuple[LoraConfig, Any] | None
  time: datetime.datetime  # that the chat template is told

  @property
  def digests(self) -> dict[str, str]:
    """The files that the run's checkpoints depend on; see `run.start`."""
    folder = self.checkpoint.folder.absolute()
    files = [folder / name for name in checkpoint_files.files(folder)]
    if self.config.adapter:
      adapter = Path(self.config.adapter).expanduser().absolute()
      files += [adapter / name for name in (peft_config.CONFIG, peft_config.FILE)]
    told = {}
    if self.config.template in templates.CHATS and checkpoint_files.reads_clock(folder):
      told[f'{artifact.HUB}/{artifact.SOURCE}'] = self.time.isoformat()
    return {
      str(folder): self.checkpoint.digest,
      **{str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
      artifact.TOKENIZER: self.policy.tokenizer.digest,
      **told,
    }

  def params(self, mesh: jax.sharding.Mesh) -> Any:
    """The parameters, read to where they lie on the mesh."""
    places = param_shardings(mesh, self.policy.names)
    base = weights.read(self.checkpoint, places, self.config.param_dtype)
    if self.adapter is None:
      return base
    config, adapters = self.adapter
    there = replicate(mesh, adapters)
    return jax.jit(lora.merged_as_kept)(lora.attach(base, there, config.scale))

  def keep(self, workdir: Path) -> None:
    """Copies all but the weights to the run's folder, once."""
    folder = workdir / artifact.HUB
    if (folder / artifact.SOURCE).exists():
      return
    checkpoint_files.copy(self.checkpoint.folder, folder)
    source = {
      'path': str(self.checkpoint.folder.absolute()),
      'digest': self.checkpoint.digest,
      'time': self.time.isoformat(),
      'chat_template_kwargs': self.config.chat_template_kwargs,
    }
    write_whole(folder / artifact.SOURCE, json.dumps(source) + '\n')


def began(workdir: str | os.PathLike[str]) -> datetime.datetime:
  """When the run in this folder began; of a new one, now. The same on all hosts.

  A chat template may tell the date, and a run that goes on tomorrow has the prompts of
  today.

  Raises:
    ArtifactError: what the run has kept of it is damaged.
  """
  kept = None
  if (Path(workdir) / artifact.HUB / artifact.SOURCE).exists():
    kept = artifact.read_source(Path(workdir)).time
  return hosts.all_gather('time', kept or tokenizer_files.now())[0]


def look_up(config: HubConfig, time: datetime.datetime | None = None) -> Pretrained:
  """Looks a checkpoint up, before anything expensive starts.

  Args:
    config: which one, and how it is asked.
    time: that its chat template is told; None is now.

  Raises:
    ValueError: there is none in that place, or it can't be used; see `weights`, `hub`.
  """
  if not config.path:
    raise ValueError('model.path: expected the folder of a checkpoint, got none')
  checkpoint = open_checkpoint(download(config.path))
  time = time or tokenizer_files.now()
  variables = chat_template.read_variables(config.chat_template_kwargs)
  tokenizer = tokenizer_files.open_tokenizer(checkpoint.folder, variables, time)
  if tokenizer.vocab_size > checkpoint.vocab_size:
    raise ValueError(
      f'{checkpoint.folder}: expected at most {checkpoint.vocab_size} tokens, the rows '
      f'of the embedding, got a tokenizer of {tokenizer.vocab_size}'
    )
  tokenizer.prompt_ids(config.template, '')  # a template that it can't write
  changed = dataclasses.replace(
    checkpoint.config, remat=config.remat, dtype=config.dtype
  )
  if config.lora.rank:
    lora.targets(changed, config.lora)  # says which there are
  policy = Policy(
    changed, tokenizer, config.template, checkpoint.vocab_size, config.lora
  )
  adapter = peft.read(config.adapter, checkpoint) if config.adapter else None
  return Pretrained(checkpoint, policy, config, adapter, time)


def kept(stage: Artifact) -> HFCheckpoint | None:
  """The checkpoint that a stage's model comes from, or None if it was made here.

  If that one has gone, what the run has kept of it, which is all but its weights.
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
  """How many positions a stage's model knows, or has seen if it was made here."""
  like = kept(stage)
  if like is not None:
    return families.max_positions(like.raw)
  config = stage.record['config']
  base = config if 'base' in config else stage.ancestor('r1_zero').record['config']
  return base['base']['row_length']
