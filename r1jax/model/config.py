"""The config of a decoder, checked when it is constructed.

One decoder serves several model families. They differ in single fields (biases, the
place of norms, RoPE scaling), in groups of fields that are off by default (latent
attention, experts), and in what differs between the layers of a model (windows, RoPE).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

from r1jax.plain import JsonObject

REMAT = ('none', 'dots', 'full')
DTYPES = ('float32', 'bfloat16')
EXACT = 'float64'  # to compare with, under `jax.enable_x64`; no flag has it
# Epsilon of the norms of the compressed query and latent, independent of `norm_eps`:
# DeepSeek's code and transformers use this default there.
LATENT_NORM_EPS = 1e-6
ROPES = ('plain', 'linear', 'llama3', 'yarn', 'longrope')
SCORES = ('softmax', 'sigmoid')
NORMS = ('before', 'after', 'both')
ACTIVATIONS = ('silu', 'gelu_tanh')


def _check_least(group: Any, prefix: str, least: int, *names: str) -> None:
  for name in names:
    if getattr(group, name) < least:
      raise ValueError(
        f'model.{prefix}{name}: expected {least} or more, got {getattr(group, name)}'
      )


def _check_finite(group: Any, prefix: str, *names: str) -> None:
  for name in names:
    if not 0 < getattr(group, name) < math.inf:
      raise ValueError(
        f'model.{prefix}{name}: expected a finite number above 0, got '
        f'{getattr(group, name)}'
      )


def _check_known(group: Any, prefix: str, name: str, known: Sequence[str]) -> None:
  if getattr(group, name) not in known:
    raise ValueError(
      f'model.{prefix}{name}: expected one of {", ".join(known)}, got '
      f'{getattr(group, name)!r}'
    )


@dataclasses.dataclass(frozen=True)
class Rope:
  """What RoPE turns, in which layers, and how it is scaled to longer contexts."""

  kind: Literal['plain', 'linear', 'llama3', 'yarn', 'longrope'] = 'plain'
  factor: float = 1.0  # new context length / original length
  original_length: int = 0  # context length before scaling, tokens; llama3, yarn
  low_freq_factor: float = 1.0  # llama3: wavelengths over length / this are scaled
  high_freq_factor: float = 4.0  # llama3: wavelengths under length / this are kept
  beta_fast: float = 32.0  # yarn: channels with at least this many turns are kept
  beta_slow: float = 1.0  # yarn: channels with at most this many are fully scaled
  amplitude: float = 1.0  # of cosine and sine (YaRN, eq. 22: sqrt(1 / t))
  # Multiplies attention scores, after 1 / sqrt(C): DeepSeek's version of YaRN's 1 / t.
  score_factor: float = 1.0
  # Queries at position t are scaled by 1 + this * ln(1 + floor(t / original_length)).
  query_growth: float = 0.0
  divisors: tuple[float, ...] = ()  # longrope: of each frequency
  channels: int = 0  # first channels of a head that are turned; even; 0: all
  without: tuple[int, ...] = ()  # indices of layers without RoPE (SmolLM3)

  def __post_init__(self) -> None:
    _check_known(self, 'rope.', 'kind', ROPES)
    numbers = ('factor', 'low_freq_factor', 'high_freq_factor', 'beta_fast')
    _check_finite(self, 'rope.', *numbers, 'beta_slow', 'amplitude', 'score_factor')
    if not 0 <= self.query_growth < math.inf:
      raise ValueError(
        'model.rope.query_growth: expected a finite number of 0 or more, got '
        f'{self.query_growth}'
      )
    if self.kind in ('llama3', 'yarn') and self.original_length < 1:
      raise ValueError(
        f'model.rope.original_length: expected 1 or more for {self.kind}, got '
        f'{self.original_length}'
      )
    for name in ('divisors', 'without'):
      object.__setattr__(self, name, tuple(getattr(self, name)))  # a list in JSON
    if not all(0 < divisor < math.inf for divisor in self.divisors):
      raise ValueError(
        f'model.rope.divisors: expected finite numbers above 0, got {self.divisors}'
      )
    if self.channels < 0 or self.channels % 2:
      raise ValueError(
        'model.rope.channels: expected an even number of 0 or more, got '
        f'{self.channels}'
      )
    if self.kind == 'llama3' and self.low_freq_factor >= self.high_freq_factor:
      raise ValueError(
        f'model.rope.low_freq_factor: expected less than high_freq_factor='
        f'{self.high_freq_factor}, got {self.low_freq_factor}'
      )


@dataclasses.dataclass(frozen=True)
class Sliding:
  """Layers in which a query attends to the nearest keys only (Mistral, Gemma 3)."""

  window: int = 0  # keys that a query attends to, its own included; 0: all
  full: tuple[int, ...] = ()  # indices of layers in which it attends to all
  theta: float = 0.0  # RoPE's base in layers with a window, unscaled; 0: as elsewhere

  def __post_init__(self) -> None:
    object.__setattr__(self, 'full', tuple(self.full))  # a list in JSON
    if not 0 <= self.window < 2**30:
      raise ValueError(
        f'model.sliding.window: expected 0 or more and less than {2**30}, got '
        f'{self.window}'
      )
    if not 0 <= self.theta < math.inf:
      raise ValueError(
        f'model.sliding.theta: expected a finite number of 0 or more, got {self.theta}'
      )


@dataclasses.dataclass(frozen=True)
class Latent:
  """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1).

  Keys and values of all heads are projected from one latent vector per token. The cache
  holds only this latent and one RoPE key that the heads share.
  """

  kv_rank: int = 0  # width of the latent vector; 0: grouped-query attention
  q_rank: int = 0  # width of the compressed query; 0: queries are not compressed
  rope_dim: int = 64  # channels of a head with RoPE; even
  value_dim: int = 128  # channels of a head's values

  def __post_init__(self) -> None:
    _check_least(self, 'latent.', 0, 'kv_rank', 'q_rank')
    _check_least(self, 'latent.', 1, 'rope_dim', 'value_dim')
    if self.rope_dim % 2:
      raise ValueError(
        f'model.latent.rope_dim: expected an even number, got {self.rope_dim}'
      )


@dataclasses.dataclass(frozen=True)
class Experts:
  """A mixture of experts instead of the SwiGLU (DeepSeekMoE, 2401.06066).

  'softmax' scores as in DeepSeek-V2 and Qwen3; 'sigmoid' scores as in DeepSeek-V3
  (2412.19437, section 2.1.2), where a bias without a gradient balances the load.
  """

  count: int = 0  # E; 0: one SwiGLU for all tokens
  active: int = 1  # experts per token
  d_ff: int = 384  # hidden width of an expert
  shared: int = 0  # experts of that width that all tokens use
  dense_layers: int = 0  # number of first layers that have a SwiGLU
  dense: tuple[int, ...] = ()  # indices of later layers that have a SwiGLU
  scores: Literal['softmax', 'sigmoid'] = 'softmax'
  groups: int = 1  # groups of experts (node-limited routing)
  active_groups: int = 1  # groups that a token's experts may come from
  normalised: bool = True  # the weights of a token's experts sum to 1
  scale: float = 1.0  # multiplies these weights

  def __post_init__(self) -> None:
    _check_least(self, 'experts.', 0, 'count', 'shared', 'dense_layers')
    _check_least(self, 'experts.', 1, 'active', 'd_ff', 'groups', 'active_groups')
    _check_known(self, 'experts.', 'scores', SCORES)
    _check_finite(self, 'experts.', 'scale')
    object.__setattr__(self, 'dense', tuple(self.dense))  # a list in JSON
    if not self.count:
      return
    if self.count % self.groups:
      raise ValueError(
        f'model.experts.groups: expected a divisor of count={self.count}, got '
        f'{self.groups}'
      )
    if self.active_groups > self.groups:
      raise ValueError(
        f'model.experts.active_groups: expected at most groups={self.groups}, got '
        f'{self.active_groups}'
      )
    within = self.active_groups * (self.count // self.groups)
    if self.active > within:
      raise ValueError(
        f'model.experts.active: expected at most {within}, the experts of '
        f'{self.active_groups} groups, got {self.active}'
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer: RMSNorm, RoPE, gated MLP or experts, GQA or MLA."""

  d_model: int = 128  # D, width of the residual stream
  layers: int = 4  # L
  heads: int = 4  # H, query heads
  kv_heads: int = 2  # K, each shared by heads / kv_heads query heads
  head_dim: int = 32  # C, channels of a head; even, as RoPE rotates pairs
  d_ff: int = 384  # F, hidden width of the SwiGLU
  rope_theta: float = 10_000.0  # longest RoPE wavelength / 2 pi, in tokens
  rope: Rope = Rope()
  norm_eps: float = 1e-6  # added to the mean square in RMSNorm
  # Where layers have norms: before attention and MLP, after (OLMo 2), both (Gemma 3).
  norms: Literal['before', 'after', 'both'] = 'before'
  stored_minus_1: bool = False  # gains of norms are 1 + the parameter (Gemma)
  activation: Literal['silu', 'gelu_tanh'] = 'silu'  # of gates, without experts
  tied: bool = True  # input embedding and output head share one matrix
  scaled_embedding: bool = False  # multiplied by sqrt(D) at the input (Gemma)
  # Biases of queries, keys and values (Qwen2); with latent attention, of the compressed
  # query and the latent.
  qkv_bias: bool = False
  out_bias: bool = False  # bias of attention's output projection
  qk_norm: bool = False  # RMSNorm of each head's queries and keys (Qwen3)
  qk_norm_joint: bool = False  # of all heads' queries together, and keys (OLMo 2)
  # Attention scores are divided by the square root of this; 0: of head_dim.
  score_dim: int = 0
  sliding: Sliding = Sliding()
  latent: Latent = Latent()
  experts: Experts = Experts()
  # What the backward pass recomputes: nothing, all but products with weights, or whole
  # layers; from the most memory to the least.
  remat: Literal['none', 'dots', 'full'] = 'none'
  # Of products, keys and values; sums, norms, softmax and log-probs are float32.
  # `EXACT` with float64 parameters: all of it.
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self) -> None:
    sizes = ('d_model', 'layers', 'heads', 'kv_heads', 'head_dim', 'd_ff')
    _check_least(self, '', 1, *sizes)
    for name in sizes:
      if getattr(self, name) >= 2**24:
        raise ValueError(
          f'model.{name}: expected less than {2**24}, got {getattr(self, name)}'
        )
    _check_known(self, '', 'remat', REMAT)
    _check_known(self, '', 'dtype', (*DTYPES, EXACT))
    _check_known(self, '', 'norms', NORMS)
    _check_known(self, '', 'activation', ACTIVATIONS)
    _check_finite(self, '', 'rope_theta', 'norm_eps')
    _check_least(self, '', 0, 'score_dim')
    if self.heads % self.kv_heads:
      raise ValueError(
        f'model.kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'model.head_dim: expected an even number, got {self.head_dim}')
    if self.rope.channels > self.head_dim:
      raise ValueError(
        f'model.rope.channels: expected at most head_dim={self.head_dim}, got '
        f'{self.rope.channels}'
      )
    if self.rope.kind == 'longrope' and len(self.rope.divisors) != self.rope_dim // 2:
      raise ValueError(
        f'model.rope.divisors: expected {self.rope_dim // 2} for the pairs of channels '
        f'with RoPE, got {len(self.rope.divisors)}'
      )
    if self.qk_norm and self.qk_norm_joint:
      raise ValueError('model.qk_norm_joint: expected False with qk_norm')
    if self.activation != 'silu' and self.experts.count:
      raise ValueError(
        f'model.activation: expected silu with experts, got {self.activation}'
      )
    if self.experts.count and self.experts.dense_layers >= self.layers:
      raise ValueError(
        f'model.experts.dense_layers: expected less than layers={self.layers}, got '
        f'{self.experts.dense_layers}'
      )
    if self.latent.kv_rank:
      self._check_latent()

  def _check_latent(self) -> None:
    if self.latent.rope_dim >= self.head_dim:
      raise ValueError(
        f'model.latent.rope_dim: expected less than head_dim={self.head_dim}, got '
        f'{self.latent.rope_dim}'
      )
    if self.kv_heads != self.heads:
      raise ValueError(
        f'model.kv_heads: expected heads={self.heads} with latent attention, got '
        f'{self.kv_heads}'
      )
    for name, given in (
      ('qk_norm', self.qk_norm),
      ('qk_norm_joint', self.qk_norm_joint),
      ('stored_minus_1', self.stored_minus_1),
      ('sliding.theta', self.sliding.theta),
      ('rope.channels', self.rope.channels),
      ('rope.without', self.rope.without),
    ):
      if given:
        raise ValueError(
          f'model.{name}: expected none with latent attention, got {given}'
        )

  @property
  def rope_dim(self) -> int:
    """Channels of a head with RoPE."""
    if self.latent.kv_rank:
      return self.latent.rope_dim
    return self.rope.channels or self.head_dim

  @property
  def windows(self) -> list[int]:
    """Keys that a query attends to, per layer; 0 for all."""
    full = self.sliding.full
    return [0 if n in full else self.sliding.window for n in range(self.layers)]

  @property
  def value_dim(self) -> int:
    """Channels of a head's values."""
    return self.latent.value_dim if self.latent.kv_rank else self.head_dim

  @property
  def stacks(self) -> list[tuple[str, int, bool]]:
    """(name, number of layers, whether they have experts) per stack of equal layers."""
    first, dense = self.experts.dense_layers, self.experts.dense
    sparse = [
      bool(self.experts.count) and n >= first and n not in dense
      for n in range(self.layers)
    ]
    found: list[tuple[str, int, bool]] = []
    for kind, run in itertools.groupby(sparse):
      name = 'blocks' if kind or not any(sparse) else 'dense_blocks'
      before = sum(other == kind for _, _, other in found)
      found.append((f'{name}_{before + 1}' if before else name, len(list(run)), kind))
    return found


GROUPS = {'rope': Rope, 'sliding': Sliding, 'latent': Latent, 'experts': Experts}


def from_dict(fields: JsonObject) -> ModelConfig:
  """Returns the config from its `dataclasses.asdict`.

  Raises:
    TypeError: for an unknown field.
    ValueError: for an impossible value.
  """
  groups = {name: GROUPS[name](**fields[name]) for name in GROUPS if name in fields}
  return ModelConfig(**{**fields, **groups})
