"""The shape of DeepSeek-V3 [N], in numbers."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """A decoder with multi-head latent attention and a mixture of experts."""

  vocab_size: int = 129_280  # V
  d_model: int = 7_168  # D
  layers: int = 61  # L
  dense_layers: int = 3  # the first ones, without experts
  heads: int = 128  # H
  q_rank: int = 1_536  # of the latent that queries are made from
  kv_rank: int = 512  # of the latent that keys and values are made from, and cached
  rope_head: int = 64  # channels of a head that carry the position
  nope_head: int = 128  # and those that don't
  value_head: int = 128
  d_ff: int = 18_432  # F, of a dense layer
  expert_d_ff: int = 2_048  # F, of an expert
  experts: int = 256  # E, routed
  shared_experts: int = 1  # that every token takes
  active_experts: int = (
    8  # of the routed ones, a token; sigmoid gates, biased to balance
  )
  groups: int = 8  # of experts
  active_groups: int = 4  # that a token's experts come from
  gate_scale: float = 2.5  # of the experts' sum
  predicted_ahead: int = 1  # depth of multi-token prediction

  def __post_init__(self) -> None:
    if self.experts % self.groups:
      raise ValueError(
        f'groups: expected a divisor of experts = {self.experts}, got {self.groups}'
      )
    reachable = self.experts // self.groups * self.active_groups
    if self.active_experts > reachable:
      raise ValueError(
        f'active_experts: expected at most {reachable}, the experts of '
        f'{self.active_groups} groups, got {self.active_experts}'
      )


DEEPSEEK_V3 = Shape()
PARAMETERS = 671e9
ACTIVE_PARAMETERS = 37e9  # a token
