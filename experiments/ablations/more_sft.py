"""RL against more epochs of the SFT before it, at about equal tokens.

The paper's R1 is trained by SFT first, then by RL. Here the cold start continues either
with RL, or with more epochs of its own examples.
"""

import dataclasses
import json
from collections.abc import Sequence

from experiments import reasoning_rl
from experiments.ablations import ablation
from r1jax.evaluation.suite import SuiteConfig
from r1jax.miniature import rewriting
from r1jax.optim import OptimConfig
from r1jax.sharding.mesh import check_rows
from r1jax.stages import rejection
from r1jax.stages.artifact import Artifact
from r1jax.stages.experiment import Experiment, StageConfig, Trained, child_of
from r1jax.stages.stage import Stage
from r1jax.stages.supervised import SFTConfig
from r1jax.tasks import Problem

MEAN_LENGTH = 100  # tokens of an output in reasoning RL (80 to 120 during training)


@dataclasses.dataclass(frozen=True)
class MoreSFT(StageConfig):
  """More epochs of the cold start's own examples."""

  parent: str = 'runs/cold_start'  # the work directory of cold_start
  workdir: str = 'runs/more_sft'  # all files of the stage
  tokens: int = 1_500_000  # to train on, rounded to whole epochs, prompts included
  # A quarter of the cold start's peak, as the examples are learned already.
  optim: OptimConfig = OptimConfig(
    learning_rate=8e-4,
    muon_learning_rate=0.0012,
    warmup_steps=20,
    schedule='cosine',
    eps=1e-6,
  )
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.tokens < 1:
      raise ValueError(f'tokens: expected 1 or more, got {self.tokens}')


def more_sft(base: reasoning_rl.ReasoningRL) -> MoreSFT:
  """Returns SFT on as many tokens as RL of the base is expected to sample."""
  outputs = base.rl.steps * base.rl.prompts_per_step * base.rl.group_size
  length = min(MEAN_LENGTH, max(n for _, n in base.rl.max_length))
  return MoreSFT(tokens=outputs * length, mesh=base.mesh, suite=base.suite)


def examples(
  parent: Artifact, sources: Sequence[Sequence[Problem]]
) -> list[tuple[str, str]]:
  """Returns the questions and outputs that the cold start was trained on.

  Raises:
    ValueError: the problem of one of them no longer exists.
  """
  problems = {problem.id: problem for source in sources for problem in source}
  file = parent.path / 'outputs.jsonl'
  lines = [json.loads(raw) for raw in file.read_bytes().splitlines()]
  kept = rejection.select(lines, parent.record['config']['rejection']['most_a_problem'])
  if unknown := {line['problem'] for line in kept} - set(problems):
    raise ValueError(
      f'{file}: expected outputs to the problems of its R1-Zero, got one to '
      f'{min(unknown)}; run cold_start again in another folder'
    )
  return [
    (line['question'], rewriting.rewrite(problems[line['problem']], line['output']))
    for line in kept
  ]


def epochs(found: list[tuple[str, str]], parent: Artifact, tokens: int) -> int:
  """Returns the number of epochs nearest to `tokens`, at least 1."""
  sizes = [len(ids) for pair in found for ids in parent.policy.example_ids(*pair)]
  return max(1, round(tokens / sum(sizes)))


def run(stage: Stage, config: MoreSFT) -> Trained:
  """Continues the cold start's SFT, with the same rows."""
  parent = stage.parent
  found = examples(parent, stage.problems.train)
  before = parent.record['config']['sft']
  sft = SFTConfig(
    **{
      **before,
      'epochs': epochs(found, parent, config.tokens),
      'optim': config.optim,
    }
  )
  name = "the cold start's sft.rows_per_step / sft.micro_batches"
  check_rows(stage.mesh, {name: sft.rows_per_step // sft.micro_batches})
  return Trained({'final': stage.sft(stage.params(), found, sft)})


MORE_SFT = Experiment(
  'more_sft', child_of('more_sft', 'cold_start'), run, phases=('sft',)
)


def launch(config: reasoning_rl.ReasoningRL | MoreSFT) -> None:
  """Runs a variant: reasoning RL or more SFT."""
  experiment = MORE_SFT if isinstance(config, MoreSFT) else reasoning_rl.REASONING_RL
  experiment.launch(config)


ABLATION = ablation.Ablation(
  question='Does RL do more than SFT on the same number of tokens?',
  variants={'rl': lambda base: base, 'more_sft': more_sft},
  launch=launch,
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/more_sft'))
