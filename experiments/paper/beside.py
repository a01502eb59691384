"""The paper's results, in the form that the report shows next to its own."""

from experiments.paper import data, results
from r1jax.report.paper import Paper

PAPER = Paper(
  zero=(
    results.R1_ZERO['AIME 2024 pass@1, before'].nature,
    results.R1_ZERO['AIME 2024 pass@1'].nature,
  ),
  stages=results.STAGES,
  benchmarks=(
    'AIME 2024',
    'AIME 2024 cons@64',
    'MATH-500',
    'GPQA Diamond',
    'LiveCodeBench',
    'Codeforces',
  ),
  students=results.STUDENTS,
  rl_32b=results.RL_32B,
  data=data.SFT._asdict(),
  data_tokens=data.SFT_MEAN_TOKENS,
)
