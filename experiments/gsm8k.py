"""A real model learns real mathematics: GRPO on GSM8K, tested before and after.

  python -m experiments.gsm8k --model.path DIR --data-dir data

Trains on the set's train split, of which a hash holds out 15 % for the curve. Then the
models before and after answer the test split, as in the paper's evaluations: one table
with a paired test, and a page. Stopped at any time, the same command goes on.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.evaluate import Evaluate, evaluate, look_up
from experiments.grpo import EXPERIMENT, GRPO
from r1jax import report
from r1jax.evaluation import benchmarks
from r1jax.evaluation.evaluate import EvalConfig
from r1jax.grpo import GRPOConfig
from r1jax.model.lora import LoraConfig
from r1jax.optim import OptimConfig
from r1jax.runtime import cli
from r1jax.runtime.errors import user_errors
from r1jax.sampling.sampler import SamplingConfig
from r1jax.sharding.mesh import MeshConfig
from r1jax.stages import artifact, problem_sets
from r1jax.stages.from_hub import HubConfig
from r1jax.stages.rl_config import MACHINE, RLConfig
from r1jax.tasks.data import DataConfig
from r1jax.text import templates

BENCHMARK = 'gsm8k'
SLOTS = 128  # outputs that a test samples at a time


@dataclasses.dataclass(frozen=True)
class GSM8K:
  """GRPO on GSM8K, and its test problems before and after."""

  workdir: str = 'runs/gsm8k'  # grpo/, before/, after/ and report.html
  # The folder with gsm8k/train.jsonl and gsm8k/test.jsonl
  data_dir: str = dataclasses.field(default='data', metadata=MACHINE)
  seed: int = 0  # of everything random
  format_weight: float = 0.1  # weight of an answer in a box; that of a right one is 1
  model: HubConfig = HubConfig(
    template=templates.CHAT_BOXED,
    dtype='auto',
    param_dtype='bfloat16',
    lora=LoraConfig(rank=16),
  )
  rl: RLConfig = RLConfig(
    steps=100,
    prompts_per_step=8,
    group_size=8,
    minibatches=1,
    max_prompt_length=320,
    max_length=((0, 384),),
    micro_batch_rows=4,
    evaluate_every=10,
    checkpoint_every=10,
    optim=OptimConfig(learning_rate=2e-4, warmup_steps=0, schedule='constant'),
    grpo=GRPOConfig(kl_coef=0.0),  # needs no pass of a reference
  )
  evals: EvalConfig = EvalConfig(
    problems=128,
    samples=1,
    prompts_per_batch=128,
    draw=SamplingConfig(temperature=0.6, top_p=0.95),
  )
  test_samples: int = 1  # outputs for each test problem
  test_limit: int = 0  # test problems, of a fixed shuffle; 0 takes all
  test_max_length: int = 1024  # the most tokens of an output

  def __post_init__(self) -> None:
    problem_sets.check_folders(self.workdir, self.data_dir)
    for field in ('adapter', 'system'):
      if value := getattr(self.model, field):
        raise ValueError(
          f'model.{field}: expected none, as the model is tested without it before '
          f'training, got {value!r}'
        )
    self.grpo()
    self.test('before', self.model.path)

  def grpo(self) -> GRPO:
    """Returns the config of the training."""
    return GRPO(
      workdir=str(Path(self.workdir) / 'grpo'),
      seed=self.seed,
      data=DataConfig(str(self.file('train')), verify='number'),
      format_weight=self.format_weight,
      model=self.model,
      rl=self.rl,
      evals=self.evals,
    )

  def test(
    self,
    name: str,
    model: str,
    dtype: Literal['float32', 'bfloat16', 'auto'] = 'auto',
  ) -> Evaluate:
    """Returns the config of an evaluation in the folder `name`."""
    return Evaluate(
      model=model,
      workdir=str(Path(self.workdir) / name),
      data_dir=self.data_dir,
      benchmarks=(BENCHMARK,),
      samples=self.test_samples,
      limit=self.test_limit,
      max_length=self.test_max_length,
      template=self.model.template,
      chat_template_kwargs=self.model.chat_template_kwargs,
      dtype=dtype,
      seed=self.seed,
      prompts_per_batch=SLOTS,
      mesh=MeshConfig(sampler_slots=SLOTS),
    )

  def file(self, split: str) -> Path:
    """Returns the file of a split of the set."""
    return Path(self.data_dir) / BENCHMARK / f'{split}.jsonl'


def main(config: GSM8K) -> None:
  """Trains the model, tests it before and after, and writes the page."""
  training = config.grpo()
  look_up(config.test('before', config.model.path))  # raises what a test would raise
  EXPERIMENT.launch(training)
  stage = artifact.load(training.workdir)
  # The run chose it; only with the same one do the two models differ by training alone.
  dtype = stage.policy.config.dtype
  before = config.test('before', config.model.path, dtype)
  after = config.test('after', training.workdir, dtype)
  for one in (before, after):
    print('\n'.join(evaluate(one)))
  table = benchmarks.compare(Path(before.workdir), Path(after.workdir))
  print('\n'.join(benchmarks.markdown(table)))
  print(report.write(training.workdir, Path(config.workdir), tested=table))


if __name__ == '__main__':
  with user_errors():
    main(cli.parse(GSM8K()))
