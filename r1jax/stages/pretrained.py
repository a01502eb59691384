"""A model of the hub as the start of a run, and what of it the run keeps.

The run's folder gets a copy of all files of the checkpoint but its weights, in `hub/`,
so that what the run ends with can be written back as the hub has it.
"""

from __future__ import annotations  # fields have the names of their modules

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax

from r1jax import hub, text
from r1jax import mesh as mesh_lib
from r1jax.model import families, lora, peft, weights
from r1jax.model.config import DTYPES, REMAT
from r1jax.stages import lineage
from r1jax.stages.workdir import write_whole


@dataclasses.dataclass(frozen=True)
class Config:
  """Which checkpoint, how it is asked, and in which precision it learns."""

  # A folder with config.json, safetensors and tokenizer.json, or hf://owner/name.
  path: str = ''
  # Or 'chat_tags', 'r1_zero', 'plain', 'r1_chat'; see `text.CHATS`, `text.TEMPLATES`.
  template: str = text.CHAT
  remat: Literal['none', 'dots', 'full'] = 'dots'  # see `ModelConfig`
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of products, keys and values
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the parameters
  adapter: str = ''  # a folder of PEFT whose adapters are added to the weights first
  lora: lora.Config = lora.Config()  # adapters to train, instead of all parameters

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
    if self.template not in text.CHATS:
      text.render(self.template, '')  # says which there are


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that has been looked up: everything but its parameters."""

  checkpoint: weights.Checkpoint
  model: lineage.Model
  config: Config
  adapter: tuple[lora.Config, Any] | None

  @property
  def facts(self) -> dict[str, str]:
    """What the run's checkpoints depend on; see `run.start`."""
    folder = self.checkpoint.folder.absolute()
    files = [folder / name for name in hub.FILES]
    if self.config.adapter:
      adapter = Path(self.config.adapter).expanduser().absolute()
      files += [adapter / name for name in (peft.CONFIG, peft.FILE)]
    return {
      str(folder): self.checkpoint.digest,
      **{
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.exists()
      },
      lineage.TOKENIZER: self.model.tokenizer.digest,
    }

  def params(self, mesh: jax.sharding.Mesh) -> Any:
    """The parameters, read to where they lie on the mesh."""
    places = mesh_lib.places(mesh, self.model.names)
    base = weights.read(self.checkpoint, places, self.config.param_dtype)
    if self.adapter is None:
      return base
    config, adapters = self.adapter
    there = mesh_lib.put_everywhere(mesh, adapters)
    return jax.jit(lora.merged)(lora.attach(base, there, config.scale))

  def keep(self, workdir: Path) -> None:
    """Copies all but the weights to the run's folder, once."""
    folder = workdir / lineage.HUB
    if (folder / lineage.SOURCE).exists():
      return
    folder.mkdir(exist_ok=True)
    for name in hub.FILES:
      if (self.checkpoint.folder / name).exists():
        shutil.copyfile(self.checkpoint.folder / name, folder / name)
    path = str(self.checkpoint.folder.absolute())
    source = {'path': path, 'digest': self.checkpoint.digest}
    write_whole(folder / lineage.SOURCE, json.dumps(source) + '\n')


def look_up(config: Config) -> Pretrained:
  """Looks a checkpoint up, before anything expensive starts.

  Raises:
    ValueError: there is none in that place, or it can't be used; see `weights`, `hub`.
  """
  if not config.path:
    raise ValueError('model.path: expected the folder of a checkpoint, got none')
  checkpoint = weights.open_checkpoint(hub.fetched(config.path))
  tokenizer = hub.open_tokenizer(checkpoint.folder)
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
  model = lineage.Model(
    changed, tokenizer, config.template, checkpoint.vocab_size, config.lora
  )
  adapter = peft.read(config.adapter, checkpoint) if config.adapter else None
  return Pretrained(checkpoint, model, config, adapter)


def kept(stage: lineage.Stage) -> weights.Checkpoint | None:
  """The checkpoint that a stage's model comes from, or None if it was made here.

  If that one has gone, what the run has kept of it, which is all but its weights.
  """
  folder = stage.path / lineage.HUB
  if not folder.exists():
    return None
  try:
    return stage.source()
  except lineage.LineageError:
    raw = json.loads((folder / 'config.json').read_bytes())
    return weights.Checkpoint(folder, raw, families.read_config(raw), {})


def positions(stage: lineage.Stage) -> int:
  """How many positions a stage's model knows, or has seen if it was made here."""
  like = kept(stage)
  if like is not None:
    return families.positions(like.raw)
  config = stage.record['config']
  base = config if 'base' in config else stage.ancestor('r1_zero').record['config']
  return base['base']['row_length']
