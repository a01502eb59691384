"""Reads and writes LoRA adapters in the layout of the library PEFT.

A folder has adapter_config.json and a safetensors file. The table `tensor_names` names
the matrices: an adapter's `a` is converted like the matrix's inputs, its `b` like the
outputs. For experts see `peft_experts`, for fused tensors `peft_fused`. In a model with
experts, PEFT applies the name of a projection in `target_modules` to the experts, so
the other SwiGLUs are written to `target_parameters`, by the names of their weights.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r1jax.hub import peft_config, peft_experts, peft_fused, storage, tensor_names
from r1jax.hub.hf_checkpoint import HFCheckpoint
from r1jax.hub.peft_config import CONFIG, FILE, PREFIX
from r1jax.hub.safetensors_writer import write_folder
from r1jax.hub.storage import WeightsError
from r1jax.hub.tensor_names import Part, TensorRow
from r1jax.model import lora
from r1jax.model.lora import LoraConfig

Pair = tuple[np.ndarray, np.ndarray]  # a [..., in, r] and b [..., r, out]
# By stack of layers, name of the matrix, and 'a' or 'b'.
Adapters = Mapping[str, Mapping[str, Mapping[str, jax.Array | np.ndarray]]]


def _rows(
  like: HFCheckpoint, target: lora.Target
) -> Iterator[tuple[int, str, TensorRow]]:
  """Yields position, module name and row of a target in each layer of its stack."""
  layers, sparse = _stack(like, target.stack)
  for row in tensor_names.layer_rows(like.config, sparse, like.raw):
    if row.path == (target.name,):
      for n, layer in enumerate(layers):
        module = row.name.format(layer=layer, expert=0)
        yield n, module.removesuffix('.weight'), row


def _stack(like: HFCheckpoint, stack: str) -> tuple[range, bool]:
  """Returns the indices of a stack's layers, and whether they have experts."""
  first = 0
  for name, count, sparse in like.config.stacks:
    if name == stack:
      return range(first, first + count), sparse
    first += count
  raise KeyError(stack)


