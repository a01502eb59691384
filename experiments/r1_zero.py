"""R1-Zero in miniature: a base model that reasons badly, then pure RL.

  python -m experiments.r1_zero

DeepSeek-R1 (arXiv 2501.12948), section 2. Pretrains a small decoder on a synthetic web
of people who search, solve, calculate and follow instructions, badly. Then GRPO teaches
it reasoning with verifiable rewards alone. Cost on two CPU cores and results over
seeds: docs/results.md. Choose settings by the curves alone; see `tasks.splits`.
"""

import dataclasses

from r1jax import algorithms
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.stages import from_scratch
from r1jax.stages.experiment import Experiment, StageConfig, Trained
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, reward_pool
from r1jax.stages.supervised import PretrainConfig


@dataclasses.dataclass(frozen=True)
class R1Zero(StageConfig):
  """R1-Zero in miniature."""

  workdir: str = 'runs/r1_zero'  # all files of the run; an unfinished run in it resumes
  vocab_size: int = 400  # V, at most, of the tokenizer trained on the synthetic web
  accuracy_weight: float = 1.0  # weight of the accuracy reward
  format_weight: float = 0.0  # weight of the format reward; with 0 it is only measured
  language_weight: float = 0.0  # weight of the language reward; with 0 only measured
  shares: tuple[float, float, float] = (0.5, 0.25, 0.25)  # of `tasks.REASONING` in RL
  tasks: TaskConfigs = TaskConfigs()
  web: CorpusConfig = CorpusConfig()
  model: ModelConfig = ModelConfig(
    d_model=96, layers=3, heads=3, kv_heads=1, head_dim=32, d_ff=256, remat='dots'
  )  # a CPU recomputes norms and softmax faster than it loads them
  base: PretrainConfig = PretrainConfig(
    # Rows hold a prompt and its longest output, so that all positions are trained.
    steps=5000,
    rows_per_step=6,
    row_length=352,
    micro_batches=3,
    checkpoint_every=200,
    optim=OptimConfig(
      learning_rate=1e-2,
      muon_learning_rate=0.015,
      warmup_steps=20,
      schedule='cosine',
      eps=1e-6,  # tuned; the same in all stages of the miniature
      balance_rate=0.001,  # DeepSeek-V3's; any experts are randomly initialized
    ),
  )
  rl: RLConfig = RLConfig(
    steps=60,
    max_prompt_length=32,
    optim=OptimConfig(learning_rate=8e-4, schedule='cosine', eps=1e-6),
    # The mean over outputs divides the credit of a long search by its length. With the
    # mean over tokens it counts in full, and longer searches are learned sooner.
    grpo=dataclasses.replace(algorithms.PRESETS['grpo'], mean='tokens', clip_high=0.28),
  )
  evals: EvalConfig = EvalConfig()
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    from_scratch.check(self)

  def rewards(self) -> list[Weighted]:
    """Returns the rewards of an output.

    With a weight of 0.1 of the format, lengths fell from 77 to 38 tokens in 8 steps: in
    groups without a right answer the z-score amplifies any other difference.
    """
    return [
      Weighted('accuracy', rules.accuracy, self.accuracy_weight),
      Weighted('format', rules.format_reward, self.format_weight),
      Weighted('language', rules.language_consistency, self.language_weight),
    ]


def run(stage: Stage, config: R1Zero) -> Trained:
  """Pretrains a base model, then trains it by RL."""
  base = stage.pretrain(from_scratch.documents(config), config.base)
  problem_at = stage.problem_stream(config.shares)
  with reward_pool(config.rl, config.rewards()) as rewarder:
    final = stage.rl(lambda: base, rewarder, problem_at, config.rl, config.evals)
  return Trained({'base': base, 'final': final})


R1_ZERO = Experiment(
  'r1_zero', from_scratch.origin, run, phases=('base', 'rl'), report=True
)

if __name__ == '__main__':
  R1_ZERO.main(R1Zero())
