"""Adapters of experts in PEFT's files, where all experts of a layer are one tensor.

transformers 5 has a layer's experts as two parameters, `gate_up_proj` [E, 2F, D] and
`down_proj` [E, D, F], and PEFT adapts these: A is [E r, in], expert after expert, and B
is [out, r E], with the experts interleaved. One adapter wraps the other: if both exist,
the name of `gate_up_proj` contains `base_layer`; if `gate_up_proj` is alone, it has the
name that `down_proj` has otherwise.
"""

from collections.abc import Callable, Mapping

import numpy as np

from r1jax.hub.peft_config import PREFIX
from r1jax.model.config import ModelConfig
from r1jax.model.lora import LoraConfig
from r1jax.plain import JsonObject

Pair = tuple[np.ndarray, np.ndarray]  # a [E, in, r] and b [E, r, out]
GATE, UP, DOWN = 'expert_gate', 'expert_up', 'expert_down'
NAMES = (GATE, UP, DOWN)
INTO, OUT_OF = 'mlp.experts.gate_up_proj', 'mlp.experts.down_proj'
# (module, name for the rank, number of experts, inputs, outputs) -> A and B, or None
Take = Callable[[str, str, int, int, int], Pair | None]
Has = Callable[[str], tuple[int, int] | None]  # module -> inputs and outputs, or None


def tensors(pairs: Mapping[str, Pair], layer: int) -> dict[str, np.ndarray]:
  """Returns the adapters of a layer's experts, by name in the file.

  Those of gate and up become one adapter of twice the rank.
  """
  module = f'{PREFIX}model.layers.{layer}.mlp.experts'
  found: dict[str, np.ndarray] = {}
  if DOWN in pairs:
    found |= _flat(module, *pairs[DOWN])
    module = f'{module}.base_layer'
  into = [name for name in (GATE, UP) if name in pairs]
  if into:
    a = np.concatenate([pairs[name][0] for name in into], axis=-1)
    experts, rank, width = pairs[into[0]][1].shape
    b = np.zeros((experts, a.shape[-1], 2 * width), np.float32)
    for n, name in enumerate(into):
      columns = slice(width) if name == GATE else slice(width, None)
      b[:, n * rank : (n + 1) * rank, columns] = pairs[name][1]
    found |= _flat(module, a, b)
  return found


def _flat(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
  experts, inputs, rank = a.shape
  return {
    f'{module}.lora_A.weight': a.swapaxes(1, 2).reshape(experts * rank, inputs),
    f'{module}.lora_B.weight': b.transpose(2, 1, 0).reshape(-1, rank * experts),
  }


def settings(config: LoraConfig, names: set[str]) -> JsonObject:
  """Returns the fields of such adapters in adapter_config.json, but for the targets."""
  if not {GATE, UP} <= names:
    return {}
  pattern = r'.*\.experts\.gate_up_proj'
  return {
    'rank_pattern': {pattern: 2 * config.rank},
    'alpha_pattern': {pattern: 2 * config.alpha},
  }


def parameters(names: set[str]) -> list[str]:
  """Returns the adapted parameters of the experts, for `target_parameters`."""
  return [INTO] * bool({GATE, UP} & names) + [OUT_OF] * (DOWN in names)


def pairs(take: Take, has: Has, model: ModelConfig, layer: int) -> dict[str, Pair]:
  """Returns the adapters of a layer's experts, by our names.

  Also reads files written with transformers 4, in which every expert has its own.
  """
  module = f'model.layers.{layer}.mlp.experts'
  count, width, inner = model.experts.count, model.d_model, model.experts.d_ff
  if any(has(f'{module}.0.{part}_proj') for part in ('gate', 'up', 'down')):
    return _separate(take, module, model)
  found: dict[str, Pair] = {}
  outer_into = has(module) == (width, 2 * inner)
  into = module if outer_into else f'{module}.base_layer'
  if pair := take(into, f'{module}.gate_up_proj', count, width, 2 * inner):
    found |= _halves(*_unflat(*pair, count))
  if not outer_into and (
    pair := take(module, f'{module}.down_proj', count, inner, width)
  ):
    found[DOWN] = _unflat(*pair, count)
  return found


def _separate(take: Take, module: str, model: ModelConfig) -> dict[str, Pair]:
  found: dict[str, Pair] = {}
  for name, inputs, outputs in (
    (GATE, model.d_model, model.experts.d_ff),
    (UP, model.d_model, model.experts.d_ff),
    (DOWN, model.experts.d_ff, model.d_model),
  ):
    each = [
      take(one, one, 1, inputs, outputs)
      for n in range(model.experts.count)
      for one in [f'{module}.{n}.{name.removeprefix("expert_")}_proj']
    ]
    of_all = [pair for pair in each if pair is not None]
    if len(of_all) == len(each):
      a, b = (np.stack([pair[x].T for pair in of_all]) for x in (0, 1))
      found[name] = a, b
  return found


def _unflat(a: np.ndarray, b: np.ndarray, experts: int) -> Pair:
  return (
    a.reshape(experts, -1, a.shape[-1]).swapaxes(1, 2),
    b.reshape(len(b), -1, experts).transpose(2, 1, 0),
  )


def _halves(a: np.ndarray, b: np.ndarray) -> dict[str, Pair]:
  """Returns the adapters of gate and up, of half the rank each if they share none."""
  rank, width = a.shape[-1] // 2, b.shape[-1] // 2
  if a.shape[-1] % 2 or b[:, :rank, width:].any() or b[:, rank:, :width].any():
    return {GATE: (a, b[..., :width]), UP: (a, b[..., width:])}
  return {
    GATE: (a[..., :rank], b[:, :rank, :width]),
    UP: (a[..., rank:], b[:, rank:, width:]),
  }