def tensors(
  adapters: Adapters, config: LoraConfig, like: HFCheckpoint
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Returns the tensors of PEFT by name, and the matrices of each fused module."""
  found = {}
  fused: dict[str, list[tuple[np.ndarray, np.ndarray, Part]]] = {}
  for target in lora.targets(like.config, config):
    if target.name in peft_experts.NAMES:
      continue
    pair = adapters[target.stack][target.name]
    inputs, outputs = math.prod(target.inputs), math.prod(target.outputs)
    for n, module, row in _rows(like, target):
      a, b = (np.asarray(pair[name][n], np.float32) for name in 'ab')
      a, b = a.reshape(inputs, config.rank).T, row.to_hub(b, (outputs, config.rank))
      if row.part:
        fused.setdefault(module, []).append((a, b, row.part))
        a, b = peft_fused.joined(fused[module])
      found[f'{PREFIX}{module}.lora_A.weight'] = np.ascontiguousarray(a)
      found[f'{PREFIX}{module}.lora_B.weight'] = np.ascontiguousarray(b)
  for stack, named in adapters.items():
    experts = {name: x for name, x in named.items() if name in peft_experts.NAMES}
    for n, layer in enumerate(_stack(like, stack)[0]):
      of_layer = {
        name: (np.asarray(x['a'][n], np.float32), np.asarray(x['b'][n], np.float32))
        for name, x in experts.items()
      }
      found |= peft_experts.tensors(of_layer, layer)
  return found, {module: len(parts) for module, parts in fused.items()}


def write(
  folder: str | os.PathLike[str],
  adapters: Adapters,
  config: LoraConfig,
  like: HFCheckpoint,
) -> None:
  """Writes a folder that PEFT opens, completely or not at all.

  Raises:
    WeightsError: the folder exists.
  """
  named, fused = tensors(adapters, config, like)
  names = {name for pairs in adapters.values() for name in pairs}
  modules, parameters = [], peft_experts.parameters(names)
  for module in sorted({x.removeprefix(PREFIX).rsplit('.', 2)[0] for x in named}):
    if '.mlp.experts' in module:
      continue
    if like.config.experts.count and '.mlp.' in module:
      parameters.append(f'{module}.weight')
    else:
      modules.append(module)
  settings = {
    **peft_config.settings(config, modules, parameters),
    **peft_experts.settings(config, names),
    **peft_fused.settings(config, fused),
    'base_model_name_or_path': str(like.folder.absolute()),
  }
  content = json.dumps(settings, indent=2) + '\n'
  write_folder(folder, iter(named.items()), {CONFIG: content}, name=FILE)


class _Stored:
  """The tensors of an adapter's file, and the names of those that have been read."""

  def __init__(self, folder: Path):
    self.file = folder / FILE
    self.scales = peft_config.read(folder)
    self.tensors = dict(storage.read_header(self.file))
    self.used: set[str] = set()

  def has(self, module: str) -> tuple[int, int] | None:
    """Returns inputs of A and outputs of B, or None if the module has no adapter."""
    names = [f'{PREFIX}{module}.lora_{x}.weight' for x in 'AB']
    a, b = (self.tensors[name].shape if name in self.tensors else () for name in names)
    return ((*a, 0)[1], (*b, 0)[0]) if a or b else None

  def take(
    self, module: str, key: str, copies: int, inputs: int, outputs: int
  ) -> Pair | None:
    """Returns A [copies r, in] and B [out, copies r] of a module, or None.

    `key` is the name that `rank_pattern` and `alpha_pattern` match. If they give the
    module another scale than the config's alpha / r, B is multiplied by the quotient.

    Raises:
      WeightsError: a tensor is missing or has the wrong shape or type.
    """
    if not self.has(module):
      return None
    rank = int(self.scales.rank_of(key)) * copies
    a = self._tensor(f'{PREFIX}{module}.lora_A.weight', (rank, inputs))
    b = self._tensor(f'{PREFIX}{module}.lora_B.weight', (outputs, rank))
    return a, b * np.float32(self.scales.excess(key))

  def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in self.tensors:
      raise WeightsError(f'{self.file}: the tensor {name} is missing')
    found = self.tensors[name]
    if found.shape != shape:
      raise WeightsError(
        f'{self.file}: {name}: expected the shape {shape}, found {found.shape}'
      )
    if found.kind not in storage.KINDS.values():
      raise WeightsError(
        f'{self.file}: {name}: expected one of {", ".join(storage.KINDS.values())}, '
        f'found {found.kind}'
      )
    self.used.add(name)
    return storage.read_as(self.tensors, name, np.dtype(np.float32))


def read(
  folder: str | os.PathLike[str], like: HFCheckpoint
) -> tuple[LoraConfig, Adapters]:
  """Returns config and adapters that PEFT has written for this model.

  The config's scale holds for all adapters: where PEFT scales a matrix differently
  (`rank_pattern`, `alpha_pattern`, rsLoRA), its `b` is multiplied by the quotient.

  Raises:
    WeightsError: a file is missing or damaged, or asks for something that is not
      implemented.
  """
  folder = Path(folder).expanduser()
  stored = _Stored(folder)
  tree: dict[str, Any] = {}
  for target in lora.matrices(like.config):
    if target.name in peft_experts.NAMES:
      continue
    modules = [module for _, module, _ in _rows(like, target)]
    if any(stored.has(module) for module in modules):
      tree.setdefault(target.stack, {})[target.name] = _stacked(
        [_pair(stored, target, module, row) for _, module, row in _rows(like, target)],
        0,
      )
  for stack, _, sparse in like.config.stacks:
    if sparse and (experts := _experts(stored, like, stack)):
      tree.setdefault(stack, {}).update(experts)
  if not tree:
    raise WeightsError(
      f'{folder / FILE}: expected adapters for matrices of {like.folder}, found none'
    )
  if rest := sorted(set(stored.tensors) - stored.used):
    raise WeightsError(
      f'{folder / FILE}: {rest[0]} belongs to no matrix of {like.folder}'
    )
  names = '|'.join(sorted({name for pairs in tree.values() for name in pairs}))
  return LoraConfig(int(stored.scales.rank), float(stored.scales.alpha), names), tree


def _pair(stored: _Stored, target: lora.Target, module: str, row: TensorRow) -> Pair:
  """Returns a matrix's `a` and `b` in our layout."""
  # The router is no linear layer in transformers 5; PEFT uses its parameter's name.
  key = f'{module}.weight' if target.name == 'router' else module
  inputs, outputs = math.prod(target.inputs), math.prod(target.outputs)
  part = row.part or Part(0, outputs)
  found = stored.take(module, key, 1, inputs, part.total)
  if found is None:
    raise WeightsError(
      f'{stored.file}: the tensor {PREFIX}{module}.lora_A.weight is missing'
    )
  a, b = found
  b = b[part.first : part.first + outputs]
  return (
    a.T.reshape(*target.inputs, len(a)),
    row.from_hub(b, (len(a), *target.outputs)),
  )


def _experts(
  stored: _Stored, like: HFCheckpoint, stack: str
) -> dict[str, dict[str, np.ndarray]]:
  """Returns the adapters of a stack's experts, by name."""
  layers, _ = _stack(like, stack)
  each = [
    peft_experts.pairs(stored.take, stored.has, like.config, layer) for layer in layers
  ]
  names = {name for pairs in each for name in pairs}
  for layer, pairs in zip(layers, each, strict=True):
    if missing := sorted(names - set(pairs)):
      raise WeightsError(
        f'{stored.file}: expected adapters of experts in all layers, found none of '
        f'{missing[0]} in layer {layer}'
      )
  return {name: _stacked([pairs[name] for pairs in each], 1) for name in names}


def _stacked(pairs: list[Pair], axis: int) -> dict[str, np.ndarray]:
  """Returns the layers of a stack as one adapter; lower ranks are padded with zeros.

  `axis` is the axis of the rank in `b`; in `a` it is the last.
  """
  rank = max(a.shape[-1] for a, _ in pairs)

  def filled(x: np.ndarray, axis: int) -> np.ndarray:
    short = [(0, 0)] * x.ndim
    short[axis] = (0, rank - x.shape[axis])
    return np.pad(x, short)

  return {
    'a': np.stack([filled(a, a.ndim - 1) for a, _ in pairs]),
    'b': np.stack([filled(b, axis) for _, b in pairs]),
  }
