"""Details that the paper leaves open, and the choices of r1jax.

A choice that is a setting names its field in this package, so that it can be changed.
"""

from typing import Any, NamedTuple


class Choice(NamedTuple):
  """A question that the paper does not answer, or answers ambiguously."""

  question: str
  paper: str  # the paper's words on it
  ours: str  # the choice of r1jax
  why: str
  setting: str = ''  # field with the choice, as an expression: module.CONSTANT.field
  value: Any = None  # of that field


CHOICES = (
  Choice(
    'Is the ratio per token or per output?',
    '[N] eq. 1 writes it for the whole output.',
    'per token',
    'Every public implementation does so; the product over thousands of tokens leaves '
    'any clip range at once.',
    'r1_zero.R1_ZERO.rl.grpo.ratio',
    'token',
  ),
  Choice(
    'How are the tokens of a batch averaged?',
    '[N] eq. 1 has one term per output, so there is nothing to average within it.',
    'within each output, then over outputs',
    'With a ratio per token, each output keeps the weight that eq. 1 gives it.',
    'r1_zero.R1_ZERO.rl.grpo.mean',
    'outputs',
  ),
  Choice(
    "Is std that of the group or an estimate (Bessel's correction)?",
    'std(r), nothing more.',
    'the estimate, divided by G − 1',
    'Most public code; with G = 16 advantages are 3 % smaller than with G.',
    'r1_zero.R1_ZERO.rl.grpo.advantage',
    'group_zscore',
  ),
  Choice(
    'Where does the KL penalty enter?',
    'In the objective next to the surrogate, for the whole output.',
    'in the loss, per token, outside the clip; never in the reward',
    'In the reward it would be divided by the std of the group; per token, since the '
    'ratio is too.',
    'r1_zero.R1_ZERO.rl.grpo.kl',
    'k3',
  ),
  Choice(
    'Which models does the KL compare when the temperature is not 1?',
    'Nothing; stage 4 samples at 0.7.',
    'policy and reference at the temperature of the rollout',
    'The ratio compares the same models. At 0.7 the two models are usually further '
    'apart than at 1, so β = 0.001 holds stage 4 more tightly than stage 2; compare '
    'curves of KL and entropy only within a stage.',
    'r1.ALL_SCENARIOS.rl.temperature',
    ((0, 0.7),),
  ),
  Choice(
    'What is a step, and how many updates does a rollout serve?',
    '32 questions per step, rollouts of 8,192 outputs in 16 mini-batches, one epoch.',
    'a step is an update; 16 per rollout',
    '32 × 16 = 512 outputs per step, and 8,192 / 16 = 512 per mini-batch: the same.',
    'r1_zero.R1_ZERO.rl.minibatches',
    16,
  ),
  Choice(
    'Which length limit holds for the rollout that contains step 8,200?',
    '32,768 tokens until step 8,200, then 65,536.',
    'the shorter one, for 513 rollouts',
    'It is sampled after step 8,192. Other counts are rounded up too.',
    'r1_zero.R1_ZERO.rl.max_length',
    ((0, 32_768), (513, 65_536)),
  ),
  Choice(
    'Does the length limit include the prompt?',
    'Maximum length, nothing more.',
    'no, only the output',
    'A long question must not shorten the thoughts.',
  ),
  Choice(
    'On which set are 10,400 steps 1.6 epochs?',
    '10,400 × 32 / 1.6 is 208,000 questions; the table of RL data sums to 146,000, of '
    'which 80,000 for reasoning.',
    'on the 80,000; the steps are kept, the epochs follow',
    'The schedules of reference and length are given in steps.',
    'r1_zero.R1_ZERO.rl.steps',
    650,
  ),
  Choice(
    "What is R1-Zero's ε?",
    'Nothing; ε = 10 is given for stage 2.',
    '0.2',
    "PPO's; most public code.",
    'r1_zero.R1_ZERO.rl.grpo.clip_high',
    0.2,
  ),
  Choice(
    'What does ε = 10 clip?',
    'The ratio to 1 − ε … 1 + ε, that is −9 … 11.',
    'only above 11: clip_low 1, clip_high 10',
    'A ratio is never negative, so the lower bound does nothing.',
    'r1.REASONING.rl.grpo.clip_low',
    1.0,
  ),
  Choice(
    'How long is stage 2?',
    'Like R1-Zero; no number of its own.',
    "R1-Zero's steps and lengths",
    'The paper gives no others.',
    'r1.REASONING.rl.steps',
    650,
  ),
  Choice(
    'How long may outputs be in stage 4?',
    'Nothing of its own.',
    '32,768 tokens',
    'Neither its examples in stage 3 nor evaluated outputs are longer.',
    'r1.ALL_SCENARIOS.rl.max_length',
    ((0, 32_768),),
  ),
  Choice(
    'What are the weights of the rewards?',
    'Accuracy and format are equal; language and the general reward are added.',
    '1 each, format also in stages 2 and 4',
    'The formulas are a plain sum.',
  ),
  Choice(
    'What does stage 3 start from?',
    'The base, not the model of stage 2 that wrote the examples.',
    'the base',
    'Stage 3 gets what stage 2 learned through the examples.',
    'r1.REJECTION.start',
    'DeepSeek-V3-Base',
  ),
  Choice(
    'Does a batch of 128 (64 for students) count examples or filled rows?',
    'Batch 128 (64), context 32,768.',
    'rows, filled with examples',
    'The mean example of 5,355 tokens fills 16 % of a row.',
    'r1.REJECTION.sft.rows_per_step',
    128,
  ),
  Choice(
    'How many examples and epochs does the cold start have?',
    'Thousands; 2 to 3.',
    '5,000; 3',
    'If examples are as long as in stage 3, three passes are only about 20 updates of '
    '128 filled rows.',
    'r1.COLD_START.sft.epochs',
    3,
  ),
  Choice(
    'How many epochs do students learn?',
    '2 to 3.',
    '2',
    'As in stage 3, on the same examples.',
    "distill.STUDENTS['Qwen-32B'].sft.epochs",
    2,
  ),
  Choice(
    'Which optimizer, and is there a warm-up?',
    'Learning rates only.',
    'AdamW: b1 0.9, b2 0.99, no decay, no warm-up',
    'A warm-up would change the rates that the paper gives. b2 is between the 0.95 of '
    "V3's pre-training and the usual 0.999.",
    'r1_zero.R1_ZERO.rl.optim.warmup_steps',
    0,
  ),
  Choice(
    "What is Adam's ε?",
    'Nothing.',
    '1e-8',
    'The usual value. With 671B parameters an entry of a gradient of norm 1 is 1.2e-6: '
    'steps are 0.97 of the learning rate (0.83 at norm 0.1); with ε = 1e-6 they would '
    'be 0.43 (0.09).',
    'r1_zero.R1_ZERO.rl.optim.eps',
    1e-8,
  ),
  Choice(
    "Do updates move the experts' routing biases?",
    "Nothing; V3's pre-training ends without such updates.",
    'no',
    'A bias follows the load, not a reward, so the policy would change although there '
    'is nothing to learn.',
    'r1_zero.R1_ZERO.rl.optim.balance_rate',
    0.0,
  ),
)

INTRODUCTION = """\
# What the paper leaves open

The paper does not fix every detail of the recipe. This table lists what it leaves open
and what the presets in [experiments/paper](../experiments/paper) take. [N] is the
Nature version, [v1] the first version on arXiv.

The miniature differs where its docstrings say so: its mean is over all tokens, and in
R1-Zero its upper clip range is 0.28.

`python -m experiments.paper.choices > docs/paper_choices.md` writes this page. A test
binds each choice that is a setting to its value in the presets.
"""


def markdown() -> str:
  """Returns docs/paper_choices.md: the choices as a table."""
  rows = [(c.question, c.paper, c.ours, c.why) for c in CHOICES]
  table = [('question', 'the paper', 'here', 'why'), ('---',) * 4, *rows]
  lines = [f'| {" | ".join(row)} |' for row in table]
  return f'{INTRODUCTION}\n' + '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(markdown(), end='')
