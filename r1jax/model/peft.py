"""Adapters in the layout of the library PEFT: adapter_config.json and safetensors.

The table of `families` names the matrices; an adapter's `a` is transposed as the
matrix's inputs are, its `b` turned as its outputs.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r1jax.model import families, lora, storage, weights

CONFIG = 'adapter_config.json'
FILE = 'adapter_model.safetensors'
PREFIX = 'base_model.model.'


def _rows(
  like: weights.Checkpoint, target: lora.Target
) -> Iterator[tuple[int, str, families.Row]]:
  """Each layer of a target's stack: its number there, its name there, its row."""
  first = 0
  for stack, count, sparse in like.config.stacks:
    if stack == target.stack:
      for row in families.layer(like.config, sparse, families.interleaved(like.raw)):
        if row.ours == (target.name,):
          for n in range(count):
            module = row.theirs.format(layer=first + n, expert=0)
            yield n, module.removesuffix('.weight'), row
    first += count


def _check(like: weights.Checkpoint, targets: list[lora.Target]) -> None:
  """Of a model with experts the library takes any gate, up and down for theirs."""
  mlp = {t.name for t in targets if t.name.endswith(('gate', 'up', 'down'))}
  mlp -= {'query_down', 'latent_down', 'latent_up'}
  if like.config.experts.count and mlp:
    raise storage.WeightsError(
      f'expected adapters of attention alone, as PEFT has no layout for others of a '
      f'model with experts, got {", ".join(sorted(mlp))}; leave them out of '
      'lora.targets, or write the merged model'
    )


def tensors(
  adapters: Mapping[str, Any], config: lora.Config, like: weights.Checkpoint
) -> dict[str, np.ndarray]:
  """Returns the adapters as PEFT's tensors, by name.

  Raises:
    WeightsError: there are some that PEFT has no layout for.
  """
  targets = lora.targets(like.config, config)
  _check(like, targets)
  found = {}
  for target in targets:
    pair = adapters[target.stack][target.name]
    inputs, outputs = math.prod(target.inputs), math.prod(target.outputs)
    for n, module, row in _rows(like, target):
      a, b = (np.asarray(pair[name][n], np.float32) for name in 'ab')
      there = row.turn_back(b, (outputs, config.rank))
      found[f'{PREFIX}{module}.lora_A.weight'] = np.ascontiguousarray(
        a.reshape(inputs, config.rank).T
      )
      found[f'{PREFIX}{module}.lora_B.weight'] = np.ascontiguousarray(there)
  return found


def write(
  folder: str | os.PathLike[str],
  adapters: Mapping[str, Any],
  config: lora.Config,
  like: weights.Checkpoint,
) -> None:
  """Writes a folder that PEFT opens, whole or not at all.

  Raises:
    WeightsError: see `tensors`, or there is something in the folder's place.
  """
  named = tensors(adapters, config, like)
  modules = sorted({name.removeprefix(PREFIX).rsplit('.', 2)[0] for name in named})
  settings = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': str(like.folder.absolute()),
    'r': config.rank,
    'lora_alpha': config.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_rslora': False,
    'use_dora': False,
    'inference_mode': True,
    'target_modules': modules,
  }
  content = json.dumps(settings, indent=2) + '\n'
  storage.write(folder, iter(named.items()), 'float32', {CONFIG: content}, name=FILE)


def read(
  folder: str | os.PathLike[str], like: weights.Checkpoint
) -> tuple[lora.Config, dict[str, Any]]:
  """Returns what PEFT has written for such a checkpoint: config and adapters.

  Raises:
    WeightsError: a file is missing or damaged, or asks for what isn't computed here.
  """
  folder = Path(folder).expanduser()
  settings = storage.read_json(folder / CONFIG)
  for field, value in (
    ('peft_type', 'LORA'),
    ('bias', 'none'),
    ('use_dora', False),
    ('use_rslora', False),
    ('rank_pattern', {}),
    ('alpha_pattern', {}),
    ('modules_to_save', None),
  ):
    if settings.get(field, value) != value:
      raise storage.WeightsError(
        f'{folder / CONFIG}: {field}: expected {value!r}, got {settings[field]!r}'
      )
  rank, alpha = settings.get('r'), settings.get('lora_alpha')
  if not isinstance(rank, int) or not isinstance(alpha, int | float):
    raise storage.WeightsError(
      f'{folder / CONFIG}: expected numbers r and lora_alpha, got {rank!r}, {alpha!r}'
    )
  stored = dict(storage.header(folder / FILE))
  every = lora.targets(like.config, lora.Config(rank=rank, targets='.*'))
  chosen = [
    target
    for target in every
    if len(target.lead) == 1
    and any(f'{PREFIX}{m}.lora_A.weight' in stored for _, m, _ in _rows(like, target))
  ]
  if not chosen:
    raise storage.WeightsError(
      f'{folder / FILE}: expected adapters of matrices of {like.folder}, found none'
    )
  names = '|'.join(sorted({target.name for target in chosen}))
  config = lora.Config(rank=rank, alpha=float(alpha), targets=names)
  tree: dict[str, Any] = {}
  used = set()
  for target in chosen:
    inputs, outputs = math.prod(target.inputs), math.prod(target.outputs)
    layers: dict[str, list[np.ndarray]] = {'a': [], 'b': []}
    for _, module, row in _rows(like, target):
      a_name, b_name = (f'{PREFIX}{module}.lora_{x}.weight' for x in 'AB')
      a = _tensor(folder, stored, a_name, (rank, inputs))
      b = _tensor(folder, stored, b_name, (outputs, rank))
      layers['a'].append(a.T.reshape(*target.inputs, rank))
      layers['b'].append(row.turn(b, (rank, *target.outputs)))
      used |= {a_name, b_name}
    pair = {name: np.stack(each) for name, each in layers.items()}
    tree.setdefault(target.stack, {})[target.name] = pair
  if rest := sorted(set(stored) - used):
    raise storage.WeightsError(
      f'{folder / FILE}: {rest[0]} belongs to no matrix of {like.folder}'
    )
  return config, tree


def _tensor(
  folder: Path, stored: Mapping[str, storage.Stored], name: str, shape: tuple[int, ...]
) -> np.ndarray:
  if name not in stored:
    raise storage.WeightsError(f'{folder / FILE}: the tensor {name} is missing')
  if stored[name].shape != shape:
    raise storage.WeightsError(
      f'{folder / FILE}: {name}: expected the shape {shape}, found {stored[name].shape}'
    )
  if stored[name].kind not in storage.DTYPES:
    raise storage.WeightsError(
      f'{folder / FILE}: {name}: expected one of {", ".join(storage.DTYPES)}, found '
      f'{stored[name].kind}'
    )
  return storage.numbers(stored, name, np.dtype(np.float32))
