"""A checkpoint in the Hugging Face layout, in a folder or made from a GGUF file."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from r1jax.hub import (
  families,
  gguf_config,
  gguf_file,
  gguf_tensors,
  storage,
  tensor_names,
)
from r1jax.hub.config_fields import FamilyError
from r1jax.hub.storage import Tensor, WeightsError
from r1jax.hub.tensor_names import TensorRow
from r1jax.model import decoder
from r1jax.model.config import ModelConfig
from r1jax.plain import JsonObject

_DIGEST_BYTES = 4096  # from the beginning of each tensor
MODEL = 'model.'
EMBEDDING, NORM = f'{MODEL}embed_tokens.weight', f'{MODEL}norm.weight'
HEAD = 'lm_head.weight'
# Names of types in PyTorch, without `torch.`.
_ALIASES = {
  **{name: name for name in storage.KINDS},
  'float': 'float32',
  'double': 'float64',
  'half': 'float16',
  'auto': 'float32',  # names no type
}


@dataclasses.dataclass(frozen=True)
class HFCheckpoint:
  """A checkpoint. Weights are not read until someone asks for them."""

  folder: Path  # or a GGUF file
  raw: JsonObject  # config.json
  config: ModelConfig
  tensors: Mapping[str, Tensor]  # by name, in all files

  @property
  def prefix(self) -> str:
    """What the names of layers begin with: '' if the model was saved without a head."""
    return '' if 'norm.weight' in self.tensors and NORM not in self.tensors else MODEL

  def file_name(self, name: str) -> str:
    """Returns a tensor's name in these files, given its name in `tensor_names`."""
    if name == EMBEDDING and self.config.tied and HEAD in self.tensors:
      # A file may have the tied matrix under the head's name only.
      found = self.prefix + EMBEDDING.removeprefix(MODEL)
      return found if found in self.tensors else HEAD
    return name.replace(MODEL, self.prefix, 1) if name.startswith(MODEL) else name

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding; the tokenizer may have fewer tokens."""
    return families.vocab_size(self.raw)

  @property
  def digest(self) -> str:
    """SHA-256 of the config and of names, types, shapes and first bytes of tensors.

    Hashing all bytes of a large model would take minutes.
    """
    found = hashlib.sha256(json.dumps(self.raw).encode())
    for name, tensor in sorted(self.tensors.items()):
      found.update(f'{name} {tensor.kind} {tensor.shape}'.encode())
      found.update(tensor.first_bytes(_DIGEST_BYTES).data)
    return found.hexdigest()

  @property
  def dtype(self) -> str:
    """The type that the config names, or float32; see `storage.KINDS`."""
    named = self.raw.get('dtype') or self.raw.get('torch_dtype') or 'float32'
    return _ALIASES.get(str(named).removeprefix('torch.'), named)

  def kind(self, name: str) -> str:
    """Returns a tensor's type in safetensors: the file's, else that of the config.

    The config decides about tensors in FP8, and about those that no file has.
    """
    known = self.tensors.get(name)
    if known is not None and known.kind in storage.KINDS.values():
      return known.kind
    return storage.KINDS[self.dtype]


def open_checkpoint(folder: str | os.PathLike[str]) -> HFCheckpoint:
  """Returns a folder or GGUF file as a checkpoint, checked against the model's shapes.

  Raises:
    WeightsError: a file or a tensor is missing or damaged, or has the wrong shape or
      type.
    FamilyError: the config asks for something that is not implemented.
  """
  folder = Path(folder).expanduser()
  if not folder.exists():
    raise WeightsError(
      'model.path: expected a folder with config.json and safetensors, or a GGUF file, '
      f'got {folder}, which does not exist'
    )
  raw = read_raw(folder)
  try:
    config = families.read_config(raw)
  except FamilyError as error:
    raise FamilyError(f'{folder / "config.json"}: {error}') from error
  if folder.is_file():
    tensors = gguf_tensors.find(gguf_file.read(folder), raw, config)
  else:
    tensors = dict(storage.find_tensors(folder))
  found = _untied(HFCheckpoint(folder, raw, config, tensors))
  if not isinstance(found.dtype, str) or found.dtype not in storage.KINDS:
    raise WeightsError(
      f'{folder / "config.json"}: dtype: expected one of '
      f'{", ".join(storage.KINDS)}, got {found.dtype!r}'
    )
  for leaf in leaves(found):
    for name in leaf.names:
      if name == HEAD and HEAD not in found.tensors:
        raise _no_head_error(found, leaf.shape)
      storage.check_tensor(folder, found.tensors, name, file_shape(leaf))
  for name in extra_tensors(found):
    layer, tensor = _LAYER.match(name), found.tensors[name]
    if layer and int(layer[1]) < config.layers and math.prod(tensor.shape):
      raise WeightsError(
        f'{tensor.file}: {name}: expected no such tensor, since config.json describes '
        'a model without it; the tensor would be ignored'
      )
  return found


def read_raw(folder: Path) -> JsonObject:
  """Returns the config.json of the checkpoint in a folder or GGUF file.

  Raises:
    FamilyError, WeightsError: it is missing or damaged.
  """
  if folder.is_file():
    return gguf_config.read(gguf_file.read(folder))
  return storage.read_json(folder / 'config.json')


_LAYER = re.compile(r'(?:model\.)?layers\.(\d+)\.(?!.*rotary_emb)')


def _untied(found: HFCheckpoint) -> HFCheckpoint:
  """Returns the checkpoint, untied if its head differs from its embedding.

  transformers also trusts the files more than `tie_word_embeddings`.
  """
  embedding, head = (
    found.tensors.get(name) for name in (found.file_name(EMBEDDING), HEAD)
  )
  if not found.config.tied or not embedding or not head or embedding == head:
    return found
  if embedding.shape == head.shape and all(
    np.array_equal(embedding.read(rows), head.read(rows))
    for first in range(0, head.shape[0], 4096)
    for rows in [range(first, min(first + 4096, head.shape[0]))]
  ):
    return found
  raw = {**found.raw, 'tie_word_embeddings': False}
  config = dataclasses.replace(found.config, tied=False)
  return dataclasses.replace(found, raw=raw, config=config)


def _no_head_error(found: HFCheckpoint, shape: tuple[int, ...]) -> WeightsError:
  alike = [name for name in extra_tensors(found) if found.tensors[name].shape == shape]
  hint = f'; {alike[0]} has that shape: rename it if it is the head' if alike else ''
  return WeightsError(
    f'{found.folder}: the tensor {HEAD} is missing, expected {shape}, since '
    'tie_word_embeddings is false in config.json; a model that was saved without its '
    f'head cannot compute logits{hint}'
  )


def extra_tensors(checkpoint: HFCheckpoint) -> list[str]:
  """Returns the names of tensors that the model does not use, without FP8 scales."""
  used = {name for leaf in leaves(checkpoint) for name in leaf.names}
  used |= {name + storage.SCALES for name in used}
  return [name for name in checkpoint.tensors if name not in used]


class Leaf(NamedTuple):
  """A leaf of the parameters, which stacks one or more tensors of a checkpoint."""

  path: tuple[str, ...]  # in the tree of parameters
  row: TensorRow
  leading: tuple[int, ...]  # axes of the stack: none, layers, or layers and experts
  shape: tuple[int, ...]  # of one tensor, in our layout
  names: list[str]  # of the tensors in the files, in the order of the stack


def leaves(checkpoint: HFCheckpoint) -> Iterator[Leaf]:
  """Yields every leaf of the model's parameters with the tensors that it stacks."""
  config = checkpoint.config
  shapes = decoder.shapes(config, checkpoint.vocab_size)

  def leaf(row: TensorRow, path: tuple[str, ...], axes: int, names: list[str]) -> Leaf:
    found = shapes
    for key in path:
      found = found[key]
    return Leaf(path, row, found.shape[:axes], found.shape[axes:], names)

  for row in tensor_names.top_level_rows(config):
    yield leaf(row, row.path, 0, [checkpoint.file_name(row.name)])
  first = 0
  for stack, count, sparse in config.stacks:
    for row in tensor_names.layer_rows(config, sparse, checkpoint.raw):
      per_expert = '{expert}' in row.name
      names = [
        checkpoint.file_name(row.name).format(layer=first + n, expert=expert)
        for n in range(count)
        for expert in range(config.experts.count if per_expert else 1)
      ]
      yield leaf(row, (stack, *row.path), 2 if per_expert else 1, names)
    first += count


def hub_shape(row: TensorRow, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape on the hub of a tensor with this shape in our layout.

  The shape of the row's part, if the tensor has several; see `file_shape`.
  """
  if row.linear:
    return math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs])
  is_bias = row.path[-1].endswith('_bias')
  return (math.prod(shape),) if len(shape) > 1 and is_bias else shape


def file_shape(leaf: Leaf) -> tuple[int, ...]:
  """Returns the shape of each of the leaf's tensors in the files."""
  rows, *rest = hub_shape(leaf.row, leaf.shape)
  return (leaf.row.part.total if leaf.row.part else rows, *rest)
