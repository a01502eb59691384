"""The config of an RL stage, checked on construction, and its schedules."""

import dataclasses
import math
from typing import Literal, TypeVar

from r1jax import grpo
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig
from r1jax.terms.advantages import UNPENALISED

Value = TypeVar('Value')
MOST_WORKERS = 256  # processes
MACHINE = {'machine': True}  # metadata of fields that may change when a run resumes
LONGEST = 2**20  # tokens of an output


@dataclasses.dataclass(frozen=True)
class RLConfig:
  """One RL stage. Schedules are pairs (after this many rollouts, value).

  The temperature applies to the rollout and to all log-probs in the loss. So the
  metrics kl and entropy are measured at it, and grpo.kl_coef weights that kl.
  """

  steps: int = 40  # rollouts
  prompts_per_step: int = 16  # P, of a rollout (R1-Zero: 512, 32 per update)
  group_size: int = 16  # G (R1-Zero: 16)
  max_prompt_length: int = 24  # S, tokens
  max_length: tuple[tuple[int, int], ...] = ((0, 320),)  # T, tokens, by step
  temperature: tuple[tuple[int, float], ...] = ((0, 1.0),)  # by step
  epochs: int = 1  # passes over a rollout
  int8_rollout: bool = False  # sample with int8 weights; costs a scoring pass
  minibatches: int = 2  # updates per epoch, a part of the rollout each (R1-Zero: 16)
  micro_batch_rows: int = 16  # rows of T tokens; a gradient is summed over these parts
  offload: bool = dataclasses.field(
    default=False, metadata=MACHINE
  )  # keep optimizer state and reference in host memory
  reference_every: int = 0  # steps between updates of the reference (R1: 400 updates)
  evaluate_every: int = 10  # steps
  checkpoint_every: int = 10  # steps
  profile_step: int = dataclasses.field(
    default=0, metadata=MACHINE
  )  # step to trace into <workdir>/profile; 0 is none
  # Groups whose rewards, before penalties, are equal: 'keep' them in the means, 'drop'
  # them from updates, or 'replace' them by further prompts (DAPO)
  equal_groups: Literal['keep', 'drop', 'replace'] = 'keep'
  most_prompts: int = 4  # times prompts_per_step that a step asks to replace groups
  overlong_tokens: int = 0  # last tokens in which the reward falls by 1 (DAPO); 0: none
  learn_cut_off: bool = True  # outputs without a stop token; False drops them
  logged_samples: int = 4  # outputs per step that are written to samples.jsonl
  reward_workers: int = dataclasses.field(default=2, metadata=MACHINE)  # processes
  reward_timeout: float = dataclasses.field(
    default=5.0, metadata=MACHINE
  )  # seconds per output
  optim: OptimConfig = OptimConfig()
  grpo: GRPOConfig = GRPOConfig()

  def __post_init__(self) -> None:
    zero = {'reference_every', 'logged_samples', 'profile_step', 'overlong_tokens'}
    for name in ('steps', 'prompts_per_step', 'group_size', 'max_prompt_length',
                 'epochs', 'minibatches', 'micro_batch_rows', 'evaluate_every',
                 'checkpoint_every', 'reward_workers', 'most_prompts',
                 *zero):  # fmt: skip
      least = 0 if name in zero else 1
      if getattr(self, name) < least:
        raise ValueError(
          f'rl.{name}: expected {least} or more, got {getattr(self, name)}'
        )
    if self.profile_step > self.steps:
      raise ValueError(
        f'rl.profile_step: expected at most rl.steps = {self.steps}, got '
        f'{self.profile_step}'
      )
    if self.reward_workers > MOST_WORKERS:
      raise ValueError(
        f'rl.reward_workers: expected at most {MOST_WORKERS}, got {self.reward_workers}'
      )
    if not 0 < self.reward_timeout < math.inf:
      raise ValueError(
        'rl.reward_timeout: expected a finite number of seconds above 0, got '
        f'{self.reward_timeout}'
      )
    prompts, parts = self.prompts_per_step, self.minibatches
    if prompts % parts:
      raise ValueError(
        f'rl.prompts_per_step: expected a multiple of {parts} (rl.minibatches), got '
        f'{prompts}; set it to {-(-prompts // parts) * parts}'
      )
    grpo.check_group_size(self.grpo, self.group_size, self.prompts_per_step)
    _check_schedule('max_length', self.max_length, 1, LONGEST)
    # Not 0, as equal outputs have no advantage.
    _check_schedule('temperature', self.temperature, 0.01, 100)
    shortest = min(length for _, length in self.max_length)
    if self.overlong_tokens > shortest:
      raise ValueError(
        f'rl.overlong_tokens: expected at most the least rl.max_length = {shortest}, '
        f'got {self.overlong_tokens}'
      )
    if self.overlong_tokens and self.grpo.advantage in UNPENALISED:
      raise ValueError(
        f'rl.overlong_tokens: expected 0 with rl.grpo.advantage '
        f'{self.grpo.advantage!r}, {UNPENALISED[self.grpo.advantage]}, got '
        f'{self.overlong_tokens}'
      )
    if self.equal_groups != 'keep' and self.grpo.advantage == 'batch_whitened':
      raise ValueError(
        "rl.equal_groups: expected 'keep' with rl.grpo.advantage 'batch_whitened', "
        f'which learns from equal groups too, got {self.equal_groups!r}'
      )
    if self.equal_groups == 'replace' and self.most_prompts < 2:
      raise ValueError(
        "rl.most_prompts: expected 2 or more with rl.equal_groups 'replace', got "
        f'{self.most_prompts}'
      )
    if self.equal_groups != 'keep' and self.group_size < 2:
      raise ValueError(
        "rl.equal_groups: expected 'keep' with rl.group_size 1, as one reward is "
        f'always equal to itself, got {self.equal_groups!r}'
      )

  @property
  def longest(self) -> int:
    """The largest T of the schedule, tokens."""
    return max(length for _, length in self.max_length)

  def problem_numbers(self, step: int) -> range:
    """Returns the indices of a step's problems, of all that the stage asks in order.

    With 'replace' these are the most that it may ask.
    """
    times = self.most_prompts if self.equal_groups == 'replace' else 1
    each = self.prompts_per_step * times
    return range((step - 1) * each, step * each)


def _check_schedule(name: str, schedule: tuple, least: float, most: float) -> None:
  starts = [start for start, _ in schedule]
  if not starts or starts[0] != 0 or starts != sorted(set(starts)):
    raise ValueError(
      f'rl.{name}: expected pairs (step, value) from step 0 on with rising steps, '
      f'got {schedule}'
    )
  if any(not least <= value <= most for _, value in schedule):
    raise ValueError(
      f'rl.{name}: expected values from {least} to {most}, got {schedule}'
    )


def value_at(schedule: tuple[tuple[int, Value], ...], step: int) -> Value:
  """Returns the value of a schedule after `step` rollouts."""
  return [value for start, value in schedule if start <= step][-1]
