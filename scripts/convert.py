"""Exports a model as a checkpoint for other libraries.

  python -m scripts.convert runs/a out/ --to hf
  python -m scripts.convert runs/a out.gguf --to gguf --type q8_0

The source is a finished run, a Hugging Face checkpoint or a GGUF file. `--to hf` writes
config.json, safetensors, tokenizer and chat template, which `transformers` opens, and
also `--model.path out/` of this package. `--to peft` writes the adapters of a run with
LoRA for the library PEFT; `--to hf` merges them into the weights. `--to gguf` writes a
file for llama.cpp, and `out.Modelfile` for Ollama.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import optax
import tyro

from r1jax.hub import (
  checkpoint_files,
  families,
  gguf,
  gguf_vocabulary,
  paths,
  peft,
  tokenizer_files,
  weights,
)
from r1jax.hub.gguf_vocabulary import Vocabulary
from r1jax.hub.hf_checkpoint import HFCheckpoint, open_checkpoint
from r1jax.hub.safetensors_writer import write_folder
from r1jax.model import decoder
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.runtime.workdir import RECORD, write_whole
from r1jax.sharding.mesh import make_mesh
from r1jax.sharding.place import param_shardings
from r1jax.stages import artifact, from_hub
from r1jax.stages.artifact import Artifact
from r1jax.text import parsing
from r1jax.text.tokenizer import EOS, PAD, Tokenizer

MODELFILE = '.Modelfile'
# The chat template of a model that was trained from random weights. It has only one
# question, since such a model has never read a conversation.
TEMPLATE = "User: {{ messages[-1]['content'] }}\nAssistant:"


@dataclasses.dataclass(frozen=True)
class Convert:
  """The source, the format and the output path."""

  # Work directory of a finished stage, folder of a checkpoint, or GGUF file
  run: tyro.conf.Positional[str] = ''
  out: tyro.conf.Positional[str] = ''  # new folder, or new file for gguf
  to: Literal['hf', 'peft', 'gguf'] = 'hf'  # format
  type: Literal['f32', 'f16', 'q8_0'] = 'f16'  # type of the weights in GGUF
  params: str = 'final'  # parameters of the stage; r1_zero also has 'base'
  # Type of the weights; None keeps the source's types, float32 for a run of ours
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None


@dataclasses.dataclass(frozen=True)
class _Source:
  """A model to export."""

  like: HFCheckpoint  # the layout to export to
  folder: (
    Path | None
  )  # of the checkpoint it comes from; None if it was trained from scratch
  tokenizer: Tokenizer
  params: Callable[[], optax.Params]  # reads them
  files: Mapping[str, str | Path]  # all but weights and config.json, for the hub


def convert(config: Convert) -> Path:
  """Writes the checkpoint; returns its path.

  Raises:
    ValueError: there is no model, the stage is not finished or has no such parameters,
      the format cannot express the model, or `out` exists.
  """
  if not config.run or not config.out:
    raise ValueError(
      'expected the work directory of a finished stage or the folder of a checkpoint, '
      'and a new folder, as in: python -m scripts.convert runs/a out --to hf'
    )
  out = paths.local('out', config.out)
  if out.exists():
    raise ValueError(f'out: {out} already exists; choose another path')
  run = paths.local('run', config.run)
  if not (run / RECORD).is_file():
    source = _of_folder(config, run)
  else:
    stage = artifact.load(run)
    if config.params not in stage.record['params']:
      raise ValueError(
        f'params: expected one of {", ".join(stage.record["params"])}, got '
        f'{config.params!r}'
      )
    if config.to == 'peft':
      if not stage.policy.lora.rank:
        raise ValueError(f'to: expected a run with adapters for peft, got {stage.path}')
      adapters = stage.adapters(config.params)
      peft.write(out, adapters, stage.policy.lora, stage.source())
      return out
    source = _of_stage(config, stage)
  if config.to == 'gguf':
    return _gguf(config, out, source)
  raw = families.update_config(source.like.raw, source.like.config)
  if config.dtype:
    names = [name for name in ('dtype', 'torch_dtype') if name in raw] or ['dtype']
    raw |= dict.fromkeys(names, config.dtype)
  files = {**source.files, 'config.json': json.dumps(raw, indent=2) + '\n'}
  named = weights.tensors(source.params(), source.like, config.dtype)
  write_folder(out, named, files)
  return out


def _of_stage(config: Convert, stage: Artifact) -> _Source:
  like = from_hub.kept(stage)
  folder = stage.path / artifact.HUB if like else None
  read = functools.partial(stage.params, make_mesh(), config.params)
  tokenizer = stage.policy.tokenizer
  files = checkpoint_files.copies(folder, tokenizer.eos_id) if folder else _files(stage)
  return _Source(like or _from_scratch(stage), folder, tokenizer, read, files)


def _of_folder(config: Convert, folder: Path) -> _Source:
  """Returns the checkpoint in a folder or GGUF file as it is, read in its own type.

  Raises:
    ValueError: there is no checkpoint, or an option needs a run.
  """
  file = folder / 'config.json'
  if not folder.is_file() and not file.is_file():
    raise ValueError(
      'run: expected the work directory of a finished stage, the folder of a '
      f'checkpoint or a GGUF file, got {folder}, which '
      + (f'has no {RECORD} and no config.json' if folder.is_dir() else 'does not exist')
    )
  if 'experiment' in checkpoint_files.read_settings(file):
    raise ValueError(
      f'run: {folder} has a run that is not finished, so it has no {RECORD}; run the '
      'command in its config.json again'
    )
  if config.to == 'peft' or config.params != 'final':
    flag, given = ('to', 'peft') if config.to == 'peft' else ('params', config.params)
    raise ValueError(
      f'{flag}: expected the work directory of a run for {given}, got the checkpoint '
      f'{folder}'
    )
  like = open_checkpoint(folder)
  names = decoder.names(like.config, like.vocab_size)
  places = param_shardings(make_mesh(), names)
  read = functools.partial(weights.read, like, places)
  return _Source(
    like,
    folder,
    tokenizer_files.open_tokenizer(folder),
    read,
    checkpoint_files.copies(folder),
  )


def _gguf(config: Convert, out: Path, source: _Source) -> Path:
  """Writes the GGUF file, and a Modelfile for Ollama next to it."""
  modelfile = out.with_suffix(MODELFILE)
  if out.suffix == MODELFILE or modelfile.exists():
    raise ValueError(
      f'out: expected a name other than {modelfile}, the file for Ollama, which must '
      'not exist yet'
    )
  folder, tokenizer = source.folder, source.tokenizer
  written = Vocabulary(
    tokenizer.content,
    eos_id=tokenizer.eos_id,
    other_stop_ids=tokenizer.stop_ids[1:],
    pad_id=tokenizer.pad_id,
    bos_id=tokenizer_files.named_bos_id(folder) if folder else None,
    chat_template=tokenizer_files.template_for_gguf(folder) if folder else TEMPLATE,
    shown=parsing.TAGS,
  )
  gguf.check(source.like, written)  # before reading parameters
  gguf.write(out, source.params(), source.like, written, config.type)
  for remark in gguf_vocabulary.remarks(written):
    print(remark)
  lines = [f'FROM ./{out.name}', 'PARAMETER temperature 0.6', 'PARAMETER top_p 0.95']
  if folder is None:
    lines.append('TEMPLATE """User: {{ .Prompt }}\nAssistant:"""')
  write_whole(modelfile, '\n'.join(lines) + '\n')
  return out


def _from_scratch(stage: Artifact) -> HFCheckpoint:
  """Returns the layout of a checkpoint for a model that was trained from scratch."""
  model = stage.policy
  longest = from_hub.positions(stage)
  raw = families.write_config(model.config, model.vocab_size, longest)
  ids = {'eos_token_id': model.tokenizer.eos_id, 'pad_token_id': model.tokenizer.pad_id}
  return HFCheckpoint(stage.path, {**raw, **ids}, model.config, {})


def _files(stage: Artifact) -> dict[str, str | Path]:
  """Returns the files, all but weights and config, of a model trained from scratch."""
  tokenizer = stage.policy.tokenizer
  settings: dict[str, str | bool] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': EOS,
    'pad_token': PAD,
    'clean_up_tokenization_spaces': False,
    'chat_template': TEMPLATE,
  }
  generation = {
    'eos_token_id': tokenizer.eos_id,
    'pad_token_id': tokenizer.pad_id,
    'do_sample': True,
    'temperature': 1.0,
    'max_new_tokens': 320,
  }
  return {
    checkpoint_files.TOKENIZER: stage.path / artifact.TOKENIZER,
    'tokenizer_config.json': json.dumps(settings, indent=2) + '\n',
    'generation_config.json': json.dumps(generation, indent=2) + '\n',
  }


if __name__ == '__main__':
  with user_errors():
    print(convert(cli.parse(Convert())))
