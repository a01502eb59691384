"""What a decoder is: its sizes, checked when they are written down."""

import dataclasses
import math
from typing import Literal

REMAT = ('none', 'dots', 'full')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of a decoder-only transformer (Llama-style: RMSNorm, RoPE, SwiGLU, GQA)."""

  d_model: int = 128  # D, width of the residual stream
  layers: int = 4  # L
  heads: int = 4  # H, query heads
  kv_heads: int = 2  # K, each shared by heads / kv_heads query heads
  head_dim: int = 32  # C, channels of a head; even, RoPE turns them in pairs
  d_ff: int = 384  # F, hidden width of the SwiGLU
  rope_theta: float = 10_000.0  # longest RoPE wavelength / 2 pi, in tokens
  norm_eps: float = 1e-6  # added to the mean square in RMSNorm
  tied: bool = True  # one matrix embeds tokens and reads logits
  # What the backward pass computes again: nothing, all but the products with weights,
  # or a whole layer. From the most memory to the least.
  remat: Literal['none', 'dots', 'full'] = 'none'
  # Of products, keys and values; parameters, sums, norms, softmax and log-probs stay
  # float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self) -> None:
    for name in ('d_model', 'layers', 'heads', 'kv_heads', 'head_dim', 'd_ff'):
      if getattr(self, name) < 1:
        raise ValueError(f'model.{name}: expected 1 or more, got {getattr(self, name)}')
      if getattr(self, name) >= 2**24:
        raise ValueError(
          f'model.{name}: expected less than {2**24}, got {getattr(self, name)}'
        )
    for name, known in (('remat', REMAT), ('dtype', DTYPES)):
      if getattr(self, name) not in known:
        raise ValueError(
          f'model.{name}: expected one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    for name in ('rope_theta', 'norm_eps'):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(
          f'model.{name}: expected a finite number above 0, got {getattr(self, name)}'
        )
    if self.heads % self.kv_heads:
      raise ValueError(
        f'model.kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'model.head_dim: expected an even number, got {self.head_dim}')
