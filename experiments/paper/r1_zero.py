"""R1-Zero: pure RL on DeepSeek-V3-Base, without SFT, with rewards by rules.

  python -m experiments.paper.r1_zero --model.path DeepSeek-V3-Base --mesh.fsdp 64
  python -m scripts.plan experiments.paper.r1_zero --topology v5p:4x8x8 --mesh.fsdp 4

Paper: [N], the section on R1-Zero and its methods. There AIME 2024 pass@1 went from
15.6 to 77.9 %; see `results.R1_ZERO`. The first command runs this recipe on any
checkpoint, on a laptop with a tiny one or on a pod; `experiments.grpo` runs the same
code at sizes for one machine. The paper's problems are not published; `--task` chooses
a task of r1jax instead.
"""

import dataclasses
from typing import ClassVar

from experiments import grpo
from experiments.grpo import GRPO
from experiments.paper import data
from experiments.paper.stage import BASE, MINIBATCHES, RL, Rewards, rollouts
from r1jax.grpo import GRPOConfig
from r1jax.optim import OptimConfig
from r1jax.stages import from_hub
from r1jax.stages.experiment import Experiment
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.rl_config import RLConfig

TEMPLATE = 'r1_zero'  # a name in text.templates.TEMPLATES: [v1], Table 1

R1_ZERO = RL(
  start=BASE,
  rl=RLConfig(
    steps=rollouts(10_400),  # 650 [N]
    prompts_per_step=512,  # of a rollout: 8,192 outputs / 16; an update takes 32 [N]
    group_size=16,  # G [N]
    max_prompt_length=2_048,  # ours
    max_length=((0, 32_768), (rollouts(8_200), 65_536)),  # at 512.5, so 513 [N]
    temperature=((0, 1.0),),  # [N]
    epochs=1,  # one inner epoch [N]
    minibatches=MINIBATCHES,
    reference_every=rollouts(400),  # 25 [N]
    optim=OptimConfig(
      learning_rate=3e-6,  # [N]
      warmup_steps=0,  # the paper names none
      schedule='constant',  # ours: the paper names none
    ),
    grpo=GRPOConfig(
      advantage='group_zscore',  # (r - mean) / std [N]
      ratio='token',  # see `choices`
      surrogate='clip',  # [N]
      kl='k3',  # [N]
      mean='outputs',  # see `choices`
      clip_low=0.2,  # ours: PPO's; the paper gives none for R1-Zero
      clip_high=0.2,
      kl_coef=0.001,  # beta [N]
    ),
  ),
  rewards=((0, Rewards(accuracy=1.0, format=1.0)),),  # equal weight [N]
  data=((0, data.REASONING),),  # [N]
)


@dataclasses.dataclass(frozen=True)
class PaperR1Zero(GRPO):
  """The paper's R1-Zero on a checkpoint."""

  start: ClassVar[str] = R1_ZERO.start  # what `scripts.plan` plans

  workdir: str = 'runs/paper/r1_zero'  # all files of the run
  task: str = 'gsm8k'  # a module of r1jax.tasks
  model: HubConfig = HubConfig(template=TEMPLATE, dtype='auto')
  rl: RLConfig = R1_ZERO.rl


EXPERIMENT = Experiment(
  'paper_r1_zero', from_hub.origin, grpo.run, phases=('rl',), report=True
)

if __name__ == '__main__':
  EXPERIMENT.main(PaperR1Zero())
