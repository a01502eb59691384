"""The paper's results, in percent except for the Codeforces rating.

They are not r1jax's results, and a miniature reproduces their order, not their values.
An independent evaluation of the students' weights was up to 7 points away on AIME.
"""

from typing import NamedTuple

from experiments.paper import data
from r1jax.report.paper import Paper


class TwoVersions(NamedTuple):
  """A number in [N] and in [v1]; None if that version does not give it."""

  nature: float | None
  first: float | None


R1_ZERO = {
  'AIME 2024 pass@1, before': TwoVersions(15.6, 15.6),
  'AIME 2024 pass@1': TwoVersions(77.9, 71.0),
  'AIME 2024 cons@16': TwoVersions(86.7, None),
  'AIME 2024 cons@64': TwoVersions(None, 86.7),
  'MATH-500': TwoVersions(95.9, 95.9),
  'GPQA Diamond': TwoVersions(75.8, 73.3),
  'LiveCodeBench': TwoVersions(50.0, 50.0),
  'Codeforces': TwoVersions(1444, 1444),
}


class Stages(NamedTuple):
  """Results of R1-Zero, and of the model after each stage of `r1`."""

  r1_zero: float
  dev1: float
  dev2: float
  dev3: float
  r1: float


STAGES = {  # [N]
  'AIME 2024': Stages(77.9, 59.0, 74.0, 78.1, 79.8),
  'MATH-500': Stages(95.9, 94.2, 95.9, 95.4, 97.3),
  'Codeforces': Stages(1444, 1534, 1687, 1746, 2029),
  'LiveCodeBench': Stages(50.0, 57.5, 63.5, 64.6, 65.9),
  'GPQA Diamond': Stages(75.8, 66.1, 70.7, 71.2, 71.5),
  'IF-Eval': Stages(46.6, 71.7, 72.0, 78.1, 83.3),
  'AlpacaEval 2': Stages(24.7, 50.1, 55.8, 62.1, 87.6),
  'ArenaHard': Stages(53.6, 77.0, 73.2, 75.6, 92.3),
}


class Student(NamedTuple):
  """Results of a student; None if the paper gives none."""

  aime_2024: float  # pass@1
  aime_2024_cons_64: float | None
  math_500: float
  gpqa_diamond: float
  livecodebench: float
  codeforces: float | None


STUDENTS = {  # [N]; the keys of `distill.STUDENTS`
  'Qwen-1.5B': Student(28.9, 52.7, 83.9, 33.8, 16.9, 954),
  'Qwen-7B': Student(55.5, 83.3, 92.8, 49.1, 37.6, 1189),
  'Qwen-14B': Student(69.7, 80.0, 93.9, 59.1, 53.1, 1481),
  'Qwen-32B': Student(72.6, 83.3, 94.3, 62.1, 57.2, 1691),
  'Llama-8B': Student(50.4, 80.0, 89.1, 49.0, 39.6, 1205),
  'Llama-70B': Student(70.0, 86.7, 94.5, 65.2, 57.5, 1633),
}

RL_32B = Student(47.0, None, 91.6, 55.0, 40.2, None)  # `distill.RL_32B`: RL alone [N]


class Other(NamedTuple):
  """Results of a model that the paper compares with R1."""

  aime_2024: float  # pass@1
  math_500: float


OTHERS = {  # [v1], Table 4
  'o1-1217': Other(79.2, 96.4),
  'GPT-4o-0513': Other(9.3, 74.6),
  'Claude-3.5-Sonnet-1022': Other(16.0, 78.3),
}

# Benchmarks of `tasks.benchmarks` that the paper has: pass@1 by model. For IFEval
# that is the strict accuracy of prompts.
PASS_AT_1 = {
  'aime24': {
    'DeepSeek-R1': STAGES['AIME 2024'].r1,
    **{f'R1-Distill-{name}': one.aime_2024 for name, one in STUDENTS.items()},
    **{name: one.aime_2024 for name, one in OTHERS.items()},
  },
  'math500': {
    'DeepSeek-R1': STAGES['MATH-500'].r1,
    **{f'R1-Distill-{name}': one.math_500 for name, one in STUDENTS.items()},
    **{name: one.math_500 for name, one in OTHERS.items()},
  },
  'ifeval': {'DeepSeek-R1': STAGES['IF-Eval'].r1},
}

# The results that the report shows next to its own.
PAPER = Paper(
  zero=(
    R1_ZERO['AIME 2024 pass@1, before'].nature,
    R1_ZERO['AIME 2024 pass@1'].nature,
  ),
  stages=STAGES,
  benchmarks=(
    'AIME 2024',
    'AIME 2024 cons@64',
    'MATH-500',
    'GPQA Diamond',
    'LiveCodeBench',
    'Codeforces',
  ),
  students=STUDENTS,
  rl_32b=RL_32B,
  data=data.SFT._asdict(),
  data_tokens=data.SFT_MEAN_TOKENS,
)
