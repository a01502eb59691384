"""A model of the hub as the start of a run, and what of it the run keeps.

The run's folder gets a copy of all files of the checkpoint but its weights, in `hub/`,
so that what the run ends with can be written back as the hub has it.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from r1jax import hub, text
from r1jax import mesh as mesh_lib
from r1jax.model import weights
from r1jax.model.config import DTYPES, REMAT
from r1jax.stages import lineage
from r1jax.stages.workdir import write_whole

SOURCE = 'source.json'  # in `lineage.HUB`: where the weights came from


@dataclasses.dataclass(frozen=True)
class Config:
  """Which checkpoint, how it is asked, and in which precision it learns."""

  path: str = ''  # a folder with config.json, safetensors and tokenizer.json
  template: str = text.CHAT  # or 'r1_zero', 'plain', 'r1_chat'; see `text.TEMPLATES`
  remat: Literal['none', 'dots', 'full'] = 'dots'  # see `ModelConfig`
  dtype: Literal['float32', 'bfloat16'] = 'float32'  # of products, keys and values
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the parameters

  def __post_init__(self) -> None:
    for name, known in (('remat', REMAT), ('dtype', DTYPES), ('param_dtype', DTYPES)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'model.{name}: expected one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    if self.template != text.CHAT:
      text.render(self.template, '')  # says which there are


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A checkpoint that has been looked up: everything but its parameters."""

  checkpoint: weights.Checkpoint
  model: lineage.Model
  param_dtype: str

  @property
  def facts(self) -> dict[str, str]:
    """What the run's checkpoints depend on; see `run.start`."""
    content = (self.checkpoint.folder / 'config.json').read_bytes()
    return {
      str(self.checkpoint.folder.absolute()): hashlib.sha256(content).hexdigest(),
      lineage.TOKENIZER: self.model.tokenizer.digest,
    }

  def params(self, mesh: jax.sharding.Mesh) -> Any:
    """The parameters, read onto every device."""
    where = mesh_lib.sharding(mesh)
    return weights.read(self.checkpoint, lambda *_: where, self.param_dtype)

  def keep(self, workdir: Path) -> None:
    """Copies all but the weights to the run's folder, once."""
    folder = workdir / lineage.HUB
    if (folder / SOURCE).exists():
      return
    folder.mkdir(exist_ok=True)
    for name in hub.FILES:
      if (self.checkpoint.folder / name).exists():
        shutil.copyfile(self.checkpoint.folder / name, folder / name)
    source = {'path': str(self.checkpoint.folder.absolute())}
    write_whole(folder / SOURCE, json.dumps(source) + '\n')


def look_up(config: Config) -> Pretrained:
  """Looks a checkpoint up, before anything expensive starts.

  Raises:
    ValueError: there is none in that place, or it can't be used; see `weights`, `hub`.
  """
  if not config.path:
    raise ValueError('model.path: expected the folder of a checkpoint, got none')
  checkpoint = weights.open_checkpoint(config.path)
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
  model = lineage.Model(changed, tokenizer, config.template, checkpoint.vocab_size)
  return Pretrained(checkpoint, model, config.param_dtype)


def kept(workdir: Path) -> weights.Checkpoint | None:
  """The checkpoint that a run started from, as far as the run has kept it.

  Its tensors are those of the place that it came from, if that is still there.
  """
  folder = workdir / lineage.HUB
  if not (folder / SOURCE).exists():
    return None
  raw: Mapping[str, Any] = json.loads((folder / 'config.json').read_bytes())
  source = Path(json.loads((folder / SOURCE).read_bytes())['path'])
  try:
    return weights.open_checkpoint(source)
  except ValueError:
    return weights.Checkpoint(folder, raw, weights.families.read_config(raw), {})
