"""A checkpoint in the Hugging Face layout: config.json and safetensors files."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.hub import config_fields, families, storage, tensor_names
from r1jax.hub.storage import StoredTensor, WeightsError
from r1jax.hub.tensor_names import TensorRow
from r1jax.model import decoder
from r1jax.model.config import ModelConfig

_DIGEST_BYTES = 4096  # bytes of each tensor
MODEL = 'model.'
EMBEDDING, NORM = f'{MODEL}embed_tokens.weight', f'{MODEL}norm.weight'
HEAD = 'lm_head.weight'
# PyTorch's other names of types, and its own without `torch.`.
_ALIASES = {
  **{name: name for name in storage.KINDS},
  'float': 'float32',
  'double': 'float64',
  'half': 'float16',
  'auto': 'float32',  # it names none
}


@dataclasses.dataclass(frozen=True)
class HFCheckpoint:
  """A checkpoint in a folder; its tensors are looked up and not read yet."""

  folder: Path
  raw: Mapping[str, Any]  # config.json
  config: ModelConfig
  tensors: Mapping[str, StoredTensor]  # by name, in all files

  @property
  def prefix(self) -> str:
    """What stands before the names of layers: nothing if a model has no head there."""
    return '' if 'norm.weight' in self.tensors and NORM not in self.tensors else MODEL

  def named(self, theirs: str) -> str:
    """The name in these files of a tensor that `families` names."""
    if theirs == EMBEDDING and self.config.tied and HEAD in self.tensors:
      # Of two names for one matrix a file may have kept the head's.
      found = self.prefix + EMBEDDING.removeprefix(MODEL)
      return found if found in self.tensors else HEAD
    return theirs.replace(MODEL, self.prefix, 1) if theirs.startswith(MODEL) else theirs

  @property
  def vocab_size(self) -> int:
    """Rows of the embedding, which may be more than the tokenizer has tokens."""
    return families.vocab_size(self.raw)

  @property
  def digest(self) -> str:
    """Of its config, its tensors' names, types, shapes, and the first of their bytes.

    All of them would take minutes with a large model.
    """
    found = hashlib.sha256(json.dumps(self.raw).encode())
    for name, tensor in sorted(self.tensors.items()):
      found.update(f'{name} {tensor.kind} {tensor.shape}'.encode())
      size = min(_DIGEST_BYTES, tensor.size)
      found.update(np.fromfile(tensor.file, np.uint8, size, offset=tensor.start).data)
    return found.hexdigest()

  @property
  def dtype(self) -> str:
    """The type that its config names, or float32; see `storage.KINDS`."""
    named = self.raw.get('dtype') or self.raw.get('torch_dtype') or 'float32'
    return _ALIASES.get(str(named).removeprefix('torch.'), named)


# --- Reading --------------------------------------------------------------------------


def open_checkpoint(folder: str | os.PathLike[str]) -> HFCheckpoint:
  """Looks a checkpoint up: its config, and where each tensor that the model has lies.

  Raises:
    storage.WeightsError: a file or a tensor is missing, damaged, or of another shape or
      type.
    families.FamilyError: the config asks for what isn't computed here.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    raise WeightsError(
      f'model.path: expected a folder with config.json and safetensors, got {folder}, '
      f'which is {"a file" if folder.exists() else "not there"}'
    )
  raw = storage.read_json(folder / 'config.json')
  try:
    config = families.read_config(raw)
  except config_fields.FamilyError as error:
    raise config_fields.FamilyError(f'{folder / "config.json"}: {error}') from error
  found = _untied(HFCheckpoint(folder, raw, config, dict(storage.find_tensors(folder))))
  if not isinstance(found.dtype, str) or found.dtype not in storage.KINDS:
    raise WeightsError(
      f'{folder / "config.json"}: dtype: expected one of '
      f'{", ".join(storage.KINDS)}, got {found.dtype!r}'
    )
  for _, row, shape, names in leaves(found):
    for name in names:
      if name == HEAD and HEAD not in found.tensors:
        raise _no_head_error(found, shape)
      storage.check_tensor(folder, found.tensors, name, hub_shape(row, shape))
  for name in extra_tensors(found):
    layer, tensor = _LAYER.match(name), found.tensors[name]
    if layer and int(layer[1]) < config.layers and math.prod(tensor.shape):
      raise WeightsError(
        f'{tensor.file}: {name}: expected no such tensor by config.json; the '
        'model would compute without it'
      )
  return found


