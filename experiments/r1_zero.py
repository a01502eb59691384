"""R1-Zero in miniature: a base model that reasons badly, then pure RL.

  python -m experiments.r1_zero

DeepSeek-R1 (arXiv 2501.12948), section 2. Pretrains a small decoder on a synthetic web
of people who search, solve, calculate and follow instructions, badly. Then GRPO teaches
it reasoning with verifiable rewards alone. Cost on two CPU cores and results over
seeds: docs/results.md.

Curves during training use the validation split; choose settings by them. The test split
is used once, for the row of the stage table at the end. The present settings were
chosen before there was a validation split; see `tasks.splits`.
"""

import dataclasses
import functools
from pathlib import Path

from r1jax import algorithms
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import corpus
from r1jax.miniature.corpus import CorpusConfig, TaskConfigs
from r1jax.model.config import ModelConfig
from r1jax.optim import OptimConfig
from r1jax.rewards import Weighted, rules
from r1jax.rollout.policy import Policy
from r1jax.stages import artifact, problem_sets
from r1jax.stages.experiment import Experiment, Origin, StageConfig, Trained
from r1jax.stages.problem_sets import problem_stream
from r1jax.stages.rl_config import RLConfig
from r1jax.stages.stage import Stage, check_rewards, reward_pool
from r1jax.stages.supervised import PretrainConfig
from r1jax.tasks import REASONING
from r1jax.text.tokenizer import check_vocab_size

TEMPLATE = 'plain'


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
    # remat: a CPU recomputes norms and softmax faster than it loads them.
    d_model=96,
    layers=3,
    heads=3,
    kv_heads=1,
    head_dim=32,
    d_ff=256,
    remat='dots',
  )
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
    check_vocab_size(self.vocab_size)
    check_rewards(self.rewards())
    problem_sets.check_shares(self.shares, REASONING)
    outputs = max(self.suite.max_length, *(n for _, n in self.rl.max_length))
    longest = self.rl.max_prompt_length + outputs
    if self.base.row_length < longest:
      raise ValueError(
        f'base.row_length: expected at least {longest} = rl.max_prompt_length + '
        f'rl.max_length or suite.max_length, got {self.base.row_length}; at positions '
        'that the base model never saw it writes garbage'
      )

  def rewards(self) -> list[Weighted]:
    """Returns the rewards of an output.

    The format has weight 0 by default: in groups without a right answer the z-score
    amplifies any other difference, and with a weight of 0.1 lengths fell from 77 to 38
    tokens in 8 steps. The language is measured, not rewarded.
    """
    return [
      Weighted('accuracy', rules.accuracy, self.accuracy_weight),
      Weighted('format', rules.format_reward, self.format_weight),
      Weighted('language', rules.language_consistency, self.language_weight),
    ]


def origin(config: R1Zero) -> Origin:
  """Returns a new model, with the run's tokenizer, or a new one for a new run."""
  problems = problem_sets.new_problems(
    config.tasks,
    config.data_dir,
    max_prompt_length=config.rl.max_prompt_length,
    max_positions=config.base.row_length,
  )
  document = functools.partial(corpus.document, config.web, config.tasks, config.seed)
  file = Path(config.workdir) / artifact.TOKENIZER
  tokenizer = problem_sets.tokenizer(file, document, TEMPLATE, config.vocab_size)
  problems.check_prompts(tokenizer, TEMPLATE)

  def keep(workdir: Path) -> None:
    if not (workdir / file.name).exists():
      tokenizer.save(workdir / file.name)

  policy = Policy(config.model, tokenizer, TEMPLATE)
  digests = {file.name: tokenizer.digest}
  return Origin(policy, problems, config.seed, digests, keep=keep)


def run(stage: Stage, config: R1Zero) -> Trained:
  """Pretrains a base model, then trains it by RL."""
  document = functools.partial(corpus.document, config.web, config.tasks, config.seed)
  base = stage.pretrain(document, config.base)
  problems = stage.problems.train[: len(REASONING)]
  problem_at = problem_stream(problems, config.shares, stage.seed)
  with reward_pool(config.rl, config.rewards()) as rewarder:
    final = stage.rl(lambda: base, rewarder, problem_at, config.rl, config.evals)
  return Trained({'base': base, 'final': final})


R1_ZERO = Experiment('r1_zero', origin, run, phases=('base', 'rl'), report=True)

if __name__ == '__main__':
  R1_ZERO.main(R1Zero())
