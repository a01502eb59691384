"""Writes the model of a finished run as a checkpoint that the rest of the world opens.

`python -m scripts.convert runs/a --to hf out/` writes a folder in the layout of the
Hugging Face hub: config.json, safetensors, tokenizer and chat template. `transformers`
opens it as it is, and so does `--model.path out/` here. `--to peft` writes the adapters
of a run with LoRA alone, for the library of that name; `hf` adds them to the weights.
`--to gguf out.gguf --type q8_0` writes a file that llama.cpp runs, and beside it
`out.Modelfile` for Ollama.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import tyro

from r1jax import hub, text
from r1jax import mesh as mesh_lib
from r1jax.model import families, gguf, peft, storage, vocabulary, weights
from r1jax.stages import command, lineage, pretrained
from r1jax.stages.run import plain_errors
from r1jax.stages.workdir import write_whole

MODELFILE = '.Modelfile'
# How a model that was made here is asked, as a chat template: one question at a time,
# since it has never read a conversation.
TEMPLATE = "User: {{ messages[-1]['content'] }}\nAssistant:"


@dataclasses.dataclass(frozen=True)
class Convert:
  """What to write, and where."""

  run: tyro.conf.Positional[str] = ''  # work directory of a finished stage
  out: tyro.conf.Positional[str] = ''  # a folder, or a file, that there is not yet
  to: Literal['hf', 'peft', 'gguf'] = 'hf'  # the layout
  type: Literal['f32', 'f16', 'q8_0'] = 'f16'  # of the weights in GGUF
  params: str = 'final'  # which of the stage's models; an R1-Zero also has its 'base'
  # None gives each tensor its source's, or float32 to a model that was made here
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None


def convert(config: Convert) -> Path:
  """Writes the checkpoint; returns its folder.

  Raises:
    ValueError: the stage is not finished, has no such model, or the folder is there.
  """
  if not config.run or not config.out:
    raise ValueError(
      'expected the work directory of a finished stage and a new folder, as in: python '
      '-m scripts.convert runs/a --to hf out'
    )
  stage = lineage.load(config.run)
  if config.params not in stage.record['params']:
    raise ValueError(
      f'params: expected one of {", ".join(stage.record["params"])}, got '
      f'{config.params!r}'
    )
  if config.to == 'peft':
    if not stage.model.lora.rank:
      raise ValueError(f'to: expected a run with adapters for peft, got {stage.path}')
    adapters = stage.adapters(config.params)
    peft.write(config.out, adapters, stage.model.lora, stage.source())
    return Path(config.out)
  like = pretrained.kept(stage) or _made_here(stage)
  if config.to == 'gguf':
    return _gguf(config, stage, like)
  kept = stage.path / lineage.HUB
  files: dict[str, str | Path] = {name: kept / name for name in hub.files(kept)}
  files = files or _files(stage)
  raw = families.rewritten(like.raw, like.config)
  if config.dtype:
    raw['torch_dtype' if 'torch_dtype' in raw else 'dtype'] = config.dtype
  files['config.json'] = json.dumps(raw, indent=2) + '\n'
  params = stage.params(mesh_lib.make(), config.params)
  storage.write(config.out, weights.tensors(params, like, config.dtype), files)
  return Path(config.out)


def _gguf(config: Convert, stage: lineage.Stage, like: weights.Checkpoint) -> Path:
  """Writes one file, and how Ollama asks the model beside it."""
  out = Path(config.out)
  modelfile = out.with_suffix(MODELFILE)
  if out.suffix == MODELFILE or modelfile.exists():
    raise ValueError(
      f'out: expected another name than that of the file for Ollama, {modelfile}, '
      'which must not be there yet'
    )
  folder = stage.path / lineage.HUB if (stage.path / lineage.HUB).exists() else None
  tokenizer = stage.model.tokenizer
  written = gguf.Text(
    tokenizer.content,
    eos_id=tokenizer.eos_id,
    pad_id=tokenizer.pad_id,
    bos_id=hub.named_bos_id(folder) if folder else None,
    chat_template=hub.template(folder) if folder else TEMPLATE,
    shown=text.TAGS,
  )
  gguf.check(like, written)  # before parameters are read
  params = stage.params(mesh_lib.make(), config.params)
  gguf.write(out, params, like, written, config.type)
  for remark in vocabulary.remarks(written):
    print(remark)
  lines = [f'FROM ./{out.name}', 'PARAMETER temperature 0.6', 'PARAMETER top_p 0.95']
  if folder is None:
    lines.append('TEMPLATE """User: {{ .Prompt }}\nAssistant:"""')
  write_whole(modelfile, '\n'.join(lines) + '\n')
  return out


def _made_here(stage: lineage.Stage) -> weights.Checkpoint:
  """What a checkpoint of a model that was made here is like."""
  model = stage.model
  longest = pretrained.positions(stage)
  raw = families.write_config(model.config, model.vocab_size, longest)
  ids = {'eos_token_id': model.tokenizer.eos_id, 'pad_token_id': model.tokenizer.pad_id}
  return weights.Checkpoint(stage.path, {**raw, **ids}, model.config, {})


def _files(stage: lineage.Stage) -> dict[str, str | Path]:
  """What goes beside the weights of a model that was made here."""
  tokenizer = stage.model.tokenizer
  settings: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': text.EOS,
    'pad_token': text.PAD,
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
    hub.TOKENIZER: stage.path / lineage.TOKENIZER,
    'tokenizer_config.json': json.dumps(settings, indent=2) + '\n',
    'generation_config.json': json.dumps(generation, indent=2) + '\n',
  }


if __name__ == '__main__':
  with plain_errors():
    print(convert(command.parse(Convert())))