_LAYER = re.compile(r'(?:model\.)?layers\.(\d+)\.(?!.*rotary_emb)')


def _untied(found: HFCheckpoint) -> HFCheckpoint:
  """The checkpoint, untied if its head is another matrix than its embedding.

  transformers goes by the files as well where config.json says that they are one.
  """
  embedding, head = (found.tensors.get(name) for name in (found.named(EMBEDDING), HEAD))
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
  what = f'; {alike[0]} has that shape, rename it if it is meant' if alike else ''
  return WeightsError(
    f'{found.folder}: the tensor {HEAD} is missing, expected {shape}, as '
    'tie_word_embeddings is false in config.json; a model that was saved without its '
    f'head reads no logits{what}'
  )


def extra_tensors(like: HFCheckpoint) -> list[str]:
  """The tensors that are not the model's, without the scales of others."""
  used = {name for _, _, _, names in leaves(like) for name in names}
  used |= {name + storage.SCALES for name in used}
  return [name for name in like.tensors if name not in used]


Leaf = tuple[tuple[str, ...], TensorRow, tuple[int, ...], list[str]]


def leaves(like: HFCheckpoint) -> Iterator[Leaf]:
  """Each leaf of the tree: its path, row, the shape of a tensor of it as ours, names.

  The tensors lie in the leaf one after the other, along its leading axes.
  """
  config = like.config
  shapes = decoder.shapes(config, like.vocab_size)

  def leaf(path: tuple[str, ...]) -> tuple[int, ...]:
    found = shapes
    for key in path:
      found = found[key]
    return found.shape

  for row in tensor_names.top_level_rows(config):
    yield row.ours, row, leaf(row.ours), [like.named(row.theirs)]
  first = 0
  for stack, count, sparse in config.stacks:
    for row in tensor_names.layer_rows(
      config, sparse, tensor_names.interleaved(like.raw)
    ):
      path = (stack, *row.ours)
      each = range(config.experts.count) if '{expert}' in row.theirs else (0,)
      names = [
        like.named(row.theirs).format(layer=first + n, expert=e)
        for n in range(count)
        for e in each
      ]
      lead = 2 if '{expert}' in row.theirs else 1
      yield path, row, leaf(path)[lead:], names
    first += count


def hub_shape(row: TensorRow, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape there of a tensor that has this one here."""
  if not row.linear:
    return (math.prod(shape),) if len(shape) > 1 and _is_bias(row) else shape
  return math.prod(shape[row.inputs :]), math.prod(shape[: row.inputs])


def _is_bias(row: TensorRow) -> bool:
  return row.ours[-1].endswith('_bias')


def kind_of(like: HFCheckpoint, name: str) -> str:
  """The type of a tensor in the files; of FP8, or without files, the config's."""
  known = like.tensors.get(name)
  if known is not None and known.kind in storage.KINDS.values():
    return known.kind
  return storage.KINDS[like.dtype]


def leading_shape(
  config: ModelConfig, path: tuple[str, ...], names: list[str]
) -> tuple:
  """The leading axes of a leaf: none, layers, or layers and experts."""
  counts = {name: count for name, count, _ in config.stacks}
  if path[0] not in counts:
    return ()
  layers = counts[path[0]]
  return (layers,) if len(names) == layers else (layers, len(names) // layers)


# --- Writing --------------------------------------------------------------------------
