"""The tensors of a GGUF file, by their names and in their layout on the hub."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from r1jax.hub import tensor_names
from r1jax.hub.gguf_file import GGUFFile, GGUFTensor
from r1jax.hub.gguf_rope import DIVISORS
from r1jax.hub.storage import Tensor, WeightsError
from r1jax.model.config import ModelConfig
from r1jax.plain import JsonObject

ARCHITECTURES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
PAIRED = 'llama', 'smollm3'  # their RoPE turns neighbouring channels (2i, 2i + 1)
# All experts of a layer are one tensor there.
EXPERT = re.compile(r'\.experts\.(\d+)\.')
# The matrix of keys and values in latent attention is two there.
LATENT_UP = 'kv_b_proj'
LATENT_PARTS = 'k_b_proj', 'v_b_proj'


@dataclasses.dataclass(frozen=True)
class LatentUp:
  """The matrix from latents to keys and values, [H * (C + W), R], in two tensors."""

  key: GGUFTensor  # [H, R, C]
  value: GGUFTensor  # [H, W, R]

  @property
  def file(self) -> Path:
    """The file."""
    return self.key.file

  @property
  def name(self) -> str:
    """The names of both tensors."""
    return f'{self.key.name}, {self.value.name}'

  @property
  def kind(self) -> str:
    """The type of both, or F32."""
    return self.key.kind if self.key.kind == self.value.kind else 'F32'

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape on the hub."""
    heads, rank, channels = self.key.shape
    return heads * (channels + self.value.shape[1]), rank

  def read(self, rows: range | None = None) -> np.ndarray:
    """Returns some or all rows: those of a head's keys, then those of its values."""
    rows = range(self.shape[0]) if rows is None else rows
    head = self.shape[0] // self.key.shape[0]
    heads = range(rows.start // head, -(-rows.stop // head))
    key, value = self.key.read(heads), self.value.read(heads)
    if key.dtype != value.dtype:
      key, value = key.astype(np.float32), value.astype(np.float32)
    both = np.concatenate([key.swapaxes(1, 2), value], axis=1)
    first = rows.start - heads.start * head
    return both.reshape(-1, self.shape[1])[first : first + len(rows)]

  def copy(self) -> np.ndarray:
    """Returns the whole matrix."""
    return self.read()

  def first_bytes(self, count: int) -> np.ndarray:
    """Returns up to so many bytes from the beginning of each tensor."""
    return np.concatenate([x.first_bytes(count) for x in (self.key, self.value)])


def find(file: GGUFFile, raw: JsonObject, config: ModelConfig) -> dict[str, Tensor]:
  """Returns the tensors of a file by their names on the hub.

  Args:
    file: with the tensors.
    raw: its config.json, see `gguf_config`.
    config: the model of that.

  Raises:
    WeightsError: a tensor is missing, or the model has no use for one.
  """
  names = gguf.get_tensor_name_map(ARCHITECTURES[file.architecture], config.layers)
  used = set(DIVISORS.get(file.architecture, ()))

  def stored(hub_name: str, axes: int | None = None) -> GGUFTensor:
    """The tensor that has this one, by its name without the number of an expert."""
    name = names.get_name(hub_name, try_suffixes=('.weight', '.bias'))
    if name is None or name not in file.tensors:
      raise WeightsError(f'{file.path}: the tensor {name or hub_name} is missing')
    used.add(name)
    found = file.tensors[name]
    if axes is not None and len(found.shape) != axes:
      raise WeightsError(
        f'{file.path}: {name}: expected {axes} axes, got the shape {found.shape}'
      )
    return found

  def tensor(hub_name: str) -> Tensor:
    if expert := EXPERT.search(hub_name):
      return _expert(
        stored(EXPERT.sub('.experts.', hub_name), 3), int(expert[1]), config
      )
    if LATENT_UP in hub_name:
      parts = [stored(hub_name.replace(LATENT_UP, x), 3) for x in LATENT_PARTS]
      return _latent_up(*parts)
    found = stored(library_name(hub_name))
    return dataclasses.replace(
      found,
      heads=permuted_heads(file.architecture, hub_name, config),
      plus_1=config.stored_minus_1 and hub_name.endswith('norm.weight'),
    )

  found = {name: tensor(name) for name in _hub_names(raw, config)}
  if rest := [name for name in file.tensors if name not in used]:
    raise WeightsError(
      f'{file.path}: {rest[0]}: expected no such tensor, since the metadata describe a '
      'model without it; the tensor would be ignored'
    )
  return found


def library_name(hub_name: str) -> str:
  """Returns a tensor's name on the hub as GGUF's library knows it."""
  return hub_name.replace('e_score_correction_bias', 'e_score_correction.bias')


def permuted_heads(architecture: str, hub_name: str, config: ModelConfig) -> int:
  """Returns the heads of a tensor whose channels GGUF has in another order, or 0.

  Queries and keys of Llama and SmolLM3 have the two channels of a RoPE pair next to
  each other.
  """
  heads = {'q_proj': config.heads, 'k_proj': config.kv_heads}
  return heads.get(hub_name.split('.')[-2], 0) if architecture in PAIRED else 0


def _hub_names(raw: JsonObject, config: ModelConfig) -> Iterator[str]:
  for row in tensor_names.top_level_rows(config):
    yield row.name
  first = 0
  for _, count, sparse in config.stacks:
    for row in tensor_names.layer_rows(config, sparse, raw):
      for layer in range(first, first + count):
        experts = config.experts.count if '{expert}' in row.name else 1
        for expert in range(experts):
          yield row.name.format(layer=layer, expert=expert)
    first += count


def _expert(stored: GGUFTensor, expert: int, config: ModelConfig) -> GGUFTensor:
  """Returns one expert of a layer's tensor."""
  if stored.shape[0] != config.experts.count:
    raise WeightsError(
      f'{stored.file}: {stored.name}: expected {config.experts.count} experts, got the '
      f'shape {stored.shape}'
    )
  start = stored.start + expert * (stored.size // stored.shape[0])
  return dataclasses.replace(stored, shape=stored.shape[1:], start=start)


def _latent_up(key: GGUFTensor, value: GGUFTensor) -> LatentUp:
  if key.shape[:2] != value.shape[::2]:
    raise WeightsError(
      f'{key.file}: {key.name}, {value.name}: expected the shapes (heads, rank, '
      f'channels) and (heads, channels, rank), got {key.shape} and {value.shape}'
    )
  return LatentUp(key, value)
