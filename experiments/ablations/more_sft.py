"""RL against more epochs of the SFT before it, at about equal tokens.

The paper's R1 is trained by SFT first, then by RL. Here the cold start continues either
with RL, or with more epochs of its own examples.
"""

import dataclasses
from collections.abc import Sequence

from experiments import cold_start, reasoning_rl
from experiments.ablations import ablation
from r1jax.evaluation.suite import SuiteConfig
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
  optim: OptimConfig = dataclasses.replace(
    cold_start.ColdStart.sft.optim, learning_rate=8e-4, muon_learning_rate=0.0012
  )
  suite: SuiteConfig = SuiteConfig()

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.tokens < 1:
      raise ValueError(f'tokens: expected 1 or more, got {self.tokens}')


def more_sft(base: reasoning_rl.ReasoningRL) -> MoreSFT:
  """Returns SFT on as many tokens as RL of the base is expected to sample."""
  outputs = base.rl.steps * base.rl.prompts_per_step * base.rl.group_size
  length = min(MEAN_LENGTH, base.rl.longest)
  return MoreSFT(tokens=outputs * length, mesh=base.mesh, suite=base.suite)


def examples(
  parent: Artifact, sources: Sequence[Sequence[Problem]]
) -> list[tuple[str, str]]:
  """Returns the questions and outputs that the cold start was trained on.

  Raises:
    ValueError: the problem of one of them no longer exists.
  """
  most = parent.record['config']['rejection']['most_a_problem']
  kept = rejection.kept_outputs(parent.path, most)
  known = {problem.id for source in sources for problem in source}
  if unknown := {line['problem'] for line in kept} - known:
    raise ValueError(
      f'{parent.path / rejection.OUTPUTS}: expected outputs to the problems of its '
      f'R1-Zero, got one to {min(unknown)}; run cold_start again in another folder'
    )
  return cold_start.examples(kept, sources)


def run(stage: Stage, config: MoreSFT) -> Trained:
  """Continues the cold start's SFT, with the same rows."""
  parent = stage.parent
  found = examples(parent, stage.problems.train)
  sft = SFTConfig(**{**parent.record['config']['sft'], 'optim': config.optim})
  epoch = stage.epochs(found, sft).tokens / sft.epochs
  sft = dataclasses.replace(sft, epochs=max(1, round(config.tokens / epoch)))
  name = "the cold start's sft.rows_per_step / sft.micro_batches"
  check_rows(stage.mesh, {name: sft.rows_per_step // sft.micro_batches})
  return Trained({'final': stage.sft(stage.params(), found, sft)})


MORE_SFT = Experiment('more_sft', child_of('cold_start'), run, phases=('sft',))


def launch(config: reasoning_rl.ReasoningRL | MoreSFT) -> None:
  """Runs a variant: reasoning RL or more SFT."""
  if isinstance(config, MoreSFT):
    MORE_SFT.launch(config)
  else:
    reasoning_rl.REASONING_RL.launch(config)


ABLATION = ablation.Ablation(
  question='Does RL do more than SFT on the same number of tokens?',
  variants={'rl': lambda base: base, 'more_sft': more_sft},
  launch=launch,
)

if __name__ == '__main__':
  ablation.main(ABLATION, ablation.Command(workdir='runs/ablations/more_sft'))
