"""Opens a model from a path: of a finished stage, a checkpoint, or a GGUF file."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import optax

from r1jax.hub import chat_template, families, tokenizer_files, weights
from r1jax.hub.download import download
from r1jax.rollout.policy import Policy
from r1jax.runtime.workdir import RECORD
from r1jax.sharding.place import param_shardings
from r1jax.stages import artifact, from_hub, product_type
from r1jax.stages.artifact import Artifact
from r1jax.stages.from_hub import HubConfig, Pretrained
from r1jax.text.tokenizer import Tokenizer


class Model(NamedTuple):
  """A model whose parameters are not read yet.

  Fields:
    policy: config, tokenizer and template.
    digest: sha256 of the parameters or of what they are read from.
    max_positions: of prompt and output together.
    param_dtype: of most parameters.
    params: reads the parameters and places them on a mesh.
  """

  policy: Policy
  digest: str
  max_positions: int
  param_dtype: str
  params: Callable[[jax.sharding.Mesh], optax.Params]


def look_up(
  path: str,
  flag: str,
  *,
  template: str | None,
  checkpoint_template: str,
  chat_template_kwargs: str | None = None,
  dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto',
) -> Model:
  """Returns the model of a stage or of a hub checkpoint.

  Args:
    path: the work directory of a finished stage, the folder of a checkpoint, or a GGUF
      file.
    flag: the name of the path in errors.
    template: of the prompts; None is that of the stage or `checkpoint_template`.
    checkpoint_template: of the prompts for a checkpoint.
    chat_template_kwargs: variables for the chat template, in JSON; None is those that
      the stage was trained with.
    dtype: of products, keys and values; 'auto' is that of the stage, and for a
      checkpoint the one that the device computes faster (`product_type`). A
      checkpoint's weights are also read as bfloat16 if it is that.

  Raises:
    ValueError: the path holds neither; see `artifact.load`, `from_hub.look_up`.
  """
  folder = download(path, flag)
  there = any((folder / name).is_file() for name in (RECORD, 'config.json'))
  if not there and not folder.is_file():
    raise ValueError(
      f'{flag}: expected the work directory of a finished stage, the folder of a '
      f'checkpoint or a GGUF file, got {folder}, which has no {RECORD} and no '
      'config.json'
    )
  if (folder / RECORD).is_file():
    stage = artifact.load(folder)
    config = stage.policy.config
    policy = dataclasses.replace(
      stage.policy,
      config=config if dtype == 'auto' else dataclasses.replace(config, dtype=dtype),
      tokenizer=_current_tokenizer(stage, chat_template_kwargs),
      template=template or stage.policy.template,
    )
    digest = stage.record['params']['final']
    kept = stage.record['config'].get('model', {}).get('param_dtype', 'float32')
    return Model(policy, digest, from_hub.positions(stage), kept, stage.params)
  if dtype == 'auto':
    dtype, _ = product_type.choose()
  source = HubConfig(
    path=str(folder),
    template=template or checkpoint_template,
    chat_template_kwargs=chat_template_kwargs or '',
    dtype=dtype,
  )
  found = from_hub.look_up(source)
  max_positions = families.max_positions(found.checkpoint.raw)
  # With the file's own dtype: float32 would take twice the memory of bfloat16.
  own = found.checkpoint.dtype
  kept = dtype if dtype == 'bfloat16' else None
  params = functools.partial(_read, found, kept)
  return Model(
    found.policy, found.checkpoint.digest, max_positions, kept or own, params
  )


def _read(
  found: Pretrained, dtype: str | None, mesh: jax.sharding.Mesh
) -> optax.Params:
  """Returns the parameters of a checkpoint, placed on the mesh."""
  places = param_shardings(mesh, found.policy.names)
  return weights.read(found.checkpoint, places, dtype)


def _current_tokenizer(stage: Artifact, chat_template_kwargs: str | None) -> Tokenizer:
  """Returns the tokenizer of a stage; its chat template gets today's date."""
  if not (stage.path / artifact.HUB).exists():
    return stage.policy.tokenizer
  source = artifact.read_source(stage.path)
  variables = source.chat_template_kwargs
  if chat_template_kwargs is not None:
    variables = chat_template.read_variables(chat_template_kwargs)
  return tokenizer_files.open_tokenizer(
    stage.path / artifact.HUB, variables, system=source.system
  )
